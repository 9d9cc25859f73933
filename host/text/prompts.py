"""A prompt as the model sees it: its conditioning, and where the words of each phrase are in it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ...magic.concepts import ConceptLora
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
    conditioning = _tagged(encode(clip, text), tag)
    if context is not None:
        places = context.places(clip, text, phrases, conditioning[0][0].shape[1])
        spans, words = places.spans, places.words
    return TaggedPrompt(text, tuple(phrases), conditioning, tag, spans, words)


def with_lora_text(
    clip: Any, prompt: TaggedPrompt, loras: Sequence[tuple[int, ConceptLora]]
) -> TaggedPrompt:
    """The prompt as the text encoder reads it with LoRAs: all of it, or only the tokens of the
    phrase that each belongs to, as the LoRA says. loras: with the index of the phrase."""
    everywhere = [lora for _, lora in loras if lora.text == "all"]
    base = _with_patches(clip, everywhere)
    conditioning = prompt.conditioning
    if base is not clip:
        conditioning = _tagged(encode(base, prompt.text), prompt.tag)
    for index, lora in loras:
        own = _with_patches(base, [lora]) if lora.text == "phrase" else base
        if own is base:
            continue
        span = list(prompt.spans[index])
        for (tensor, _), (other, _) in zip(conditioning, encode(own, prompt.text), strict=True):
            tensor[:, span] = other[:, span].to(tensor)
    return dataclasses.replace(prompt, conditioning=conditioning)


def _tagged(conditioning: list[Any], tag: str) -> list[Any]:
    return [[tensor, {**options, TAG: tag}] for tensor, options in conditioning]


def _with_patches(clip: Any, loras: Sequence[ConceptLora]) -> Any:
    """A text encoder with what LoRAs have for it; the same object when that is nothing."""
    import comfy.lora
    import comfy.lora_convert

    names = comfy.lora.model_lora_keys_clip(clip.cond_stage_model, {})
    patched = clip
    for lora in loras:
        weights = comfy.lora_convert.convert_lora(dict(lora.weights))
        if patches := comfy.lora.load_lora(weights, names, log_missing=False):
            patched = clip.clone() if patched is clip else patched
            patched.add_patches(patches, lora.strength)
    return patched
