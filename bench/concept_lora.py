"""Two LoRAs in one picture, merged or each where its phrase is: `python -m bench.concept_lora`

On the toy checkpoint: a LoRA of a hat and one of a scarf, each trained by the host's trainer on six
pictures that have person, shirt and background in common. One prompt that asks for both, 25 steps,
CFG 4. Error: colour distance of hat and scarf to those that were learned, divided by that of the
plain picture. The rest: how much the colours of what nobody trained change from the plain picture.
Merged is the host's Load LoRA; painted has the regions of the plain picture as target regions.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from . import toy
from .command_line import bench_parser, command_of, parse_with_quick
from .core_trainer import train_core_lora
from .report import Report

# ruff: isort: split
import comfy.sd
import torch
from torch import Tensor

from magicportrait.demo.portraits import EXPRESSIONS, Garment, Portrait, Pose, render
from magicportrait.nodes.concept_lora import NO_LORA, MagicConceptLora
from magicportrait.nodes.declare import defaults_of
from magicportrait.nodes.magicface import MagicFaceApply

PROMPT = (
    "a man with black hair wearing a hat, a scarf and a blue shirt, pink background, cartoon style"
)
BYSTANDERS = ("blue shirt", "black hair", "man", "pink background")
PHRASES = ("hat", "scarf", *BYSTANDERS)
SKIN = (198, 140, 98)
LEARNED = {
    "hat": Portrait(
        "woman",
        SKIN,
        "blonde",
        "long",
        Garment("yellow"),
        "orange",
        hat=Garment("red", "dotted", "top"),
    ),
    "scarf": Portrait(
        "man", SKIN, "gray", "long", Garment("pink"), "green", scarf=Garment("purple", "striped")
    ),
}
Loras = Mapping[str, dict[str, Tensor]]
SETTINGS: dict[str, dict[str, Any]] = {
    "painted": {},
    "layout": {},
    "layout, no words": {"text": "none"},
    "layout, all words": {"text": "all"},
    "layout, global layers": {"global_layers": True},
}
"""Inputs of MagicFace Concept LoRA."""


def pictures_of(part: str) -> list[Portrait]:
    """Six of one part, of which only pose, face and length of the hair differ."""
    return [
        replace(
            LEARNED[part],
            hair_style=("long", "bob", "short")[i % 3],
            pose=Pose(0.03 * (i - 2.5), 0.02, 1.0, 2 * i - 5),
            expression=EXPRESSIONS[i % 4],
        )
        for i in range(6)
    ]


def trained(checkpoint: toy.Toy, part: str, steps: int) -> dict[str, Tensor]:
    """A LORA_MODEL of a part."""
    return train_pictures(checkpoint, pictures_of(part), f"a {part}, cartoon style", steps)


def train_pictures(
    checkpoint: toy.Toy, portraits: Sequence[Portrait], text: str, steps: int
) -> dict[str, Tensor]:
    """A LORA_MODEL of portraits that all have one text."""
    # What comes out of inference mode cannot be trained with.
    with torch.inference_mode(False):
        with torch.no_grad():
            latents = [
                checkpoint.vae.encode(toy.picture(render(portrait))).clone()
                for portrait in portraits
            ]
            words = [checkpoint.encode_text(text) for _ in latents]
        return train_core_lora(
            checkpoint.model,
            torch.cat(latents),
            words,
            steps=steps,
            batch=4,
            rank=8,
            rate=1e-3,
            precision="fp32",
        )


def apart(
    checkpoint: toy.Toy,
    loras: Loras,
    regions: Mapping[str, Tensor] | None,
    prompt: str = PROMPT,
    **options: Any,
) -> tuple[Any, Any]:
    """MODEL and conditioning with each LoRA where its phrase is. regions: painted, B H W each."""
    concepts: Any = ()
    for part, lora in loras.items():
        painted = None if regions is None else regions[part].float()
        [concepts] = MagicConceptLora.execute(
            part, NO_LORA, 1.0, lora, painted, concepts, **options
        ).args
    arguments = {**defaults_of(MagicFaceApply), "semantic_cfg": False, "prompt": prompt}
    model, positive, _ = MagicFaceApply.execute(
        checkpoint.model, checkpoint.clip, checkpoint.vae, concepts, **arguments
    ).args
    return model, positive


def merged(checkpoint: toy.Toy, loras: Loras, prompt: str = PROMPT) -> tuple[Any, Any]:
    """MODEL and conditioning with all of both LoRAs everywhere."""
    model, clip = checkpoint.model, checkpoint.clip
    for lora in loras.values():
        model, clip = comfy.sd.load_lora_for_models(model, clip, lora, 1.0, 1.0)
    return model, clip.encode_from_tokens_scheduled(clip.tokenize(prompt))


def distance(
    images: Tensor, others: Tensor | None, region: Tensor, colour: Tensor | None = None
) -> float:
    """Mean distance of a region's colours to those of other pictures, or to one colour."""
    distances = []
    for i in range(len(images)):
        goal = toy.mean_colour(others[i], region[i]) if others is not None else colour
        assert goal is not None
        distances.append((toy.mean_colour(images[i], region[i]) - goal).norm())
    return float(torch.stack(distances).mean())


@torch.inference_mode()
def main() -> None:
    parser = bench_parser(__doc__)
    parser.add_argument("--seeds", type=int, default=8, help="pictures")
    parser.add_argument("--steps", type=int, default=300, help="of each training")
    args = parse_with_quick(parser, seeds=1, steps=2)
    checkpoint = toy.Toy.load()
    loras = {part: trained(checkpoint, part, args.steps) for part in LEARNED}
    noise = checkpoint.noise(range(args.seeds))
    model, positive, record = checkpoint.watch(PROMPT, PHRASES)
    started = time.perf_counter()
    samples = checkpoint.sample(model, positive, noise)
    plain_seconds = time.perf_counter() - started
    plain, regions = checkpoint.decode(samples), toy.regions(record, samples, PHRASES)
    colours = {}
    for part in LEARNED:
        drawn = render(pictures_of(part)[2])
        colours[part] = toy.mean_colour(toy.picture(drawn)[0], toy.part_mask(drawn, part)[0])
    before = {part: distance(plain, None, regions[part], colours[part]) for part in LEARNED}
    report = Report(
        "concept_lora",
        "Two LoRAs in one picture, on the toy checkpoint",
        f"`{command_of('bench.concept_lora')}`: LoRAs of {args.steps} steps, {args.seeds} seeds."
        " Time: of a run, as a ratio to the plain one with the layout measured",
    )
    report.begin_table("", "hat", "scarf", *BYSTANDERS, "time")
    patched = {
        "merged": merged(checkpoint, loras),
        **{
            name: apart(checkpoint, loras, regions if name == "painted" else None, **options)
            for name, options in SETTINGS.items()
        },
    }
    for name, (model, positive) in patched.items():
        started = time.perf_counter()
        images = checkpoint.decode(checkpoint.sample(model, positive, noise))
        seconds = time.perf_counter() - started
        errors = [
            distance(images, None, regions[part], colours[part]) / before[part] for part in LEARNED
        ]
        changes = [distance(images, plain, regions[phrase]) for phrase in BYSTANDERS]
        report.add_row(
            name,
            *(f"{error:.2f}" for error in errors),
            *(f"{change:.3f}" for change in changes),
            f"{seconds / plain_seconds:.2f}",
        )
    report.finish(kept=not args.quick)


if __name__ == "__main__":
    main()
