"""docs/troubleshooting.md quotes messages: those that are in the source."""

from __future__ import annotations

import re

import pytest

from devkit.pack import ROOT

PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
MESSAGES = [
    row.split("|")[1].strip()
    for row in PAGE[: PAGE.index("## Installation")].splitlines()
    if row.startswith("| ") and not row.startswith(("| message", "| ---"))
]
WORDS = 8
"""The shortest piece of a message that tells it from others, in letters."""


def source() -> str:
    """All of it, with literals that stand one after another joined."""
    files = [
        path
        for folder in ("nodes", "host", "magic", "bench", "js")
        for path in sorted((ROOT / folder).rglob("*"))
        if path.suffix in (".py", ".js")
    ]
    text = "\n".join(path.read_text(encoding="utf-8") for path in files)
    return re.sub(r'"\s+f?"', "", text)


@pytest.mark.parametrize("message", MESSAGES)
def test_a_message_of_the_page_is_one_that_is_said(message: str) -> None:
    said = source()
    for alternative in re.sub(r"\*\([^)]*\)\*|\*notice:\*", "", message).split(" / "):
        # What stands between the words and numbers of the user.
        pieces = re.split(r"\.\.\.|\*[^*]*\*|'[^']*'|\[|\]|\{[a-z]*\}", alternative)
        pieces = [piece.strip(" ,:()") for piece in pieces]
        long = [piece for piece in pieces if len(piece) >= WORDS]
        assert long, f"nothing to look for in {alternative!r}"
        assert [piece for piece in long if piece not in said] == []
