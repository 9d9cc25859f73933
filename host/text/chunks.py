"""Where the words of a prompt are in CLIP's chunks of 77 tokens."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from ...magic.messages import shown
from ...magic.phrases import Token, assign_spans

_START, _END = 49406, 49407
_WRITTEN_END = "<|endoftext|>"
"""What CLIP's tokenizer takes for _END when somebody writes it."""


def tokens_of(clip: Any, text: str) -> list[tuple[int, Token]]:
    """The words' tokens of `text` as (position in the conditioning, token)."""
    tokenised = clip.tokenize(text)
    # SDXL's two encoders share vocabulary and positions: either list will do.
    chunks = tokenised["l"] if "l" in tokenised else next(iter(tokenised.values()))
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


def spans_in_chunks(clip: Any, text: str, phrases: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    """For each phrase its token positions. ValueError, with the words that are there, when one is
    not."""
    stream = tokens_of(clip, text)
    tokens = {
        phrase: [token for _, token in tokens_of(clip, phrase)] for phrase in dict.fromkeys(phrases)
    }
    spans = assign_spans([tokens[phrase] for phrase in phrases], stream)
    for phrase, span in zip(phrases, spans, strict=True):
        if not span:
            read, end, _ = text.partition(_WRITTEN_END)
            hint = f". What stands behind {end} is not read: take that out" if end else ""
            raise phrase_is_missing(phrase, read, hint)
    return tuple(spans)


def phrase_is_missing(phrase: str, text: str, hint: str = "") -> ValueError:
    """What to say of a phrase that is not in a prompt. hint: said at the end."""
    words = ", ".join(dict.fromkeys(re.findall(r"[^\s,.:;()]+", text))) or "none"
    return ValueError(
        f"phrase '{shown(phrase)}' is not in the prompt. Words that are there: {shown(words)}. Name"
        f" the concept by some of these, or add it{hint}"
    )
