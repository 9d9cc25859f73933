"""Numbers that say how alike pictures are."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

STYLE_LEVELS = 3
"""Scales of the style distance: full size, half, quarter."""


def mean_cosine(features: Tensor, references: Tensor) -> Tensor:
    """The cosine of each row with all references, averaged: N D, M D -> N in -1..1. CSIM, CLIP-I,
    CLIP-T and DINO are this."""
    return (F.normalize(features.float(), dim=-1) @ F.normalize(references.float(), dim=-1).T).mean(
        1
    )


def best_of(values: Sequence[float], count: int, is_high_best: bool) -> list[int]:
    """The indices of the `count` best values, best first; those that are no numbers are left out,
    and of equal ones the first comes first."""
    numbers = [i for i, value in enumerate(values) if not math.isnan(value)]
    sign = -1 if is_high_best else 1
    return sorted(numbers, key=lambda i: sign * values[i])[:count]


def linear_chain(state: dict[str, Tensor], features: Tensor) -> Tensor:
    """A head of linear layers without activations (both LAION aesthetic predictors are such): N D
    -> N.

    state: '<anything>.weight' and '.bias' in forward order of their names. ValueError when the
    layers do not fit each other or the input.
    """
    for name in sorted((key for key in state if key.endswith("weight")), key=_natural):
        weight = state[name].float()
        if weight.ndim != 2 or weight.shape[1] != features.shape[1]:
            raise ValueError(
                f"layer {name} takes {weight.shape[-1]} features, {features.shape[1]} came"
            )
        bias = state.get(name[: -len("weight")] + "bias")
        features = F.linear(features.float(), weight, None if bias is None else bias.float())
    if features.shape[1] != 1:
        raise ValueError(f"the head ends in {features.shape[1]} numbers, 1 was expected")
    return features[:, 0]


def _natural(name: str) -> list[int]:
    return [int(part) for part in name.split(".") if part.isdigit()]


def style_distance(images: Tensor, references: Tensor) -> Tensor:
    """How differently two sets of pictures are drawn, wherever things are in them: 0 (alike) to 1.
    B H W 3, M h w 3 in 0..1 -> B.

    Ours, in the manner of Gatys et al. (2016, equations 3 to 5) but without a network, so that it
    is always there: Gram matrices of fixed filters (colour, its edges in x and y, its Laplacian,
    and the strength of its edges) at three scales, each difference divided by both norms. It sees
    palette, line, shading and grain; it knows nothing of motifs.
    """
    means = [grams.mean(0) for grams in _style_grams(references)]
    distances = []
    for own, mean in zip(_style_grams(images), means, strict=True):
        distances.append(
            (own - mean).flatten(1).norm(dim=1)
            / (own.flatten(1).norm(dim=1) + mean.norm()).clamp(min=1e-8)
        )
    return torch.stack(distances).mean(0)


def _style_grams(images: Tensor) -> list[Tensor]:
    """A Gram matrix of each picture at every scale: B 13 13."""
    x = images[..., :3].movedim(-1, 1).float()
    grams = []
    for level in range(STYLE_LEVELS):
        if level:
            x = F.avg_pool2d(x, 2, ceil_mode=True)
        padded = F.pad(x, (1, 1, 1, 1), mode="replicate")
        centre = padded[..., 1:-1, 1:-1]
        left, right, up, down = (
            padded[..., 1:-1, :-2],
            padded[..., 1:-1, 2:],
            padded[..., :-2, 1:-1],
            padded[..., 2:, 1:-1],
        )
        across, along = (right - left) / 2, (down - up) / 2
        edges = (across**2 + along**2).sum(1, keepdim=True).sqrt()
        maps = torch.cat(
            [centre, across, along, left + right + up + down - 4 * centre, edges], dim=1
        ).flatten(2)
        grams.append(maps @ maps.transpose(1, 2) / maps.shape[-1])
    return grams
