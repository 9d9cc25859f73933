"""Small pictures of concepts and of what is learned: what of them is taken, and the rest dark."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from ...magic.concepts import Concept
from ..pictures.conversion import as_base64, as_image
from .listening_page import listening_page, output_on_page

_SIDE = 96
_SIDE_ON_NODE = 128
_DARK = 0.25
"""What is left of a colour that is not taken."""
_WHOLE = 254.5 / 255
"""The least of a mask that a picture file would say is all of it."""


def thumbnails(concept: Concept, side: int = _SIDE) -> list[str]:
    """A JPEG in base64 of each image of the concept, `side` pixels at the longer one."""
    if concept.images is None:
        return []
    images, masks = concept.images[..., :3], concept.mask
    # One mask for all images or one for each; other numbers are complained about where they matter.
    fits = masks is not None and masks.shape[0] in (1, images.shape[0])
    return _small(images, masks if fits else None, side)


def leaves_out(masks: Iterable[Tensor] | None) -> bool:
    """Whether masks leave out anything, which the pictures show dark. None: there are none."""
    return masks is not None and any(bool((mask < _WHOLE).any()) for mask in masks)


def masked_thumbnail(image: Tensor, mask: Tensor, side: int = _SIDE) -> str:
    """A JPEG in base64, dark where the mask is 0. image: H W 3; mask: H W."""
    [thumbnail] = _small(image[None], mask[None], side)
    return thumbnail


def thumbnails_on_page(concept: Concept) -> Any:
    """What a page shows on the concept's node, as the host takes it; None when nobody looks."""
    page = listening_page()
    if page is None:
        return None
    masked = leaves_out(concept.mask)
    taken = [
        {"picture": picture, "masked": masked} for picture in thumbnails(concept, _SIDE_ON_NODE)
    ]
    return output_on_page(page, "magic_taken", taken)


def _small(images: Tensor, masks: Tensor | None, side: int) -> list[str]:
    """images: B H W 3; masks: 1 or B, H W."""
    height, width = images.shape[1:3]
    scale = min(1.0, side / max(height, width))
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    small = _resize(images.movedim(-1, 1), size)  # B 3 h w
    if masks is not None:
        small = small * (_DARK + (1 - _DARK) * _resize(masks[:, None], size))
    return [as_base64(as_image(image), "JPEG", quality=80) for image in small.movedim(1, -1)]


def _resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(images.float().cpu(), size=size, mode="area")
