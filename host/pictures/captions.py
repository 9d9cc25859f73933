"""Text in pictures: captions, legends, labels, in any script."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from .fonts import Font, Fonts, spelled_out, visible
from .palette import Colour

_MORE = "..."
_WORDS = re.compile(r"\S+|\s+")
_BETWEEN_LINES = 4
"""Pixels, as PIL has them."""


@dataclass(frozen=True)
class Lettering:
    """How text is written. height: of the letters in pixels; ink: their colour; outline: the colour
    of an outline of one pixel, None for none."""

    height: int
    ink: Colour
    outline: Colour | None = None

    @cached_property
    def _fonts(self) -> Fonts:
        return Fonts(self.height)

    def size(self, text: str) -> tuple[int, int]:
        """Width and height in pixels. Text may have several lines."""
        text = visible(text)
        if _is_plain(text):
            left, top, right, bottom = _scratch().multiline_textbbox(
                (0, 0), text, font=self._fonts.plain
            )
            return round(right - left), round(bottom - min(top, 0))
        lines = text.split("\n")
        width = max(self._length(line) for line in lines)
        return round(width), len(lines) * self._line - _BETWEEN_LINES

    def write(
        self, picture: Image.Image, text: str, at: tuple[float, float], anchor: str = "la"
    ) -> None:
        """Writes into the picture. anchor: where in the text `at` is: 'l', 'm' or 'r' for left,
        middle and right, then 'a', 'm' or 'd' for top, middle and bottom."""
        draw, text = ImageDraw.Draw(picture), visible(text)
        if _is_plain(text):
            align = {"l": "left", "m": "center", "r": "right"}[anchor[0]]
            self._draw(draw, text, at, self._fonts.plain, anchor=anchor, align=align)
            return
        before = {"l": 0.0, "m": 0.5, "r": 1.0, "a": 0.0, "d": 1.0}
        y = at[1] - before[anchor[1]] * self.size(text)[1] + self._ascent
        for line in text.split("\n"):
            x = at[0] - before[anchor[0]] * self._length(line)
            for part, font in self._parts(line):
                self._draw(draw, part, (round(x), round(y)), font, anchor="ls")
                x += font.getlength(part)
            y += self._line

    def lines_in(self, height: int, text: str) -> int:
        """How many lines of a text fit into so many pixels; one at least."""
        letter = text[:1] if _is_plain(text) else "\u3000"
        one, two = (self.size(lines)[1] for lines in (letter, f"{letter}\n{letter}"))
        return max(1, 1 + (height - one) // (two - one))

    def wrap(self, text: str, width: int, lines: int) -> str:
        """In at most so many lines no wider than `width` pixels. Words are parted that are wider,
        and what does not fit is cut off, with dots in its place."""
        words = visible(text[: width * lines]).split()
        rows: list[str] = []
        line = ""
        while words and len(rows) < lines:
            longer = f"{line} {words[0]}" if line else words[0]
            if self.size(longer)[0] <= width:
                line = longer
                words.pop(0)
            elif line:
                rows.append(line)
                line = ""
            else:
                letters = self._fitting(words[0], width)
                rows.append(words[0][:letters])
                words[0] = words[0][letters:]
        if line and len(rows) < lines:
            rows.append(line)
            line = ""
        if (line or words or len(text) > width * lines) and rows:
            room = width - self.size(_MORE)[0]
            rows[-1] = rows[-1][: self._fitting(rows[-1], room)] + _MORE
        return "\n".join(rows)

    def _fitting(self, text: str, width: int) -> int:
        """How many of the first letters fit; one at least."""
        low, high = 1, len(text)
        while low < high:
            middle = (low + high + 1) // 2
            if self.size(text[:middle])[0] <= width:
                low = middle
            else:
                high = middle - 1
        return low

    @property
    def _line(self) -> int:
        """From one line of mixed scripts to the next."""
        return round(1.2 * self.height) + _BETWEEN_LINES

    @property
    def _ascent(self) -> int:
        return round(0.95 * self.height)

    def _length(self, line: str) -> float:
        return sum(font.getlength(part) for part, font in self._parts(line))

    def _parts(self, line: str) -> Iterator[tuple[str, Font]]:
        """A line in pieces of one font each: words as a whole where there is one for all of it."""
        part, of_part = "", self._fonts.plain
        for word in _WORDS.findall(line):
            of_word = self._fonts.of(word)
            for character in word:
                font = of_word or self._fonts.of(character)
                text = spelled_out(character) if font is None else character
                if (font or self._fonts.plain) is not of_part:
                    if part:
                        yield part, of_part
                    part, of_part = "", font or self._fonts.plain
                part += text
        if part:
            yield part, of_part

    def _draw(
        self,
        draw: ImageDraw.ImageDraw,
        text: str,
        at: tuple[float, float],
        font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
        **options: Any,
    ) -> None:
        draw.text(
            at,
            text,
            fill=self.ink,
            font=font,
            stroke_width=0 if self.outline is None else 1,
            stroke_fill=self.outline,
            **options,
        )


def _is_plain(text: str) -> bool:
    """Whether PIL's own font shows it."""
    return text.isascii() and text.replace("\n", "").isprintable()


def _scratch() -> ImageDraw.ImageDraw:
    return ImageDraw.Draw(Image.new("L", (1, 1)))
