"""What a user wrote, as messages can repeat it."""

from __future__ import annotations

_LONGEST = 200


def shown(text: str) -> str:
    """A text itself, or the beginning of a long one: 200 characters and '...'."""
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
