"""A prompt as the model sees it: its conditioning, and where the words of each phrase are in it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...magic.phrases import Token, assign_spans

_START, _END = 49406, 49407
TAG = "magicportrait_prompt"


@dataclass(frozen=True, eq=False)
class TaggedPrompt:
    """A prompt with its phrases found. conditioning carries `tag`, so that its rows are known again
    among all others of a sampling run.

    spans: for each phrase its token positions.
    """

    text: str
    phrases: tuple[str, ...]
    conditioning: list[Any]
    tag: str
    spans: tuple[tuple[int, ...], ...]


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


def encode(clip: Any, text: str) -> list[Any]:
    conditioning: list[Any] = clip.encode_from_tokens_scheduled(clip.tokenize(text))
    return conditioning


def tagged_prompt(clip: Any, text: str, phrases: Sequence[str], tag: str) -> TaggedPrompt:
    """Encodes a prompt and finds the phrases in it. ValueError, with the words that are there, when
    one is not."""
    stream = tokens_of(clip, text)
    tokens = {
        phrase: [token for _, token in tokens_of(clip, phrase)] for phrase in dict.fromkeys(phrases)
    }
    spans = assign_spans([tokens[phrase] for phrase in phrases], stream)
    for phrase, span in zip(phrases, spans, strict=True):
        if not span:
            words = ", ".join(dict.fromkeys(re.findall(r"[^\s,.:;()]+", text))) or "none"
            raise ValueError(
                f"phrase '{phrase}' is not in the prompt. Words that are there: {words}. Name the"
                " concept by some of these, or add it"
            )
    conditioning = [[tensor, {**options, TAG: tag}] for tensor, options in encode(clip, text)]
    return TaggedPrompt(text, tuple(phrases), conditioning, tag, tuple(spans))
