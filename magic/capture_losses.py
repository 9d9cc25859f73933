"""The losses of MagiCapture (arXiv 2309.06895) and of its official code,
github.com/junhahyung/MagiCapture.

Every loss returns one value a sample (B), so that a batch of three costs what three batches of one
cost, and weights mean the same at any batch size. The official code sums or mixes samples in three
places and is exact for a batch of one.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .boxes import Box, box_of_mask

_FLOOR = 0.01
_LEAST_ATTENTION = 1e-8
"""Attention below this is none: a map of it has nothing to refocus, and one over its height would
overflow in the gradient."""


def loss_weights(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """How much each latent pixel counts. masks: B H W in 0..1 -> B h w in (0, 1], with 1 at every
    sample's maximum.

    A hundredth is left everywhere. The official code takes the nearest pixel and the maximum over
    the batch; this one averages the area, and looks at each sample by itself.
    """
    scaled = F.interpolate(masks[:, None].float(), size=size, mode="area")[:, 0]
    weights = scaled + _FLOOR
    return weights / weights.amax((1, 2), keepdim=True)


def masked_reconstruction(prediction: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """Mean squared error inside a weight map, relative to its area. prediction, target: B C h w;
    weights: B h w -> B."""
    error = (prediction.float() - target.float()).square() * weights[:, None].square()
    return error.mean((1, 2, 3)) * (weights[0].numel() / weights.sum((1, 2)))


def refocusing_targets(weights: Tensor, composed: Tensor) -> Tensor:
    """Where each placeholder token may look. weights: B h w, the reconstruction's; composed: B,
    bool -> B 2 h w.

    Samples of one placeholder use the first target. In a composed sample the first is the
    subject's, the second the style's, whose region the weights are.
    """
    first = torch.where(composed[:, None, None], 1 - weights, weights)
    return torch.stack([first, weights], 1)


def refocusing(maps: Tensor, targets: Tensor, present: Tensor) -> Tensor:
    """The attention refocusing loss: placeholders are pushed out of the region that is not theirs.

    maps: B M K H W, cross-attention probabilities of K tokens in M maps (layers times heads);
    targets: B K h w in 0..1; present: B K, bool, which tokens a sample has -> B. Minimum and
    maximum of a map carry no gradient. A constant map and one of no attention have nothing to
    refocus: they count as zero, without gradient.
    """
    batch, count, tokens = maps.shape[:3]
    size = targets.shape[-2:]
    maps = F.interpolate(
        maps.float().flatten(0, 1), size=size, mode="bilinear", align_corners=False
    ).reshape(batch, count, tokens, *size)
    low, high = (
        maps.detach().amin((-2, -1), keepdim=True),
        maps.detach().amax((-2, -1), keepdim=True),
    )
    # Relative to the map's level: rounding alone must not be stretched into a picture.
    varies = (high - low > 1e-4 * high) & (high > _LEAST_ATTENTION)
    normalised = torch.where(varies, (maps - low) / torch.where(varies, high - low, 1), 0)
    outside = targets[:, None] < 0.5
    error = (torch.where(outside, normalised, 1).mean(1) - targets).square().mean((-2, -1))  # B K
    return (error * present).sum(1) / present.sum(1).clamp(min=1)


def clean_estimate(noisy: Tensor, output: Tensor, alpha_bar: Tensor, v_prediction: bool) -> Tensor:
    """Tweedie's estimate of the clean latent. noisy, output: B C h w; alpha_bar: B -> B C h w."""
    signal, noise = (x.reshape(-1, 1, 1, 1) for x in (alpha_bar.sqrt(), (1 - alpha_bar).sqrt()))
    return signal * noisy - noise * output if v_prediction else (noisy - noise * output) / signal


def face_crops(images: Tensor, boxes: Tensor, side: int) -> Tensor:
    """Cuts one square out of each image and scales it, with gradient. images: B 3 H W; boxes: B 3,
    centre x, centre y and half side in pixels -> B 3 side side. Outside the image the border
    continues."""
    # Bilinear sampling looks at four pixels only: what is to become much smaller is made smaller
    # first.
    factor = max(1, int((boxes[:, 2].max() * 2 / side).item()))
    if factor > 1:
        images = F.avg_pool2d(images, factor, ceil_mode=True)
    # In pixels of before; the last row and column may stand for less.
    height, width = (count * factor for count in images.shape[-2:])
    steps = (torch.arange(side, device=images.device, dtype=torch.float32) + 0.5) / side * 2 - 1
    x = (boxes[:, :1] + boxes[:, 2:] * steps) / width * 2 - 1  # B side
    y = (boxes[:, 1:2] + boxes[:, 2:] * steps) / height * 2 - 1
    grid = torch.stack([x[:, None, :].expand(-1, side, -1), y[:, :, None].expand(-1, -1, side)], -1)
    return F.grid_sample(
        images, grid.to(images.dtype), mode="bilinear", padding_mode="border", align_corners=False
    )


def face_box(mask: Tensor, scale: float) -> Tensor:
    """The square around a mask (H W, values above one half count) as centre x, centre y, half side
    times `scale`."""
    box = box_of_mask(mask) or Box(0, 0, mask.shape[1], mask.shape[0])
    return square_around(box.corners, scale)


def square_around(corners: tuple[float, float, float, float], scale: float) -> Tensor:
    """The same for a box: left, top, right, bottom in pixels."""
    left, top, right, bottom = corners
    return torch.tensor(
        [(left + right) / 2, (top + bottom) / 2, max(bottom - top, right - left) / 2 * scale]
    )


def identity(embeddings: Tensor, references: Tensor) -> Tensor:
    """1 - cosine similarity. embeddings, references: B D -> B in 0..2."""
    return 1 - F.cosine_similarity(embeddings.float(), references.float(), dim=1)


def pull_norms(rows: Tensor, rate: float, norm: float) -> Tensor:
    """Moves the length of each row (N C) towards `norm`, by the share min(1, 100 * rate)."""
    lengths: Tensor = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return rows / lengths * (lengths + min(1.0, 100 * rate) * (norm - lengths))


def linear_decay(step: int, steps: int) -> float:
    """Factor on a learning rate: 1 at the first step, towards 0 at the end."""
    return max(0.0, 1 - step / steps)
