"""A text for each phrase, with Layout Conditioning and without: `python -m
bench.layout_conditioning`

Colours: hat, scarf and shirt of three colours each, of held-out portraits, on the UNet toy. The
prompt names them in the other order than it was trained with, which confuses it; with a text for
each phrase the hat's place reads 'a man wearing a red hat, cartoon style' (the toy knows whole
captions only), the scarf's and the shirt's theirs. Two people: a
prompt of a woman and a man, each with hair, hat and shirt, on the UNet toy at 256x128, for which it
was not trained, and on the transformer toy; with it the phrases 'woman' and 'man' have a text each,
in the halves of the picture as target regions or by the layout alone. A part is right when more of
its pixels have its colour than any other of cloth or hair, skin and grounds included; where a part
is, is the mean of drawn pictures. CFG 4.
"""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from . import toy
from .command_line import bench_parser, command_of, parse_with_quick
from .report import Report
from .sheets import contact_sheet
from .toy_colours import colour_counts
from .toy_references import text_concepts

# ruff: isort: split
import torch
from torch import Tensor

from magicportrait.demo.portraits import (
    BACKGROUND_COLOURS,
    GARMENT_COLOURS,
    HAIR_COLOURS,
    SKIN_TONES,
    Garment,
    Portrait,
    render,
    render_scene,
    sample_portrait,
    sample_scene,
)
from magicportrait.nodes.declare import defaults_of
from magicportrait.nodes.magicface_apply import MagicFaceApply

PARTS = ("hair", "hat", "shirt")
MEANS_OF = 96
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "layout": {"strength": 0.75},
    "halves": {"strength": 0.75, "is_painted": True},
    "halves, strength 1": {"strength": 1.0, "is_painted": True},
    "halves, start 0.2": {"strength": 0.75, "is_painted": True, "start": 0.2},
}
"""How two people are asked for."""
COUPLES = (
    (("woman", "red", "green", "blue"), ("man", "black", "yellow", "pink")),
    (("man", "gray", "red", "white"), ("woman", "blonde", "blue", "green")),
)
"""Who stands left and who right: gender, and colours of hair, hat and shirt."""


@dataclass(frozen=True)
class Couples:
    """How a checkpoint is asked for two people. size: rows and columns of the latent; joint: what
    stands between the hair and what is worn; masks: of each person's parts, H W each."""

    checkpoint: toy.Toy
    size: tuple[int, int]
    joint: str
    masks: Sequence[Mapping[str, Tensor]]

    def words(self, person: Sequence[str]) -> str:
        """A person in words, as the checkpoint was trained."""
        gender, hair, hat, shirt = person
        garments = f"{with_article(f'{hat} hat')} and {with_article(f'{shirt} shirt')}"
        return f"a {gender} with {hair} hair{self.joint}{garments}"


def with_article(words: str) -> str:
    return f"{'an' if words.startswith('o') else 'a'} {words}"


def usual_place(masks: Sequence[Tensor]) -> Tensor:
    """Where most of drawn pictures have a part: H W, bool."""
    mean = torch.stack(list(masks)).mean(0)
    return mean > 0.6 * mean.max()


def portrait_masks(parts: Sequence[str]) -> dict[str, Tensor]:
    """H W of each part of a portrait with a hat."""
    part_masks = [
        render(portrait).masks
        for portrait in map(sample_portrait, range(4 * MEANS_OF))
        if portrait.hat and portrait.scarf
    ][:MEANS_OF]
    return {part: usual_place([torch.from_numpy(m[part]) for m in part_masks]) for part in parts}


@functools.cache
def scene_masks(parts: tuple[str, ...]) -> list[dict[str, Tensor]]:
    """The same of the people of a scene, left and right."""
    part_masks = [
        render_scene(
            replace(
                scene,
                left=replace(scene.left, hat=Garment("red", kind="top")),
                right=replace(scene.right, hat=Garment("red", kind="top")),
            )
        ).masks
        for scene in map(sample_scene, range(MEANS_OF))
    ]
    return [
        {
            part: usual_place([torch.from_numpy(m[person, part]) for m in part_masks])
            for part in parts
        }
        for person in (0, 1)
    ]


def right(image: Tensor, mask: Tensor, part: str, colour: str) -> bool:
    """Whether the most frequent colour of a part's place is its own: where nothing is drawn the
    ground is."""
    own = HAIR_COLOURS if part == "hair" else GARMENT_COLOURS
    palette = [*own.values(), *SKIN_TONES, *BACKGROUND_COLOURS.values()]
    colours = torch.tensor(palette) / 255
    return list(own).index(colour) == int(colour_counts(image[mask], colours).argmax())


def applied(checkpoint: toy.Toy, prompt: str, concepts: Any) -> tuple[Any, Any]:
    """MODEL and conditioning."""
    if not concepts:
        return checkpoint.model, checkpoint.encode_text(prompt)
    arguments = {**defaults_of(MagicFaceApply), "semantic_cfg": False, "prompt": prompt}
    model, positive, _ = MagicFaceApply.execute(
        checkpoint.model, checkpoint.clip, checkpoint.vae, concepts, **arguments
    ).args
    return model, positive


def of_three_colours(portrait: Portrait) -> bool:
    """Whether hat, scarf and shirt are of different colours."""
    garments = (portrait.hat, portrait.scarf, portrait.shirt)
    return len({garment.colour for garment in garments if garment}) == 3


def measure_colours(report: Report, count: int, steps: int, strengths: Sequence[float]) -> None:
    checkpoint, masks = toy.Toy.load(), portrait_masks(("hat", "scarf", "shirt"))
    people = toy.held_out(count, of_three_colours)
    plain: list[dict[str, bool]] = []
    report.begin_table("", *masks, "all three", "plain wrong: then right", "time")
    for name, strength in [("plain", None), *((f"strength {s:g}", s) for s in strengths)]:
        results, start_time = [], time.perf_counter()
        for index, person in enumerate(people):
            assert person.hat and person.scarf
            colours = {
                "hat": person.hat.colour,
                "scarf": person.scarf.colour,
                "shirt": person.shirt.colour,
            }
            garments = {part: with_article(f"{colour} {part}") for part, colour in colours.items()}
            hat, scarf, shirt = garments.values()
            wearer = f"a {person.gender} wearing"
            prompt = f"{wearer} {shirt}, {scarf} and {hat}, cartoon style"
            texts = {
                part: f"{wearer} {garment}, cartoon style" for part, garment in garments.items()
            }
            concepts = () if strength is None else text_concepts(texts, strength=strength)
            model, positive = applied(checkpoint, prompt, concepts)
            noise = checkpoint.noise([index])
            image = checkpoint.decode(checkpoint.sample(model, positive, noise, steps))[0]
            results.append(
                {part: right(image, masks[part], part, colours[part]) for part in colours}
            )
        plain = plain or results
        mends = [
            now[part] for now, before in zip(results, plain) for part in now if not before[part]
        ]
        report.add_row(
            name,
            *(share_of([result[part] for result in results]) for part in masks),
            share_of([all(result.values()) for result in results]),
            f"{sum(mends)} of {len(mends)}",
            f"{time.perf_counter() - start_time:.0f} s",
        )


def share_of(values: Sequence[bool]) -> str:
    return f"{sum(values) / max(1, len(values)):.0%}"


def unet_couples() -> Couples:
    masks, (height, width) = portrait_masks(PARTS), (toy.SIDE, toy.SIDE)
    blank = torch.zeros(height, width, dtype=torch.bool)
    people = [
        {part: torch.cat([mask, blank], 1) for part, mask in masks.items()},
        {part: torch.cat([blank, mask], 1) for part, mask in masks.items()},
    ]
    size = (height // toy.LATENT_PIXELS, 2 * width // toy.LATENT_PIXELS)
    return Couples(toy.Toy.load(), size, " wearing ", people)


def transformer_couples() -> Couples:
    checkpoint = toy.Toy.load_transformer()
    side = checkpoint.side // toy.LATENT_PIXELS
    return Couples(checkpoint, (side, side), ", ", scene_masks(PARTS))


def measure_couples(
    report: Report,
    couples: Couples,
    people_of: Sequence[Any],
    args: argparse.Namespace,
    sheet: Path | None,
) -> None:
    seeds, steps = args.seeds, args.steps
    rows, columns = couples.size
    noise = torch.cat(
        [
            torch.randn(1, 4, rows, columns, generator=torch.Generator().manual_seed(seed))
            for seed in range(seeds)
        ]
    )
    half = torch.zeros(1, rows, columns)
    half[..., : columns // 2] = 1
    report.begin_table("", *PARTS, "all six", "the other's colour", "time")
    pictures: list[list[Tensor]] = []
    for name in args.variants:
        results: dict[str, list[bool]] = {part: [] for part in PARTS}
        whole, swaps, row, start_time = [], [], [], time.perf_counter()
        for couple in people_of:
            texts = {person[0]: f"{couples.words(person)}, cartoon style" for person in couple}
            regions = {couple[0][0]: half, couple[1][0]: 1 - half}
            concepts: Any = ()
            if settings := VARIANTS[name]:
                own_regions = regions if settings.get("is_painted") else None
                start = settings.get("start", 0.0)
                concepts = text_concepts(texts, own_regions, settings["strength"], start)
            people = ", ".join(couples.words(person) for person in couple)
            prompt = f"{people}, cartoon style"
            model, positive = applied(couples.checkpoint, prompt, concepts)
            samples = couples.checkpoint.sample(model, positive, noise, steps)
            images = couples.checkpoint.decode(samples)
            row += list(images[:6])
            for image in images:
                own: list[bool] = []
                for i, (_, *colours) in enumerate(couple):
                    others = couple[1 - i][1:]
                    for part, colour, other in zip(PARTS, colours, others, strict=True):
                        mask = couples.masks[i][part]
                        own.append(right(image, mask, part, colour))
                        results[part].append(own[-1])
                        swaps.append(right(image, mask, part, other))
                whole.append(all(own))
        pictures.append(row)
        report.add_row(
            name,
            *(share_of(values) for values in results.values()),
            share_of(whole),
            share_of(swaps),
            f"{time.perf_counter() - start_time:.0f} s",
        )
    if sheet is not None:
        contact_sheet(pictures, sheet)


@torch.inference_mode()
def main() -> None:
    parser = bench_parser(__doc__)
    parser.add_argument("--portraits", type=int, default=24, help="pictures of one person")
    parser.add_argument("--seeds", type=int, default=16, help="pictures of each couple")
    parser.add_argument("--couples", type=int, default=1, help="1 or 2")
    parser.add_argument("--steps", type=int, default=25, help="of each picture")
    parser.add_argument("--strengths", type=float, nargs="+", default=[0.75, 1.0])
    parser.add_argument("--variants", nargs="+", choices=tuple(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--sheet", type=Path, help="a folder for sheets of the couples")
    parser.add_argument(
        "--only", choices=("colours", "unet", "transformer"), help="one of the tables"
    )
    args = parse_with_quick(parser, portraits=1, seeds=1, steps=2)
    report = Report(
        "layout_conditioning",
        "A text for each phrase, on the toys",
        f"`{command_of('bench.layout_conditioning')}`. Time: of all pictures, with other work on"
        " the machine: no measure of the cost",
    )
    if args.only in (None, "colours"):
        report.write("Colours of one person, UNet toy: share that is right", "")
        measure_colours(report, args.portraits, args.steps, args.strengths)
    for name, load in (("unet", unet_couples), ("transformer", transformer_couples)):
        if args.only in (None, name):
            report.write("", f"Two people, {name} toy: share that is right", "")
            sheet = args.sheet and args.sheet / f"couples_{name}.png"
            measure_couples(report, load(), COUPLES[: args.couples], args, sheet)
    report.finish(kept=not args.quick)


if __name__ == "__main__":
    main()
