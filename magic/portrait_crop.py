"""A part of a picture at a working size, and back into place: so that a small face gets as many
tokens as a large one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Box:
    """A rectangle in pixels: left and top are inside, right and bottom are the first outside."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def width(self) -> int:
        return self.right - self.left

    @property
    def height(self) -> int:
        return self.bottom - self.top


@dataclass(frozen=True)
class Crop:
    """Where a crop was taken: box in the picture; picture: its height and width."""

    box: Box
    picture: tuple[int, int]


def box_of(mask: Tensor, margin: float, aspect: float | None = None) -> Box:
    """The box of what a mask shows, widened.

    mask: H W in 0..1, what is above .5 counts; margin: added on every side, as a share of the
    longer side; aspect: width / height that the box grows to, as far as the picture allows.
    ValueError when the mask is empty.
    """
    rows, columns = (mask > 0.5).any(1).nonzero().flatten(), (mask > 0.5).any(0).nonzero().flatten()
    if not len(rows):
        raise ValueError(
            "the mask is empty: paint over the part of the picture to cut out, or connect a face"
            " mask"
        )
    top, bottom, left, right = (
        int(rows[0]),
        int(rows[-1]) + 1,
        int(columns[0]),
        int(columns[-1]) + 1,
    )
    extra = margin * max(bottom - top, right - left)
    height, width = bottom - top + 2 * extra, right - left + 2 * extra
    if aspect is not None:
        height, width = max(height, width / aspect), max(width, height * aspect)
    picture_height, picture_width = mask.shape
    top, bottom = _span((top + bottom) / 2, height, picture_height)
    left, right = _span((left + right) / 2, width, picture_width)
    return Box(left, top, right, bottom)


def _span(centre: float, length: float, limit: int) -> tuple[int, int]:
    """Start and end of a span, moved inside 0..limit where it sticks out."""
    size = min(limit, max(1, round(length)))
    start = min(max(0, round(centre - size / 2)), limit - size)
    return start, start + size


def working_size(box: Box, side: int) -> tuple[int, int]:
    """Height and width, multiples of 8, of about side x side pixels in the box's aspect."""
    scale = side / (box.height * box.width) ** 0.5
    return max(8, round(box.height * scale / 8) * 8), max(8, round(box.width * scale / 8) * 8)


def resize(image: Tensor, size: tuple[int, int]) -> Tensor:
    """B H W C to another size, antialiased."""
    if tuple(image.shape[1:3]) == size:
        return image
    return (
        F.interpolate(image.movedim(-1, 1).float(), size=size, mode="bicubic", antialias=True)
        .clamp(0, 1)
        .movedim(1, -1)
    )


def feathered(
    height: int, width: int, feather: float, open_sides: tuple[bool, bool, bool, bool]
) -> Tensor:
    """H W, 1 inside and falling smoothly to 0 at the edges, over `feather` of the shorter side.

    open_sides: whether left, top, right, bottom lie inside the picture; at the picture's own border
    nothing has to be hidden.
    """
    reach = max(feather * min(height, width), 1e-6)

    def ramp(length: int, first: bool, last: bool) -> Tensor:
        position = torch.arange(length) + 0.5
        from_first = position / reach if first else torch.ones(length)
        from_last = (length - position) / reach if last else torch.ones(length)
        share = torch.minimum(from_first, from_last).clamp(0, 1)
        return share * share * (3 - 2 * share)

    left, top, right, bottom = open_sides
    return ramp(height, top, bottom)[:, None] * ramp(width, left, right)[None]


def paste(
    picture: Tensor, patch: Tensor, crop: Crop, feather: float, mask: Tensor | None = None
) -> Tensor:
    """`patch` back into `picture` where it was cut out. Both B H W C, mask: B H W on the patch;
    each may be a single one for all.

    ValueError when there are several of two of them, and not equally many.
    """
    counts = (len(picture), len(patch), 1 if mask is None else len(mask))
    batch = max(counts)
    if not set(counts) <= {1, batch}:
        raise ValueError(
            f"{counts[0]} pictures, {counts[1]} patches and {counts[2]} masks: expected one or"
            " equally many of each"
        )
    box = crop.box
    size = (box.height, box.width)
    fitted = resize(patch, size)
    share = feathered(
        *size,
        feather,
        (box.left > 0, box.top > 0, box.right < crop.picture[1], box.bottom < crop.picture[0]),
    )[None]
    if mask is not None:
        share = (
            share
            * F.interpolate(mask[:, None].float(), size=size, mode="bilinear", align_corners=False)[
                :, 0
            ].cpu()
        )
    share = share[..., None].to(picture)
    out = picture.expand(batch, -1, -1, -1).clone()
    under = out[:, box.top : box.bottom, box.left : box.right]
    out[:, box.top : box.bottom, box.left : box.right] = torch.lerp(
        under, fitted.to(picture).expand(batch, -1, -1, -1), share
    )
    return out
