"""What a user wrote, as messages can repeat it."""

from __future__ import annotations

_LONGEST = 200


def shown(text: str) -> str:
    """A text itself, or the beginning of a long one: 200 characters and '...'. Half letters, which
    no log can write, become their numbers."""
    text = text.encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
