"""Sheets of many pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from . import in_process  # noqa: F401 (before what follows)

# ruff: isort: split
import torch
from PIL import Image, ImageDraw, ImageFont
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


def captioned_pictures(
    images: Sequence[Tensor],
    captions: Sequence[str],
    height: int = 200,
    columns: int = 3,
    gap: int = 6,
    font: int = 24,
) -> Image.Image:
    """Pictures (H W 3 in 0..1, of any size) with what they are below them, all `height` pixels
    high, side by side in rows as wide as so many squares. ValueError unless each has a caption. The
    letters can be read where a page shows the sheet 400 pixels wide."""
    if len(images) != len(captions):
        raise ValueError(f"{len(captions)} captions for {len(images)} pictures")
    lettering = ImageFont.load_default(font)
    places: list[tuple[Image.Image, str, int, int]] = []
    left = top = right = 0
    line, width = height + round(1.5 * font), columns * (height + gap)
    for image, caption in zip(images, captions):
        tile = as_image(image)
        size = (round(tile.width * height / tile.height), height)
        tile = tile.resize(size, Image.Resampling.LANCZOS)
        if left and left + tile.width > width:
            left, top = 0, top + line + gap
        places.append((tile, caption, left, top))
        left += tile.width + gap
        right = max(right, left - gap)
    sheet = Image.new("RGB", (right, top + line), "white")
    draw = ImageDraw.Draw(sheet)
    for tile, caption, x, y in places:
        sheet.paste(tile, (x, y))
        middle = (x + tile.width / 2, y + height + round(0.75 * font))
        draw.text(middle, caption, "black", lettering, anchor="mm")
    return sheet
