"""References that are tokens of the picture's own sequence, as edit models are given them: which of
them a place of the picture sees, and how much each counts.

MagicFace's two rules (arXiv 2408.07433, section 3) without a reference pass: before it is settled
what goes where every place sees all references (RSA), then each region its own (RBA). LAMIC
(arXiv 2508.00477) does much the same on one model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .concepts import Cells, visible_tokens

Outside = Literal["all", "none"]
"""What places of no region see: all references, or those only that every place sees."""
OUTSIDES: tuple[Outside, ...] = ("all", "none")


@dataclass(frozen=True, eq=False)
class EditReference:
    """What a user wants of one of an edit model's reference pictures.

    phrase: the words of the prompt whose region sees it, empty for all of the picture; strength:
    how many times as much it counts as the model was trained to, 0 and up; mask: H W in 0..1 at any
    size, the part of the picture that is seen, None for all; target_region: 1 H W in 0..1, or one
    for each picture that is made, the region in place of the one of the words, or None.
    """

    phrase: str
    strength: float = 1.0
    mask: Tensor | None = None
    target_region: Tensor | None = None


def centred(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """A mask (H W) as a picture of rows, columns shows it that was made of its picture: what these
    scale to another aspect they cut in the middle."""
    height, width = mask.shape
    rows = min(height, max(1, round(width * size[0] / size[1])))
    columns = min(width, max(1, round(height * size[1] / size[0])))
    top, left = (height - rows) // 2, (width - columns) // 2
    return mask[top : top + rows, left : left + columns]


@dataclass(frozen=True, eq=False)
class SequenceReference:
    """One of them.

    concept: whose region sees it in RBA, None for one that every place sees; bias: T, added to the
    logits of its tokens, -inf for those that no place of the picture sees.
    """

    concept: int | None
    bias: Tensor

    @classmethod
    def weighed(
        cls,
        concept: int | None,
        strength: float,
        mask: Tensor | None,
        grid: tuple[int, int],
        cells: Cells = "share",
    ) -> SequenceReference:
        """strength: how many times as much it counts as the model was trained to, 0 and up; mask:
        H W in 0..1, the part that is seen, None for all; grid: rows and columns of its tokens;
        cells: how the mask is laid on these."""
        index, log_coverage = visible_tokens(mask, grid, cells)
        bias = torch.full((grid[0] * grid[1],), float("-inf"))
        bias[index] = log_coverage + (math.log(strength) if strength > 0 else float("-inf"))
        return cls(concept, bias)

    @property
    def is_hidden(self) -> bool:
        """Whether no place of the picture sees any of it."""
        return bool(self.bias.isneginf().all())

    @property
    def is_plain(self) -> bool:
        """Whether all of it counts as the model was trained to."""
        return not bool(self.bias.any())


@dataclass(frozen=True)
class Columns:
    """Which keys of a layer some queries see. index: their places, None for all keys; bias: added
    to the logits of these, None where it is 0 for each."""

    index: Tensor | None
    bias: Tensor | None

    def to(self, device: torch.device) -> Columns:
        """On another device."""
        index, bias = (None if x is None else x.to(device) for x in (self.index, self.bias))
        return Columns(index, bias)


def seen_columns(
    references: Sequence[SequenceReference],
    places: Sequence[slice],
    keys: int,
    owner: int | None = None,
    is_by_region: bool = False,
    outside: Outside = "all",
) -> Columns:
    """What the places of one owner see.

    references: in the order of the sequence; places: of their tokens among so many `keys`; owner:
    the concept whose region it is, None for places of none; is_by_region: whether regions matter
    (RBA), else all see everything (RSA).
    """
    bias = torch.zeros(keys)
    for reference, place in zip(references, places, strict=True):
        bias[place] = reference.bias
        is_everywhere = reference.concept is None or (owner is None and outside == "all")
        if is_by_region and not is_everywhere and reference.concept != owner:
            bias[place] = float("-inf")
    is_open = bias > float("-inf")
    index = None if bool(is_open.all()) else is_open.nonzero().flatten()
    bias = bias[is_open]
    return Columns(index, bias if bool(bias.any()) else None)
