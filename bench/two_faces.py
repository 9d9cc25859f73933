"""Two people of two LoRAs in one picture: `python -m bench.two_faces`

On the UNet toy: a LoRA of a man and one of a woman, each trained by the host's trainer on six
portraits of one person in different clothes, whose skin no other has. One prompt with both at twice
the width, man on the left. Own: pictures in whose half most of what has the skin of one of the two
has that of the right one; swapped: of the other; neither: less than 1 % of the half has any.
Merged is the host's Load LoRA; halves has the halves as target regions; limits only limits the
layout to them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from . import toy
from .command_line import bench_parser, command_of, parse_with_quick
from .concept_lora import apart, merged, train_pictures
from .report import Report

# ruff: isort: split
import torch
from torch import Tensor

from magicportrait.demo.portraits import EXPRESSIONS, Garment, Portrait, Pose
from magicportrait.nodes.concept_lora import REGIONS

PEOPLE = {
    "man": Portrait("man", (92, 58, 40), "gray", "short", Garment("white"), "blue", beard=True),
    "woman": Portrait("woman", (250, 224, 200), "red", "long", Garment("white"), "blue"),
}
SHIRTS, GROUNDS = ("white", "green", "yellow", "blue", "orange", "pink"), ("blue", "green", "pink")
PROMPT = "a man wearing a white shirt, a woman wearing a green shirt, cartoon style"
NEAR, LEAST = 0.1, 0.01
"""Distance of a colour that is a person's skin, and the share of a half that counts."""


def portraits_of(kind: str) -> list[Portrait]:
    """Six of one person, of which only clothes, ground, pose and face differ."""
    return [
        replace(
            PEOPLE[kind],
            shirt=Garment(SHIRTS[i]),
            background=GROUNDS[i % 3],
            pose=Pose(0.03 * (i - 2.5), 0.02, 1.0, 2 * i - 5),
            expression=EXPRESSIONS[i % 4],
        )
        for i in range(6)
    ]


def halves(rows: int, columns: int) -> dict[str, Tensor]:
    """The left half is the man's, the right one the woman's: 1 H W each."""
    left = torch.zeros(1, rows, columns)
    left[..., : columns // 2] = 1
    return {"man": left, "woman": 1 - left}


def counted(images: Tensor) -> Mapping[str, int]:
    """How many people have their own skin, the other's or neither. images: B H W 3."""
    skins = {kind: torch.tensor(person.skin) / 255 for kind, person in PEOPLE.items()}
    counts = {"own": 0, "swapped": 0, "neither": 0}
    for image in images:
        for kind, half in zip(skins, image.chunk(2, dim=1), strict=True):
            shares = {
                name: float(((half - skin).norm(dim=-1) < NEAR).float().mean())
                for name, skin in skins.items()
            }
            most = max(shares, key=lambda name: shares[name])
            what = "neither" if shares[most] < LEAST else "own" if most == kind else "swapped"
            counts[what] += 1
    return counts


@torch.inference_mode()
def main() -> None:
    parser = bench_parser(__doc__)
    parser.add_argument("--seeds", type=int, default=8, help="pictures")
    parser.add_argument("--training", type=int, default=80, help="steps of each LoRA")
    parser.add_argument("--steps", type=int, default=15, help="of sampling")
    args = parse_with_quick(parser, seeds=1, training=2, steps=2)
    checkpoint = toy.Toy.load()
    loras = {
        kind: train_pictures(
            checkpoint, portraits_of(kind), f"a {kind}, cartoon style", args.training
        )
        for kind in PEOPLE
    }
    noise = torch.cat(
        [
            torch.randn(1, 4, 16, 32, generator=torch.Generator().manual_seed(seed))
            for seed in range(args.seeds)
        ]
    )
    regions = halves(16, 32)
    ways = {
        "plain": (checkpoint.model, checkpoint.encode_text(PROMPT)),
        "merged": merged(checkpoint, loras, PROMPT),
        "layout": apart(checkpoint, loras, None, PROMPT),
        "halves": apart(checkpoint, loras, regions, PROMPT, region=REGIONS[0]),
        "halves, limits layout": apart(checkpoint, loras, regions, PROMPT, region=REGIONS[1]),
    }
    report = Report(
        "two_faces",
        "Two people of two LoRAs in one picture, on the toy checkpoint",
        f"`{command_of('bench.two_faces')}`: LoRAs of {args.training} steps, {args.seeds} pictures"
        f" of two people, {args.steps} steps, CFG 4",
    )
    report.begin_table("", "own", "swapped", "neither")
    for way, (model, positive) in ways.items():
        counts = counted(checkpoint.decode(checkpoint.sample(model, positive, noise, args.steps)))
        report.add_row(way, *(f"{number / (2 * args.seeds):.0%}" for number in counts.values()))
    report.finish(kept=not args.quick)


if __name__ == "__main__":
    main()
