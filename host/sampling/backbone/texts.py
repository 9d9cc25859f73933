"""Texts of their own that parts of the picture read beside the prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ....magic.region_texts import text_weights
from ..rows import Chunk


@dataclass(frozen=True, eq=False)
class RegionText:
    """A text of its own that a part of the picture reads in one model call.

    concept: index of the concept that it belongs to; context: 1 M C, as the model is given a
    prompt; share: B H W in 0..1, how much of what each place reads is this text.
    """

    concept: int
    context: Tensor
    share: Tensor

    @property
    def tokens(self) -> int:
        return self.context.shape[1]


TextsOfConds = Mapping[Any, Sequence[RegionText]]
"""By the id of a cond the texts that are read in its rows beside its own."""


def text_tokens(texts: TextsOfConds) -> int:
    """How many tokens stand behind each prompt in a model call, so that all rows have as many."""
    return max(sum(text.tokens for text in own) for own in texts.values())


def text_places(texts: Sequence[RegionText], first: int) -> list[slice]:
    """Where the tokens of each are, the first of them at `first`."""
    places = []
    for text in texts:
        places.append(slice(first, first + text.tokens))
        first += text.tokens
    return places


def with_texts_behind(context: Tensor, texts: TextsOfConds, chunks: Sequence[Chunk]) -> Tensor:
    """A context, R M C, with the texts of each prompt's rows behind it."""
    count = text_tokens(texts)
    behind = context.new_zeros(context.shape[0], count, context.shape[2])
    for chunk in chunks:
        own = texts.get(chunk.cond, ())
        for text, place in zip(own, text_places(own, 0), strict=True):
            behind[chunk.rows, place] = text.context.to(behind)
    return torch.cat([context, behind], dim=1)


class TextWeights:
    """How much each place reads each text, worked out once for a cond and a grid."""

    def __init__(self, texts: TextsOfConds):
        self._texts = texts
        self._weights: dict[tuple[Any, tuple[int, int]], list[Tensor]] = {}

    def at(self, cond: Any, grid: tuple[int, int]) -> list[Tensor]:
        """B N of each of the cond's texts."""
        own = self._texts.get(cond, ())
        if own and (cond, grid) not in self._weights:
            self._weights[cond, grid] = text_weights([text.share for text in own], grid)
        return self._weights.get((cond, grid), [])
