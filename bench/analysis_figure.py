"""Draws the picture of docs/looking_inside.md, on the toy checkpoint: `python -m
bench.analysis_figure`

A row of where the picture paid attention to each phrase, then a row for each of three places of it:
how much and where it looks in each reference.
"""

from __future__ import annotations

import json
from pathlib import Path

from devkit.pack import ROOT

from . import toy
from .command_line import bench_parser
from .toy_references import (
    CONCEPTS,
    PLAIN_PROMPT,
    apply_concepts,
    concepts_of,
    reference_sets,
)

# ruff: isort: split
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from magicportrait.host.pictures.compare_grid import CompareGrid
from magicportrait.host.pictures.conversion import as_image, as_tensor
from magicportrait.nodes.analysis import (
    MagicAttentionHeatmap,
    MagicAttentionMap,
    MagicCorrespondence,
    MagicCorrespondenceMap,
)
from magicportrait.nodes.declare import defaults_of

PLACES = {"hat": (64, 26), "scarf": (70, 100), "shirt": (36, 116)}
"""x, y in the picture of 128 pixels."""


@torch.inference_mode()
def draw(references: int, seed: int) -> Tensor:
    """H W 3. references: the index of a reference set; seed: of the picture's noise."""
    checkpoint = toy.Toy.load()
    concepts = concepts_of(reference_sets()[references])
    model, positive, _ = apply_concepts(checkpoint, concepts, prompt=PLAIN_PROMPT)
    noise = checkpoint.noise([seed])
    options = {
        **defaults_of(MagicAttentionMap),
        "prompt": PLAIN_PROMPT,
        "phrases": ", ".join(CONCEPTS),
    }
    map_model, map_positive, attention = MagicAttentionMap.execute(
        model, checkpoint.clip, **options, positive=positive
    ).args
    samples = checkpoint.sample(map_model, map_positive, noise)
    picture = checkpoint.decode(samples)
    heat, *_ = MagicAttentionHeatmap.execute(attention, {"samples": samples}, 0.8, picture).args
    rows = [[picture[0], *(batch[0] for batch in heat)]]
    for x, y in PLACES.values():
        options = {**defaults_of(MagicCorrespondence), "points": f"{x},{y}"}
        place_model, correspondence = MagicCorrespondence.execute(model, **options).args
        latent = {"samples": checkpoint.sample(place_model, positive, noise)}
        hot, numbers = MagicCorrespondenceMap.execute(correspondence, latent, 0.85, concepts).args
        plain, _ = MagicCorrespondenceMap.execute(correspondence, latent, 0.0, concepts).args
        shares = torch.tensor([entry["share"] for entry in json.loads(numbers)[0]])
        # Each map has its own scale: only the shares say how much a reference counts beside the
        # others.
        views = zip(plain, hot, shares / shares.max(), strict=True)
        rows.append(
            [
                with_ring(picture[0], (x, y)),
                *(torch.lerp(cold[0], warm[0], float(share)) for cold, warm, share in views),
            ]
        )
    captions = [
        "attention to each phrase",
        *(f"where the marked place on the {part} looks" for part in PLACES),
    ]
    columns = ["picture", *(f"'{part}'" for part in CONCEPTS)]
    return CompareGrid(rows, captions, columns, cell=176, gap=6, font=16).draw()[0]


def with_ring(picture: Tensor, place: tuple[int, int], scale: int = 4) -> Tensor:
    """The picture, enlarged, with a ring around a place. picture: H W 3 -> scale * H, scale * W,
    3."""
    image = as_image(picture)
    image = image.resize((image.width * scale, image.height * scale), Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(image)
    x, y = (scale * (side + 0.5) for side in place)
    for radius, colour, width in ((20, "black", 10), (18, "white", 6)):
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), outline=colour, width=width)
    return as_tensor(image)[0]


def main() -> None:
    parser = bench_parser(__doc__)
    parser.add_argument("--references", type=int, default=1, help="which set, from 0")
    parser.add_argument("--seed", type=int, default=1, help="of the picture's noise")
    parser.add_argument(
        "--output", type=Path, default=ROOT / "docs" / "analysis.png", metavar="FILE"
    )
    args = parser.parse_args()
    as_image(draw(args.references, args.seed)).save(args.output)
    print(f"wrote {args.output.name}")


if __name__ == "__main__":
    main()
