"""Sheets of many pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from . import in_process  # noqa: F401 (before what follows)

# ruff: isort: split
import torch
from PIL import Image
from torch import Tensor

from magicportrait.host.pictures.compare_grid import CompareGrid
from magicportrait.host.pictures.conversion import as_image


def contact_sheet(rows: Sequence[Sequence[Tensor]], path: Path, gap: int = 2) -> None:
    """Writes pictures of one size (H W 3 in 0..1) in rows as one file, white between them."""
    height, width = rows[0][0].shape[:2]
    columns = max(len(row) for row in rows)
    sheet = torch.ones(len(rows) * (height + gap) - gap, columns * (width + gap) - gap, 3)
    for y, row in enumerate(rows):
        for x, image in enumerate(row):
            sheet[y * (height + gap) :, x * (width + gap) :][:height, :width] = image
    path.parent.mkdir(parents=True, exist_ok=True)
    as_image(sheet).save(path)


def labelled_sheet(
    rows: Sequence[Sequence[Tensor]],
    path: Path,
    row_captions: Sequence[str] = (),
    column_captions: Sequence[str] = (),
) -> None:
    """Writes pictures of one size (H W 3 in 0..1) in rows as one file, in that size, with what
    they are beside the rows and above the columns. The letters can be read where a page shows the
    sheet 400 pixels wide."""
    cell = max(rows[0][0].shape[:2])
    columns = max(map(len, rows))
    # Captions may be as wide as a picture.
    width = (columns + bool(row_captions)) * cell
    grid = CompareGrid(
        rows, row_captions, column_captions, cell=cell, font=max(16, round(width * 9 / 400))
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    as_image(grid.draw()[0]).save(path)


def picture_row(images: Sequence[Tensor], height: int, gap: int = 6) -> Image.Image:
    """Pictures (H W 3 in 0..1, of any size) side by side, all `height` pixels high; a single one
    keeps its size."""
    tiles = [as_image(image) for image in images]
    height = height if len(tiles) > 1 else tiles[0].height
    tiles = [
        tile.resize((round(tile.width * height / tile.height), height), Image.Resampling.LANCZOS)
        for tile in tiles
    ]
    row = Image.new("RGB", (sum(tile.width + gap for tile in tiles) - gap, height), "white")
    left = 0
    for tile in tiles:
        row.paste(tile, (left, 0))
        left += tile.width + gap
    return row
