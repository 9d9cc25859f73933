"""Changing the shape of masks: cutting, growing, shrinking and softening. All masks are B H W in
0..1, of any size down to 1x1."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

Direction = tuple[int, int]
"""A step in rows and columns, each -1, 0 or 1."""


def threshold(mask: Tensor, level: float) -> Tensor:
    """1 where the mask is `level` (0..1) or more, 0 elsewhere."""
    return (mask >= level).to(mask)


def grow(mask: Tensor, pixels: int) -> Tensor:
    """Grown by a radius in pixels, or shrunk by it when negative; soft values stay soft. What
    touches the border goes on beyond it.

    The structuring element is the regular octagon of that inner radius (at most 8 % from the disk),
    as the sum of four line segments: so a radius of 100 costs little more than one of 10.
    """
    if pixels < 0:
        return 1 - grow(1 - mask, -pixels)
    diagonal = min(round(pixels * (1 - 0.5**0.5)), max(0, pixels - 1) // 2)
    straight = pixels - 2 * diagonal
    # Room for what leaves the picture on one segment and comes back on the next.
    mask = F.pad(mask, (pixels,) * 4)
    for direction, half in (
        ((0, 1), straight),
        ((1, 0), straight),
        ((1, 1), diagonal),
        ((1, -1), diagonal),
    ):
        mask = _line_maximum(mask, direction, half)
    return mask


def _line_maximum(mask: Tensor, direction: Direction, half: int) -> Tensor:
    """The maximum over the 2 half + 1 pixels of a line centred on each pixel that has all of them:
    smaller by `half` on these sides."""
    grown, reach = mask, 1
    # Each pass doubles the length of the line that a value speaks for.
    while reach < 2 * half + 1:
        shift = min(reach, 2 * half + 1 - reach)
        here, there = _pair(grown, direction, shift)
        grown, reach = torch.maximum(here, there), reach + shift
    return grown


def _pair(x: Tensor, direction: Direction, shift: int) -> tuple[Tensor, Tensor]:
    """Views of x at p and at p + shift * direction, for every p where both are inside."""
    here, there = [], []
    for step in direction:
        near, far = (
            (slice(None, -shift), slice(shift, None)) if step else (slice(None), slice(None))
        )
        here.append(near if step >= 0 else far)
        there.append(far if step >= 0 else near)
    return x[..., here[0], here[1]], x[..., there[0], there[1]]


def feather(mask: Tensor, pixels: float) -> Tensor:
    """A soft edge about `pixels` wide to both sides: a Gaussian blur whose sigma is half of that,
    the border repeated."""
    if pixels <= 0:
        return mask
    sigma = pixels / 2
    radius = max(1, round(3 * sigma))
    offsets = torch.arange(-radius, radius + 1, device=mask.device, dtype=torch.float32)
    kernel = (-0.5 * (offsets / sigma) ** 2).exp()
    kernel = (kernel / kernel.sum()).view(1, 1, 1, -1)
    blurred = mask[:, None].float()
    for _ in range(2):
        blurred = F.conv2d(
            F.pad(blurred, (radius, radius, 0, 0), mode="replicate"), kernel
        ).transpose(2, 3)
    return blurred[:, 0].clamp(0, 1).to(mask)
