"""Folders of training pictures inside ComfyUI's input folder: pictures of any size, and face masks of the same names in mask/."""

from __future__ import annotations

import hashlib
from pathlib import Path

from torch import Tensor

from .concept_folder import input_root, pictures_in, read_image, read_mask

NO_FOLDER = "(no folder)"


def list_folders() -> list[str]:
    """Folders up to two levels down in the input folder that have pictures in them and are no links to elsewhere."""
    root = input_root()
    found = (path for pattern in ("*", "*/*") for path in root.glob(pattern) if path.is_dir() and path.name != "mask")
    inside = (path for path in found if path.resolve().is_relative_to(root.resolve()) and pictures_in(path))
    return sorted(path.relative_to(root).as_posix() for path in inside)


def read_folder(folder: str) -> tuple[list[Tensor], list[Tensor] | None, list[str]]:
    """Pictures (H W 3), masks (H W) or None, and names. ValueError says which mask is missing when there are some."""
    root = _resolve(folder)
    pictures = pictures_in(root)
    masks = {path.stem: path for path in pictures_in(root / "mask")} if (root / "mask").is_dir() else {}
    if masks and (missing := [path.name for path in pictures if path.stem not in masks]):
        raise ValueError(f"folder '{folder}': {missing[0]} has no mask: put mask/{missing[0]} there, or remove the folder mask")
    found = [read_mask(masks[path.stem])[0] for path in pictures] if masks else None
    return [read_image(path)[0] for path in pictures], found, [path.name for path in pictures]


def has_masks(folder: str) -> bool:
    masks = _resolve(folder) / "mask"
    return masks.is_dir() and bool(pictures_in(masks))


def fingerprint(folder: str) -> str:
    if folder == NO_FOLDER:
        return ""
    digest = hashlib.sha256()
    for path in sorted(_resolve(folder).rglob("*")):
        if path.is_file():
            digest.update(f"{path.name} {path.stat().st_size} {path.stat().st_mtime_ns}".encode())
    return digest.hexdigest()


def _resolve(folder: str) -> Path:
    if folder not in list_folders():
        raise ValueError(f"folder '{folder}' is not there: put a folder of pictures into {input_root()}")
    return input_root() / folder
