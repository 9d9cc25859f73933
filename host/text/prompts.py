"""A prompt as the model sees it: its conditioning, and where the words of each phrase are in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .chunks import spans_in_chunks
from .context import ContextTokens

TAG = "magicportrait_prompt"


@dataclass(frozen=True, eq=False)
class TaggedPrompt:
    """A prompt with its phrases found. conditioning carries `tag`, so that its rows are known again
    among all others of a sampling run.

    spans: for each phrase its token positions; words: those of all that was written, where the
    context holds more than that, else None.
    """

    text: str
    phrases: tuple[str, ...]
    conditioning: list[Any]
    tag: str
    spans: tuple[tuple[int, ...], ...]
    words: tuple[int, ...] | None = None


def encode(clip: Any, text: str) -> list[Any]:
    conditioning: list[Any] = clip.encode_from_tokens_scheduled(clip.tokenize(text))
    return conditioning


def tagged_prompt(
    clip: Any, text: str, phrases: Sequence[str], tag: str, context: ContextTokens | None = None
) -> TaggedPrompt:
    """Encodes a prompt and finds the phrases in it. context: how the model's context is made of
    tokens, None for CLIP's chunks. ValueError, with the words that are there, when a phrase is
    not."""
    words: tuple[int, ...] | None = None
    if context is None:
        spans = spans_in_chunks(clip, text, phrases)
    conditioning = [[tensor, {**options, TAG: tag}] for tensor, options in encode(clip, text)]
    if context is not None:
        found = context.places(clip, text, phrases, conditioning[0][0].shape[1])
        spans, words = found.spans, found.words
    return TaggedPrompt(text, tuple(phrases), conditioning, tag, spans, words)
