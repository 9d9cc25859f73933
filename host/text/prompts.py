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
from ...magic.phrases import named_words
from ..models.lora_patches import check_patches, lora_patches
from .chunks import NamedPhrase, names_in_chunks, spans_in_chunks
from .context import ContextTokens

TAG = "magicportrait_prompt"
_LARGEST = torch.finfo(torch.float16).max
"""Beyond it models in half precision make black pictures, those in single precision nonsense."""
_LATENTS, _TEXTS_OF_PICTURES = "reference_latents", "reference_latents_text_embeds"
_PICTURE = "<|vision_start|><|image_pad|><|vision_end|>"
"""A picture in the templates of Qwen's vision models."""
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


def encode(clip: Any, text: str, pictures: Sequence[torch.Tensor] = ()) -> list[Any]:
    """A prompt as CONDITIONING. pictures: 1 H W 3 each, what the text encoder is shown beside it,
    if it can see. ValueError when a weight in it, such as (hat:inf), leaves numbers that no model
    can take."""
    tokens = clip.tokenize(text, **_pictures_for(clip, pictures))
    conditioning: list[Any] = clip.encode_from_tokens_scheduled(tokens)
    if complaint := _complaint_about(text, tokens, conditioning):
        raise ValueError(complaint)
    return conditioning


def _pictures_for(clip: Any, pictures: Sequence[torch.Tensor]) -> dict[str, Any]:
    """How the host's tokenizer is given pictures: as edit models are trained, numbered, before the
    prompt."""
    template = getattr(clip.tokenizer, "llama_template_images", "") if pictures else ""
    if _PICTURE not in template:
        return {}
    labels = "".join(f"Picture {i}: {_PICTURE}" for i, _ in enumerate(pictures, 1))
    return {
        "images": list(pictures),
        "llama_template": template.replace(_PICTURE, labels, 1),
    }


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
    clip: Any,
    text: str,
    phrases: Sequence[str],
    tag: str,
    context: ContextTokens | None = None,
    pictures: Sequence[torch.Tensor] = (),
) -> TaggedPrompt:
    """Encodes a prompt and finds the phrases in it. context: how the model's context is made of
    tokens, None for CLIP's chunks; pictures: as for `encode`. ValueError, with the words that are
    there, when a phrase is not."""
    words: tuple[int, ...] | None = None
    if context is None:
        spans = spans_in_chunks(clip, text, phrases)
    conditioning = _with_tag(encode(clip, text, pictures), tag)
    if context is not None:
        places = context.places(clip, text, phrases, conditioning[0][0].shape[1])
        spans, words = places.spans, places.words
    return TaggedPrompt(text, tuple(phrases), conditioning, tag, spans, words)


def check_phrases(
    clip: Any, text: str, phrases: Sequence[str], context: ContextTokens | None = None
) -> None:
    """ValueError as for `tagged_prompt` when a phrase is not in a prompt, which is not encoded."""
    if context is None:
        spans_in_chunks(clip, text, phrases)
    else:
        context.check(clip, text, phrases)


def words_of_phrases(
    clip: Any, text: str, phrases: Sequence[str], context: ContextTokens | None = None
) -> tuple[str, ...]:
    """The phrases without the number of an occurrence, where that is what a number in them is:
    'man' of 'man#2'. All else as for `tagged_prompt`."""
    return tuple(name.words for name in _names(clip, text, phrases, context))


def words_that_stand_once(
    clip: Any, text: str, phrases: Sequence[str], context: ContextTokens | None = None
) -> frozenset[str]:
    """Of phrases such as 'man#1' the words, as `named_words` has them, where they are in the prompt
    this once: there 'man' means the same. All else as for `tagged_prompt`."""
    names = _names(clip, text, phrases, context)
    return frozenset(named_words(name.words)[0] for name in names if name.is_only)


def _names(
    clip: Any, text: str, phrases: Sequence[str], context: ContextTokens | None
) -> tuple[NamedPhrase, ...]:
    if context is None:
        return names_in_chunks(clip, text, phrases)
    return context.names(clip, text, phrases)


def tagged_conditioning(
    conditioning: list[Any],
    clip: Any,
    text: str,
    phrases: Sequence[str],
    tag: str,
    context: ContextTokens,
) -> TaggedPrompt:
    """A prompt that another node has encoded, with the phrases found in it. clip, text: by which it
    was made, needed where there are phrases. ValueError when a phrase is not in the text, or the
    text is not that of the conditioning."""
    tagged = _with_tag(conditioning, tag)
    if not phrases:
        return TaggedPrompt(text, (), tagged, tag, (), ())
    length = conditioning[0][0].shape[1]
    # The template of Z-Image-Omni is shorter by one token, and begins with one.
    has_texts = bool(conditioning[0][1].get(_TEXTS_OF_PICTURES))
    # A context that is made inside the model is of other tokens than the conditioning.
    is_longer = not context.is_inside and context.length(clip, text) > length + has_texts
    if is_longer and not context.sees_pictures:
        raise ValueError(
            f"the prompt '{shown(text)}' is longer than positive, which has {length} tokens: write"
            " the same text as in the node that made positive, best by linking one text to both"
        )
    places = context.places(clip, text, phrases, length)
    if has_texts:
        places = places.shift(1 - places.words[0])
    return TaggedPrompt(text, tuple(phrases), tagged, tag, places.spans, places.words)


def with_reference_latents(prompt: TaggedPrompt, latents: Sequence[torch.Tensor]) -> TaggedPrompt:
    """A prompt that gives an edit model pictures beside its words."""
    conditioning = [
        [tensor, {**options, _LATENTS: [*options.get(_LATENTS, ()), *latents]}]
        for tensor, options in prompt.conditioning
    ]
    return dataclasses.replace(prompt, conditioning=conditioning)


def with_lora_text(
    clip: Any,
    prompt: TaggedPrompt,
    loras: Sequence[tuple[int, ConceptLora]],
    context: ContextTokens | None = None,
) -> TaggedPrompt:
    """The prompt as the text encoder reads it with LoRAs: all of it, or only the tokens of the
    phrase that each belongs to, as the LoRA says; several of one phrase together. loras: with the
    index of the phrase; context: as for `tagged_prompt`. ValueError for the tokens of a phrase in
    a model whose context is not the conditioning, token by token."""
    everywhere = [lora for _, lora in loras if lora.text == "all"]
    base = _with_patches(clip, everywhere)
    conditioning = prompt.conditioning
    if base is not clip:
        conditioning = _with_tag(encode(base, prompt.text), prompt.tag)
    for index in dict.fromkeys(index for index, _ in loras):
        own = _with_patches(
            base, [lora for phrase, lora in loras if phrase == index and lora.text == "phrase"]
        )
        if own is base:
            continue
        if context is not None and not context.is_conditioning:
            raise ValueError(
                f"the LoRA of '{prompt.phrases[index]}' changes the text encoder, and this kind of"
                " model does not tell where the tokens of one phrase are in what that gives: set"
                " its text to 'all' or 'none'"
            )
        span = list(prompt.spans[index])
        for (tensor, _), (other, _) in zip(conditioning, encode(own, prompt.text), strict=True):
            tensor[:, span] = other[:, span].to(tensor)
    return dataclasses.replace(prompt, conditioning=conditioning)


def encode_with_loras(clip: Any, text: str, loras: Sequence[ConceptLora]) -> list[Any]:
    """A prompt as CONDITIONING, all of it as the text encoder reads it with LoRAs, but for those
    that are for no text. ValueError as `encode`."""
    return encode(_with_patches(clip, [lora for lora in loras if lora.text != "none"]), text)


def _with_tag(conditioning: list[Any], tag: str) -> list[Any]:
    return [[tensor, {**options, TAG: tag}] for tensor, options in conditioning]


def _with_patches(clip: Any, loras: Sequence[ConceptLora]) -> Any:
    """A text encoder with what LoRAs have for it; the same object when that is nothing. ValueError
    when one of them does not fit."""
    import comfy.lora

    encoder = clip.cond_stage_model
    names = comfy.lora.model_lora_keys_clip(encoder, {})
    result = clip
    for lora in loras:
        patches = lora_patches(lora.name, lora.weights, names)
        check_patches(lora.name, patches, encoder)
        if patches:
            result = clip.clone() if result is clip else result
            result.add_patches(patches, lora.strength)
    return result
