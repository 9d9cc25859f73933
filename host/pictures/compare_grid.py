"""The picture that every paper has: rows and columns of pictures, with captions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from PIL import Image, ImageDraw
from torch import Tensor

from .captions import Lettering
from .conversion import as_image, as_tensor

_LINES_OF_TITLE = 4
_INK, _PAPER, _BLANK = (24, 24, 28), (255, 255, 255), (236, 236, 240)


@dataclass(frozen=True)
class CompareGrid:
    """A sheet of pictures.

    cells: rows of pictures (H W 3 in 0..1, of any size; None leaves a place blank); row_captions,
    column_captions: what stands beside rows and above columns, for the first of them; title: what
    stands above it all. In pixels: cell, the side of a place; gap, between places; font, the height
    of letters.
    """

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
    def _lettering(self) -> Lettering:
        return Lettering(self.font, _INK)

    def draw(self) -> Tensor:
        """1 H W 3 in 0..1. ValueError without any picture."""
        if not any(picture is not None for row in self.cells for picture in row):
            raise ValueError("the grid has no pictures: connect a batch of them")
        step, margin = self.cell + self.gap, self.gap
        side_captions, top_captions = (
            list(map(self._caption, captions))
            for captions in (self.row_captions, self.column_captions)
        )
        left = margin + (
            max(self._lettering.size(text)[0] for text in side_captions) + 2 * self.gap
            if any(side_captions)
            else 0
        )
        width = left + self.columns * step
        title = self._lettering.wrap(self.title, width - 2 * margin, _LINES_OF_TITLE)
        below_title = margin + (self._lettering.size(title)[1] + 2 * self.gap if title else 0)
        top = below_title + (
            max(self._lettering.size(text)[1] for text in top_captions) + 2 * self.gap
            if any(top_captions)
            else 0
        )
        sheet = Image.new("RGB", (width, top + len(self.cells) * step), _PAPER)
        draw = ImageDraw.Draw(sheet)
        self._lettering.write(sheet, title, (width / 2, margin), "ma")
        for column, text in enumerate(top_captions):
            above = (left + column * step + self.cell / 2, top - 2 * self.gap)
            self._lettering.write(sheet, text, above, "md")
        for row, text in enumerate(side_captions):
            beside = (left - 2 * self.gap, top + row * step + self.cell / 2)
            self._lettering.write(sheet, text, beside, "rm")
        for row, pictures in enumerate(self.cells):
            for column, picture in enumerate(pictures):
                place = (left + column * step, top + row * step)
                if picture is None:
                    draw.rectangle(
                        (*place, place[0] + self.cell - 1, place[1] + self.cell - 1), fill=_BLANK
                    )
                else:
                    image = self._fit(picture)
                    sheet.paste(
                        image,
                        (
                            place[0] + (self.cell - image.width) // 2,
                            place[1] + (self.cell - image.height) // 2,
                        ),
                    )
        return as_tensor(sheet)

    def _caption(self, text: str) -> str:
        """No more of it than fits beside a picture."""
        lines = self._lettering.lines_in(self.cell, text)
        return self._lettering.wrap(text, self.cell, lines)

    def _fit(self, picture: Tensor) -> Image.Image:
        image = as_image(picture[..., :3])
        scale = self.cell / max(image.size)
        width, height = (max(1, round(side * scale)) for side in image.size)
        return image.resize((width, height), Image.Resampling.LANCZOS)
