"""What MagiCapture's parts are worth, on the toy checkpoint: `python -m bench.magicapture_effect`

Eight subject-style pairs. The subject is one person in five cartoon pictures, the style five
pictures of other people; the truth, which no photograph has, is the person drawn in that style.
Every method gets the same pictures and the same number of steps and samples the same noise.
Figures, all against the truth, lower is better but for likeness: hair, face: distance of the mean
colour where hair and face are in every picture of the truth (RGB in 0..1). style: distance of Gram
matrices of the autoencoder's features, over that of the subject's cartoon pictures (1: no style
learned). likeness: cosine of face embeddings. The network is the one that the identity loss uses,
so it speaks for what uses that.

Every result is kept in bench/results/magicapture_effect.json as soon as it is there; a second start
goes on. The table is of the pairs that have all methods.

`--model transformer` asks the same of the transformer toy, whose two words are trigger words of one
and the same unknown token, or learned: `magicapture_effect_transformer`. `--model transformer-long`
has learned words, twice as many steps, and rules of other papers too (capture_rules.py).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from . import toy
from .capture_rules import let_rank_fall, region_route, sample_as_it_stands
from .command_line import bench_parser, command_of, parse_with_quick
from .core_trainer import train_core_lora
from .report import RESULTS, Report, table_head, table_row
from .sheets import labelled_sheet

# ruff: isort: split
import comfy.sd
import torch
import torch.nn.functional as F
from torch import Tensor

from magicportrait.demo import captures, checkpoint, face_network, transformer_checkpoint
from magicportrait.demo.autoencoder import Autoencoder
from magicportrait.demo.captures import Capture
from magicportrait.demo.portraits import STYLES, Portrait, Style, render
from magicportrait.host.text.learned_words import Embedding, with_learned_words
from magicportrait.host.training.draw import preview_prompts
from magicportrait.host.training.memory import training_mode
from magicportrait.host.training.run import CaptureTraining
from magicportrait.host.training.settings import OFFICIAL_IDENTITY_UNTIL, CaptureSettings
from magicportrait.magic.capture_losses import face_box, face_crops
from magicportrait.magic.capture_sets import CapturePicture, StyleSet, Subject, capture_pictures
from magicportrait.magic.heat import over_picture, unit_range
from magicportrait.nodes.magicapture_apply import MagiCaptureApply

TABLE = tuple((seed, STYLES[1 + seed % 3]) for seed in range(200, 208))
TUNING = tuple((seed, STYLES[1 + seed % 3]) for seed in range(100, 103))
"""Pairs that steps and weights were chosen on; none of them is in the table."""
SETTINGS = CaptureSettings(
    inversion_steps=200,
    lora_steps=300,
    inversion_rate=2e-2,
    unet_rate=2e-3,
    text_rate=2e-3,
    embedding_rate=1e-2,
    identity_weight=0.02,
    batch=2,
    versions=8,
)
CORE_RATE = 2e-3
"""Of 4e-4, 1e-3 and 2e-3 the best on two of the tuning pairs."""
STRENGTHS = 1.0, 1.0
"""UNet and text encoder; the paper's .6 and .9 show too little of what so few steps have taught."""
CORE = "core TrainLoraNode"
METHODS: dict[str, dict[str, Any]] = {
    CORE: {},
    "textual inversion only": {"inversion_steps": SETTINGS.steps, "lora_steps": 0},
    "full": {},
    "without refocusing": {"refocus_weight": 0.0},
    "without composed prompts": {"composed": False},
    "without identity loss": {"identity_weight": 0.0},
    "without masks": {"masked": False},
}
TRANSFORMER_SETTINGS = replace(
    SETTINGS,
    inversion_steps=0,
    lora_steps=100,
    side=transformer_checkpoint.IMAGE_SIDE,
    identity_until=300,
    versions=2,
    words="trigger words",
)
"""A second of one core a step: less is trained than of the UNet."""
TRANSFORMER_METHODS: dict[str, dict[str, Any]] = {
    CORE: {},
    "full": {},
    "learned words": {"words": "learned", "inversion_steps": 35, "lora_steps": 65},
    "without identity loss": {"identity_weight": 0.0},
    "without masks": {"masked": False},
    "without refocusing": {"refocus_weight": 0.0},
    "without composed prompts": {"composed": False},
}
FALLING_RANK, REGION_ROUTE = "rank falls with noise (T-LoRA)", "RegionRoute for refocusing"
LONG_SETTINGS = replace(
    TRANSFORMER_SETTINGS, words="learned", inversion_steps=80, lora_steps=150, versions=4
)
LONG_METHODS: dict[str, dict[str, Any]] = {
    "full": {},
    "without identity loss": {"identity_weight": 0.0},
    "without refocusing": {"refocus_weight": 0.0},
    REGION_ROUTE: {"refocus_weight": 0.3},
    FALLING_RANK: {},
}
VARIANTS: dict[str, dict[str, Any]] = {
    # A step with a second forward takes 1.7 times as long: .52 s instead of .31 s.
    "own forward in equal time": {
        "identity_forward": "own",
        "identity_until": OFFICIAL_IDENTITY_UNTIL,
        "lora_steps": 179,
    },
    "own forward below 500 in equal time": {"identity_forward": "own", "lora_steps": 179},
}
"""Not in the table: drawn with --only. What 'full' is compared with in docs/fidelity.md."""
BASE = "base model, style by name"
FIRST_SETTINGS = {
    "inversion_steps",
    "lora_steps",
    "inversion_rate",
    "unet_rate",
    "text_rate",
    "embedding_rate",
    "rank",
    "batch",
    "masked",
    "composed",
    "refocus_weight",
    "style_weight",
    "identity_weight",
    "identity_until",
    "versions",
    "side",
    "precision",
    "gradient_checkpointing",
    "seed",
}
"""A new setting with a default that changes nothing leaves the results of before as they are."""
FIGURES = ("hair", "face", "style", "likeness")
_LAYERS = 6
"""Of the autoencoder's encoder that see the style."""


@dataclass(frozen=True)
class Scale:
    """A toy, and how much is done with it.

    load: gives it. weights: its file, beside the UNet's. settings: of the training. core_rate: of
    the host's trainer. placeholders: of subject and style. methods: of the table, and what each
    changes in the settings. table: the pairs. pictures: drawn by each method for each pair, in so
    many sampling_steps. report: name of what is kept in bench/results: a table, and a JSON of
    `fingerprint` -> pair and method -> figure -> value.
    """

    load: Callable[[], toy.Toy]
    weights: Path | None
    settings: CaptureSettings
    core_rate: float
    placeholders: tuple[str, str]
    methods: Mapping[str, dict[str, Any]]
    table: tuple[tuple[int, Style], ...]
    pictures: int
    sampling_steps: int
    report: str

    @property
    def stored(self) -> Path:
        return RESULTS / f"{self.report}.json"

    def changes(self, method: str) -> dict[str, Any]:
        """What a method changes in the settings."""
        return {**self.methods, **VARIANTS}[method]


SCALES = {
    "unet": Scale(
        toy.Toy.load,
        None,
        SETTINGS,
        CORE_RATE,
        ("<subject>", "<style>"),
        METHODS,
        TABLE,
        8,
        25,
        "magicapture_effect",
    ),
    "transformer": Scale(
        toy.Toy.load_transformer,
        transformer_checkpoint.PATH,
        TRANSFORMER_SETTINGS,
        CORE_RATE,
        ("sks", "inkwash"),
        TRANSFORMER_METHODS,
        TABLE,
        4,
        14,
        "magicapture_effect_transformer",
    ),
    "transformer-long": Scale(
        toy.Toy.load_transformer,
        transformer_checkpoint.PATH,
        LONG_SETTINGS,
        CORE_RATE,
        ("sks", "inkwash"),
        LONG_METHODS,
        TABLE[:2],
        8,
        14,
        "magicapture_effect_transformer_long",
    ),
}


@dataclass(frozen=True)
class Words:
    """What knows the subject and the style.

    model: MODEL; clip: CLIP; prompt: the words for both.
    """

    model: Any
    clip: Any
    prompt: str


def sets(
    capture: Capture, side: int = toy.SIDE, placeholders: tuple[str, str] = ("<subject>", "<style>")
) -> tuple[Subject, StyleSet]:
    """side: of the pictures, in pixels."""

    def pictures(name: str, portraits: tuple[Portrait, ...]) -> tuple[CapturePicture, ...]:
        images, masks = captures.draw(portraits, side)
        return capture_pictures(
            [*map(torch.from_numpy, images)],
            [*map(torch.from_numpy, masks)],
            [f"{name} {i}" for i in range(len(images))],
        )

    return (
        Subject(
            pictures("subject", capture.subject),
            placeholders[0],
            capture.class_word,
            ("a {person}, cartoon style",),
        ),
        StyleSet(
            pictures("style", capture.style),
            placeholders[1],
            capture.class_word,
            ("a {person}, {style} style",),
        ),
    )


def prompt_of(capture: Capture, placeholders: tuple[str, str]) -> str:
    subject, style = placeholders
    return f"a {subject} {capture.class_word}, {style} style"


class Pair:
    """All methods on one subject (a seed) and one style."""

    def __init__(
        self, loaded: toy.Toy, seed: int, style: Style, settings: CaptureSettings, scale: Scale
    ) -> None:
        self.toy, self.settings, self.scale = loaded, settings, scale
        self.capture = captures.sample_capture(seed, style)
        self.subject, self.style = sets(self.capture, loaded.side, scale.placeholders)
        self.truth, self.truth_faces = (
            torch.from_numpy(array) for array in captures.draw(self.capture.truth, loaded.side)
        )
        self._inversions: dict[tuple[bool, int], tuple[list[Tensor], Tensor]] = {}
        self.identity = toy.identity()

    def draw(self, method: str) -> Tensor:  # B H W 3
        """A method's pictures."""
        if method != FALLING_RANK:
            return self.pictures(self.words(method))
        seeds, steps = range(self.scale.pictures), self.scale.sampling_steps
        prompt = prompt_of(self.capture, self.scale.placeholders)
        return sample_as_it_stands(self.train(method), prompt, seeds, steps)

    def words(self, method: str) -> Words:
        if method == BASE:
            return Words(
                self.toy.model,
                self.toy.clip,
                f"a {self.capture.class_word}, {self.capture.style[0].style} style",
            )
        if method == CORE:
            return self._core()
        training = self.train(method)
        lora = training.networks.lora() if training.settings.lora_steps else None
        model, clip = MagiCaptureApply.execute(
            self.toy.model, self.toy.clip, training.networks.text.learned(), *STRENGTHS, lora
        ).args
        return Words(model, clip, prompt_of(self.capture, self.scale.placeholders))

    def train(self, method: str) -> CaptureTraining:
        settings = replace(self.settings, **self.scale.changes(method))
        training = CaptureTraining(
            self.toy.model,
            self.toy.clip,
            self.toy.vae,
            self.subject,
            self.style,
            self.identity,
            settings,
        )
        if settings.lora_steps:
            self._after_inversion(training)
        if method == FALLING_RANK:
            let_rank_fall(training)
        rules = region_route() if method == REGION_ROUTE else contextlib.nullcontext()
        with training_mode(), rules:
            while training.step < settings.steps:
                training.train_step()
        return training

    def _after_inversion(self, training: CaptureTraining) -> None:
        """Puts a training behind its first phase, which methods that differ only in the second
        share."""
        kind = training.settings.masked, training.settings.inversion_steps
        if kind not in self._inversions:
            with training_mode():
                while training.step < training.settings.inversion_steps:
                    training.train_step()
            self._inversions[kind] = (
                [rows.detach().clone() for rows in training.networks.text.rows],
                training.generator.get_state(),
            )
            return
        learned, state = self._inversions[kind]
        with torch.no_grad():
            for rows, values in zip(training.networks.text.rows, learned, strict=True):
                rows.copy_(values)
        training.generator.set_state(state)
        training.step = training.settings.inversion_steps

    def _core(self) -> Words:
        """The host's own trainer, with rare words for the subject and the style as one would choose
        them there."""
        generator = torch.Generator().manual_seed(0)
        rare = [
            Embedding(word, {"clip_l": F.normalize(torch.randn(1, 96, generator=generator)) * 2.2})
            for word in self.scale.placeholders
        ]
        # Of the transformer the words are what its own trainings have: as they are written.
        clip = with_learned_words(self.toy.clip, rare if self.scale.weights is None else ())
        latents, positive = [], []
        for pictures, text in (
            (self.subject.pictures, self.subject.prompt(0)),
            (self.style.pictures, self.style.prompt(0)),
        ):
            for picture in pictures:
                latents.append(self.toy.vae.encode(picture.image[None]))
                positive.append(clip.encode_from_tokens_scheduled(clip.tokenize(text)))
        torch.manual_seed(0)
        lora = train_core_lora(
            self.toy.model,
            torch.cat(latents),
            positive,
            steps=self.settings.steps,
            batch=self.settings.batch,
            rank=self.settings.rank,
            rate=self.scale.core_rate,
            precision="fp32",
        )
        model, clip = comfy.sd.load_lora_for_models(self.toy.model, clip, lora, 1.0, 1.0)
        return Words(model, clip, prompt_of(self.capture, self.scale.placeholders))

    def pictures(self, words: Words) -> Tensor:  # B H W 3
        positive = words.clip.encode_from_tokens_scheduled(words.clip.tokenize(words.prompt))
        return self.toy.decode(
            self.toy.sample(
                words.model,
                positive,
                self.toy.noise(range(self.scale.pictures)),
                self.scale.sampling_steps,
            )
        )

    def score(self, pictures: Tensor) -> dict[str, float]:
        """The FIGURES of a method's pictures (B H W 3)."""
        masks = truth_masks(self.capture, self.toy.side)
        cartoons = torch.stack([picture.image for picture in self.subject.pictures])
        figures = {}
        for part, mask in masks.items():
            colour = toy.mean_colour(self.truth.mean(0), mask)
            distances = [(toy.mean_colour(image, mask) - colour).norm() for image in pictures]
            figures[part] = torch.stack(distances).mean().item()
        truth = grams(self.truth)
        figures["style"] = (
            distance(grams(pictures), truth) / distance(grams(cartoons), truth)
        ).item()
        box = face_box(self.truth_faces.mean(0), face_network.MARGIN).expand(len(pictures), -1)
        with torch.no_grad():
            ours = self.identity.embed_crops(
                face_crops(pictures.movedim(-1, 1), box, self.identity.side)
            )
            boxes = torch.stack([face_box(mask, face_network.MARGIN) for mask in self.truth_faces])
            theirs = F.normalize(
                self.identity.embed_crops(
                    face_crops(self.truth.movedim(-1, 1), boxes, self.identity.side)
                ).mean(0),
                dim=0,
            )
        figures["likeness"] = (ours @ theirs).mean().item()
        return figures


def truth_masks(capture: Capture, side: int) -> dict[str, Tensor]:
    """Where hair and face are in (nearly) every picture of the truth: H W, bool."""
    renderings = [render(portrait, side) for portrait in capture.truth]
    masks = {}
    for part in ("hair", "face"):
        share = torch.stack([toy.part_mask(picture, part)[0] for picture in renderings]).mean(0)
        masks[part] = share >= min(0.9, share.max().item())
    return masks


def encoder() -> torch.nn.Module:
    """The checkpoint's autoencoder, as far as it encodes."""
    network = Autoencoder()
    network.load_state_dict(
        {name: tensor.float() for name, tensor in checkpoint.read_parts()["autoencoder"].items()}
    )
    return network.encoder.eval()


def grams(images: Tensor) -> list[Tensor]:
    """Mean Gram matrices of the autoencoder's features, at full, half and a quarter of the size.
    images: B H W 3."""
    x, matrices = images.movedim(-1, 1).float(), []
    with torch.no_grad():
        for layer in list(encoder().children())[:_LAYERS]:
            x = layer(x)
            features = x.flatten(2)
            matrices.append((features @ features.transpose(1, 2) / features.shape[2]).mean(0))
    return matrices


def distance(a: list[Tensor], b: list[Tensor]) -> Tensor:
    """Mean over the layers, each relative to the second's size."""
    return torch.stack([(x - y).norm() / y.norm() for x, y in zip(a, b, strict=True)]).mean()


def fingerprint(settings: CaptureSettings, weights: Path | None = None) -> str:
    """Results of another checkpoint or other settings are other results. weights: of a Scale."""
    digest = hashlib.sha256(checkpoint.PATH.read_bytes() + face_network.PATH.read_bytes())
    if weights:
        digest.update(weights.read_bytes())
    digest.update(json.dumps(settings_of_results(settings), sort_keys=True).encode())
    return digest.hexdigest()[:12]


def settings_of_results(settings: Any) -> dict[str, Any]:
    """The settings that tell results apart: those that were there when the first were kept, and of
    later ones those that do not stand where the rules of before are."""
    return {
        field.name: getattr(settings, field.name)
        for field in fields(settings)
        if field.name in FIRST_SETTINGS or getattr(settings, field.name) != field.default
    }


def table(
    results: dict[str, dict[str, float]], pairs: Sequence[tuple[int, str]], methods: Sequence[str]
) -> list[str]:
    """Means over the pairs that have a result of every method."""
    whole = [pair for pair in pairs if all(key(pair, method) in results for method in methods)]
    lines = [f"{len(whole)} pairs: " + ", ".join(f"{seed} {style}" for seed, style in whole), ""]
    lines += table_head(["", *FIGURES])
    for method in methods:
        rows = [results[key(pair, method)] for pair in whole]
        if rows:
            means = (sum(row[name] for row in rows) / len(rows) for name in FIGURES)
            lines.append(table_row([method, *(f"{mean:.3f}" for mean in means)]))
    return lines


def key(pair: tuple[int, str], method: str) -> str:
    """Names a result."""
    return f"{pair[0]} {pair[1]} {method}"


def attention_figure(training: CaptureTraining, truth: Tensor, path: Path) -> None:
    """For each of some pictures of the truth: the picture, then where subject and style word look
    before and after the second phase."""
    rows = []
    with training_mode(), torch.no_grad():
        [words] = preview_prompts(training.subject, training.style)
        prompt = training.networks.text.prompt(words)
        timestep = torch.tensor([400])
        for image in truth[:4]:
            latent = training._vae.encode(image[None]).clone()
            latent = training.networks.denoiser.process_in(latent)
            noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(0))
            noisy = training.networks.denoiser.noisy(latent, noise, timestep)
            row = [image]
            for strength in (0.0, 1.0):
                for adapter in training.networks.adapters:
                    adapter.strength = strength
                size = latent.shape[-2], latent.shape[-1]
                condition = training.networks.condition([prompt], size)
                _, maps = training.networks.denoiser.predict(noisy, timestep, condition, True)
                assert maps is not None
                for token in range(2):
                    mean = F.interpolate(
                        maps[:, :, token].mean(1, keepdim=True),
                        size=image.shape[:2],
                        mode="bilinear",
                    )[0, 0]
                    row.append(over_picture(unit_range(mean), image, strength=0.85))
            rows.append(row)
    attention_sheet(rows, path)


def attention_sheet(rows: Sequence[Sequence[Tensor]], path: Path) -> None:
    """rows: as `attention_figure` makes them."""
    looks = (
        f"{word} word, {when} LoRA" for when in ("before", "after") for word in ("subject", "style")
    )
    labelled_sheet(rows, path, column_captions=["picture", *looks])


def pair_sheet(pairs: Sequence[Sequence[Tensor]], methods: Sequence[str], path: Path) -> None:
    """pairs: for each the subject, the style, the truth and a picture of each method. A column for
    each pair."""
    captions = ["subject", "style", "truth"]
    captions += ["MagiCapture" if method == "full" else method for method in methods]
    labelled_sheet([*zip(*pairs, strict=True)], path, captions)


@torch.inference_mode()
def main() -> None:
    parser = bench_parser(__doc__)
    parser.add_argument(
        "--pairs", type=int, default=len(TABLE), help="only the first so many pairs"
    )
    parser.add_argument(
        "--tuning",
        action="store_true",
        help="the tuning pairs instead of the table's; nothing is written",
    )
    parser.add_argument(
        "--only",
        nargs="*",
        choices=(BASE, *{**METHODS, **TRANSFORMER_METHODS, **LONG_METHODS}, *VARIANTS),
        metavar="METHOD",
        help=f"only these methods, by name, also {' and '.join(map(repr, VARIANTS))}",
    )
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="NAME=VALUE", help="other settings (with --tuning)"
    )
    parser.add_argument(
        "--figure",
        type=Path,
        help="also writes subject, truth and a picture of every method, a row a pair",
    )
    parser.add_argument(
        "--attention",
        type=Path,
        help="only writes where both words look before and after the second phase of one method: "
        "'full', or the first of --only",
    )
    parser.add_argument("--model", choices=SCALES, default="unet", help="which toy")
    args = parse_with_quick(
        parser,
        pairs=1,
        only=[CORE, "full"],
        set=["inversion_steps=2", "lora_steps=2"],
    )
    scale = SCALES[args.model]
    changes = {
        name: type(getattr(SETTINGS, name))(json.loads(value))
        for name, value in (item.split("=") for item in args.set)
    }
    settings = replace(scale.settings, **changes)
    pairs = (TUNING if args.tuning else scale.table)[: args.pairs]
    loaded = scale.load()
    if args.attention:
        pair = Pair(loaded, *TUNING[0], settings, scale)
        method = args.only[0] if args.only else "full"
        attention_figure(pair.train(method), pair.truth, args.attention)
        return
    methods = list(args.only or (BASE, *scale.methods))
    is_stored = not args.tuning and not args.quick
    stored = scale.stored
    everything = json.loads(stored.read_text()) if stored.exists() and is_stored else {}
    results = everything.setdefault(fingerprint(settings, scale.weights), {})
    rows = []
    for number, (seed, style) in enumerate(pairs):
        missing = [
            method for method in methods if args.figure or key((seed, style), method) not in results
        ]
        if not missing:
            continue
        pair, first = Pair(loaded, seed, style, settings, scale), []
        for method in missing:
            started = time.perf_counter()
            pictures = pair.draw(method)
            results[key((seed, style), method)] = figures = pair.score(pictures)
            first.append(pictures[0])
            numbers = " ".join(f"{name} {value:.3f}" for name, value in figures.items())
            print(
                f"pair {number + 1}/{len(pairs)} {seed} {style}: {method}: {numbers}"
                f" ({time.perf_counter() - started:.0f} s)",
                flush=True,
            )
            if is_stored:
                RESULTS.mkdir(exist_ok=True)
                stored.write_text(json.dumps(everything, indent=1) + "\n", encoding="utf-8")
        if args.figure:
            rows.append(
                [
                    pair.subject.pictures[0].image,
                    pair.style.pictures[0].image,
                    pair.truth[0],
                    *first,
                ]
            )
            pair_sheet(rows, methods, args.figure)
    report = Report(
        scale.report,
        f"MagiCapture on the {args.model} toy",
        f"`{command_of('bench.magicapture_effect')}`",
    )
    report.write(*table(results, pairs, methods))
    is_whole = not args.only and settings == scale.settings and len(pairs) == len(scale.table)
    report.finish(kept=is_stored and is_whole)


if __name__ == "__main__":
    main()
