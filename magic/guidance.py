"""Semantic guidance: every word's region is guided equally strongly. In the official MagicFace
code, not in its paper."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .layout import SemanticLayout, smooth


def semantic_rate(guidance: Tensor, layout: SemanticLayout, cfg: float | Tensor) -> Tensor:
    """The factor on the guidance at every place, so that its norm in each token's region becomes
    its norm over the foreground.

    guidance: B C H W, cond - uncond (noise or denoised: only ratios count); cfg: for all pictures,
    or B. Returns B 1 H W in about .8 .. min(3, 15 / cfg); places that belong to no token get the
    minimum.
    """
    norm = guidance.float().norm(dim=1)  # B H W
    size = tuple(norm.shape[-2:])
    regions = F.interpolate(layout.regions[:, None].float(), size=size, mode="nearest")[:, 0].long()
    foreground = F.interpolate(layout.foreground[:, None].float(), size=size, mode="nearest")[:, 0]

    # Slot 0 collects what belongs to no token.
    slot, flat = (regions + 1).flatten(1), norm.flatten(1)
    # A product, because adding up with scatter_add gives a GPU another sum in each run.
    member = F.one_hot(slot, int(slot.max()) + 1).to(flat)  # B H*W slots
    means = (flat[:, None] @ member)[:, 0] / member.sum(1).clamp(min=1)
    goal = (norm * foreground).sum((1, 2)) / foreground.sum((1, 2)).clamp(min=1)
    rates = goal[:, None] / (means + 1e-8)
    rates[:, 0] = 0
    painted = rates.gather(1, slot).view_as(norm)[:, None]
    most = 15 / torch.as_tensor(cfg).to(painted).clamp(min=1e-3)
    return smooth(painted.clamp(0.8, 3.0).clamp(max=most.reshape(-1, 1, 1, 1)))


def guide_by_region(
    denoised: Tensor, cond: Tensor, uncond: Tensor, layout: SemanticLayout
) -> Tensor:
    """Adds what region-wise guidance changes to an already guided prediction. All B C H W, denoised
    predictions.

    How strongly is read from what guided, not from a setting: other nodes have rules of their own.
    Pictures that were not guided (a factor of 1 or less) stay as they are.
    """
    guidance, effect = (cond - uncond).float(), (denoised - uncond).float()
    axes = (1, 2, 3)
    cfg = (effect * guidance).sum(axes) / guidance.square().sum(axes).clamp(min=1e-20)
    change = (semantic_rate(guidance, layout, cfg) - 1) * effect
    is_guided = (cfg > 1 + 1e-3).reshape(-1, 1, 1, 1)
    return torch.where(is_guided, denoised + change.to(denoised), denoised)
