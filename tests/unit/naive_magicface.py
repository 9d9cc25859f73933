"""MagicFace in float64 numpy, one image at a time: slow, literal, and written without a look at
magic/.

The yardstick of the fast code. Nothing is gathered, folded or reordered: heads, queries and pixels
are loops, A A is formed. Shapes: q N C; k, v M C; pictures with a channel axis are T H W.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
Grid = tuple[int, int]
Spans = Sequence[Sequence[int]]

MINIMUM_COVERAGE = 0.1


def relative_error(out: Any, reference: Any, parts: Any = None) -> float:
    """norm(out - reference) / norm(reference). parts: what the numbers are means of; where these
    cancel, rounding is of their size, and the error is over the norm of so many of them."""
    out, reference = np.asarray(out, np.float64), np.asarray(reference, np.float64)
    assert out.shape == reference.shape, (out.shape, reference.shape)
    size = float(np.linalg.norm(reference))
    if parts is not None:
        squares = np.square(np.asarray(parts, np.float64))
        size = max(size, float(np.sqrt(squares.mean() * reference.size)))
    return float(np.linalg.norm(out - reference) / max(size, 1e-300))


# Attention


@dataclass(frozen=True)
class NaiveReference:
    """One reference image in one layer, with all of its tokens. coverage: M, how far the mask
    covers each."""

    k: Array
    v: Array
    coverage: Array
    strength: float


def softmax(logits: Array) -> Array:
    powers = np.exp(logits - logits.max())
    return powers / powers.sum()


def probabilities(query: Array, keys: Array, bias: Array | None = None) -> Array:
    """One query of one head: M."""
    logits = np.array([float(np.dot(query, key)) / math.sqrt(len(query)) for key in keys])
    return softmax(logits if bias is None else logits + bias)


def attention(q: Array, k: Array, v: Array, heads: int, bias: Array | None = None) -> Array:
    """Plain multi-head attention, N C."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    width = q.shape[1] // heads
    out = np.zeros(q.shape)
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        for i in range(len(q)):
            out[i, part] = probabilities(q[i, part], k[:, part], bias) @ v[:, part]
    return out


def attention_with(
    q: Array, k: Array, v: Array, references: Sequence[NaiveReference], heads: int
) -> Array:
    """One softmax over the own tokens, without bias, and those of the references that the masks
    show."""
    keys, values, bias = list(k), list(v), [0.0] * len(k)
    for reference in references:
        for token, coverage in enumerate(reference.coverage):
            if coverage >= MINIMUM_COVERAGE:
                keys.append(reference.k[token])
                values.append(reference.v[token])
                bias.append(reference.strength + math.log(coverage))
    return attention(q, np.array(keys), np.array(values), heads, np.array(bias))


def rsa(
    q: Array, k: Array, v: Array, concepts: Sequence[Sequence[NaiveReference]], heads: int
) -> Array:
    return attention_with(
        q, k, v, [reference for references in concepts for reference in references], heads
    )


def rba(
    q: Array,
    k: Array,
    v: Array,
    concepts: Sequence[Sequence[NaiveReference]],
    owners: Array,
    heads: int,
) -> Array:
    """owners: rows columns, the concept of each token, -1 for none."""
    out = attention(q, k, v, heads)
    for concept, references in enumerate(concepts):
        blended = attention_with(q, k, v, references, heads)
        for token, owner in enumerate(owners.reshape(-1)):
            if owner == concept:
                out[token] = blended[token]
    return out


def head_mean(q: Array, k: Array, heads: int) -> Array:
    """Attention probabilities, mean over heads: N M."""
    q, k = np.asarray(q, np.float64), np.asarray(k, np.float64)
    width = q.shape[1] // heads
    out = np.zeros((len(q), len(k)))
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        for i in range(len(q)):
            out[i] += probabilities(q[i, part], k[:, part])
    return out / heads


# Pictures


def nearest(picture: Array, size: Grid) -> Array:
    """H W."""
    height, width = picture.shape
    out = np.zeros(size, picture.dtype)
    for y in range(size[0]):
        for x in range(size[1]):
            out[y, x] = picture[y * height // size[0], x * width // size[1]]
    return out


def area(picture: Array, size: Grid) -> Array:
    """H W: the mean of every pixel that a cell touches."""
    height, width = picture.shape
    out = np.zeros(size)
    for y in range(size[0]):
        for x in range(size[1]):
            rows = range(y * height // size[0], -(-(y + 1) * height // size[0]))
            columns = range(x * width // size[1], -(-(x + 1) * width // size[1]))
            out[y, x] = sum(float(picture[row, column]) for row in rows for column in columns) / (
                len(rows) * len(columns)
            )
    return out


def _between(place: int, length: int, size: int) -> tuple[int, int, float]:
    """The two source pixels of a place, and the share of the second. Pixel centres, not corners,
    are aligned."""
    source = max((place + 0.5) * length / size - 0.5, 0.0)
    first = min(int(source), length - 1)
    return first, min(first + 1, length - 1), source - first


def bilinear(picture: Array, size: Grid) -> Array:
    """T H W."""
    channels, height, width = picture.shape
    out = np.zeros((channels, *size))
    for y in range(size[0]):
        top, bottom, down = _between(y, height, size[0])
        for x in range(size[1]):
            left, right, along = _between(x, width, size[1])
            upper = (1 - along) * picture[:, top, left] + along * picture[:, top, right]
            lower = (1 - along) * picture[:, bottom, left] + along * picture[:, bottom, right]
            out[:, y, x] = (1 - down) * upper + down * lower
    return out


def _neighbour(place: int, length: int, reflects: bool) -> int:
    if 0 <= place < length:
        return place
    if not reflects:
        return min(max(place, 0), length - 1)
    return -place if place < 0 else 2 * (length - 1) - place


def smooth(picture: Array) -> Array:
    """T H W: weights exp(-(dx^2 + dy^2)) on 3x3. Reflects at the border; a single row or column has
    nothing to reflect and is repeated."""
    _, height, width = picture.shape
    reflects = min(height, width) > 1
    out = np.zeros(picture.shape)
    for y in range(height):
        for x in range(width):
            total = 0.0
            for dy in (-1, 0, 1):
                for dx in (-1, 0, 1):
                    weight = math.exp(-(dx * dx + dy * dy))
                    total += weight
                    out[:, y, x] += (
                        weight
                        * picture[
                            :,
                            _neighbour(y + dy, height, reflects),
                            _neighbour(x + dx, width, reflects),
                        ]
                    )
            out[:, y, x] /= total
    return out


def over_mean(picture: Array) -> Array:
    """T H W, every channel divided by its spatial mean."""
    return np.stack([channel / (channel.mean() + 1e-8) for channel in picture])


# Layout


@dataclass(frozen=True)
class NaiveLayer:
    """What one layer showed of one row: self_attention N N and cross_attention N T, means over
    heads."""

    self_attention: Array
    cross_attention: Array
    grid: Grid


@dataclass(frozen=True)
class NaiveLayout:
    """regions, foreground: H W. token_maps: T H W; foreground_maps: 2 H W (start tokens, all
    others); phrase_maps: P H W.

    region_margin, foreground_margin: H W, by how much (relative) a place is decided; where it is at
    the level of rounding, float32 may decide otherwise.
    """

    regions: Array
    foreground: Array
    token_maps: Array
    foreground_maps: Array
    phrase_maps: Array
    region_margin: Array
    foreground_margin: Array


def smoothed_maps(layer: NaiveLayer, size: Grid) -> Array:
    """A layer's m = A' C as T pictures, enlarged and smoothed: T H W."""
    a = layer.self_attention
    propagated = (a + 3 * (a @ a)) / 4 @ layer.cross_attention
    tokens = propagated.shape[1]
    pictures = np.zeros((tokens, *layer.grid))
    for y in range(layer.grid[0]):
        for x in range(layer.grid[1]):
            pictures[:, y, x] = propagated[y * layer.grid[1] + x]
    return smooth(bilinear(pictures, size))


def foreground_maps(
    layers: Sequence[NaiveLayer], size: Grid, starts: Sequence[int] = (0,)
) -> Array:
    """2 H W: start tokens and the sum of all others, each over its mean, mean over layers."""
    found = []
    for layer in layers:
        maps = smoothed_maps(layer, size)
        others = [token for token in range(len(maps)) if token not in starts]
        found.append(
            over_mean(
                np.stack(
                    [sum(maps[token] for token in starts), sum(maps[token] for token in others)]
                )
            )
        )
    return np.asarray(sum(found) / len(found))


def layout(
    layers: Sequence[NaiveLayer],
    foreground_layers: Sequence[NaiveLayer],
    size: Grid,
    spans: Spans,
    ca_scale: float,
    starts: Sequence[int] = (0,),
) -> NaiveLayout:
    """layers: of the cond row; foreground_layers: of the uncond row (the same list where there is
    none); starts: 0 in each chunk of 77."""
    token_maps = np.asarray(
        sum(over_mean(smoothed_maps(layer, size)) for layer in layers) / len(layers)
    )
    return layout_of_maps(
        token_maps, foreground_maps(foreground_layers, size, starts), spans, ca_scale
    )


def layout_of_maps(
    token_maps: Array, foreground: Array, spans: Spans, ca_scale: float
) -> NaiveLayout:
    size = token_maps.shape[1:]
    named = {token for span in spans for token in span}
    scaled = [
        channel if token in named else channel * ca_scale
        for token, channel in enumerate(token_maps)
    ]
    regions, inside, margin = np.full(size, -1), np.zeros(size, bool), np.zeros(size)
    for y in range(size[0]):
        for x in range(size[1]):
            values = [float(channel[y, x]) for channel in scaled]
            inside[y, x] = not foreground[0, y, x] > foreground[1, y, x]
            if ca_scale >= 0.9 or inside[y, x]:
                regions[y, x] = values.index(max(values))
            second, first = sorted(values)[-2:]
            margin[y, x] = (first - second) / first
    phrase_maps = np.stack(
        [np.max([token_maps[token] for token in span], axis=0) for span in spans]
    )
    foreground_margin = np.abs(foreground[0] - foreground[1]) / foreground.max(0)
    return NaiveLayout(
        regions, inside, token_maps, foreground, phrase_maps, margin, foreground_margin
    )


def owners(regions: Array, spans: Spans) -> Array:
    """The concept of each place, -1 for none: H W. For spans that share no token."""
    out = np.full(regions.shape, -1)
    for y, x in np.ndindex(*regions.shape):
        for concept, span in enumerate(spans):
            if regions[y, x] in span:
                out[y, x] = concept
    return out


def regions_of(measured: Array | None, targets: Sequence[Array | None], grid: Grid) -> Array:
    """Which concept owns each token, rows columns. measured: H W; a target (H W) replaces what was
    measured; the last one wins."""
    found = nearest(measured, grid) if measured is not None else np.full(grid, -1)
    shares = [None if target is None else area(target, grid) for target in targets]
    out = np.full(grid, -1)
    for y, x in np.ndindex(*grid):
        if found[y, x] >= 0 and targets[found[y, x]] is None:
            out[y, x] = found[y, x]
        for concept, share in enumerate(shares):
            if share is not None and share[y, x] > 0.5:
                out[y, x] = concept
    return out


# Guidance


def semantic_rate(guidance: Array, regions: Array, foreground: Array, cfg: float) -> Array:
    """guidance: C H W, cond - uncond; regions, foreground: of the layout's size. H W."""
    size = guidance.shape[1:]
    regions, foreground = nearest(regions, size), nearest(foreground, size)
    norm: Array = np.zeros(size)
    for y, x in np.ndindex(*size):
        norm[y, x] = math.sqrt(sum(float(value) ** 2 for value in guidance[:, y, x]))
    wanted = norm[foreground].mean() if foreground.any() else 0.0
    rate: Array = np.zeros(size)
    for token in set(regions.reshape(-1).tolist()) - {-1}:
        region = regions == token
        rate[region] = wanted / (norm[region].mean() + 1e-8)
    for y, x in np.ndindex(*size):
        rate[y, x] = min(min(max(rate[y, x], 0.8), 3.0), 15 / cfg)
    return smooth(rate[None])[0]


def guide(cond: Array, uncond: Array, cfg: float, rate: Array) -> Array:
    """C H W."""
    return uncond + cfg * rate * (cond - uncond)
