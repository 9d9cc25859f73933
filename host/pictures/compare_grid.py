"""The picture that every paper has: rows and columns of pictures, with captions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..segmentation.detectors import as_pixels

_INK, _PAPER, _BLANK = (24, 24, 28), (255, 255, 255), (236, 236, 240)


@dataclass(frozen=True)
class CompareGrid:
    """cells: rows of pictures (H W 3 in 0..1, of any size; None leaves a place blank). In pixels:
    cell, the side of a place; gap, between places; font, the height of letters."""

    cells: Sequence[Sequence[Tensor | None]]
    row_captions: Sequence[str] = ()
    column_captions: Sequence[str] = ()
    title: str = ""
    cell: int = 256
    gap: int = 6
    font: int = 18

    def __post_init__(self) -> None:
        for name, captions, places in (
            ("row", self.row_captions, len(self.cells)),
            ("column", self.column_captions, self.columns),
        ):
            if len(captions) > places:
                raise ValueError(
                    f"{len(captions)} {name} captions for {places} {name}s: leave"
                    f" {len(captions) - places} out"
                )

    @property
    def columns(self) -> int:
        return max((len(row) for row in self.cells), default=0)

    @cached_property
    def _letters(self) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
        return ImageFont.load_default(self.font)

    def draw(self) -> Tensor:
        """1 H W 3 in 0..1. ValueError without any picture."""
        if not any(picture is not None for row in self.cells for picture in row):
            raise ValueError("the grid has no pictures: connect a batch of them")
        step, margin = self.cell + self.gap, self.gap
        side_captions = [self._wrapped(text, self.cell) for text in self.row_captions]
        top_captions = [self._wrapped(text, self.cell) for text in self.column_captions]
        left = margin + (
            max(self._size(text)[0] for text in side_captions) + 2 * self.gap
            if any(side_captions)
            else 0
        )
        width = left + self.columns * step
        title = self._wrapped(self.title, width - 2 * margin)
        below_title = margin + (self._size(title)[1] + 2 * self.gap if title else 0)
        top = below_title + (
            max(self._size(text)[1] for text in top_captions) + 2 * self.gap
            if any(top_captions)
            else 0
        )
        sheet = Image.new("RGB", (width, top + len(self.cells) * step), _PAPER)
        draw = ImageDraw.Draw(sheet)
        self._write(draw, title, (width / 2, margin), "ma")
        for column, text in enumerate(top_captions):
            self._write(
                draw, text, (left + column * step + self.cell / 2, top - 2 * self.gap), "md"
            )
        for row, text in enumerate(side_captions):
            self._write(draw, text, (left - 2 * self.gap, top + row * step + self.cell / 2), "rm")
        for row, pictures in enumerate(self.cells):
            for column, picture in enumerate(pictures):
                place = (left + column * step, top + row * step)
                if picture is None:
                    draw.rectangle(
                        (*place, place[0] + self.cell - 1, place[1] + self.cell - 1), fill=_BLANK
                    )
                else:
                    fitted = self._fitted(picture)
                    sheet.paste(
                        fitted,
                        (
                            place[0] + (self.cell - fitted.width) // 2,
                            place[1] + (self.cell - fitted.height) // 2,
                        ),
                    )
        return (
            torch.frombuffer(bytearray(sheet.tobytes()), dtype=torch.uint8)
            .view(1, sheet.height, sheet.width, 3)
            .float()
            / 255
        )

    def _fitted(self, picture: Tensor) -> Image.Image:
        image = Image.fromarray(as_pixels(picture))
        scale = self.cell / max(image.size)
        size = tuple(max(1, round(side * scale)) for side in image.size)
        return image.resize((size[0], size[1]), Image.Resampling.LANCZOS)

    def _write(
        self, draw: ImageDraw.ImageDraw, text: str, at: tuple[float, float], anchor: str
    ) -> None:
        if text:
            aligned = {"r": "right", "m": "center"}[anchor[0]]
            draw.multiline_text(
                at, text, fill=_INK, font=self._letters, anchor=anchor, align=aligned
            )

    def _size(self, text: str) -> tuple[int, int]:
        left, top, right, bottom = ImageDraw.Draw(Image.new("L", (1, 1))).multiline_textbbox(
            (0, 0), text, font=self._letters
        )
        return round(right - left), round(bottom - min(top, 0))

    def _wrapped(self, text: str, width: int) -> str:
        """In lines no wider than `width`; a single longer word stays whole."""
        lines: list[str] = []
        for word in text.split():
            if lines and self._size(f"{lines[-1]} {word}")[0] <= width:
                lines[-1] = f"{lines[-1]} {word}"
            else:
                lines.append(word)
        return "\n".join(lines)
