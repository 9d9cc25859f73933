"""How differently pictures look: LPIPS, and the style distance, which needs no network."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ...magic.metrics import style_distance
from ..models import folders as model_folders
from ..models.borrowed_network import BorrowedNetwork
from ..models.folders import METRICS
from .comparison import Comparison, Missing, chosen_file

_SMALLEST_SIDE = 64
"""Pixels that AlexNet's layers need."""


def lpips_trunks() -> list[str]:
    return [name for name in model_folders.names(METRICS) if "alexnet" in name.lower()]


def lpips(comparison: Comparison) -> Tensor:
    """Zhang et al. (2018), version 0.1 on AlexNet, to each reference (scaled to the picture),
    averaged: B."""
    references = comparison.needed_references()
    model = _network(comparison.lpips)
    size = comparison.images.shape[1:3]
    if min(size) < _SMALLEST_SIDE:
        raise Missing(
            f"pictures of {size[1]}x{size[0]} are too small: LPIPS needs {_SMALLEST_SIDE} pixels a"
            " side"
        )
    others = F.interpolate(
        references[..., :3].movedim(-1, 1).float(), size=size, mode="bilinear", antialias=True
    ).to(model.device)
    distances, network = [], model.on_device()
    for image in comparison.images:
        picture = image[..., :3].movedim(-1, 0)[None].float().to(model.device)
        to_each = [
            network(picture, reference[None], normalize=True).flatten()[0] for reference in others
        ]
        distances.append(torch.stack(to_each).mean())
    return torch.stack(distances)


def _network(choice: str) -> BorrowedNetwork:
    name = chosen_file(
        choice, lpips_trunks(), "AlexNet for LPIPS", "torchvision's alexnet-owt-7be5be79.pth"
    )
    try:
        from lpips import LPIPS
    except ImportError as error:
        raise Missing(
            "the package lpips is not installed: pip install lpips, as in the pack's"
            " requirements-optional.txt, and restart ComfyUI"
        ) from error
    state = model_folders.read_tensors(model_folders.path_of(METRICS, name))
    # Left to itself the package would fetch AlexNet: it gets the user's file instead.
    network = LPIPS(net="alex", pnet_rand=True, verbose=False)
    for slot, tensor in network.net.state_dict().items():
        key = "features." + slot.split(".", 1)[1]
        if key not in state or state[key].shape != tensor.shape:
            raise Missing(f"{name} is not torchvision's AlexNet: {key} does not fit")
        tensor.copy_(state[key])
    return BorrowedNetwork(network)


def style(comparison: Comparison) -> Tensor:
    """See `style_distance`: B."""
    return style_distance(comparison.images, comparison.needed_references())
