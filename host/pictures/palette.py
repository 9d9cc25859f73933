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
PATTERN_SIDE = 2 * _PATTERN_PIXELS
"""Pixels after which a pattern begins again."""
DISTINCT = len(PALETTE) * len(_PATTERNS)
"""How many phrases can be told apart: the next has the colour and the pattern of the first."""


def colour(phrase: int) -> Colour:
    """The colour of a phrase by its index."""
    return PALETTE[phrase % len(PALETTE)][1]


def colour_name(phrase: int) -> str:
    """How a legend calls it: with a pattern once all colours are used, and a number once all
    patterns are."""
    again = f" {phrase // DISTINCT + 1}" if phrase >= DISTINCT else ""
    pattern = _PATTERNS[phrase // len(PALETTE) % len(_PATTERNS)]
    return pattern + PALETTE[phrase % len(PALETTE)][0] + again


def paint(phrase: int, height: int, width: int) -> Tensor:
    """A surface in the colour of a phrase, with its pattern in white: H W 3 in 0..1."""
    is_white = white_places(torch.full((height, width), phrase))
    ink = torch.tensor(colour(phrase)) / 255
    return torch.where(is_white[..., None], torch.ones(3), ink)


def white_places(phrases: Tensor) -> Tensor:
    """Where the patterns are white. phrases: H W, whose each pixel is, negative for none."""
    rows, columns = (torch.arange(side) for side in phrases.shape)
    rows = rows[:, None]
    kinds = phrases // len(PALETTE) % len(_PATTERNS)
    is_striped = (rows + columns) // _PATTERN_PIXELS % 2 == 1
    is_checked = (rows // _PATTERN_PIXELS + columns // _PATTERN_PIXELS) % 2 == 1
    return (phrases >= 0) & ((kinds == 1) & is_striped | (kinds == 2) & is_checked)
