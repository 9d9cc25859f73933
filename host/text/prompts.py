"""A prompt as the model sees it: its conditioning, and where the words of each phrase are in it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ...magic.messages import shown
from .chunks import spans_in_chunks
from .context import ContextTokens

TAG = "magicportrait_prompt"
_LARGEST = torch.finfo(torch.float16).max
"""Beyond it models in half precision make black pictures, those in single precision nonsense."""
_ORDINARY = 100.0
"""A weight of a word that cannot be the reason for larger numbers."""


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
    """A prompt as CONDITIONING. ValueError when a weight in it, such as (hat:inf), leaves numbers
    that no model can take."""
    tokens = clip.tokenize(text)
    conditioning: list[Any] = clip.encode_from_tokens_scheduled(tokens)
    if complaint := _complaint_about(text, tokens, conditioning):
        raise ValueError(complaint)
    return conditioning


def _complaint_about(text: str, tokens: Any, conditioning: list[Any]) -> str | None:
    # Not-a-number is at most nothing.
    if all(bool((tensor.abs() <= _LARGEST).all()) for tensor, *_ in conditioning):
        return None
    weights = [float(token[1]) for chunks in tokens.values() for chunk in chunks for token in chunk]
    weight = max(weights, key=lambda weight: math.inf if math.isnan(weight) else abs(weight))
    if not abs(weight) <= _ORDINARY:
        return (
            f"prompt '{shown(text)}' gives a word the weight {weight:g}, of which no model can make"
            " a picture: write one near 1, such as (hat:1.2)"
        )
    # Some text encoders have large numbers of their own.
    if _is_finite(conditioning):
        return None
    return (
        f"prompt '{shown(text)}': the text encoder makes numbers of it that are none (NaN or"
        " infinite): load it in full precision, or take another file of it"
    )


def check_conditioning(conditioning: list[Any], name: str) -> None:
    """ValueError when a CONDITIONING from another node has numbers that are none. name: of the
    input."""
    if not _is_finite(conditioning):
        raise ValueError(
            f"{name} has numbers that are none (NaN or infinite): write the weights of its prompt"
            " near 1, such as (hat:1.2)"
        )


def _is_finite(conditioning: list[Any]) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor, *_ in conditioning)


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
        places = context.places(clip, text, phrases, conditioning[0][0].shape[1])
        spans, words = places.spans, places.words
    return TaggedPrompt(text, tuple(phrases), conditioning, tag, spans, words)
