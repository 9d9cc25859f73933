"""The colours of phrases in layouts, overlays and on the page."""

from __future__ import annotations

Colour = tuple[int, int, int]
"""Red, green, blue in 0..255."""

# Okabe and Ito's palette: told apart by the colour-blind too.
PALETTE: tuple[tuple[str, Colour], ...] = (
    ("orange", (230, 159, 0)),
    ("sky blue", (86, 180, 233)),
    ("green", (0, 158, 115)),
    ("yellow", (240, 228, 66)),
    ("blue", (0, 114, 178)),
    ("vermilion", (213, 94, 0)),
    ("purple", (204, 121, 167)),
    ("gray", (150, 150, 150)),
)


def colour(phrase: int) -> Colour:
    """The colour of a phrase by its index."""
    return PALETTE[phrase % len(PALETTE)][1]


def colour_name(phrase: int) -> str:
    return PALETTE[phrase % len(PALETTE)][0]
