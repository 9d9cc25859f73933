"""MagicStyle on the transformer toy, a flow model. `python -m bench.magicstyle_flow`

A table for each --part, kept in a file of its own: `inversion`, how close an inverted picture comes
back, by method and steps; `settings`, what those of MagicStyle Apply do; `keys`, where a style's
keys lie x in which layers x how much they count; `baselines`, StyleID's rule and img2img beside it
at equal structure; `cost`, of a step and of the cache.

Pictures and figures as in `bench.magicstyle_effect`, at 256 px. identity: cosine of the face's
embedding to the content's, by the shipped network for drawn faces.
"""

from __future__ import annotations

import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from . import toy
from .command_line import bench_parser, command_of, parse_with_quick
from .magicstyle_effect import LOOKS, gram_distance, structure
from .report import Report
from .sheets import contact_sheet
from .step_cost import StepClock

# ruff: isort: split
import comfy.sample
import torch
from torch import Tensor

from magicportrait.demo import transformer_checkpoint
from magicportrait.demo.portraits import Portrait, caption, render
from magicportrait.host.inversion.files import write_inversion
from magicportrait.host.inversion.run import (
    Inversion,
    Recipe,
    invert,
    resample,
    resample_with,
    start_latent,
)
from magicportrait.host.sampling.backbone import backbone_of
from magicportrait.host.sampling.feature_store import FeatureStore
from magicportrait.host.sampling.range import SamplingRange
from magicportrait.host.systems.magicstyle import (
    InvertedPicture,
    MagicStylePatch,
    Style,
    feature_bytes,
)
from magicportrait.magic.feature_fusion import PRESETS, Fusion, Preset
from magicportrait.magic.inversion import psnr
from magicportrait.magic.positions import Placement

SCHEDULE = "simple"
STEPS = 20
COST_STEPS = 8
"""Of a run whose steps are timed."""
RECIPES = {
    "euler": Recipe("euler", 0, 0.0, 1.0),
    "warm": Recipe("warm", 0, 0.0, 1.0),
    "fixed-point, 1 iteration": Recipe("fixed-point", 1, 0.0, 1.0),
    "fixed-point, 2 iterations": Recipe("fixed-point", 2, 0.0, 1.0),
    "o-belm": Recipe("o-belm", 0, 0.0, 1.0),
    "fireflow": Recipe("fireflow", 0, 0.0, 1.0),
}


@dataclass(frozen=True)
class Setting:
    """A row of the ablation. preset: how, and when; layers: where; placement: of the style's
    keys."""

    preset: Preset = PRESETS["balanced"]
    layers: str = "fine"
    placement: Placement = "attenuated"


def near_balanced(
    alpha: float = 0.8,
    beta: float = 0.2,
    keys: str = "content+style",
    scale: float = 0.25,
    adain: float = 1.0,
    end: float = 0.6,
    start: float = 0.0,
    temperature: float = 1.0,
) -> Preset:
    """'balanced', but for what is given."""
    fusion = Fusion(alpha, beta, keys, scale, temperature)  # type: ignore[arg-type]
    return Preset(fusion, adain, start, end)


ROWS: dict[str, Setting] = {
    "none (AdaIN 0, no fusion)": Setting(near_balanced(1, 0, "content", adain=0.0, end=0.0)),
    "AdaIN 1, no fusion": Setting(near_balanced(1, 0, "content", end=0.0)),
    "content only, AdaIN 0": Setting(near_balanced(1, 0, "content", adain=0.0)),
    "balanced": Setting(),
    "balanced, same": Setting(placement="same"),
    "balanced, aside": Setting(placement="aside"),
    "balanced, index": Setting(placement="index"),
    "balanced, all layers": Setting(layers="all"),
    "balanced, double blocks": Setting(layers="double"),
    "balanced, last third": Setting(layers="late"),
    "gentle": Setting(PRESETS["gentle"]),
    "strong": Setting(PRESETS["strong"]),
    "strong, same": Setting(PRESETS["strong"], placement="same"),
    "balanced, to 80 %": Setting(near_balanced(end=0.8)),
    "balanced, to 100 %": Setting(near_balanced(end=1.0)),
    "balanced, AdaIN 0": Setting(near_balanced(adain=0.0)),
    "balanced, scale 1": Setting(near_balanced(scale=1.0)),
    "scale 1, to 40 %": Setting(near_balanced(scale=1.0, end=0.4)),
    "scale 1, to 80 %": Setting(near_balanced(scale=1.0, end=0.8)),
    "scale 1, to 100 %": Setting(near_balanced(scale=1.0, end=1.0)),
    "scale 1, from 20 %": Setting(near_balanced(scale=1.0, start=0.2)),
    "blend of keys, .8/.2": Setting(near_balanced(keys="blend")),
    "blend of keys, .5/.5": Setting(near_balanced(0.5, 0.5, keys="blend")),
    "style keys, .8/.2": Setting(near_balanced(keys="style")),
    "style keys, .8/.2, from 30 %": Setting(near_balanced(keys="style", start=0.3, end=1.0)),
    "style, .75/0 and own, temperature 1.5 (StyleID's rule)": Setting(
        near_balanced(0.75, 0.0, "style", adain=1.0, end=1.0, temperature=1.5)
    ),
}
POSITIONS: tuple[Placement, ...] = ("attenuated", "same", "aside", "index")
LAYERS = {"late": "last third", "fine": "single blocks", "all": "all"}
SCALES = (0.25, 1.0, 2.0)
KEYS: dict[str, Setting] = {
    f"{layers}, {placement}, scale {scale:g}": Setting(near_balanced(scale=scale), names, placement)
    for names, layers in LAYERS.items()
    for placement in POSITIONS
    for scale in SCALES
}
CURVES: dict[str, dict[str, Setting | float]] = {
    # From much structure to little: by style_scale; by StyleID's gamma; by denoise, with the
    # style's name in the prompt.
    "ours": {
        f"scale {scale:g}": Setting(near_balanced(scale=scale))
        for scale in (-1.0, 0.25, 1.0, 2.0, 4.0)
    },
    "StyleID's rule": {
        f"gamma {gamma:g}": Setting(near_balanced(gamma, 0.0, "style", end=1.0, temperature=1.5))
        for gamma in (1.0, 0.75, 0.5)
    },
    "StyleID's rule, AdaIN 0": {
        f"gamma {gamma:g}": Setting(
            near_balanced(gamma, 0.0, "style", adain=0.0, end=1.0, temperature=1.5)
        )
        for gamma in (1.0, 0.75)
    },
    "img2img": {f"denoise {share:g}": share for share in (0.3, 0.5, 0.7, 0.9)},
}
EQUAL = (0.9, 0.8, 0.7, 0.6, 0.5, 0.45)
"""Structures at which the curves are compared."""
CFG = 4.0
"""Of img2img."""


@dataclass(frozen=True)
class Pair:
    """content, style: inversions; content_image: what the autoencoder alone makes of the content,
    style_image: 1 H W 3; features: kept from the first row that needs them, by layers; portrait: of
    the content; look: the style's name; box: of the content's face, left, top, right, bottom."""

    content: Inversion
    style: Inversion
    content_image: Tensor
    style_image: Tensor
    features: dict[str, FeatureStore]
    portrait: Portrait
    look: Any
    box: tuple[float, float, float, float]


class FlowToy(toy.Toy):
    """The transformer toy."""

    def inversion_of(self, image: Tensor, recipe: Recipe, steps: int) -> Inversion:
        latent = self.vae.encode(image)
        sigmas = self.sigmas(steps)
        return invert(self.model, latent, self.empty_conds(), sigmas, recipe, None, ("", ""))


def held_out_portrait(place: int, look: Any) -> Portrait:
    return replace(toy.held_out(place + 1)[place], style=look)


def picture_of(portrait: Portrait) -> Tensor:
    """1 H W 3 at the toy's size."""
    return toy.picture(render(portrait, transformer_checkpoint.IMAGE_SIDE))


def face_box(portrait: Portrait) -> tuple[float, float, float, float]:
    """Left, top, right, bottom of its face in pixels."""
    mask = toy.part_mask(render(portrait, transformer_checkpoint.IMAGE_SIDE), "face")[0]
    rows, columns = (mask > 0.5).nonzero(as_tuple=True)
    return (float(columns.min()), float(rows.min()), float(columns.max()), float(rows.max()))


def round_trips(
    checkpoint: FlowToy, report: Report, count: int, steps: Iterable[int], only: str
) -> None:
    """The table of methods."""
    images = torch.cat([picture_of(held_out_portrait(i, "cartoon")) for i in range(count)])
    latent, conds = checkpoint.vae.encode(images), checkpoint.empty_conds()
    alone = checkpoint.decode(latent)
    report.begin_table(
        "steps", "method", "dB of the latent", "dB of the picture", "calls a step", "noise"
    )
    for number in steps:
        for name, recipe in RECIPES.items():
            if only not in name:
                continue
            inversion = checkpoint.inversion_of(images, recipe, number)
            again = resample(checkpoint.model, inversion, conds, 1.0, None)
            report.add_row(
                f"{number}",
                name,
                f"{psnr(again, latent, float(latent.max() - latent.min())):.1f}",
                f"{psnr(checkpoint.decode(again), alone, 1.0):.1f}",
                f"{inversion.model_calls / number:.1f}",
                f"{float(inversion.latents[0].std()):.2f}",
            )


def prepare(checkpoint: FlowToy, count: int, steps: int = STEPS) -> list[Pair]:
    recipe, pairs = Recipe("fixed-point", 2, 1e-4, 1.0), []
    for i in range(count):
        look = LOOKS[i % len(LOOKS)]
        portrait = held_out_portrait(i, "cartoon")
        content, style = picture_of(portrait), picture_of(held_out_portrait(count + i, look))
        of_content, of_style = (
            checkpoint.inversion_of(image, recipe, steps) for image in (content, style)
        )
        alone = checkpoint.decode(checkpoint.vae.encode(content))
        box = face_box(portrait)
        pairs.append(Pair(of_content, of_style, alone, style, {}, portrait, look, box))
    return pairs


def patch_of(
    checkpoint: FlowToy,
    pair: Pair,
    setting: Setting,
    store: FeatureStore | None = None,
) -> MagicStylePatch:
    preset, backbone = setting.preset, backbone_of(checkpoint.model)
    return MagicStylePatch(
        content=pair.content,
        styles=(Style(pair.style, 1.0),),
        fusion=preset.fusion,
        backbone=backbone,
        blocks=backbone.parse_layers(setting.layers),
        range=SamplingRange(preset.start, preset.end),
        fuses_negative=False,
        adain=preset.adain,
        store=store,
        placement=setting.placement,
    )


def draw(checkpoint: FlowToy, pair: Pair, setting: Setting | float) -> Tensor:
    """1 H W 3. setting: a number is the denoise of img2img."""
    if isinstance(setting, float):
        return img2img(checkpoint, pair, setting)
    store = pair.features.setdefault(setting.layers, FeatureStore())
    patch = patch_of(checkpoint, pair, setting, store)
    start = patch.start_samples(checkpoint.model)
    return checkpoint.decode(
        resample_with(
            patch.add_to(checkpoint.model),
            pair.content,
            start,
            checkpoint.empty_conds(),
            1.0,
            None,
        )
    )


def img2img(checkpoint: FlowToy, pair: Pair, denoise: float) -> Tensor:
    """The host's own way: the content under its caption with the style's name."""
    words = checkpoint.encode_text(caption(replace(pair.portrait, style=pair.look)))
    samples = comfy.sample.sample(
        checkpoint.model,
        checkpoint.noise([1]),
        STEPS,
        CFG,
        "euler",
        SCHEDULE,
        words,
        checkpoint.encode_text(""),
        checkpoint.vae.encode(picture_of(pair.portrait)),
        denoise=denoise,
        disable_pbar=True,
        seed=1,
    )
    return checkpoint.decode(samples)


Scores = tuple[float, float, float, float]


def scores(pictures: Iterable[Tensor], pairs: list[Pair]) -> Scores:
    """Means of style, structure, identity, dB to the content. pictures: 1 H W 3 of each pair."""
    faces, rows = toy.identity(), []
    for picture, pair in zip(pictures, pairs, strict=True):
        distance = gram_distance(picture, pair.style_image)
        people = [faces.embed_face(image[0], pair.box) for image in (picture, pair.content_image)]
        rows.append(
            (
                distance / gram_distance(pair.content_image, pair.style_image),
                structure(picture, pair.content_image),
                float(people[0] @ people[1]),
                psnr(picture, pair.content_image, 1.0),
            )
        )
    style, likeness, identity, decibels = torch.tensor(rows).mean(0).tolist()
    return style, likeness, identity, decibels


def begin_scores(report: Report) -> None:
    report.begin_table("setting", "style", "structure", "identity", "dB to the content")


def add_scores(report: Report, name: str, values: Scores) -> None:
    *shares, decibels = values
    report.add_row(name, *(f"{share:.2f}" for share in shares), f"{decibels:.1f}")


def ablation(
    checkpoint: FlowToy, report: Report, pairs: list[Pair], rows: Mapping[str, Setting]
) -> dict[str, list[Tensor]]:
    """A table of settings, and their pictures, H W 3."""
    begin_scores(report)
    pictures = {}
    for name, setting in rows.items():
        out = [draw(checkpoint, pair, setting) for pair in pairs]
        add_scores(report, name, scores(out, pairs))
        pictures[name] = [picture[0] for picture in out]
    return pictures


def at_structure(points: list[tuple[float, float]], level: float) -> float | None:
    """The style at a structure, on straight lines between points of (structure, style); None
    outside of them."""
    points = sorted(points)
    for (low, first), (high, second) in itertools.pairwise(points):
        if low <= level <= high and low < high:
            return first + (second - first) * (level - low) / (high - low)
    return None


def baselines(
    checkpoint: FlowToy, report: Report, pairs: list[Pair], only: str
) -> dict[str, list[Tensor]]:
    """The curves, and their styles at equal structure."""
    begin_scores(report)
    pictures: dict[str, list[Tensor]] = {}
    points: dict[str, list[tuple[float, float]]] = {}
    for curve, rows in CURVES.items():
        for name, setting in rows.items():
            if only not in f"{curve}, {name}":
                continue
            out = [draw(checkpoint, pair, setting) for pair in pairs]
            values = scores(out, pairs)
            add_scores(report, f"{curve}, {name}", values)
            points.setdefault(curve, []).append((values[1], values[0]))
            pictures[f"{curve}, {name}"] = [picture[0] for picture in out]
    report.write("", "Style at equal structure (straight lines between the rows above):", "")
    report.begin_table("structure", *points)
    for level in EQUAL:
        styles = [at_structure(points[curve], level) for curve in points]
        report.add_row(f"{level:g}", *("-" if it is None else f"{it:.2f}" for it in styles))
    return pictures


def median_step(run: Callable[[Any], object]) -> float:
    """Seconds of the processor that a step takes. run: takes the callback of a step."""
    clock = StepClock(time.process_time)
    run(clock)
    return statistics.median(clock.steps)


def costs(checkpoint: FlowToy, report: Report) -> None:
    """The table of what a step takes, as a multiple of the plain one at CFG 1, and the bytes."""
    [pair], conds, model = (
        prepare(checkpoint, 1, COST_STEPS),
        checkpoint.empty_conds(),
        checkpoint.model,
    )
    levels = checkpoint.sigmas(COST_STEPS)
    latent = checkpoint.vae.encode(picture_of(pair.portrait))

    def inverting(recipe: Recipe, callback: Any) -> None:
        invert(model, latent, conds, levels, recipe, callback, ("", ""))

    def plain(callback: Any) -> None:
        start = start_latent(model, pair.content)
        resample_with(model, pair.content, start, conds, 1.0, callback)

    def style_pair(patch: MagicStylePatch, callback: Any) -> None:
        start = patch.start_samples(model)
        resample_with(patch.add_to(model), pair.content, start, conds, 1.0, callback)

    rows: dict[str, Callable[[Any], object]] = {
        f"inversion, {name}": partial(inverting, recipe) for name, recipe in RECIPES.items()
    }
    whole = {layers: Setting(near_balanced(end=1.0), layers) for layers in LAYERS}
    for layers, name in LAYERS.items():
        rows[f"MagicStyle, {name}"] = partial(style_pair, patch_of(checkpoint, pair, whole[layers]))
    with_store = patch_of(checkpoint, pair, whole["fine"], FeatureStore())
    style_pair(with_store, None)
    rows["MagicStyle, single blocks, features kept"] = partial(style_pair, with_store)
    plain(None)
    report.begin_table("", "time of a step")
    for name, run in rows.items():
        before, after = median_step(plain), median_step(run)
        report.add_row(name, f"{after / before:.2f} x")
    backbone = backbone_of(model)
    pictures = [InvertedPicture(one, 0) for one in (pair.content, pair.style)]
    sizes = [
        f"{feature_bytes(pictures, backbone, backbone.parse_layers(layers)) / 1e6:.1f} MB ({name})"
        for layers, name in LAYERS.items()
    ]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "inversion.safetensors"
        image, recipe = picture_of(pair.portrait), RECIPES["euler"]
        write_inversion(file, checkpoint.inversion_of(image, recipe, STEPS))
        on_disk = file.stat().st_size / 1e6
    report.write(
        "",
        f"Features of content and style in one step: {', '.join(sizes)}."
        f" An inversion of {STEPS} steps in the cache: {on_disk:.2f} MB.",
    )


PARTS = {
    "inversion": "MagicStyle on the transformer toy: round trips",
    "settings": f"MagicStyle on the transformer toy: settings, {STEPS} steps",
    "keys": f"MagicStyle on the transformer toy: keys x layers x style_scale, {STEPS} steps",
    "baselines": f"MagicStyle on the transformer toy beside others, {STEPS} steps",
    "cost": "MagicStyle on the transformer toy: what a step costs",
}


@torch.inference_mode()
def main() -> None:
    parser = bench_parser(__doc__)
    parser.add_argument("--part", choices=list(PARTS), nargs="*", help="default: all")
    parser.add_argument("--checkpoint", type=Path, default=transformer_checkpoint.PATH)
    parser.add_argument("--portraits", type=int, default=4, help="how many are inverted")
    parser.add_argument("--pairs", type=int, default=6, help="how many are drawn")
    parser.add_argument("--steps", type=int, nargs="*", default=[8, 20, 50], help="of inversions")
    parser.add_argument("--only", default="", help="only rows whose name has this in it")
    parser.add_argument("--figure", type=Path, help="also write pictures there, in a folder")
    args = parse_with_quick(parser, portraits=1, pairs=1, steps=[4], only="balanced, same")
    parts, side = transformer_checkpoint.load(args.checkpoint), transformer_checkpoint.IMAGE_SIDE
    checkpoint = FlowToy(*parts, side=side, scheduler=SCHEDULE)
    pairs: list[Pair] = []
    for part in args.part or PARTS:
        report = Report(
            f"magicstyle_flow_{part}", PARTS[part], f"`{command_of('bench.magicstyle_flow')}`"
        )
        pictures: dict[str, list[Tensor]] = {}
        if part in ("settings", "keys", "baselines") and not pairs:
            pairs = prepare(checkpoint, args.pairs)
        if part == "inversion":
            round_trips(checkpoint, report, args.portraits, args.steps, args.only)
        elif part == "cost":
            costs(checkpoint, report)
        elif part == "baselines":
            pictures = baselines(checkpoint, report, pairs, args.only)
        else:
            rows = {"settings": ROWS, "keys": KEYS}[part]
            some = {name: setting for name, setting in rows.items() if args.only in name}
            pictures = ablation(checkpoint, report, pairs, some)
        report.finish(kept=not args.quick and not args.only)
        if args.figure and pictures:
            sheet = [[pair.content_image[0] for pair in pairs]]
            sheet.append([pair.style_image[0] for pair in pairs])
            contact_sheet([*sheet, *pictures.values()], args.figure / f"{part}.png")


if __name__ == "__main__":
    main()
