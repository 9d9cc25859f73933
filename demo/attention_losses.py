"""What attention is told while a toy trains: where the words of the caption are.

The maps of cross-attention, or of the text's columns of a joint one, come as B N T (picture tokens,
text tokens); masks as B P H W coverage of the parts, the background first.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .captions import CaptionBatch
from .portraits import PARTS


def attention_loss(maps: list[Tensor], masks: Tensor, text: CaptionBatch) -> Tensor:
    """The three losses on attention to the text, as they are added to a model's own loss."""
    background = masks[:, PARTS.index("background")]
    return (
        0.03 * localisation_loss(maps, masks, text.tokens, text.parts, text.weights)
        + 0.03 * ownership_loss(maps, masks, text.tokens, text.parts)
        + 0.03 * foreground_loss(maps, background, text.is_empty)
    )


def localisation_loss(
    maps: list[Tensor], masks: Tensor, tokens: Tensor, parts: Tensor, weights: Tensor
) -> Tensor:
    """Cross-entropy between where a named token is attended to and where its part is, averaged over
    tokens and layers.

    maps: B N 77 each; masks: B P H W coverage; tokens, parts, weights: B T. Parts that are not
    visible do not count.
    """
    losses = []
    for attention in maps:
        side = math.isqrt(attention.shape[1])
        target = F.adaptive_avg_pool2d(masks, side).flatten(2)  # B P N
        target = target.gather(1, parts[..., None].expand(-1, -1, target.shape[-1]))
        area = target.sum(-1)
        attended = attention.transpose(1, 2).gather(
            1, tokens[..., None].expand(-1, -1, attention.shape[1])
        )  # B T N
        log_share = (attended + 1e-6).log() - (attended.sum(-1, keepdim=True) + 1e-5).log()
        cross_entropy = -(target * log_share).sum(-1) / area.clamp(min=1e-3)
        weight = weights * (area > 0.05)
        losses.append((cross_entropy * weight).sum() / weight.sum().clamp(min=1))
    return torch.stack(losses).mean()


def ownership_loss(
    maps: list[Tensor], masks: Tensor, tokens: Tensor, parts: Tensor, sharpness: float = 4.0
) -> Tensor:
    """Cross-entropy between the part that owns each place in a semantic layout and the part that is
    there, averaged over layers.

    As in the layout, each token's map is divided by its mean and the largest owns the place; here a
    softmax of `sharpness` stands in for the argmax. Arguments as in `localisation_loss`. Places of
    parts that the caption does not name do not count.
    """
    named = torch.zeros(*masks.shape[:2], maps[0].shape[-1], device=masks.device)  # B P 77
    rows = torch.arange(len(tokens), device=tokens.device)[:, None].expand_as(tokens)
    # Token 0 is the start token: unused entries point there.
    named[rows[tokens > 0], parts[tokens > 0], tokens[tokens > 0]] = 1
    losses = []
    for attention in maps:
        side = math.isqrt(attention.shape[1])
        there = F.adaptive_avg_pool2d(masks, side).flatten(2) * (
            named.sum(-1, keepdim=True) > 0
        )  # B P N
        relative = (attention + 1e-6).log() - (attention.mean(1, keepdim=True) + 1e-6).log()
        share = (sharpness * relative).softmax(-1)  # B N 77
        owned = torch.einsum("bnt,bpt->bpn", share, named)
        losses.append(-(there * (owned + 1e-4).log()).sum() / there.sum().clamp(min=1))
    return torch.stack(losses).mean()


def foreground_loss(
    maps: list[Tensor], background: Tensor, is_empty: Tensor, sharpness: float = 4.0
) -> Tensor:
    """Cross-entropy between the background and where, under an empty prompt, the start token is
    looked at more than all others together, each relative to its mean: what the layout takes the
    foreground from. background: B H W coverage; is_empty: B.
    """
    losses = [maps[0].new_zeros(())]
    for attention in (m[is_empty] for m in maps if is_empty.any()):
        side = math.isqrt(attention.shape[1])
        there = F.adaptive_avg_pool2d(background[is_empty], side).flatten(1)
        start = attention[..., 0]
        first, rest = (
            (x + 1e-6).log() - (x.mean(1, keepdim=True) + 1e-6).log() for x in (start, 1 - start)
        )
        losses.append(F.binary_cross_entropy_with_logits(sharpness * (first - rest), there))
    return torch.stack(losses).mean()
