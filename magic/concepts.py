"""What a user wants to see in the picture, and where it is shown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from .pictures import check_aspect, check_painted

MINIMUM_COVERAGE = 0.1
"""A token whose cell the mask covers less than this takes no part: it shows mostly something
else."""
_LONGEST = 32
"""Times that one side of a reference may be the other: it is enlarged until the shorter one has
tokens enough."""


Level = Literal["subtle", "normal", "strong"]
LEVELS: tuple[Level, ...] = get_args(Level)
"""How much is copied, in words."""


@dataclass(frozen=True, eq=False)
class Concept:
    """One concept of a MagicFace picture.

    phrase: the words of the target prompt that name it; images: B H W 3 in 0..1, one or several
    references of the same thing; mask: B H W or 1 H W in 0..1, None for the whole image; prompt:
    what the references show, empty for the phrase; strength: added to the logits of the reference's
    tokens (natural log: 3 multiplies the odds by 20); target_region: 1 H W in 0..1, where the
    concept goes, or B H W for a batch of B pictures, None for automatic; level: a strength in
    words, which the kind of model turns into a number and which counts in place of `strength`.
    """

    phrase: str
    images: Tensor
    mask: Tensor | None
    prompt: str
    strength: float
    target_region: Tensor | None = None
    level: Level | None = None

    def __post_init__(self) -> None:
        if not self.phrase.strip():
            raise ValueError(
                "a concept needs a phrase: the words of the target prompt that name it, such as"
                " 'hat'"
            )
        if self.images.ndim != 4 or 0 in self.images.shape:
            raise ValueError(
                f"concept '{self.phrase}' has no image: expected B H W C, got"
                f" {list(self.images.shape)}"
            )
        height, width = self.images.shape[1:3]
        if max(height, width) > _LONGEST * min(height, width):
            raise ValueError(
                f"image of concept '{self.phrase}' is {width}x{height}: expected sides that differ"
                f" by no more than {_LONGEST} times. Crop it"
            )
        if self.mask is not None:
            self._check_mask(self.mask)
        if self.target_region is not None:
            check_painted(
                self.target_region,
                0.5,
                f"target region of concept '{self.phrase}'",
                "paint where it goes, or disconnect the mask",
            )

    def _check_mask(self, mask: Tensor) -> None:
        check_painted(
            mask,
            MINIMUM_COVERAGE,
            f"mask of concept '{self.phrase}'",
            "paint over the part of the image to take",
        )
        if mask.shape[0] not in (1, self.images.shape[0]):
            raise ValueError(
                f"concept '{self.phrase}' has {self.images.shape[0]} images but {mask.shape[0]}"
                " masks: give one for each, or one for all"
            )
        picture, (rows, columns) = self.images.shape[1:3], mask.shape[-2:]
        check_aspect((picture[0], picture[1]), (rows, columns), f"concept '{self.phrase}'")


Cells = Literal["share", "nearest"]
"""How a mask is laid on tokens: each counts by the share that the mask covers, or all or nothing,
by the mask's pixel at its corner, as in the official code."""
CELLS: tuple[Cells, ...] = ("share", "nearest")


def visible_tokens(
    mask: Tensor | None, grid: tuple[int, int], cells: Cells = "share"
) -> tuple[Tensor, Tensor]:
    """The tokens of a reference that take part, and the log of how far the mask covers each.

    mask: H W in 0..1 at any size, or None for all; grid: rows, columns of the token grid; cells:
    how the mask is laid on it. Returns indices (T) and log coverage (T).
    """
    if mask is None:
        count = grid[0] * grid[1]
        return torch.arange(count), torch.zeros(count)
    if cells == "nearest":
        pixels = torch.nn.functional.interpolate(mask[None, None].float(), size=grid)
        index = (pixels.flatten() >= 0.5).nonzero().flatten()
        return index, torch.zeros(len(index))
    coverage = (
        torch.nn.functional.interpolate(mask[None, None].float(), size=grid, mode="area")
        .flatten()
        .clamp(max=1)
    )
    index = (coverage >= MINIMUM_COVERAGE).nonzero().flatten()
    return index, coverage[index].log()
