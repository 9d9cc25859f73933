"""Phrases in a text box, and the tokens of a phrase in a tokenised prompt."""

from __future__ import annotations

import re
from collections import Counter
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


_Comparable = tuple[Any, ...]
"""Tokens by what they are equal by: ids as they are, vectors by their bytes."""


def _comparable(tokens: Sequence[Token]) -> _Comparable:
    return tuple(
        (tuple(token.shape), token.cpu().contiguous().float().numpy().tobytes())
        if isinstance(token, torch.Tensor)
        else token
        for token in tokens
    )


def occurrences(
    phrase: Sequence[Token], prompt: Sequence[tuple[int, Token]]
) -> list[tuple[int, ...]]:
    """Where `phrase` stands in `prompt`: for each time the positions of its tokens. `prompt`:
    (position, token), without special tokens."""
    positions = [position for position, _ in prompt]
    return _places(_comparable(phrase), _comparable([token for _, token in prompt]), positions)


def _places(
    phrase: _Comparable, prompt: _Comparable, positions: Sequence[int]
) -> list[tuple[int, ...]]:
    n = len(phrase)
    if n == 0:
        return []
    return [
        tuple(positions[start : start + n])
        for start in range(len(prompt) - n + 1)
        if prompt[start : start + n] == phrase
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
    positions = [position for position, _ in prompt]
    tokens = _comparable([token for _, token in prompt])
    keys = [_comparable(phrase) for phrase in phrases]
    places = {key: _places(key, tokens, positions) for key in dict.fromkeys(keys)}
    own: dict[_Comparable, list[tuple[int, ...]]] = {}
    for key, stands in places.items():
        of_longer = {
            position
            for other, there in places.items()
            if len(other) > len(key)
            for place in there
            for position in place
        }
        own[key] = [place for place in stands if of_longer.isdisjoint(place)] or stands
    counts = Counter(keys)
    place_of: Counter[_Comparable] = Counter()
    spans: list[tuple[int, ...]] = []
    for key in keys:
        mine = own[key]
        if counts[key] > 1 and mine:
            mine = [mine[min(place_of[key], len(mine) - 1)]]
            place_of[key] += 1
        spans.append(tuple(dict.fromkeys(position for place in mine for position in place)))
    return spans
