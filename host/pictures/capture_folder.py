"""Folders of training pictures inside ComfyUI's input folder: pictures of any size, and face masks
of the same names in mask/."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from .input_folders import (
    folder_state,
    folders_with,
    input_root,
    pictures_in,
    read_image,
    read_mask,
)

NO_FOLDER = "(no folder)"


def list_folders() -> list[str]:
    """Folders that have pictures in them."""
    return folders_with(lambda path: path.name != "mask" and bool(pictures_in(path)))


def read_folder(folder: str) -> tuple[list[Tensor], list[Tensor] | None, list[str]]:
    """Pictures (H W 3), masks (H W) or None, and names. ValueError says which mask is missing when
    there are some."""
    root = _resolve(folder)
    pictures = pictures_in(root)
    masks = (
        {path.stem: path for path in pictures_in(root / "mask")} if (root / "mask").is_dir() else {}
    )
    if masks and (unmasked := [path.name for path in pictures if path.stem not in masks]):
        raise ValueError(
            f"folder '{folder}': {unmasked[0]} has no mask: put mask/{unmasked[0]} there, or remove"
            " the folder mask"
        )
    return (
        [read_image(path)[0] for path in pictures],
        [read_mask(masks[path.stem])[0] for path in pictures] if masks else None,
        [path.name for path in pictures],
    )


def has_masks(folder: str) -> bool:
    masks = _resolve(folder) / "mask"
    return masks.is_dir() and bool(pictures_in(masks))


def state_of(folder: str) -> str:
    """Changes when a file in the folder does; empty for no folder."""
    return "" if folder == NO_FOLDER else folder_state(_resolve(folder))


def _resolve(folder: str) -> Path:
    if folder not in list_folders():
        raise ValueError(
            f"folder '{folder}' is not there: put a folder of pictures into {input_root()}"
        )
    return input_root() / folder
