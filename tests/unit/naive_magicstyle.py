"""MagicStyle's fusion in float64 numpy: every token by itself, written without a look at magic/.

Shapes: q, k, v N C; masks H W; shares S rows columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from magicportrait.tests.unit.naive_magicface import Array, Grid, area, attention, bilinear


@dataclass(frozen=True)
class NaiveFeatures:
    q: Array
    k: Array
    v: Array
    grid: Grid


def resample(q: Array, grid: Grid, size: Grid) -> Array:
    """Tokens as a picture on another grid."""
    picture = np.asarray(q, np.float64).T.reshape(-1, *grid)
    return bilinear(picture, size).reshape(picture.shape[0], -1).T


def fuse(
    own: NaiveFeatures,
    content: NaiveFeatures,
    style: NaiveFeatures,
    alpha: float,
    beta: float,
    keys: str,
    scale: float,
    temperature: float,
    heads: int,
) -> Array:
    """FFA with one style, N C."""
    rest = 1 - alpha - beta
    q = temperature * (
        alpha * content.q + beta * resample(style.q, style.grid, content.grid) + rest * own.q
    )
    if keys == "content":
        return attention(q, content.k, content.v, heads)
    if keys == "style":
        return attention(q, style.k, style.v, heads)
    if keys == "content+style":
        bias = np.array([0.0] * len(content.k) + [scale] * len(style.k))
        return attention(
            q,
            np.concatenate([content.k, style.k]),
            np.concatenate([content.v, style.v]),
            heads,
            bias,
        )
    parts = ((alpha, content), (beta, style), (rest, own))
    out = np.zeros(np.shape(q))
    for weight, source in parts:
        out += weight * attention(q, source.k, source.v, heads)
    return out


def shares(weights: Sequence[float], masks: Sequence[Array | None], size: Grid) -> Array:
    """How much each style counts at each place."""
    wanted = np.array(
        [
            np.full(size, weight) if mask is None else weight * area(mask, size)
            for weight, mask in zip(weights, masks)
        ]
    )
    for y in range(size[0]):
        for x in range(size[1]):
            asked = sum(wanted[:, y, x])
            if asked > 1:
                wanted[:, y, x] /= asked
    return wanted


def ffa(
    own: NaiveFeatures,
    content: NaiveFeatures,
    styles: Sequence[NaiveFeatures],
    weights: Sequence[float],
    masks: Sequence[Array | None],
    alpha: float,
    beta: float,
    keys: str,
    scale: float,
    temperature: float,
    heads: int,
) -> Array:
    """FFA with several styles, N C. What no style claims attends as the content does."""
    share = shares(weights, masks, content.grid).reshape(len(styles), -1)
    out = (1 - share.sum(0))[:, None] * attention(content.q, content.k, content.v, heads)
    for style, part in zip(styles, share):
        out += part[:, None] * fuse(
            own, content, style, alpha, beta, keys, scale, temperature, heads
        )
    return out


def adapt(content: Array, styles: Sequence[Array], share: Array, amount: float) -> Array:
    """AdaIN of one image. content: C h w; styles: C h' w' each; share: S h w."""
    out = np.array(content, np.float64)
    for channel in range(len(content)):
        mean, deviation = content[channel].mean(), content[channel].std(ddof=1)
        for style, part in zip(styles, share):
            moved = (content[channel] - mean) / deviation * style[channel].std(ddof=1) + style[
                channel
            ].mean()
            out[channel] += amount * part * (moved - content[channel])
    return out
