"""Prompts that are encoded once: of text encoders that the training does not change, and which may
leave the memory then."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ...magic.capture_sets import word_pattern
from ..models.patched_weights import patched_weights
from ..text.context import ContextTokens
from ..text.learned_words import Embedding
from ..text.prompts import tagged_prompt
from .lora import Adapter

_TAG = "training"


@dataclass(frozen=True, eq=False)
class EncodedPrompt:
    """A prompt as the host encodes it.

    text: as it was written. context: 1 N C, on the CPU. options: all else of its conditioning.
    spans: of each placeholder that is in it, in the order of the placeholders, the positions of its
    tokens in the context.
    """

    text: str
    context: Tensor
    options: Mapping[str, Any]
    spans: tuple[tuple[int, ...], ...]

    @property
    def word_count(self) -> int:
        """How many placeholders are in it."""
        return len(self.spans)

    @property
    def tensors(self) -> list[Tensor]:
        """All that it consists of."""
        parts = (self.context, *tree_leaves(dict(self.options)))
        return [part for part in parts if isinstance(part, Tensor)]


class EncodedText:
    """A `TextSide` that learns nothing: its placeholders are words as all others are (trigger
    words).

    placeholders: the subject's first.
    """

    def __init__(self, clip: Any, placeholders: Sequence[str], context: ContextTokens):
        self.placeholders = tuple(placeholders)
        self._clip, self._context = clip, context
        self._prompts: dict[str, EncodedPrompt] = {}

    @property
    def rows(self) -> list[nn.Parameter]:
        """None."""
        return []

    @property
    def adapters(self) -> dict[str, Adapter]:
        """None."""
        return {}

    @property
    def modules(self) -> list[nn.Module]:
        """None."""
        return []

    @property
    def kept(self) -> list[Tensor]:
        return [tensor for prompt in self._prompts.values() for tensor in prompt.tensors]

    def lora_size(self, rank: int, kind: str) -> int:
        """None."""
        return 0

    def prompt(self, text: str) -> EncodedPrompt:
        """ValueError, of which prompt, when its encoding is no numbers, or the text encoder has no
        tokens for a placeholder."""
        if text not in self._prompts:
            self._prompts[text] = encoded_prompt(self._clip, text, self.placeholders, self._context)
        return self._prompts[text]

    def encode(self, prompts: Sequence[EncodedPrompt]) -> Sequence[EncodedPrompt]:
        """They are encoded already."""
        return prompts

    def learned(self) -> tuple[Embedding, ...]:
        """None."""
        return ()

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Of the text encoders with their patches: a GPU may encode the last bit otherwise in each
        run."""
        for name, weight in patched_weights(self._clip.patcher, ""):
            yield f"text {name}", weight


def encoded_prompt(
    clip: Any, text: str, placeholders: Sequence[str], context: ContextTokens
) -> EncodedPrompt:
    """A prompt as a CLIP encodes it, with the places of the placeholders that are in it.
    ValueError as of `tagged_prompt`."""
    words = [word for word in placeholders if re.search(word_pattern(word), text, re.IGNORECASE)]
    with torch.inference_mode():
        tagged = tagged_prompt(clip, text, words, _TAG, context)
    encoded, options = tagged.conditioning[0]
    return EncodedPrompt(
        text, _plain(encoded), {key: _plain(x) for key, x in options.items()}, tagged.spans
    )


def _plain(value: Any) -> Any:
    """A copy on the CPU of what was made in inference mode, which gradients do not pass."""
    if isinstance(value, Tensor):
        return value.detach().cpu().clone()
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_plain(inner) for inner in value)
    return value
