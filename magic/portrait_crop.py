"""A part of a picture at a working size, and back into place: so that a small face gets as many
tokens as a large one."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from .boxes import Box, box_of_mask
from .pictures import resized_masks


@dataclass(frozen=True)
class Crop:
    """Where a crop was taken. box: in the picture, in whole pixels; picture: its height and
    width."""

    box: Box
    picture: tuple[int, int]


def crop_box(mask: Tensor, margin: float, aspect: float | None = None) -> Box:
    """The box of what a mask shows, widened, in whole pixels inside the picture.

    mask: H W in 0..1, what is above .5 counts; margin: added on every side, as a share of the
    longer side; aspect: width / height that the box grows to, as far as the picture allows.
    ValueError when the mask is empty.
    """
    box = box_of_mask(mask)
    if box is None:
        raise ValueError(
            "the mask is empty: paint over the part of the picture to cut out, or connect a face"
            " mask. What is half or less does not count"
        )
    extra = margin * max(box.height, box.width)
    height, width = box.height + 2 * extra, box.width + 2 * extra
    if aspect is not None:
        height, width = max(height, width / aspect), max(width, height * aspect)
    left, top, right, bottom = box.corners
    top, bottom = _span((top + bottom) / 2, height, mask.shape[0])
    left, right = _span((left + right) / 2, width, mask.shape[1])
    return Box.between(left, top, right, bottom)


def _span(centre: float, length: float, limit: int) -> tuple[int, int]:
    """Start and end of a span, moved inside 0..limit where it sticks out."""
    size = min(limit, max(1, round(length)))
    start = min(max(0, round(centre - size / 2)), limit - size)
    return start, start + size


def working_size(box: Box, side: int, multiple: int = 8) -> tuple[int, int]:
    """Height and width for what is in a box, multiples of `multiple`: about side x side pixels in
    the box's aspect."""
    scale = side / (box.height * box.width) ** 0.5
    height, width = (
        max(multiple, round(length * scale / multiple) * multiple)
        for length in (box.height, box.width)
    )
    return height, width


def cut(pictures: Tensor, box: Box) -> Tensor:
    """What is in a box of whole pixels: B C H W -> B C h w. Where it sticks out of the picture, the
    border goes on."""
    left, top, right, bottom = (round(side) for side in box.corners)
    height, width = pictures.shape[-2:]
    beyond = (max(0, -left), max(0, right - width), max(0, -top), max(0, bottom - height))
    if any(beyond):
        pictures = F.pad(pictures, beyond, mode="replicate")
    rows, columns = replace(box, x=left + beyond[0], y=top + beyond[2]).pixels
    return pictures[..., rows, columns]


def replaced(pictures: Tensor, patch: Tensor, box: Box) -> Tensor:
    """Copies of pictures with `patch` in place of what `cut` gives for the box: B C H W, B C h w ->
    B C H W. What sticks out of the picture is left out."""
    pictures = pictures.clone()
    inside = box.clipped((pictures.shape[-2], pictures.shape[-1]))
    if inside is not None:
        rows, columns = inside.pixels
        own_rows, own_columns = replace(inside, x=inside.x - box.x, y=inside.y - box.y).pixels
        pictures[..., rows, columns] = patch[..., own_rows, own_columns]
    return pictures


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


def rim(crop: Crop, feather: float) -> Tensor:
    """h w, 1 inside a cut-out and falling to 0 at those of its sides that lie inside the
    picture."""
    rows, columns = crop.box.pixels
    left, top, right, bottom = crop.box.corners
    height, width = crop.picture
    sides = (left > 0, top > 0, right < width, bottom < height)
    return feathered(rows.stop - rows.start, columns.stop - columns.start, feather, sides)


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
    rows, columns = box.pixels
    size = (rows.stop - rows.start, columns.stop - columns.start)
    share = rim(crop, feather)[None]
    if mask is not None:
        share = share * resized_masks(mask, size).cpu()
    whole = picture.expand(batch, -1, -1, -1).movedim(-1, 1)
    patch = resize(patch, size).to(picture).expand(batch, -1, -1, -1).movedim(-1, 1)
    mixed = torch.lerp(cut(whole, box), patch, share[:, None].to(picture))
    return replaced(whole, mixed, box).movedim(1, -1).contiguous()
