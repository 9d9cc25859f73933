"""Small pictures of concepts and of what is learned: what of them is taken, and the rest dark."""

from __future__ import annotations

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


def thumbnails(concept: Concept, side: int = _SIDE) -> list[str]:
    """A JPEG in base64 of each image of the concept, `side` pixels at the longer one."""
    if concept.images is None:
        return []
    height, width = concept.images.shape[1:3]
    scale = min(1.0, side / max(height, width))
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    images = _resized(concept.images[..., :3].movedim(-1, 1), size)  # B 3 h w
    # One mask for all images or one for each; other numbers are complained about where they matter.
    if concept.mask is not None and concept.mask.shape[0] in (1, images.shape[0]):
        images = images * (_DARK + (1 - _DARK) * _resized(concept.mask[:, None], size))
    return [as_base64(as_image(image), "JPEG", quality=80) for image in images.movedim(1, -1)]


def masked_thumbnail(image: Tensor, mask: Tensor, side: int = _SIDE) -> str:
    """A JPEG in base64, dark where the mask is 0. image: H W 3; mask: H W."""
    height, width = image.shape[:2]
    scale = min(1.0, side / max(height, width))
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    small = _resized(image.movedim(-1, 0)[None], size)
    shaded = small * (_DARK + (1 - _DARK) * _resized(mask[None, None], size))
    return as_base64(as_image(shaded[0].movedim(0, -1)), "JPEG", quality=80)


def taken_on_page(concept: Concept) -> Any:
    """What a page shows on the concept's node, as the host takes it; None when nobody looks."""
    page = listening_page()
    if page is None:
        return None
    return output_on_page(page, "magic_taken", thumbnails(concept, _SIDE_ON_NODE))


def _resized(images: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(images.float().cpu(), size=size, mode="area")
