"""Which of the toy world's patterns a piece of cloth has, read from the picture."""

from __future__ import annotations

from . import in_process  # noqa: F401 (before what follows)

# ruff: isort: split
import math

import torch
from torch import Tensor

PERIODS = 8
"""Of a pattern along the side of a picture (`demo/portraits.py`)."""
LEAST = {"checkered": 0.02, "dotted": 0.03, "striped": 0.2}
"""Share of the cloth's variance that a pattern's waves must have: between what plain cloth has with
its lines and shades (a brim is a wave down the hat), and what patterned cloth has."""


def wave_shares(image: Tensor, region: Tensor) -> dict[str, float]:
    """How much of the variance of a region's colours the waves of each pattern make up, 0..1.
    image: H W 3; region: H W, bool or weights. Colours count along the axis on which they differ
    most. Zero where the region is empty or of one colour."""
    height, width = region.shape
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    inside = region > 0.5
    # N 2, in periods; N 3
    places = torch.stack([x, y], -1)[inside] / torch.tensor([width, height]) * PERIODS
    colours = image[inside]
    shares = dict.fromkeys(("across", "down", "diagonal"), 0.0)
    if len(colours) < 16:
        return shares
    offsets = colours - colours.mean(0)
    value = offsets @ torch.linalg.eigh(offsets.T @ offsets).eigenvectors[:, -1]
    if float(value.square().mean()) < 1e-5:
        return shares

    def share(across: int, down: int) -> float:
        angle = 2 * math.pi * (across * places[:, 0] + down * places[:, 1])
        # A region of few periods has no waves at right angles to its mean: least squares.
        waves = torch.stack([angle.cos(), angle.sin(), torch.ones_like(angle)], -1)
        fit = waves @ torch.linalg.lstsq(waves, value[:, None]).solution
        return float(fit.square().sum() / value.square().sum())

    return {
        "across": share(1, 0),
        "down": share(0, 1),
        "diagonal": (share(1, 1) + share(1, -1)) / 2,
    }


def pattern_of(image: Tensor, region: Tensor) -> str:
    """'plain', 'striped', 'checkered' or 'dotted'. image: H W 3 in 0..1; region: H W."""
    shares = wave_shares(image, region)
    across, down, diagonal = shares["across"], shares["down"], shares["diagonal"]
    if diagonal > max(across, LEAST["checkered"]):
        return "checkered"
    # Dots are waves in both directions, and so in the diagonal ones.
    if min(across, down) > LEAST["dotted"] and diagonal > 0.2 * across:
        return "dotted"
    return "striped" if down > LEAST["striped"] else "plain"
