"""Two people of a reference or a LoRA each in one picture: `python -m bench.two_faces`

On the transformer toy, which was trained on pictures of two people, at its own size. Each person is
known by one portrait (MagicFace Concept, hair, hat and face shown) or by a LoRA that MagiCapture
made of six portraits in different clothes (a subject without a style, trigger words, masks of the
same parts); hair, hat and skin are of colours that the other has not, and that the prompt does not
name. The prompt has a man on the left and a woman on the right, or the same words twice, by which
man#1 and man#2 are told apart.

Own: the share of hair, hat and skin that is of the right person: where drawn pictures have hat and
face, more pixels are of that part's colour than of the other person's, and the head looks most like
the person drawn with that hair; swapped: they are of the other's; neither: of anybody else's.
Errors: distance of a part's mean colour where drawn pictures have it, divided by that of the plain
picture. Merged is the host's Load LoRA; halves has the halves as target regions; limits only limits
the layout to them. As drawn is both people drawn by the toy's world: no error of hair is 0, since
what drawn pictures have of it lies where others have lines and hats.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from . import toy
from .capture_trainer import TRIGGER, mask_of, train_capture_lora
from .command_line import bench_parser, command_of, parse_with_quick
from .concept_lora import merged
from .layout_conditioning import applied, scene_masks
from .report import Report
from .sheets import contact_sheet
from .toy_colours import colour_counts

# ruff: isort: split
import torch
from torch import Tensor

from magicportrait.demo.portraits import (
    BACKGROUND_COLOURS,
    EXPRESSIONS,
    GARMENT_COLOURS,
    HAIR_COLOURS,
    SKIN_TONES,
    Garment,
    Portrait,
    Pose,
    Scene,
    render,
    render_scene,
    sample_scene,
)
from magicportrait.nodes.concept_lora import NO_LORA, REGIONS, MagicConceptLora
from magicportrait.nodes.magicface_concept import MagicFaceConcept

PARTS = ("hair", "hat", "face")
DETAILS = "with hair and a hat"
LEFT = Portrait(
    "man",
    SKIN_TONES[4],
    "gray",
    "bob",
    Garment("white"),
    "blue",
    hat=Garment("green", kind="beanie"),
)
RIGHT = Portrait(
    "woman",
    SKIN_TONES[0],
    "red",
    "long",
    Garment("white"),
    "blue",
    hat=Garment("purple", kind="sun"),
)
COUPLES = {"man and woman": (LEFT, RIGHT), "two men": (LEFT, replace(RIGHT, gender="man"))}
SHIRTS, GROUNDS = ("white", "yellow", "blue", "orange", "pink", "black"), ("blue", "pink", "yellow")
LINES, MOUTH = ((44, 36, 44), (0, 0, 0)), (200, 54, 60)
OTHERS = (
    *LINES,
    MOUTH,
    *BACKGROUND_COLOURS.values(),
    *GARMENT_COLOURS.values(),
    *HAIR_COLOURS.values(),
    *SKIN_TONES,
)
"""Colours that a pixel may have that is neither person's: brown hair is not the red one's."""
LEAST = 0.1
"""The share of a hat's or a face's place that counts."""
PLACES = (*PARTS, "shirt")


@dataclass(frozen=True)
class Couple:
    """Two people: left and right. name: of the couple; people: who they are."""

    name: str
    people: tuple[Portrait, Portrait]

    @property
    def prompt(self) -> str:
        left, right = (f"a {words_of(person)}" for person in self.people)
        return f"{left}, {right}, blue background, cartoon style"

    @property
    def phrases(self) -> tuple[str, str]:
        left, right = (words_of(person) for person in self.people)
        return (left, right) if left != right else (f"{left}#1", f"{right}#2")


def words_of(person: Portrait) -> str:
    """What the prompt says of a person."""
    return f"{TRIGGER} {person.gender} {DETAILS}"


def caption_of(person: Portrait) -> str:
    """Of a portrait of a person alone."""
    return f"a {words_of(person)}, cartoon style"


def portraits_of(person: Portrait) -> list[Portrait]:
    """Six of one person, of which only clothes, ground, pose and face differ."""
    return [
        replace(
            person,
            shirt=Garment(SHIRTS[i]),
            background=GROUNDS[i % 3],
            pose=Pose(0.03 * (i - 2.5), 0.02, 1.0, 2 * i - 5),
            expression=EXPRESSIONS[i % 4],
        )
        for i in range(6)
    ]


def colours_of(person: Portrait) -> dict[str, Tensor]:
    """Of each part, 3 in 0..1."""
    assert person.hat
    colours = {
        "hair": HAIR_COLOURS[person.hair],
        "hat": GARMENT_COLOURS[person.hat.colour],
        "face": person.skin,
    }
    return {part: torch.tensor(colour) / 255 for part, colour in colours.items()}


def scenes_of(people: tuple[Portrait, Portrait], count: int) -> Tensor:
    """Both people as they are drawn in one picture: what the counts of a perfect model would be of.
    B H W 3."""
    images = []
    for seed in range(count):
        places = sample_scene(seed)
        left, right = (
            replace(person, background="blue", pose=place.pose)
            for person, place in zip(people, (places.left, places.right), strict=True)
        )
        images.append(torch.from_numpy(render_scene(Scene(left, right), 256).image))
    return torch.stack(images)


def halves(rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """Left and right: 1 H W each."""
    left = torch.zeros(1, rows, columns)
    left[..., : columns // 2] = 1
    return left, 1 - left


def errors(images: Tensor, people: Sequence[Portrait]) -> list[float]:
    """Of each part: mean distance to its own colour where drawn pictures have it. images: B H W
    3."""
    means: dict[str, list[Tensor]] = {part: [] for part in PARTS}
    for person, masks in zip(people, scene_masks(PARTS), strict=True):
        for part, colour in colours_of(person).items():
            means[part] += [
                (toy.mean_colour(image, masks[part]) - colour).norm() for image in images
            ]
    return [float(torch.stack(distances).mean()) for distances in means.values()]


class Counter:
    """Whose colours the parts of a couple have."""

    def __init__(self, people: tuple[Portrait, Portrait]) -> None:
        self.people, self.places = people, scene_masks(PLACES)
        # Of two equal colours the first is the nearest: a person's own.
        own = [torch.stack([colours_of(person)[part] for part in PARTS]) for person in people]
        self.palette = torch.cat([*own, torch.tensor(OTHERS) / 255])
        self.heads = [self._head(who) for who in (0, 1)]
        self.hair = [self._looks_of_hair(who) for who in (0, 1)]

    def shares(self, image: Tensor, where: Tensor) -> Tensor:
        """The share of pixels that is nearest to each of the palette. image: H W 3; where: H W,
        bool."""
        pixels = image[where]
        return colour_counts(pixels, self.palette) / len(pixels)

    def counts(self, images: Tensor) -> dict[str, list[int]]:
        """For each part how many are own, swapped, neither. images: B H W 3."""
        counts = {part: [0, 0, 0] for part in PARTS}
        for image in images:
            for who, masks in enumerate(self.places):
                counts["hair"][self._whose_hair(image, who)] += 1
                for part in PARTS[1:]:
                    shares = self.shares(image, masks[part])
                    of = [float(shares[3 * i + PARTS.index(part)]) for i in (who, 1 - who)]
                    is_there = max(of) >= LEAST
                    counts[part][(0 if of[0] >= of[1] else 1) if is_there else 2] += 1
        return counts

    def _head(self, who: int) -> Tensor:
        """A person's half without face and shirt: mouths are as red as red hair, shirts of any
        colour."""
        masks = self.places[who]
        is_half = torch.zeros_like(masks["face"])
        is_half.chunk(2, dim=1)[who].fill_(True)
        return is_half & ~masks["face"] & ~masks["shirt"]

    def _hair_shares(self, image: Tensor, who: int) -> Tensor:
        """How much of a head's place is of each colour of hair but black, which lines have."""
        hair = torch.tensor([HAIR_COLOURS[name] for name in HAIR_COLOURS if name != "black"]) / 255
        others = torch.tensor([*LINES, *GARMENT_COLOURS.values(), *BACKGROUND_COLOURS.values()])
        pixels = image[self.heads[who]]
        counts = colour_counts(pixels, torch.cat([hair, others / 255]))
        return counts[: len(hair)] / len(pixels)

    def _looks_of_hair(self, who: int) -> dict[str, Tensor]:
        """A person's `_hair_shares` as drawn with each colour of hair. An edge between a line and
        the background is gray, too, with any hair."""
        looks = {}
        for name in HAIR_COLOURS:
            people = list(self.people)
            people[who] = replace(people[who], hair=name)
            drawn = scenes_of((people[0], people[1]), 6)
            looks[name] = torch.stack([self._hair_shares(image, who) for image in drawn]).mean(0)
        return looks

    def _whose_hair(self, image: Tensor, who: int) -> int:
        shares = self._hair_shares(image, who)
        apart = {name: float((shares - look).abs().sum()) for name, look in self.hair[who].items()}
        name = min(apart, key=apart.__getitem__)
        return [self.people[who].hair, self.people[1 - who].hair, name].index(name)


def figures_of(
    images: Tensor, counter: Counter, now: Sequence[float], before: Sequence[float]
) -> list[str]:
    """The cells of a row. images: B H W 3; now, before: errors of these pictures and of plain
    ones."""
    counts = torch.tensor(list(counter.counts(images).values()))
    shares = counts / counts.sum(1, keepdim=True)  # parts, (own, swapped, neither)
    return [
        *(f"{share:.0%}" for share in (*shares.mean(0).tolist(), *shares[:, 1].tolist())),
        *(f"{own / first:.2f}" for own, first in zip(now, before, strict=True)),
    ]


def references_of(couple: Couple, regions: Sequence[Tensor] | None) -> Any:
    """A concept for each person, of one portrait."""
    concepts: Any = ()
    for i, (person, phrase) in enumerate(zip(couple.people, couple.phrases, strict=True)):
        drawn = render(portraits_of(person)[2], 256)
        mask = mask_of(drawn, PARTS)
        region = None if regions is None else regions[i]
        [concepts] = MagicFaceConcept.execute(
            toy.picture(drawn),
            phrase,
            1.0,
            mask,
            caption_of(person),
            region,
            concepts,
            preset="normal",
        ).args
    return concepts


def loras_of(
    couple: Couple,
    loras: Sequence[dict[str, Tensor]],
    regions: Sequence[Tensor] | None,
    concepts: Any = (),
    **options: Any,
) -> Any:
    """A concept for each person, of a LoRA."""
    for i, (phrase, lora) in enumerate(zip(couple.phrases, loras, strict=True)):
        region = None if regions is None else regions[i]
        [concepts] = MagicConceptLora.execute(
            phrase, NO_LORA, 1.0, lora, region, concepts, **options
        ).args
    return concepts


@torch.inference_mode()
def main() -> None:
    parser = bench_parser(__doc__)
    parser.add_argument("--seeds", type=int, default=16, help="pictures")
    parser.add_argument("--training", type=int, default=300, help="steps of each LoRA")
    parser.add_argument("--steps", type=int, default=15, help="of sampling")
    parser.add_argument("--couple", choices=tuple(COUPLES), nargs="+", default=list(COUPLES))
    parser.add_argument("--sheet", type=Path, help="a folder for sheets of the pictures")
    args = parse_with_quick(parser, seeds=1, training=2, steps=2)
    checkpoint = toy.Toy.load_transformer()
    noise = checkpoint.noise(range(args.seeds))
    regions = halves(*noise.shape[-2:])
    loras_by_person: dict[str, dict[str, Tensor]] = {}
    report = Report(
        "two_faces",
        "Two people of a reference or a LoRA each, on the transformer toy",
        f"`{command_of('bench.two_faces')}`: LoRAs of {args.training} steps, {args.seeds} pictures,"
        f" {args.steps} steps, CFG 4",
    )
    for couple in (Couple(name, COUPLES[name]) for name in args.couple):
        loras = []
        for person in couple.people:
            key = f"{person.gender} {person.hair}"
            if key not in loras_by_person:
                loras_by_person[key] = train_capture_lora(
                    checkpoint,
                    portraits_of(person),
                    PARTS,
                    person.gender,
                    f"a {{person}} {DETAILS}, cartoon style",
                    args.training,
                )
            loras.append(loras_by_person[key])
        measure(report, checkpoint, couple, loras, noise, regions, args.steps, args.sheet)
    report.finish(kept=not args.quick)


def measure(
    report: Report,
    checkpoint: toy.Toy,
    couple: Couple,
    loras: Sequence[dict[str, Tensor]],
    noise: Tensor,
    regions: tuple[Tensor, Tensor],
    steps: int,
    sheets: Path | None,
) -> None:
    """A table of a couple."""
    report.write("", couple.name, "")
    of_parts = (f"{what} {part}" for what in ("swapped", "error of") for part in PARTS)
    report.begin_table("", "own", "swapped", "neither", *of_parts)
    by_reference = references_of(couple, regions)
    inside = {"region": REGIONS[1]}
    ways: dict[str, Any] = {
        "plain": (),
        "references": references_of(couple, None),
        "references, halves": by_reference,
        "LoRAs, merged": None,
        "LoRAs, layout": loras_of(couple, loras, None),
        "LoRAs, halves": loras_of(couple, loras, regions),
        "LoRAs, limits": loras_of(couple, loras, regions, **inside),
        "references and LoRAs, halves": loras_of(couple, loras, regions, by_reference),
    }
    before: list[float] = []
    rows, counter = [], Counter(couple.people)
    for name, concepts in ways.items():
        model, positive = (
            merged(checkpoint, dict(enumerate(loras)), couple.prompt)
            if concepts is None
            else applied(checkpoint, couple.prompt, concepts)
        )
        images = checkpoint.decode(checkpoint.sample(model, positive, noise, steps))
        rows.append(list(images[:6]))
        now = errors(images, couple.people)
        before = before or now
        report.add_row(name, *figures_of(images, counter, now, before))
    drawn = scenes_of(couple.people, len(noise))
    now = errors(drawn, couple.people)
    report.add_row("as drawn", *figures_of(drawn, counter, now, before))
    if sheets is not None:
        contact_sheet(rows, sheets / f"two_faces_{couple.name.replace(' ', '_')}.png")


if __name__ == "__main__":
    main()
