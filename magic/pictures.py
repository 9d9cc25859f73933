"""Pictures and masks as other nodes and files give them: brought into one form, and compared."""

from __future__ import annotations

from torch import Tensor

_ROUNDING = 8
"""Pixels by which a side may be off: masks often come from a resized copy of the picture."""


def mask_batch(mask: Tensor) -> Tensor:
    """Masks as B H W, whatever leading dimensions other packs leave out or add."""
    return mask.reshape(-1, *mask.shape[-2:])


def as_rgb(picture: Tensor, name: str) -> Tensor:
    """A picture of H W C with 1 (gray), 3 or 4 (alpha, put on white) channels -> H W 3 in 0..1.
    ValueError, by its name, for anything else."""
    channels = picture.shape[-1]
    if picture.ndim != 3 or channels not in (1, 3, 4):
        raise ValueError(
            f"{name} is no picture: expected height, width and 1, 3 or 4 channels, got"
            f" {list(picture.shape)}"
        )
    if channels == 4:
        picture = picture[..., :3] * picture[..., 3:] + 1 - picture[..., 3:]
    return picture.float().clamp(0, 1).expand(-1, -1, 3)


def check_aspect(picture: tuple[int, int], mask: tuple[int, int], owner: str) -> None:
    """ValueError when a mask was drawn on another picture. picture, mask: height and width of each;
    owner: whose they are, for the message."""
    (height, width), (mask_height, mask_width) = picture, mask
    longest = max(height, width, mask_height, mask_width)
    if abs(width * mask_height - height * mask_width) > _ROUNDING * longest:
        raise ValueError(
            f"mask and image of {owner} differ in aspect: the image is {width}x{height}, the mask"
            f" {mask_width}x{mask_height}. Use a mask that was drawn on this image"
        )
