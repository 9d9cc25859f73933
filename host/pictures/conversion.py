"""Pictures from one form into another: tensors in 0..1, bytes, PIL's, files in base64."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def as_bytes(picture: Tensor) -> np.ndarray:
    """Any shape in 0..1 -> uint8 of that shape. What is outside of 0..1 is cut off."""
    return (picture.cpu().float().clamp(0, 1) * 255).round().to(torch.uint8).numpy()


def as_pixels(picture: Tensor) -> np.ndarray:
    """The colours of a picture, H W 3 or more in 0..1 -> H W 3 uint8."""
    return as_bytes(picture[..., :3])


def as_image(picture: Tensor) -> Image.Image:
    """H W 3 in 0..1, or H W 4 with opacity."""
    return Image.fromarray(as_bytes(picture))


def as_tensor(image: Image.Image) -> Tensor:
    """An RGB image -> 1 H W 3 in 0..1."""
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return pixels.view(1, image.height, image.width, 3).float() / 255


def as_base64(image: Image.Image, kind: str, **options: Any) -> str:
    """An image as a file of its kind ('PNG', 'JPEG') in base64. options: PIL's for that kind."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return base64.b64encode(buffer.getvalue()).decode("ascii")
