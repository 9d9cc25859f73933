"""Faces restored one by one with a spandrel model, and pasted back with a soft edge."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...magic.boxes import Box
from ...magic.portrait_crop import cut, feathered, replaced

_INPUT_SIDE = 512
"""GFPGAN, RestoreFormer and CodeFormer were trained on faces of this size."""
SMALLEST_FACE = 8
"""Pixels a side: what is smaller in a mask is a speck, and a square is at least so large."""
_WORKING_MEMORY = 2 * 1024**3
"""What a model of this kind takes beside its weights for a face or a tile, generously."""
_CENTRED = ("GFPGAN", "CodeFormer")
"""Trained on pictures in -1..1. spandrel, which promises 0..1, hands them over as they come
(RestoreFormer's it converts)."""


def restore_face(
    image: Tensor,
    box: Box,
    model: Callable[[Tensor], Tensor],
    margin: float,
    strength: float,
    feather: float,
) -> Tensor:
    """image: 1 3 H W -> the same with one face restored. model: 1 3 512 512 in 0..1 -> the same, at
    any scale.

    margin: side of the crop over side of the box; feather: width of the soft edge over side of the
    crop.
    """
    square = _square_around(box, margin)
    side = round(square.width)
    face = cut(image, square)
    large = F.interpolate(
        face, size=(_INPUT_SIDE, _INPUT_SIDE), mode="bicubic", antialias=True
    ).clamp(0, 1)
    sharp = F.interpolate(
        model(large).to(face), size=(side, side), mode="bicubic", antialias=True
    ).clamp(0, 1)
    weight = strength * feathered(side, side, feather, (True,) * 4).to(face)
    return replaced(image, face + weight * (sharp - face), square)


def _square_around(box: Box, margin: float) -> Box:
    """In whole pixels; may stick out of the picture."""
    side = max(box.width, box.height) * margin
    left, top = round(box.x + (box.width - side) / 2), round(box.y + (box.height - side) / 2)
    side = max(SMALLEST_FACE, round(side))
    return Box(left, top, side, side)


@contextlib.contextmanager
def on_device(
    descriptor: Any, memory: float = _WORKING_MEMORY
) -> Iterator[Callable[[Tensor], Tensor]]:
    """A loaded spandrel model as a function, on its device and in the precision that it supports.
    memory: bytes that it works in."""
    import comfy.model_management as management

    patcher = getattr(descriptor, "patcher", None)
    if patcher is None:
        # Older hosts' loaders leave the memory to whoever runs the model.
        device = management.get_torch_device()
        management.free_memory(management.module_size(descriptor.model) + memory, device)
        descriptor.to(device)
    else:
        management.load_models_gpu([patcher], memory_required=memory, force_full_load=True)
        device = torch.device(patcher.load_device)

    def run(image: Tensor) -> Tensor:
        # GFPGAN's `view` wants what a picture's own order of dimensions does not give.
        image = image.to(device, next(descriptor.model.parameters()).dtype).contiguous()
        if descriptor.architecture.id in _CENTRED:
            # GFPGAN draws fresh noise otherwise: the same graph would give another picture each
            # time.
            centred: Tensor = descriptor.model(image * 2 - 1, randomize_noise=False)[0]
            return ((centred.float() + 1) / 2).clamp(0, 1)
        output: Tensor = descriptor(image)
        return output.float()

    try:
        yield run
    finally:
        if patcher is None:
            descriptor.to("cpu")


def upscale(image: Tensor, descriptor: Any) -> Tensor:
    """image: 1 3 H W -> 1 3 sH sW, in tiles that become smaller when memory runs out."""
    import comfy.model_management as management
    import comfy.utils

    tile = 512
    # The host's own estimate.
    memory = max(_WORKING_MEMORY, 3 * tile * tile * 4 * 384 * max(descriptor.scale, 1))
    is_oom = getattr(
        management, "is_oom", lambda error: isinstance(error, management.OOM_EXCEPTION)
    )
    with on_device(descriptor, memory) as model:
        while True:
            try:
                out: Tensor = comfy.utils.tiled_scale(
                    image,
                    model,
                    tile_x=tile,
                    tile_y=tile,
                    overlap=32,
                    upscale_amount=descriptor.scale,
                    output_device="cpu",
                )
                return out.clamp(0, 1)
            except Exception as error:
                if not is_oom(error):
                    raise
                tile //= 2
                if tile < 128:
                    raise
