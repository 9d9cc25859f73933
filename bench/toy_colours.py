"""Which of the toy world's colours a part of a picture has."""

from __future__ import annotations

import torch
from torch import Tensor


def colour_counts(pixels: Tensor, colours: Tensor) -> Tensor:
    """How many pixels are nearest to each colour. pixels: P 3, colours: N 3, both in 0..1 -> N."""
    nearest = torch.cdist(pixels, colours).argmin(1)
    return nearest.bincount(minlength=len(colours))
