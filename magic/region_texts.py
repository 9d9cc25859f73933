"""How much of what each place of a picture reads is a text of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .concept_regions import share_at
from .curves import Curve


@dataclass(frozen=True)
class PhraseText:
    """A longer text for what a phrase of the prompt names.

    text: what its region reads; negative: what the negative prompt's rows read there, empty for the
    negative prompt itself; strength: how much of what the region reads is that (0..1), the rest is
    the whole prompt; is_inside_target: whether a painted region only limits where the layout has
    the phrase, instead of replacing it; start, end: shares of sampling between which it is read;
    curve: its strength over sampling, in place of `strength`, or None.
    """

    text: str
    negative: str = ""
    strength: float = 1.0
    is_inside_target: bool = False
    start: float = 0.0
    end: float = 1.0
    curve: Curve | None = None

    def __post_init__(self) -> None:
        if not (self.text.strip() or self.negative.strip()):
            raise ValueError(
                "text is empty: write what the region of the phrase shows, such as 'a man with"
                " black hair wearing a yellow shirt'"
            )


def text_weights(shares: Sequence[Tensor], grid: Sequence[int]) -> list[Tensor]:
    """How much each of a layer's places reads each text, one after the other: B N in 0..1.

    shares: B H W each; grid: rows and columns of the layer's tokens. Where texts overlap they share
    the place: together they never count more than 1.
    """
    placed = [share_at(share, grid).flatten(1) for share in shares]
    total = torch.stack(placed).sum(0).clamp(min=1)
    return [share / total for share in placed]
