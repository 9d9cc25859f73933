"""What a user wrote, and sizes, in messages."""

from __future__ import annotations

import os

import pytest

from magicportrait.magic.messages import shown, size_in_words


@pytest.mark.parametrize(
    ("text", "repeated"),
    [
        ("hat", "hat"),
        ("帽子", "帽子"),
        (os.fsdecode(b"caf\xe9.png"), r"caf\xe9.png"),
        ("half \ud83d", r"half \ud83d"),
        ("x" * 201, "x" * 200 + "..."),
    ],
)
def test_what_a_user_wrote_can_be_repeated_in_a_log(text, repeated):
    assert shown(text) == repeated
    assert shown(text).encode()


@pytest.mark.parametrize(
    ("size", "words"),
    [
        (0, "0 KB"),
        (30_000, "29 KB"),
        (3.6 * 2**20, "3.6 MB"),
        (700 * 2**20, "700 MB"),
        (2**30, "1.0 GB"),
        (41.3 * 2**30, "41.3 GB"),
    ],
)
def test_sizes_are_in_the_units_of_graphics_cards(size, words):
    assert size_in_words(size) == words
