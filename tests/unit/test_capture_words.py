"""Where a learned word stands in a prompt."""

from __future__ import annotations

import re

import pytest

from magicportrait.magic.capture_sets import check_placeholder, word_pattern


@pytest.mark.parametrize(
    ("word", "prompt", "times"),
    [
        ("<anna>", "a photo of <Anna>, <anna>", 2),
        ("<anna>", "x<anna> <anna>s", 0),
        ("<anna>", "一个<anna>女人", 1),
        ("安娜", "一张安娜的照片", 1),
        ("<anna>", "사진<anna>의", 1),
        ("anna", "annabel, hanna", 0),
        # Ideographs of planes behind the first, and letters of half width.
        ("<anna>", "\U00020000<anna>\U0002ebf0", 1),
        ("anna", "ｶanna々", 1),
    ],
)
def test_a_learned_word_is_no_part_of_a_longer_one(word: str, prompt: str, times: int) -> None:
    assert len(re.findall(word_pattern(word), prompt, re.IGNORECASE)) == times


@pytest.mark.parametrize("placeholder", ["<an\u200bna>", "\u2060", "<anna>\u200e"])
def test_a_word_that_nobody_can_see_whole_is_none(placeholder: str) -> None:
    with pytest.raises(ValueError, match="character in it that nobody sees"):
        check_placeholder(placeholder)
