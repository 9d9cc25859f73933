"""The official losses as magicapture.md writes them down: one sample at a time, loops over heads
and pixels' formulas spelled out."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def mask_weights(mask: Tensor) -> Tensor:
    mask = mask + 0.01
    return mask / mask.max()


def reconstruction(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """One sample: prediction, target C H W; mask H W."""
    channels, height, width = prediction.shape
    total = torch.zeros(())
    for c in range(channels):
        total = total + ((prediction[c] * mask - target[c] * mask) ** 2).sum()
    return total / (channels * height * width) * (height * width) / mask.sum()


def refocusing(maps: Tensor, targets: list[Tensor]) -> Tensor:
    """One sample: maps heads tokens h w; one target H W for each token."""
    errors = []
    for token, target in enumerate(targets):
        heads = []
        for attention in maps[:, token]:
            enlarged = F.interpolate(
                attention[None, None], size=target.shape, mode="bilinear", align_corners=False
            )[0, 0]
            enlarged = enlarged - enlarged.min().item()
            enlarged = enlarged / enlarged.max().item()
            heads.append(torch.where(target < 0.5, enlarged, torch.ones(())))
        errors.append((torch.stack(heads).mean(0) - target) ** 2)
    return torch.stack(errors).mean()


def tweedie(noisy: Tensor, noise: Tensor, alpha_bar: float) -> Tensor:
    return noisy / alpha_bar**0.5 - noise * ((1 - alpha_bar) / alpha_bar) ** 0.5


def pull(row: Tensor, rate: float, norm: float = 0.4) -> Tensor:
    share = min(1.0, 100 * rate)
    length = row.norm()
    return row / length * (length + share * (norm - length))
