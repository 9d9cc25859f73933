"""The text encoders in a CLIP: which there are, their tokenizers and widths, and what is particular
to those that are CLIP's."""

from __future__ import annotations

from typing import Any

from ...magic.messages import shown

NAMES = ("clip_l", "clip_g", "clip_h")
"""The host's names of the text encoders of SD1.5 (l), SDXL (l, g) and SD2.1 (h)."""
_PREFIX = "clip_"
_WIDTHS = {768: "clip_l", 1024: "clip_h", 1280: "clip_g"}


def encoder_of_width(width: int) -> str:
    """The text encoder whose words are vectors of `width` numbers, as far as that tells."""
    return _WIDTHS.get(width, "clip_l")


def text_tokenizers(tokenizer: Any) -> dict[str, Any]:
    """The tokenizers of a host tokenizer's text encoders by the encoders' names: CLIP's, and
    'qwen25_7b', 't5xxl' and the like."""
    return {
        # Where T5 is alone its tokenizer is a 'clip_t5xxl'.
        name if name in NAMES else name.removeprefix(_PREFIX): part
        for name, part in vars(tokenizer).items()
        if hasattr(part, "tokenizer") and hasattr(part, "embedding_key")
    }


def tokenizer_place(tokenizer: Any, encoder: str) -> str:
    """How a host tokenizer calls the tokenizer of a text encoder."""
    return encoder if hasattr(tokenizer, encoder) else f"{_PREFIX}{encoder}"


def loaded_encoders(clip: Any) -> list[str]:
    """The names of the text encoders that are there: some loaders leave one out."""
    encoders = clip.cond_stage_model
    return [
        name
        for name in text_tokenizers(clip.tokenizer)
        if getattr(encoders, name, None) is not None
    ]


def encoder_tokenizers(tokenizer: Any) -> dict[str, Any]:
    """The tokenizers of a host tokenizer's text encoders by the encoders' names. ValueError for
    anything but CLIP-L, CLIP-G and CLIP-H."""
    parts = text_tokenizers(tokenizer)
    if not parts or not parts.keys() <= set(NAMES):
        raise ValueError(
            f"this needs the text encoder of SD1.5, SD2.1 or SDXL, {type(tokenizer).__name__} has"
            f" {', '.join(parts) or 'no CLIP'} in it"
        )
    return parts


def word_width(clip: Any, encoder: str) -> int:
    """How many numbers a text encoder's vector of a word has."""
    transformer = getattr(clip.cond_stage_model, encoder).transformer
    return int(transformer.get_input_embeddings().weight.shape[1])


def word_ids(tokenizer: Any, encoder: str, text: str) -> list[int]:
    """The tokens of class words without start and end. ValueError when there are none."""
    ids: list[int] = encoder_tokenizers(tokenizer)[encoder].tokenizer(text)["input_ids"][1:-1]
    return _some(ids, encoder, text)


def vocabulary_ids(tokenizer: Any, encoder: str, text: str) -> list[int]:
    """The same for any text encoder. ValueError when there are none."""
    part = text_tokenizers(tokenizer)[encoder]
    end = -1 if part.tokenizer_adds_end_token else None
    ids: list[int] = part.tokenizer(text)["input_ids"][part.tokens_start : end]
    return _some(ids, encoder, text)


def _some(ids: list[int], encoder: str, text: str) -> list[int]:
    if not ids:
        raise ValueError(
            f"class_word '{shown(text)}' is nothing to text encoder {encoder}, which has no tokens"
            " for it: write what is in the pictures in a word that the model knows, such as 'woman'"
        )
    return ids


def list_name(encoder: str) -> str:
    """How a host tokenizer calls the tokens of a text encoder."""
    return encoder.removeprefix(_PREFIX)


def chunks_of(tokens: dict[str, Any], encoder: str) -> list[Any]:
    """A text encoder's part of what a host tokenizer gives: chunks of (token, weight, ...), CLIP's
    of 77."""
    chunks: list[Any] = tokens[list_name(encoder)]
    return chunks
