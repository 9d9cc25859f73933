"""Texts as users type them."""

from __future__ import annotations

import unicodedata


def ascii_marks(text: str) -> str:
    """A list of numbers or names as it is written with a keyboard of any script, with the marks,
    digits and letters of ASCII: '0：3，0.5：1' is '0:3,0.5:1'."""
    return unicodedata.normalize("NFKC", text).replace("、", ",")
