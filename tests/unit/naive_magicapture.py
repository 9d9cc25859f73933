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


# ---- the official optimisation, a parameter at a time ----


def rate(step: int, steps: int, first: float) -> float:
    """Learning rate of a step (counted from 0): the scheduler is stepped before each."""
    return first * max(0.0, 1 - (step + 1) / steps)


def clip(gradients: list[Tensor], longest: float = 1.0) -> list[Tensor]:
    """All together no longer than that."""
    total = torch.stack([(gradient**2).sum() for gradient in gradients]).sum() ** 0.5
    return [gradient * min(1.0, longest / (total.item() + 1e-6)) for gradient in gradients]


def adamw(
    value: Tensor,
    gradient: Tensor,
    moments: tuple[Tensor, Tensor],
    count: int,
    rate: float,
    decay: float,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """One step of AdamW, the `count`-th (from 1): the new value and moments."""
    first = 0.9 * moments[0] + 0.1 * gradient
    second = 0.999 * moments[1] + 0.001 * gradient**2
    step = (first / (1 - 0.9**count)) / ((second / (1 - 0.999**count)) ** 0.5 + 1e-8)
    return value * (1 - rate * decay) - rate * step, (first, second)


def composed_prompt(template: str, subject: str, class_word: str, style: str) -> str:
    """template: of the subject alone, with {} for '<subject> <class word>'."""
    return template.format(f"{subject} {class_word}") + f" in the style of {style}"


def latent_mask(mask: Tensor, pixels: int) -> Tensor:
    """Nearest neighbour: H W -> H/pixels W/pixels."""
    return mask[::pixels, ::pixels]
