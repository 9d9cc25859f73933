"""Draws the README's picture of the analysis nodes, on the toy checkpoint: `python -m
bench.analysis_figure`

A row of where the picture paid attention to each phrase, then a row for each of three places of it:
how much and where it looks in each reference.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from . import toy

# ruff: isort: split
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from magicportrait.demo.portraits import render
from magicportrait.host.pictures.compare_grid import CompareGrid
from magicportrait.host.pictures.conversion import as_pixels
from magicportrait.nodes.analysis import (
    MagicAttentionHeatmap,
    MagicAttentionMap,
    MagicCorrespondence,
    MagicCorrespondenceMap,
)
from magicportrait.nodes.declare import defaults_of
from magicportrait.nodes.magicface import MagicFaceApply, MagicFaceConcept

from .magicface_effect import CONCEPTS, PHRASES, PROMPT, reference_sets

PLACES = {"hat": (64, 26), "scarf": (70, 100), "shirt": (36, 116)}
"""x, y in the picture of 128 pixels."""


@torch.inference_mode()
def draw(references: int, seed: int) -> Tensor:
    """H W 3. references: the index of a reference set."""
    checkpoint, parts = toy.Toy.load(), reference_sets()[references]
    chained: tuple[Any, ...] = ()
    for part, portrait in parts.items():
        drawn = render(portrait)
        mask, words = (
            torch.from_numpy(drawn.masks[part])[None],
            f"a {portrait.gender} wearing a {part}",
        )
        chained = MagicFaceConcept.execute(
            toy.picture(drawn),
            part,
            mask=mask,
            reference_prompt=words,
            concepts=chained,
            strength=3.0,
        ).args[0]
    options = {**defaults_of(MagicFaceApply), "prompt": PROMPT}
    model, positive, _ = MagicFaceApply.execute(
        checkpoint.model, checkpoint.clip, checkpoint.vae, chained, **options
    ).args
    noise = checkpoint.noise([seed])

    watching = {
        **defaults_of(MagicAttentionMap),
        "prompt": PROMPT,
        "phrases": ", ".join(PHRASES[part] for part in CONCEPTS),
    }
    watched, watched_positive, attention = MagicAttentionMap.execute(
        model, checkpoint.clip, **watching, positive=positive
    ).args
    samples = checkpoint.sample(watched, watched_positive, noise)
    picture = checkpoint.decode(samples)
    heat, *_ = MagicAttentionHeatmap.execute(attention, {"samples": samples}, 0.8, picture).args
    rows = [[picture[0], *(batch[0] for batch in heat)]]
    for x, y in PLACES.values():
        looking = {**defaults_of(MagicCorrespondence), "points": f"{x},{y}"}
        watched, correspondence = MagicCorrespondence.execute(model, **looking).args
        seen = {"samples": checkpoint.sample(watched, positive, noise)}
        hot, numbers = MagicCorrespondenceMap.execute(correspondence, seen, 0.85, chained).args
        plain, _ = MagicCorrespondenceMap.execute(correspondence, seen, 0.0, chained).args
        shares = torch.tensor([entry["share"] for entry in json.loads(numbers)[0]])
        # Each map has its own scale: only the shares say how much a reference counts beside the
        # others.
        parts_seen = zip(plain, hot, shares / shares.max(), strict=True)
        rows.append(
            [
                marked(picture[0], (x, y)),
                *(torch.lerp(cold[0], warm[0], float(share)) for cold, warm, share in parts_seen),
            ]
        )
    captions = [
        "attention to each phrase",
        *(f"where the marked place on the {part} looks" for part in PLACES),
    ]
    columns = ["picture", *(f"'{PHRASES[part]}'" for part in CONCEPTS)]
    return CompareGrid(rows, captions, columns, cell=176, gap=6, font=16).draw()[0]


def marked(picture: Tensor, place: tuple[int, int], scale: int = 4) -> Tensor:
    """The picture, enlarged, with a ring around a place. picture: H W 3 -> scale * H, scale * W,
    3."""
    image = Image.fromarray(as_pixels(picture))
    image = image.resize((image.width * scale, image.height * scale), Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(image)
    x, y = (scale * (side + 0.5) for side in place)
    for radius, colour, width in ((20, "black", 10), (18, "white", 6)):
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), outline=colour, width=width)
    return (
        torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
        .view(image.height, image.width, 3)
        .float()
        / 255
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--references", type=int, default=1, help="which set, from 0")
    parser.add_argument("--seed", type=int, default=1, help="of the picture's noise")
    parser.add_argument(
        "--output", type=Path, default=toy.ROOT / "docs" / "analysis.png", metavar="FILE"
    )
    args = parser.parse_args()
    Image.fromarray(as_pixels(draw(args.references, args.seed))).save(args.output)
    print(f"wrote {args.output.name}")


if __name__ == "__main__":
    main()
