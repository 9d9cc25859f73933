"""Networks from transformers folders in models/metrics."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..models import folders as model_folders
from ..models.borrowed_network import BorrowedNetwork
from ..models.folders import METRICS
from ..pictures.conversion import as_pixels
from .comparison import AT_ONCE, AUTO, OFF, Missing


def folders_of(kinds: Sequence[str]) -> list[str]:
    """The folders that hold a model of one of these kinds (model_type of their config.json)."""
    folders = model_folders.model_directories(METRICS)
    return [name for name, kind in folders.items() if kind in kinds]


def chosen_folder(choice: str, kinds: Sequence[str], what: str) -> str:
    """The folder to use. choice: a name, 'auto' or 'off'. Missing says what to put where."""
    if choice == OFF:
        raise Missing("switched off")
    names = folders_of(kinds)
    if choice == AUTO and names:
        return names[0]
    if choice in names:
        return choice
    kind = model_folders.model_directories(METRICS).get(choice)
    if kind is not None:
        raise Missing(f"models/metrics/{choice} holds a '{kind}' model, {what} was expected")
    raise Missing(
        f"no {what} in models/metrics: put its transformers folder (config.json, preprocessor,"
        " model.safetensors) there"
    )


def from_folder(model_class: Any, folder: str) -> BorrowedNetwork:
    """A network of one of transformers' classes."""
    path = model_folders.path_of(METRICS, folder)
    return BorrowedNetwork(model_folders.read_network(model_class, path, _what(model_class)))


def processor_of(kind: Any, folder: str) -> Any:
    """What prepares inputs, of one of transformers' classes. UnreadableModel when it cannot be
    read."""
    path = model_folders.path_of(METRICS, folder)
    with model_folders.reading(path, _what(kind)):
        return kind.from_pretrained(path, local_files_only=True)


def _what(kind: Any) -> str:
    return f"a folder for {kind.__name__}"


def image_features(
    model_class: Any, folder: str, images: Tensor, read: Callable[[Any], Tensor]
) -> Tensor:
    """The features of pictures, prepared as the folder's own processor prepares them: B H W 3 -> B
    D. read: takes them out of what the network returns."""
    from transformers import AutoImageProcessor

    processor = processor_of(AutoImageProcessor, folder)
    model, rows = from_folder(model_class, folder), []
    for start in range(0, len(images), AT_ONCE):
        pixels = [as_pixels(image) for image in images[start : start + AT_ONCE]]
        inputs = processor(
            images=pixels, return_tensors="pt", input_data_format="channels_last"
        ).to(model.device)
        rows.append(read(model.on_device()(**inputs)).float().cpu())
    return torch.cat(rows)
