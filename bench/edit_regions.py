"""Does each garment come from its own reference on an edit model: `python -m bench.edit_regions`

The transformer toy that is given references in its sequence, with two or three reference portraits
that all wear a hat, a scarf and a shirt, and a prompt for one garment of each. A garment of the
picture, where the layout has it, is right when its most frequent colour is that of the reference
asked for, in the wrong place when it is another one of the references', and a colour error when it
is of no reference. The prompt says which reference is meant ('wearing a second hat and a first
scarf'), as the toy has learned it, or with --unnumbered does not.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from . import toy
from .command_line import bench_parser, command_of, parse_with_quick
from .report import Report
from .toy_colours import colour_counts

# ruff: isort: split
import torch
from torch import Tensor

from magicportrait.demo import transformer_checkpoint
from magicportrait.demo.dataset import HELD_OUT_SEEDS
from magicportrait.demo.edit_set import (
    ORDINALS,
    WORN,
    Slot,
    Worn,
    sample_reference,
    with_ordinals,
    worn_by,
)
from magicportrait.demo.portraits import (
    GARMENT_COLOURS,
    Garment,
    Portrait,
    Rendering,
    caption,
    render,
    sample_portrait,
)
from magicportrait.demo.transformer import REFERENCE_SIDE
from magicportrait.nodes.declare import defaults_of
from magicportrait.nodes.edit import MagicEditReference, MagicEditRegions

COLOURS = torch.tensor(list(GARMENT_COLOURS.values())) / 255
NAMES = tuple(GARMENT_COLOURS)
INK = "black"
"""Outlines have it, so no garment of the bench does."""


@dataclass(frozen=True)
class Case:
    """A prompt with its references. slots: what is asked of which; seed: of the noise; is_numbered:
    whether the words say which reference is meant."""

    prompt: str
    references: tuple[Portrait, ...]
    slots: tuple[Slot, ...]
    seed: int
    is_numbered: bool

    def phrase(self, slot: Slot) -> str:
        return f"{ORDINALS[slot.reference]} {slot.part}" if self.is_numbered else slot.part

    def colour_of(self, slot: Slot) -> str:
        """The colour that a garment should have."""
        return _colour(self.references[slot.reference], slot.part)

    @property
    def of_references(self) -> frozenset[str]:
        """Colours of everything that the references wear."""
        return frozenset(_colour(person, part) for person in self.references for part in WORN)


def _colour(person: Portrait, part: Worn) -> str:
    garment = worn_by(person, part)
    assert garment is not None
    return garment.colour


def case_of(index: int, count: int, is_numbered: bool = True) -> Case:
    """The index-th prompt of `count` references: six colours are on them, two are not."""
    rng = random.Random(f"edit {index} {count}")
    colours = rng.sample([name for name in NAMES if name != INK], 6)
    parts = rng.sample(WORN, count)
    slots = tuple(Slot(0, part, reference) for reference, part in enumerate(parts))
    slot_colours = dict(zip(slots, colours, strict=False))
    people = []
    for reference in range(count):
        person = sample_reference(HELD_OUT_SEEDS.start + 10 * index + reference)
        garments = {part: Garment(rng.choice(colours[count:])) for part in WORN}
        for slot, colour in slot_colours.items():
            if slot.reference == reference:
                garments[slot.part] = Garment(colour)
        hat = replace(garments["hat"], kind=rng.choice(("top", "sun", "beanie")))
        people.append(replace(person, hat=hat, scarf=garments["scarf"], shirt=garments["shirt"]))
    target = sample_portrait(HELD_OUT_SEEDS.start + 5000 + index, "cartoon")
    target = replace(
        target,
        hat=Garment("first") if "hat" in parts else None,
        scarf=Garment("first") if "scarf" in parts else None,
        glasses=None,
    )
    wearer = with_ordinals(target, slots)
    assert isinstance(wearer, Portrait)
    prompt = caption(wearer, frozenset({"hair", "background", *parts}))
    if not is_numbered:
        for word in ORDINALS:
            prompt = prompt.replace(f"{word} ", "")
    return Case(prompt, tuple(people), slots, index, is_numbered)


@dataclass(frozen=True)
class Setting:
    """A row of the table. options: of Edit Regions; is_masked: whether each reference has the mask
    of its garment."""

    name: str
    options: dict[str, Any]
    is_masked: bool = True


SETTINGS = (
    Setting("plain", {"inject_at": 1.0}, is_masked=False),
    Setting("masks", {"inject_at": 1.0}),
    Setting("regions", {}, is_masked=False),
    Setting("masks and regions", {}),
    Setting("the same, `outside` none", {"outside": "none"}),
    Setting("the same, `inject_at` 0.1", {"inject_at": 0.1}),
    Setting("the same, `inject_at` 0.2", {"inject_at": 0.2}),
    Setting("the same, `inject_at` 0.4", {"inject_at": 0.4}),
    Setting("the same, `isolate`", {"isolate": True}),
)


@dataclass(frozen=True)
class Outcome:
    """Of one garment. verdict: 'right', 'wrong place' or 'colour error'; distance: of its mean
    colour from that of its reference, 0..1, None where the layout has no such garment."""

    verdict: str
    distance: float | None


def verdict_of(case: Case, slot: Slot, image: Tensor, region: Tensor) -> str:
    """image: H W 3 in 0..1; region: H W, bool."""
    pixels = image[region]
    if len(pixels) == 0:
        return "colour error"
    counts = colour_counts(pixels, COLOURS)
    counts[NAMES.index(INK)] = 0
    name = NAMES[int(counts.argmax())]
    if name == case.colour_of(slot):
        return "right"
    return "wrong place" if name in case.of_references else "colour error"


def draw(
    checkpoint: toy.Toy, case: Case, setting: Setting, steps: int, cfg: float
) -> list[Outcome]:
    renderings = [render(person, REFERENCE_SIDE) for person in case.references]
    latents = [checkpoint.vae.encode(toy.picture(rendering)) for rendering in renderings]
    positive = [
        [
            tensor,
            {**options, "reference_latents": latents},
        ]
        for tensor, options in checkpoint.encode_text(case.prompt)
    ]
    references: Any = ()
    for reference, rendering in enumerate(renderings):
        [slot] = [slot for slot in case.slots if slot.reference == reference]
        mask = toy.part_mask(rendering, slot.part) if setting.is_masked else None
        settings = {**defaults_of(MagicEditReference), "phrase": case.phrase(slot), "mask": mask}
        [references] = MagicEditReference.execute(references=references, **settings).args
    options = {**defaults_of(MagicEditRegions), **setting.options, "prompt": case.prompt}
    model, positive, record = MagicEditRegions.execute(
        checkpoint.model, positive, references, checkpoint.clip, **options
    ).args
    samples = checkpoint.sample(model, positive, checkpoint.noise([case.seed]), steps, cfg)
    phrases = [case.phrase(slot) for slot in case.slots]
    regions = toy.regions(record, samples, phrases)
    [image] = checkpoint.decode(samples)
    return [
        Outcome(
            verdict_of(case, slot, image, regions[case.phrase(slot)][0]),
            _distance(image, regions[case.phrase(slot)][0], renderings[slot.reference], slot.part),
        )
        for slot in case.slots
    ]


def _distance(image: Tensor, region: Tensor, reference: Rendering, part: str) -> float | None:
    if not region.any():
        return None
    there = torch.from_numpy(reference.image)
    expected = toy.mean_colour(there, torch.from_numpy(reference.masks[part]))
    return float((toy.mean_colour(image, region) - expected).norm()) / 3**0.5


def report_settings(
    report: Report,
    checkpoint: toy.Toy,
    settings: Sequence[Setting],
    counts: Sequence[int],
    prompts: int,
    steps: int,
    cfg: float,
    is_numbered: bool,
) -> None:
    columns = ("right place", "wrong place", "colour error", "distance")
    report.begin_table("references", "setting", *columns)
    for count in counts:
        for setting in settings:
            outcomes = [
                outcome
                for index in range(prompts)
                for outcome in draw(
                    checkpoint, case_of(index, count, is_numbered), setting, steps, cfg
                )
            ]
            verdicts = Counter(outcome.verdict for outcome in outcomes)
            shares = (
                f"{verdicts[name] / len(outcomes):.0%}"
                for name in ("right", "wrong place", "colour error")
            )
            distances = [each.distance for each in outcomes if each.distance is not None]
            mean = sum(distances) / max(1, len(distances))
            report.add_row(f"{count}", setting.name, *shares, f"{mean:.3f}")


@torch.inference_mode()
def main() -> None:
    parser = bench_parser(__doc__)
    parser.add_argument("--prompts", type=int, default=32, help="of two, and of three references")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--references", type=int, nargs="*", default=[2, 3], help="how many")
    parser.add_argument("--cfg", type=float, default=4.0)
    parser.add_argument("--only", nargs="*", type=int, help="only these rows, by number from 0")
    parser.add_argument(
        "--unnumbered", action="store_true", help="prompts do not say which reference is meant"
    )
    parser.add_argument("--file", type=Path, help="of another change than the shipped one")
    args = parse_with_quick(parser, prompts=1, steps=2, only=[0, 3], references=[2])
    report = Report(
        "edit_regions",
        "Edit Regions on the transformer toy",
        f"`{command_of('bench.edit_regions')}`: {args.prompts} prompts, {args.steps} steps,"
        f" CFG {args.cfg:g}{', unnumbered' if args.unnumbered else ''}",
    )
    checkpoint = toy.Toy(
        *transformer_checkpoint.load_edit(args.file),
        side=transformer_checkpoint.IMAGE_SIDE,
        scheduler="simple",
    )
    settings = [SETTINGS[i] for i in args.only] if args.only else SETTINGS
    report_settings(
        report,
        checkpoint,
        settings,
        args.references,
        args.prompts,
        args.steps,
        args.cfg,
        not args.unnumbered,
    )
    report.finish(kept=not args.quick and not args.only)


if __name__ == "__main__":
    main()
