"""Where the words of a prompt are in CLIP's chunks of 77 tokens."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ...magic.messages import shown
from ...magic.phrases import Token, assign_spans, hint_of_number, numbered, occurrences
from ...magic.typed import unseen_in

_START, _END = 49406, 49407
_WRITTEN_END = "<|endoftext|>"
"""What CLIP's tokenizer takes for _END when somebody writes it."""


def tokens_of(clip: Any, text: str) -> list[tuple[int, Token]]:
    """The words' tokens of `text` as (position in the conditioning, token)."""
    lists = clip.tokenize(text)
    # SDXL's two encoders share vocabulary and positions: either list will do.
    chunks = lists["l"] if "l" in lists else next(iter(lists.values()))
    stream: list[tuple[int, Token]] = []
    offset = 0
    for chunk in chunks:
        for position, (token, *_) in enumerate(chunk):
            is_id = isinstance(token, int)
            if is_id and token == _END:
                break
            if not (is_id and token == _START):
                stream.append((offset + position, token))
        offset += len(chunk)
    return stream


class NamedPhrase(NamedTuple):
    """What a phrase names. words: of the prompt; number: which time that they stand there, from 1;
    None for all; is_only: whether that is the only time."""

    words: str
    number: int | None
    is_only: bool = False


def named_phrase(phrase: str, times: Callable[[str], int]) -> NamedPhrase:
    """What a phrase names in a prompt: 'man#2' the second 'man', unless the prompt has it written
    so. times: how often words stand in it. ValueError when there are not so many, and for 0."""
    occurrence = numbered(phrase)
    if occurrence is None or times(phrase):
        return NamedPhrase(phrase, None)
    words, number = occurrence
    count = times(words)
    if count and not 0 < number <= count:
        how_often, by = "once", "without a number"
        if count > 1:
            how_often, by = f"{count} times", f"by a number from 1 to {count}"
        raise ValueError(
            f"phrase '{shown(phrase)}' is not in the prompt, where '{shown(words)}' stands"
            f" {how_often}: name it {by}, or add it to the prompt"
        )
    return NamedPhrase(words, number, count == 1)


def names_in_chunks(clip: Any, text: str, phrases: Sequence[str]) -> tuple[NamedPhrase, ...]:
    """What phrases name in a prompt."""
    stream = tokens_of(clip, text)

    def times(words: str) -> int:
        return len(occurrences([token for _, token in tokens_of(clip, words)], stream))

    return tuple(named_phrase(phrase, times) for phrase in phrases)


def spans_in_chunks(clip: Any, text: str, phrases: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    """For each phrase its token positions. ValueError, with the words that are there, when one is
    not."""
    stream = tokens_of(clip, text)
    names = names_in_chunks(clip, text, phrases)
    tokens = {
        words: [token for _, token in tokens_of(clip, words)]
        for words in dict.fromkeys(name.words for name in names)
    }
    spans = assign_spans(
        [tokens[name.words] for name in names], stream, [name.number for name in names]
    )
    for phrase, name, span in zip(phrases, names, spans, strict=True):
        if not span:
            read, end, _ = text.partition(_WRITTEN_END)
            hint = f". What stands behind {end} is not read: take that out" if end else ""
            raise phrase_is_missing(phrase, name.words, read, hint)
    return tuple(spans)


def phrase_is_missing(phrase: str, named: str, text: str, hint: str = "") -> ValueError:
    """What to say of a phrase that is not in a prompt. named: its words, without the number of an
    occurrence; hint: said at the end."""
    if unseen := unseen_in(named) or unseen_in(text):
        hint = (
            f". One of both has a character in it that nobody sees ({unseen}): type it anew{hint}"
        )
    words = ", ".join(dict.fromkeys(re.findall(r"[^\s,.:;()]+", text))) or "none"
    return ValueError(
        f"phrase '{shown(named)}' is not in the prompt. Words that are there: {shown(words)}. Name"
        f" the concept by some of these, or add it to the prompt{hint_of_number(phrase)}{hint}"
    )
