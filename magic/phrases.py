"""Phrases in a text box, and the tokens of a phrase in a tokenised prompt."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch

Token = Any
"""A token id, or the vector of a textual-inversion embedding."""


# Comma and semicolon, in their Chinese and Japanese forms too, and the end of a line.
_BETWEEN_PHRASES = re.compile(r"[,，、;；\r\n]")


def split_phrases(text: str) -> list[str]:
    """The phrases of a text that has them one a line, or between commas or semicolons of any
    script. ValueError when there is none."""
    phrases = [phrase for part in _BETWEEN_PHRASES.split(text) if (phrase := part.strip())]
    if not phrases:
        raise ValueError(
            "phrases is empty: write words of the prompt, separated by commas, such as 'hat, scarf'"
        )
    return phrases


def _same(a: Token, b: Token) -> bool:
    if isinstance(a, torch.Tensor) or isinstance(b, torch.Tensor):
        return isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) and torch.equal(a, b)
    return bool(a == b)


def occurrences(
    phrase: Sequence[Token], prompt: Sequence[tuple[int, Token]]
) -> list[tuple[int, ...]]:
    """Where `phrase` stands in `prompt`: for each time the positions of its tokens. `prompt`:
    (position, token), without special tokens."""
    n = len(phrase)
    if n == 0:
        return []
    return [
        tuple(position for position, _ in prompt[start : start + n])
        for start in range(len(prompt) - n + 1)
        if all(
            _same(token, wanted)
            for (_, token), wanted in zip(prompt[start : start + n], phrase, strict=True)
        )
    ]


def assign_spans(
    phrases: Sequence[Sequence[Token]], prompt: Sequence[tuple[int, Token]]
) -> list[tuple[int, ...]]:
    """The token positions of every phrase; empty where a phrase is not in the prompt.

    A phrase owns every place where it stands, except inside a longer phrase ('hat' inside 'red
    hat') if it stands elsewhere too. When several concepts have the same phrase ('a man and a
    man'), the first gets its first place and so on, and those that are left over share the last
    one.
    """
    places = [occurrences(phrase, prompt) for phrase in phrases]
    spans: list[tuple[int, ...]] = []
    for i, phrase in enumerate(phrases):
        taken = {
            position
            for j, other in enumerate(phrases)
            if len(other) > len(phrase)
            for place in places[j]
            for position in place
        }
        own = [place for place in places[i] if taken.isdisjoint(place)] or places[i]
        alike = [
            j
            for j, other in enumerate(phrases)
            if len(other) == len(phrase) and all(map(_same, other, phrase))
        ]
        if len(alike) > 1 and own:
            own = [own[min(alike.index(i), len(own) - 1)]]
        spans.append(tuple(dict.fromkeys(position for place in own for position in place)))
    return spans
