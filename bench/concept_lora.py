"""Two LoRAs in one picture, merged or each where its phrase is: `python -m bench.concept_lora`

On a toy: a LoRA of a hat and one of a scarf, each trained by the host's trainer (or MagiCapture's)
on six pictures that have person, shirt and background in common. One prompt that asks for both, 25
steps, CFG 4. Error of hat and scarf: colour distance to those that were learned, divided by that of
the plain picture. Swapped: of both, the share that is nearer to the other one's colour. Then how
much the colours of what nobody trained change from the plain picture, and the mean of that
(elsewhere). Merged is the host's Load LoRA; painted has the regions of the plain picture as target
regions. Cost: processor time of a step of one picture, as a ratio to merged: medians of turns.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from . import toy
from .capture_trainer import TRIGGER, train_capture_lora
from .command_line import bench_parser, command_of, parse_with_quick
from .core_trainer import train_core_lora
from .layout_conditioning import applied
from .report import Report
from .step_cost import StepClock

# ruff: isort: split
import comfy.sd
import torch
from torch import Tensor

from magicportrait.demo.portraits import EXPRESSIONS, Garment, Portrait, Pose, render
from magicportrait.nodes.concept_lora import NO_LORA, MagicConceptLora

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
TRAINERS = "host", "MagiCapture"
"""The host's own, which takes each picture as a whole; ours, with masks and a trigger word."""
Loras = Mapping[Any, dict[str, Tensor]]
SETTINGS: dict[str, dict[str, Any]] = {
    "painted": {},
    "layout": {},
    "layout, strength 0.8": {"strength": 0.8},
    "layout, strength 0.6": {"strength": 0.6},
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


def train_part(checkpoint: toy.Toy, part: str, steps: int, trainer: str) -> dict[str, Tensor]:
    """A LORA_MODEL of a part. trainer: one of TRAINERS."""
    portraits = pictures_of(part)
    if trainer == TRAINERS[0]:
        return train_pictures(checkpoint, portraits, f"a {part}, cartoon style", steps)
    template = "a {person}, cartoon style"
    return train_capture_lora(checkpoint, portraits, (part,), part, template, steps)


def train_pictures(
    checkpoint: toy.Toy, portraits: Sequence[Portrait], text: str, steps: int
) -> dict[str, Tensor]:
    """A LORA_MODEL of portraits that all have one text."""
    # What comes out of inference mode cannot be trained with.
    with torch.inference_mode(False):
        with torch.no_grad():
            latents = [
                checkpoint.vae.encode(toy.picture(render(portrait, checkpoint.side))).clone()
                for portrait in portraits
            ]
            words = checkpoint.encode_text(text)
        return train_core_lora(
            checkpoint.model,
            torch.cat(latents),
            [words],
            steps=steps,
            # The host runs each picture of a step with the words of each.
            batch=2,
            rank=8,
            rate=1e-3,
            precision="fp32",
        )


def apart(
    checkpoint: toy.Toy,
    loras: Loras,
    regions: Mapping[str, Tensor] | None,
    prompt: str = PROMPT,
    strength: float = 1.0,
    **options: Any,
) -> tuple[Any, Any]:
    """MODEL and conditioning with each LoRA where its phrase is. regions: painted, B H W each."""
    concepts: Any = ()
    for part, lora in loras.items():
        painted = None if regions is None else regions[part].float()
        [concepts] = MagicConceptLora.execute(
            part, NO_LORA, strength, lora, painted, concepts, **options
        ).args
    return applied(checkpoint, prompt, concepts)


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


def swapped(images: Tensor, regions: Mapping[str, Tensor], colours: Mapping[str, Tensor]) -> float:
    """The share of the parts' places whose colour is nearer to another part's than to its own."""
    swaps = []
    for part, own in colours.items():
        for image, region in zip(images, regions[part], strict=True):
            mean = toy.mean_colour(image, region)
            others = [(mean - colour).norm() for name, colour in colours.items() if name != part]
            swaps.append(float(min(others) < (mean - own).norm()))
    return statistics.mean(swaps)


def costs(
    checkpoint: toy.Toy, patched: Mapping[str, tuple[Any, Any]], turns: int, steps: int
) -> dict[str, float]:
    """Processor seconds of a step of one picture. turns: of each, one after the other, because
    machines drift."""
    seconds: dict[str, list[float]] = {name: [] for name in patched}
    for _ in range(turns):
        for name, (model, positive) in patched.items():
            clock = StepClock(time.process_time)
            checkpoint.sample(model, positive, checkpoint.noise([0]), steps, callback=clock)
            seconds[name] += clock.steps
    return {name: statistics.median(own) for name, own in seconds.items()}


@torch.inference_mode()
def main() -> None:
    parser = bench_parser(__doc__)
    parser.add_argument("--toy", choices=("unet", "transformer"), default="unet")
    parser.add_argument("--trainer", choices=TRAINERS, default=TRAINERS[0], help="of the LoRAs")
    parser.add_argument("--seeds", type=int, default=8, help="pictures")
    parser.add_argument("--training", type=int, default=300, help="steps of each LoRA")
    parser.add_argument("--steps", type=int, default=25, help="of sampling")
    parser.add_argument("--turns", type=int, default=3, help="of what the cost is measured in")
    args = parse_with_quick(parser, seeds=2, training=2, steps=3, turns=1)
    checkpoint = toy.Toy.load() if args.toy == "unet" else toy.Toy.load_transformer()
    loras = {part: train_part(checkpoint, part, args.training, args.trainer) for part in LEARNED}
    noise, prompt = checkpoint.noise(range(args.seeds)), PROMPT
    if args.trainer != TRAINERS[0]:
        for part in LEARNED:
            prompt = prompt.replace(f"a {part}", f"a {TRIGGER} {part}")
    model, positive, record = checkpoint.watch(prompt, PHRASES)
    samples = checkpoint.sample(model, positive, noise, args.steps)
    plain, regions = checkpoint.decode(samples), toy.regions(record, samples, PHRASES)
    colours = {}
    for part in LEARNED:
        drawn = render(pictures_of(part)[2], checkpoint.side)
        colours[part] = toy.mean_colour(toy.picture(drawn)[0], toy.part_mask(drawn, part)[0])
    before = {part: distance(plain, None, regions[part], colours[part]) for part in LEARNED}
    report = Report(
        f"concept_lora_{args.toy}",
        f"Two LoRAs in one picture, on the {args.toy} toy",
        f"`{command_of('bench.concept_lora')}`: LoRAs of {args.training} steps, {args.seeds} seeds",
    )
    report.begin_table("", "hat", "scarf", "swapped", *BYSTANDERS, "elsewhere", "cost of a step")

    def ways(painted: Mapping[str, Tensor]) -> dict[str, tuple[Any, Any]]:
        """MODEL and conditioning of each row, for as many pictures as regions are painted for."""
        rows = {"plain": (checkpoint.model, positive), "merged": merged(checkpoint, loras, prompt)}
        for name, options in SETTINGS.items():
            own = painted if name == "painted" else None
            rows[name] = apart(checkpoint, loras, own, prompt, **options)
        return rows

    first = {part: region[:1] for part, region in regions.items()}
    spent = costs(checkpoint, ways(first), args.turns, args.steps)
    for name, made in ways(regions).items():
        images = plain
        if name != "plain":
            images = checkpoint.decode(checkpoint.sample(*made, noise, args.steps))
        errors = [
            distance(images, None, regions[part], colours[part]) / before[part] for part in LEARNED
        ]
        changes = [distance(images, plain, regions[phrase]) for phrase in BYSTANDERS]
        report.add_row(
            name,
            *(f"{error:.2f}" for error in errors),
            f"{swapped(images, regions, colours):.0%}",
            *(f"{change:.3f}" for change in (*changes, statistics.mean(changes))),
            f"{spent[name] / spent['merged']:.2f}",
        )
    report.finish(kept=not args.quick)


if __name__ == "__main__":
    main()
