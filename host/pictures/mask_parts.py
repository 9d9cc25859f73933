"""Connected parts of masks."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ...magic.boxes import Box

_INSIDE = 0.5
_CORNERS_CONNECT = np.ones((3, 3), bool)


def fill_holes(mask: Tensor) -> Tensor:
    """Fills what a mask encloses on all sides. B H W in 0..1; a place counts as covered from .5 on,
    soft edges stay as they are."""
    from scipy.ndimage import binary_fill_holes

    return torch.maximum(mask, _each(mask, lambda inside: binary_fill_holes(inside)))


def largest_part(mask: Tensor) -> Tensor:
    """Keeps the largest connected part of each mask (corners connect), with its soft edge. B H W in
    0..1."""
    from scipy.ndimage import label

    def largest(inside: np.ndarray) -> np.ndarray:
        parts, count = label(inside, _CORNERS_CONNECT)
        return parts == 1 + np.bincount(parts.ravel())[1:].argmax() if count else inside

    rest = _each(mask, largest)
    others = (mask >= _INSIDE) & (rest == 0)
    return torch.where(_nearer_to(rest > 0, others), mask, 0.0).to(mask)


def boxes_of_parts(mask: Tensor, smallest: int) -> list[Box]:
    """A box for each connected part of a mask (H W, above one half; corners connect), from left to
    right. Specks, less than `smallest` pixels high or wide, are left out."""
    from scipy.ndimage import find_objects, label

    parts, _ = label((mask > _INSIDE).cpu().numpy(), _CORNERS_CONNECT)
    boxes = (
        Box.between(columns.start, rows.start, columns.stop, rows.stop)
        for rows, columns in find_objects(parts)
    )
    return sorted(
        (box for box in boxes if min(box.height, box.width) >= smallest), key=lambda box: box.x
    )


def parts_of(mask: Tensor, smallest: int) -> list[Tensor]:
    """The connected parts of a mask (H W, above one half; corners connect) as masks of 0 and 1,
    from left to right. Specks, less than `smallest` pixels high or wide, are left out."""
    from scipy.ndimage import find_objects, label

    parts, _ = label((mask > _INSIDE).cpu().numpy(), _CORNERS_CONNECT)
    numbers = [
        (columns.start, number)
        for number, (rows, columns) in enumerate(find_objects(parts), 1)
        if min(rows.stop - rows.start, columns.stop - columns.start) >= smallest
    ]
    return [torch.from_numpy(parts == number).float() for _, number in sorted(numbers)]


def without_specks(mask: Tensor, share: float) -> Tensor:
    """A mask (H W) of 0 and 1 of its connected parts, without those that have less than `share` of
    the places of the largest."""
    from scipy.ndimage import label

    parts, count = label((mask > _INSIDE).cpu().numpy(), _CORNERS_CONNECT)
    sizes = np.bincount(parts.ravel(), minlength=count + 1)
    sizes[0] = 0
    return torch.from_numpy((sizes >= max(1, share * sizes.max()))[parts]).float()


def _each(mask: Tensor, work: Callable[[np.ndarray], np.ndarray]) -> Tensor:
    return torch.stack(
        [torch.from_numpy(work(one)).to(mask) for one in (mask >= _INSIDE).cpu().numpy()]
    )


def _nearer_to(inside: Tensor, others: Tensor) -> Tensor:
    """Where a kept place is nearer than any dropped one: so a soft edge goes with the part that it
    belongs to."""
    from scipy.ndimage import distance_transform_edt

    nearer = []
    for own, other in zip(inside.cpu().numpy(), others.cpu().numpy(), strict=True):
        if not other.any():
            nearer.append(np.ones_like(own))
        else:
            nearer.append(distance_transform_edt(~own) < distance_transform_edt(~other))
    return torch.from_numpy(np.stack(nearer)).to(inside.device)
