"""MagicStyle's feature fusion attention, FFA (arXiv 2409.08156): a picture is drawn anew with the
content's and the style's features.

The paper's equation is not public. What is known: the self-attention queries, keys and values of
the DDIM-inverted content and style are fused, alpha and beta weight the content's and the style's
queries, alpha + beta = 1, .8 and .2 in the paper's figures. Which keys and values they meet is our
reconstruction; all plausible readings are here, and `bench/magicstyle_effect.py` compares them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Attend = Callable[[Tensor, Tensor, Tensor, "Tensor | None"], Tensor]
Keys = Literal["content", "content+style", "style", "blend"]
KEYS: tuple[Keys, ...] = ("content+style", "style", "blend", "content")
_NEGLIGIBLE = 1e-6


@dataclass(frozen=True)
class Fusion:
    """How strongly and how features are fused.

    alpha, beta: weights of the content's and the style's queries, the rest is the picture's own;
    keys: whose keys and values the queries meet; style_scale: added to the logits of style tokens
    (natural log); temperature: factor on the logits, above 1 is more selective.
    """

    alpha: float
    beta: float
    keys: Keys
    style_scale: float = 0.0
    temperature: float = 1.0


@dataclass(frozen=True)
class Preset:
    """A fusion and when it acts. adain: how far the start latent takes the style's statistics
    (0..1); start, end: parts of sampling."""

    fusion: Fusion
    adain: float
    start: float
    end: float


PRESETS: dict[str, Preset] = {
    "gentle": Preset(Fusion(0.8, 0.2, "content+style"), adain=0.5, start=0.0, end=0.8),
    "balanced": Preset(
        Fusion(0.8, 0.2, "content+style", style_scale=0.25), adain=1.0, start=0.0, end=0.6
    ),
    "strong": Preset(
        Fusion(0.8, 0.2, "content+style", style_scale=2.0), adain=1.0, start=0.0, end=0.8
    ),
}
"""From the ablation of `bench/magicstyle_effect.py`. Left alone in its last steps the model mends
edges without losing the style."""


@dataclass(frozen=True)
class Features:
    """What a self-attention layer saw in one picture. q, k, v: 1 N C; grid: rows and columns of its
    tokens."""

    q: Tensor
    k: Tensor
    v: Tensor
    grid: tuple[int, int]


@dataclass(frozen=True)
class StyledTokens:
    """Tokens that are drawn by one rule. style: index of the style, None for the content's own
    look; index: M tokens, None for all of them; share: M, how much of their result this rule gives
    (0..1)."""

    style: int | None
    index: Tensor | None
    share: Tensor


def style_shares(
    weights: Sequence[float], masks: Sequence[Tensor | None], size: tuple[int, int]
) -> Tensor:
    """How much each style counts at each place: S rows columns, adding up to 1 at most.

    weights: 0..1 each; masks: H W in 0..1 each, None for everywhere. Where styles together ask for
    more than 1 they share it.
    """
    claims = torch.stack(
        [
            (
                torch.full(size, weight)
                if mask is None
                else weight * F.interpolate(mask[None, None].float(), size=size, mode="area")[0, 0]
            )
            for weight, mask in zip(weights, masks, strict=True)
        ]
    )
    return claims / claims.sum(0).clamp(min=1)


def styled_tokens(shares: Tensor) -> list[StyledTokens]:
    """The rules of a token grid. shares: S rows columns (`style_shares`). What no style claims is
    drawn as the content is."""
    shares = shares.flatten(1)
    rules: list[tuple[int | None, Tensor]] = [*enumerate(shares), (None, 1 - shares.sum(0))]
    groups = []
    for style, share in rules:
        index = (share > _NEGLIGIBLE).nonzero().flatten()
        if len(index):
            groups.append(
                StyledTokens(style, None if len(index) == len(share) else index, share[index])
            )
    return groups


def resample_tokens(x: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Tokens of one grid on another, bilinear. 1 N C -> 1 M C."""
    if grid == size:
        return x
    picture = x.transpose(1, 2).reshape(1, -1, *grid)
    return (
        F.interpolate(picture, size=size, mode="bilinear", align_corners=False)
        .flatten(2)
        .transpose(1, 2)
    )


def fuse(
    own: Features,
    content: Features,
    style: Features,
    fusion: Fusion,
    attend: Attend,
    index: Tensor | slice = slice(None),
) -> Tensor:
    """FFA with one style: the result of the tokens `index`, 1 M C.

    own: what the layer sees in the picture that is being drawn, on the same grid as the content's;
    the style's grid may differ. attend(q, k, v, bias): multi-head attention; bias: one number a key
    or None, added to the logits.
    """
    style_q = resample_tokens(style.q, style.grid, content.grid)
    rest = 1 - fusion.alpha - fusion.beta
    fused = fusion.alpha * content.q[:, index] + fusion.beta * style_q[:, index]
    if abs(rest) > 1e-6:
        fused = fused + rest * own.q[:, index]
    q = fusion.temperature * fused
    if fusion.keys == "content":
        return attend(q, content.k, content.v, None)
    if fusion.keys == "style":
        return attend(q, style.k, style.v, None)
    if fusion.keys == "content+style":
        bias = None
        if fusion.style_scale:
            bias = torch.cat(
                [
                    q.new_zeros(content.k.shape[1]),
                    q.new_full((style.k.shape[1],), fusion.style_scale),
                ]
            )
        return attend(
            q, torch.cat([content.k, style.k], dim=1), torch.cat([content.v, style.v], dim=1), bias
        )
    out = fusion.alpha * attend(q, content.k, content.v, None) + fusion.beta * attend(
        q, style.k, style.v, None
    )
    return out + rest * attend(q, own.k, own.v, None) if abs(rest) > 1e-6 else out


def feature_fusion_attention(
    own: Features,
    content: Features,
    styles: Sequence[Features],
    groups: Sequence[StyledTokens],
    fusion: Fusion,
    attend: Attend,
) -> Tensor:
    """FFA with any number of styles, each where `groups` says: 1 N C."""
    out = torch.zeros_like(content.q)
    for group in groups:
        index = slice(None) if group.index is None else group.index
        if group.style is None:
            drawn = attend(content.q[:, index], content.k, content.v, None)
        else:
            drawn = fuse(own, content, styles[group.style], fusion, attend, index)
        out[:, index] += group.share[:, None].to(out) * drawn
    return out


def adapt_statistics(
    content: Tensor, styles: Sequence[Tensor], shares: Tensor, amount: float
) -> Tensor:
    """AdaIN (arXiv 1703.06868) of a start latent: moved towards each style's channel means and
    deviations where that style acts.

    content: B C h w (or B C T h w); styles: 1 C h' w' each; shares: S h w; amount: 0 leaves the
    content, 1 takes the styles' statistics.
    """
    out = content.clone()
    # A picture of a model of videos has a time of one.
    place = tuple(range(2, content.ndim))
    mean, std = content.mean(place, keepdim=True), content.std(place, keepdim=True)
    for style, share in zip(styles, shares.to(content), strict=True):
        moved = (content - mean) / (std + 1e-8) * style.std(place, keepdim=True) + style.mean(
            place, keepdim=True
        )
        out += amount * share * (moved - content)
    return out
