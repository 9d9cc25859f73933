"""What Detail Pass does to people that were drawn too small: `python -m bench.detail_pass`

On the UNet toy: pictures of two drawn portraits beside each other, with fewer pixels a side,
enlarged again. Each person is an area, with its caption as text, or with another portrait of
the same face as a concept for 'man' or 'woman' too. Sharpness: how much neighbouring pixels differ,
in the person, as a share of that of the portrait with all its pixels. Distance: of colours to it.
Likeness: cosine of the faces by the pack's own small network, to the portrait.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from . import toy
from .command_line import bench_parser, command_of, parse_with_quick
from .report import Report

# ruff: isort: split
import torch
import torch.nn.functional as F
from torch import Tensor

from magicportrait.demo.portraits import EXPRESSIONS, Portrait, Rendering, caption, render
from magicportrait.host.faces.identity import Identity
from magicportrait.magic.boxes import box_of_mask
from magicportrait.nodes.declare import defaults_of
from magicportrait.nodes.detail import MagicDetailPass
from magicportrait.nodes.magicface_concept import MagicFaceConcept

DENOISE = (0.3, 0.5, 0.7)


def beside(pictures: Sequence[Tensor]) -> Tensor:
    """1 H W ... each -> 1 H 2W ..."""
    return torch.cat(list(pictures), dim=2)


def enlarge_again(picture: Tensor, smaller: int) -> Tensor:
    """1 H W 3 with a part of its pixels. smaller: times that a side has fewer."""
    planes = picture.movedim(-1, 1)
    small = F.interpolate(planes, scale_factor=1 / smaller, mode="area")
    return F.interpolate(small, scale_factor=smaller, mode="bicubic").clamp(0, 1).movedim(1, -1)


def person_of(rendering: Rendering) -> Tensor:  # 1 H W
    return 1 - toy.part_mask(rendering, "background").clamp(0, 1)


def edges(picture: Tensor, person: Tensor) -> float:
    """Mean difference of neighbours in an H W 3 picture, inside of an H W mask."""
    inside = person[1:, 1:] > 0.5
    across = (picture[1:, 1:] - picture[1:, :-1]).abs() + (picture[1:, 1:] - picture[:-1, 1:]).abs()
    return float(across.mean(-1)[inside].mean())


def measure(
    picture: Tensor, people: Sequence[Rendering], network: Identity
) -> tuple[float, float, float]:
    """Sharpness, distance and likeness: means over the people of a picture, 1 H W 3."""
    rows = []
    for part, rendering in zip(picture.chunk(len(people), dim=2), people, strict=True):
        truth, person = toy.picture(rendering)[0], person_of(rendering)[0]
        face = box_of_mask(toy.part_mask(rendering, "face")[0])
        assert face is not None
        first, second = (network.embed_face(each, face.corners) for each in (part[0], truth))
        distance = (part[0] - truth).norm(dim=-1)[person > 0.5].mean()
        sharpness = edges(part[0], person) / edges(truth, person)
        rows.append((sharpness, float(distance), float(first @ second)))
    sharpness, distance, likeness = torch.tensor(rows).mean(0).tolist()
    return sharpness, distance, likeness


def concept_of(portrait: Portrait, before: Any) -> Any:
    """Another portrait of the same face, as a concept."""
    expression = next(other for other in EXPRESSIONS if other != portrait.expression)
    rendering = render(replace(portrait, expression=expression))
    mask = toy.part_mask(rendering, "face")
    [concepts] = MagicFaceConcept.execute(
        toy.picture(rendering), portrait.gender, 3.0, mask, concepts=before
    ).args
    return concepts


def couple(people: Sequence[Portrait], first: int) -> list[Portrait]:
    """A man and a woman: so that each line has a phrase of its own."""
    by_kind = [[each for each in people if each.gender == kind] for kind in ("man", "woman")]
    return [each[first] for each in by_kind]


@torch.inference_mode()
def main() -> None:
    parser = bench_parser(__doc__)
    parser.add_argument("--pictures", type=int, default=6, help="of two people each")
    parser.add_argument("--smaller", type=int, default=4, help="times, a side, before")
    parser.add_argument("--steps", type=int, default=20, help="of each area")
    args = parse_with_quick(parser, pictures=1, steps=2)
    checkpoint, network = toy.Toy.load(), toy.identity()
    people = toy.held_out(8 * args.pictures + 8, lambda each: each.style == "cartoon")
    settings = {
        **defaults_of(MagicDetailPass),
        "model": checkpoint.model,
        "clip": checkpoint.clip,
        "vae": checkpoint.vae,
        "size": toy.SIDE,
        "steps": args.steps,
        "cfg": 4.0,
        "scheduler": checkpoint.scheduler,
        "margin": 0.2,
    }
    ways: dict[str, dict[str, Any] | None] = {"before": None}
    ways |= {f"denoise {denoise:g}": {"denoise": denoise} for denoise in DENOISE}
    ways |= {
        f"denoise {denoise:g}, concepts": {"denoise": denoise, "concepts": True}
        for denoise in DENOISE[1:]
    }
    rows: dict[str, list[tuple[float, float, float]]] = {way: [] for way in ways}
    for number in range(args.pictures):
        pair = couple(people, number)
        renderings = [render(portrait) for portrait in pair]
        small = enlarge_again(beside([toy.picture(each) for each in renderings]), args.smaller)
        blank = torch.zeros_like(person_of(renderings[0]))
        masks = torch.cat(
            [beside([person_of(renderings[0]), blank]), beside([blank, person_of(renderings[1])])]
        )
        text = "\n".join(caption(portrait) for portrait in pair)
        for way, options in ways.items():
            picture = small
            if options is not None:
                concepts: Any = ()
                if options.get("concepts"):
                    for portrait in pair:
                        concepts = concept_of(portrait, concepts)
                own = {**options, "concepts": concepts, "seed": 10 * number, "text": text}
                picture = MagicDetailPass.execute(small, masks=masks, **{**settings, **own}).args[0]
            rows[way].append(measure(picture, renderings, network))
    report = Report(
        "detail_pass",
        "Detail Pass on people drawn too small, on the toy checkpoint",
        f"`{command_of('bench.detail_pass')}`: {args.pictures} pictures of two people,"
        f" {args.steps} steps, CFG 4",
    )
    report.begin_table("", "sharpness", "distance", "likeness")
    for way, of_pictures in rows.items():
        sharpness, distance, likeness = torch.tensor(of_pictures).mean(0).tolist()
        report.add_row(way, f"{sharpness:.2f}", f"{distance:.3f}", f"{likeness:.2f}")
    report.finish(kept=not args.quick)


if __name__ == "__main__":
    main()
