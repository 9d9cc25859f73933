"""The colours of phrases in layouts, overlays and on the page."""

from __future__ import annotations

import torch
from torch import Tensor

Colour = tuple[int, int, int]
"""Red, green, blue in 0..255."""

PALETTE: tuple[tuple[str, Colour], ...] = (
    # Okabe and Ito's: told apart by the colour-blind too.
    ("orange", (230, 159, 0)),
    ("sky blue", (86, 180, 233)),
    ("green", (0, 158, 115)),
    ("yellow", (240, 228, 66)),
    ("blue", (0, 114, 178)),
    ("vermilion", (213, 94, 0)),
    ("purple", (204, 121, 167)),
    ("gray", (150, 150, 150)),
    # Each as far as can be from all before it, for the colour-blind too.
    ("ultramarine", (0, 0, 255)),
    ("brown", (90, 30, 15)),
    ("mint", (0, 255, 150)),
    ("violet", (180, 75, 255)),
    ("plum", (90, 0, 75)),
    ("cyan", (0, 255, 255)),
    ("crimson", (225, 30, 75)),
    ("navy", (0, 30, 150)),
)
_PATTERNS = ("", "striped ", "checked ")
_PATTERN_PIXELS = 4


def colour(phrase: int) -> Colour:
    """The colour of a phrase by its index."""
    return PALETTE[phrase % len(PALETTE)][1]


def colour_name(phrase: int) -> str:
    """How a legend calls it: with a pattern once all colours are used."""
    return _PATTERNS[_pattern(phrase)] + PALETTE[phrase % len(PALETTE)][0]


def paint(phrase: int, height: int, width: int) -> Tensor:
    """A surface in the colour of a phrase, with its pattern in white: H W 3 in 0..1."""
    rows, columns = torch.arange(height)[:, None], torch.arange(width)
    kind = _pattern(phrase)
    if kind == 0:
        is_white = torch.zeros(height, width, dtype=torch.bool)
    elif kind == 1:
        is_white = (rows + columns) // _PATTERN_PIXELS % 2 == 1
    else:
        is_white = (rows // _PATTERN_PIXELS + columns // _PATTERN_PIXELS) % 2 == 1
    inked = torch.tensor(colour(phrase)) / 255
    return torch.where(is_white[..., None], torch.ones(3), inked)


def _pattern(phrase: int) -> int:
    return phrase // len(PALETTE) % len(_PATTERNS)
