"""Phrases in a text box, and the tokens of a phrase in a tokenised prompt."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypeVar

import torch

from .messages import shown
from .typed import SPACED_LETTER

Token = Any
"""A token id, or the vector of a textual-inversion embedding."""


# Comma and semicolon, in their Chinese and Japanese forms too, and the end of a line.
_BETWEEN_PHRASES = re.compile(r"[,，、;；\r\n]")


def phrases_in(text: str) -> list[str]:
    """The phrases of a text that has them one a line, or between commas or semicolons of any
    script; none of one that holds nothing else."""
    return [phrase for part in _BETWEEN_PHRASES.split(text) if (phrase := part.strip())]


def split_phrases(text: str) -> list[str]:
    """As `phrases_in`. ValueError when there is none."""
    phrases = phrases_in(text)
    if not phrases:
        raise ValueError(
            "phrases is empty: write words of the prompt, separated by commas, such as 'hat, scarf'"
        )
    return phrases


_Comparable = tuple[Any, ...]
"""Tokens by what they are equal by: ids as they are, vectors by their bytes."""


def comparable(tokens: Sequence[Token]) -> _Comparable:
    """Tokens as they can be compared."""
    vectors = (
        # As some tokenizers have vectors.
        token["data"] if isinstance(token, dict) and token.get("type") == "embedding" else token
        for token in tokens
    )
    return tuple(
        (tuple(token.shape), token.cpu().contiguous().float().numpy().tobytes())
        if isinstance(token, torch.Tensor)
        else token
        for token in vectors
    )


def occurrences(
    phrase: Sequence[Token], prompt: Sequence[tuple[int, Token]]
) -> list[tuple[int, ...]]:
    """Where `phrase` stands in `prompt`: for each time the positions of its tokens. `prompt`:
    (position, token), without special tokens."""
    positions = [position for position, _ in prompt]
    return _places(comparable(phrase), comparable([token for _, token in prompt]), positions)


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


OCCURRENCE = r"\s*[#＃]\s*([0-9０-９]{1,9})"
"""How the number of an occurrence stands behind its words: 'man#2', 'man # 2'."""
_WEIGHT = r":\s*-?\d*\.?\d+\s*(?=\))"
CLOSING = rf"(?:\s*(?:[)\]}}\"'”’»）］】」』]|{_WEIGHT}))*"
"""How a weight, brackets or quotes end, which may stand between words and their number:
'(man:1.2)#2', '[man]#2'."""
_NUMBERED = re.compile(rf"(.*\S){OCCURRENCE}({CLOSING})", re.DOTALL)


def numbered(phrase: str) -> tuple[str, int] | None:
    """The words and the number of a phrase that names one occurrence of them: 'man#2' is the second
    'man', and so are '(man:1.2)#2' and '(man#2:1.2)'. None for other phrases. 0 is a number too, of
    no occurrence."""
    match = _NUMBERED.fullmatch(phrase.strip())
    return None if match is None else (match[1].rstrip() + match[3], int(match[2]))


def hint_of_number(phrase: str) -> str:
    """A sentence for the end of a message about a phrase that is nowhere and tries to number its
    words: that '[man]#2' and 'man#2nd' are written 'man#2'. Empty for other phrases."""
    before, *behind = re.split("[#＃]", phrase)
    if not behind:
        return ""
    bare = re.sub(r"^[\W_]+|[\W_]+$", "", " ".join(words_of(before)))
    words, number = numbered(phrase) or ("", 0)
    if bare and words_of(words) == bare.split():
        return ""
    digits = re.search("[0-9０-９]{1,9}", behind[-1])
    if not bare and not digits:
        return ""
    spelling = f"{bare or 'man'}#{number or int(digits[0] if digits else 0) or 1}"
    return (
        ". One of several like words is named by a number from 1 behind them, such as"
        f" '{shown(spelling)}'"
    )


def named_words(phrase: str) -> tuple[str, int | None]:
    """What a phrase names, however it is written: the words in small letters, and the number of an
    occurrence."""
    words, number = numbered(phrase) or (phrase, None)
    return " ".join(words_of(words)).casefold(), number


def assign_spans(
    phrases: Sequence[Sequence[Token]],
    prompt: Sequence[tuple[int, Token]],
    numbers: Sequence[int | None] = (),
) -> list[tuple[int, ...]]:
    """The token positions of every phrase; empty where a phrase is not in the prompt.

    A phrase owns every place where it stands, except inside a longer phrase ('hat' inside 'red
    hat') if it stands elsewhere too. When several concepts have the same phrase ('a man and a
    man'), the first gets its first place and so on, and those that are left over share the last
    one. numbers: for each phrase which of its places it has, from 1, or None; the others of the
    same phrase share out what is left.
    """
    positions = [position for position, _ in prompt]
    tokens = comparable([token for _, token in prompt])
    keys = [comparable(phrase) for phrase in phrases]
    places = {key: _places(key, tokens, positions) for key in dict.fromkeys(keys)}
    return share_places(keys, places, numbers)


_Key = TypeVar("_Key", bound=Collection[Any])


def share_places(
    keys: Sequence[_Key],
    places: Mapping[_Key, Sequence[tuple[int, ...]]],
    numbers: Sequence[int | None] = (),
) -> list[tuple[int, ...]]:
    """As `assign_spans`, once it is known where every phrase stands. keys: the phrases, tokens or
    characters; places: for each the positions of its tokens, each time that it stands there."""
    which = list(numbers) or [None] * len(keys)
    inside: dict[_Key, list[tuple[int, ...]]] = {key: [] for key in places}
    for key, number in zip(keys, which, strict=True):
        inside[key] += places[key] if number is None else _numbered_place(places[key], number)
    own: dict[_Key, Sequence[tuple[int, ...]]] = {}
    for key, stands in places.items():
        of_longer = {
            position
            for other, there in inside.items()
            if len(other) > len(key)
            for place in there
            for position in place
        }
        free = [place for place in stands if of_longer.isdisjoint(place)] or stands
        named = {number for other, number in zip(keys, which, strict=True) if other == key}
        unnamed = [place for place in free if stands.index(place) + 1 not in named]
        own[key] = unnamed or free
    counts = Counter(key for key, number in zip(keys, which, strict=True) if number is None)
    place_of: Counter[_Key] = Counter()
    spans: list[tuple[int, ...]] = []
    for key, number in zip(keys, which, strict=True):
        mine = own[key]
        if number is not None:
            mine = _numbered_place(places[key], number)
        elif counts[key] > 1 and mine:
            mine = [mine[min(place_of[key], len(mine) - 1)]]
            place_of[key] += 1
        spans.append(tuple(dict.fromkeys(position for place in mine for position in place)))
    return spans


def _numbered_place(places: Sequence[tuple[int, ...]], number: int) -> Sequence[tuple[int, ...]]:
    """The place of a number from 1, or none."""
    return places[number - 1 : number] if number > 0 else ()


_BETWEEN_WORDS = rf"(?:\s|[()]|{_WEIGHT})+"
"""What may stand between two words of a phrase: '(red:1.3) hat'."""


def words_of(phrase: str) -> list[str]:
    """The words of a phrase, without the marks of weights."""
    return [word for word in re.split(_BETWEEN_WORDS, phrase) if word]


def places_in_text(words: Sequence[str], text: str) -> list[list[tuple[int, int]]]:
    """Where a phrase stands in a text, in any case: for each time the first character and the one
    past the last of each of its words.

    A word is no part of another ('hat' is not in 'that'), but in scripts that put no spaces between
    words, such as Chinese, it may stand anywhere.
    """
    if not words:
        return []
    pattern = _BETWEEN_WORDS.join(f"({re.escape(word)})" for word in words)
    return [
        [match.span(i) for i in range(1, len(words) + 1)]
        for match in re.finditer(pattern, text, re.IGNORECASE)
        if not _is_inside_a_word(text, *match.span())
    ]


def _is_inside_a_word(text: str, start: int, end: int) -> bool:
    return any(
        0 < edge < len(text) and all(map(_SPACED_LETTER.match, text[edge - 1 : edge + 1]))
        for edge in (start, end)
    )


_SPACED_LETTER = re.compile(SPACED_LETTER)
