"""Texts of the user and sizes, as messages can have them."""

from __future__ import annotations

_LONGEST = 200


def shown(text: str) -> str:
    """A text itself, or the beginning of a long one: 200 characters and '...'. What no log can
    write is spelled out: bytes of a file's name that are no text, and half letters."""
    try:
        text = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:
        text = text.encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def size_in_words(size: float) -> str:
    """Bytes as people read them, in the units of graphics cards."""
    if size >= 2**30:
        return f"{size / 2**30:.1f} GB"
    if size >= 2**20:
        return f"{size / 2**20:.{0 if size >= 10 * 2**20 else 1}f} MB"
    return f"{size / 2**10:.0f} KB"
