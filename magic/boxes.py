"""Boxes and points in a picture: reading what a user typed, the box of a mask, clipping, expanding,
choosing."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from .typed import ascii_marks, number_in

Point = tuple[float, float]
"""x, y in pixels."""

FACE_AREAS: dict[str, tuple[float, float, float, float]] = {
    "face": (0.0, 0.0, 0.0, 0.0),
    "face+hair": (0.2, 0.45, 0.2, 0.05),
    "head": (0.3, 0.6, 0.3, 0.2),
}
"""What is added to a face box at its left, top, right and bottom, in parts of its width and height.
Face boxes end at brows and chin."""

_SHOWN = 80
"""Letters of what was typed that a message has at most."""
CHOICES = ("all", "largest", "index")


@dataclass(frozen=True)
class Box:
    """A rectangle in a picture, in pixels that need not be whole.

    x, y: its top left corner; width, height: its sides; label: what it shows, empty when nobody
    said; score: how sure a detector is of it, 0..1.
    """

    x: float
    y: float
    width: float
    height: float
    label: str = ""
    score: float = 1.0

    @classmethod
    def between(cls, left: float, top: float, right: float, bottom: float) -> Box:
        """The box of these sides: right and bottom are the first places outside."""
        return cls(left, top, right - left, bottom - top)

    @property
    def area(self) -> float:
        return self.width * self.height

    @property
    def corners(self) -> tuple[float, float, float, float]:
        """Left, top, right, bottom."""
        return self.x, self.y, self.x + self.width, self.y + self.height

    @property
    def pixels(self) -> tuple[slice, slice]:
        """Its rows and its columns in a picture: `picture[(..., *box.pixels)]`."""
        left, top, right, bottom = (round(side) for side in self.corners)
        return slice(top, bottom), slice(left, right)

    def scaled(self, factor: float) -> Box:
        """The same part of a picture that is `factor` times as large."""
        return replace(
            self,
            x=self.x * factor,
            y=self.y * factor,
            width=self.width * factor,
            height=self.height * factor,
        )

    def clipped(self, size: tuple[int, int]) -> Box | None:
        """The part inside a picture of `size` (rows, columns); None when nothing is."""
        left, top, right, bottom = self.corners
        left, top, right, bottom = (
            max(left, 0.0),
            max(top, 0.0),
            min(right, float(size[1])),
            min(bottom, float(size[0])),
        )
        if right <= left or bottom <= top:
            return None
        return replace(self, x=left, y=top, width=right - left, height=bottom - top)

    def expanded(self, left: float, top: float, right: float, bottom: float) -> Box:
        """Grown at each side by a part of its width or height."""
        return replace(
            self,
            x=self.x - left * self.width,
            y=self.y - top * self.height,
            width=self.width * (1 + left + right),
            height=self.height * (1 + top + bottom),
        )


def box_of_mask(mask: Tensor) -> Box | None:
    """The smallest box that holds all of a mask (H W in 0..1) that is above one half, in whole
    pixels. None when nothing is."""
    rows, columns = ((mask > 0.5).any(axis).nonzero().flatten().tolist() for axis in (1, 0))
    if not rows:
        return None
    return Box.between(columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)


def box_of_most(mask: Tensor, share: float = 0.9) -> Box | None:
    """The box between whose left and right, and whose top and bottom, lies a share (below 1) of a
    mask's mass (H W, not negative): single cells far from the rest do not stretch it.

    Of a filled rectangle it is the same part on every side. In pixels that need not be whole; None
    when nothing is there.
    """
    sides = [_stretch_of_most(mask.sum(axis).double(), share) for axis in (0, 1)]
    if not all(sides):
        return None
    (left, right), (top, bottom) = (side for side in sides if side)
    return Box.between(left, top, right, bottom)


def _stretch_of_most(mass: Tensor, share: float) -> tuple[float, float] | None:
    """Where a line's mass (N) reaches (1 - share) / 2 of itself, and where all but that."""
    total = float(mass.sum())
    if total <= 0:
        return None
    sums: list[float] = (mass.cumsum(0) / total).tolist()

    def place(part: float) -> float:
        cell = next(i for i, reached in enumerate(sums) if reached >= part - 1e-12)
        before = sums[cell - 1] if cell else 0.0
        return cell + (part - before) / (sums[cell] - before)

    return place((1 - share) / 2), place((1 + share) / 2)


def choose(boxes: Sequence[Box], which: str, index: int) -> list[Box]:
    """Some of the boxes, left to right. which: 'all', 'largest', or 'index' (counted from 0; none
    where there are not so many)."""
    ordered = sorted(boxes, key=lambda box: (box.x + box.width / 2, box.y))
    if which == "largest":
        return [max(ordered, key=lambda box: box.area)] if ordered else []
    return ordered[index : index + 1] if which == "index" else ordered


def parse_points(text: str) -> list[Point]:
    """'120,80; 64,200', or JSON such as [{"x": 120, "y": 80}]. ValueError says what is not
    understood."""
    return [(x, y) for x, y in _numbers(text, ("x", "y"), "points", "120,80; 64,200")]


def parse_boxes(text: str) -> list[Box]:
    """'x,y,width,height; ...', or JSON such as [{"x": 0, "y": 0, "width": 64, "height": 64}].
    ValueError says what is not understood."""
    numbers = _numbers(text, ("x", "y", "width", "height"), "box", "40,20,200,260")
    boxes = [Box(x, y, width, height) for x, y, width, height in numbers]
    for box in boxes:
        if box.width <= 0 or box.height <= 0:
            raise ValueError(
                f"box: width and height must be above 0, got {box.width:g} and {box.height:g}"
            )
    return boxes


def _numbers(text: str, names: tuple[str, ...], what: str, example: str) -> list[tuple[float, ...]]:
    text = ascii_marks(text).strip()
    rows: list[tuple[float, ...]]
    try:
        if text.startswith(("[", "{")):
            entries = json.loads(text)
            rows = [
                tuple(number_in(str(entry[name])) for name in names)
                for entry in (entries if isinstance(entries, list) else [entries])
            ]
        else:
            rows = [
                tuple(map(number_in, part.split(",")))
                for part in re.split(r"[;\n]", text)
                if part.strip()
            ]
    # Brackets thousands deep, and numbers of hundreds of digits, are not understood either.
    except (ValueError, KeyError, TypeError, RecursionError, OverflowError):
        rows = [()]
    if any(len(row) != len(names) or not all(map(math.isfinite, row)) for row in rows):
        shown = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
        raise ValueError(
            f"{what}: '{shown}' is not understood: expected {','.join(names)} in pixels, such as"
            f" '{example}', or a JSON list"
        )
    return rows
