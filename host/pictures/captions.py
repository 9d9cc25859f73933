"""Text in pictures: captions, legends, labels."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from PIL import Image, ImageDraw, ImageFont

from .palette import Colour


@dataclass(frozen=True)
class Lettering:
    """How text is written. height: of the letters in pixels; ink: their colour; outline: the colour
    of an outline of one pixel, None for none."""

    height: int
    ink: Colour
    outline: Colour | None = None

    @cached_property
    def _font(self) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
        return ImageFont.load_default(self.height)

    def size(self, text: str) -> tuple[int, int]:
        """Width and height in pixels. Text may have several lines."""
        left, top, right, bottom = ImageDraw.Draw(Image.new("L", (1, 1))).multiline_textbbox(
            (0, 0), text, font=self._font
        )
        return round(right - left), round(bottom - min(top, 0))

    def write(
        self, picture: Image.Image, text: str, at: tuple[float, float], anchor: str = "la"
    ) -> None:
        """Writes into the picture. anchor: PIL's, where in the text `at` is: 'l', 'm' or 'r' for
        left, middle and right, then 'a', 'm' or 'd' for top, middle and bottom."""
        ImageDraw.Draw(picture).text(
            at,
            text,
            fill=self.ink,
            font=self._font,
            anchor=anchor,
            align={"l": "left", "m": "center", "r": "right"}[anchor[0]],
            stroke_width=0 if self.outline is None else 1,
            stroke_fill=self.outline,
        )

    def wrapped(self, text: str, width: int) -> str:
        """In lines no wider than `width` pixels; a single longer word stays whole."""
        lines: list[str] = []
        for word in text.split():
            if lines and self.size(f"{lines[-1]} {word}")[0] <= width:
                lines[-1] = f"{lines[-1]} {word}"
            else:
                lines.append(word)
        return "\n".join(lines)
