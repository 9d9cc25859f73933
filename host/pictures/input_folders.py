"""Folders of pictures inside ComfyUI's input folder: which there are, and what is in them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

_PICTURES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}


def input_root() -> Path:
    import folder_paths

    return Path(folder_paths.get_input_directory())


def folders_with(suits: Callable[[Path], bool]) -> list[str]:
    """Names of folders up to three levels down in the input folder that suit and are no links to
    elsewhere."""
    root = input_root()
    folders = (
        path
        for pattern in ("*", "*/*", "*/*/*")
        for path in root.glob(pattern)
        if path.is_dir() and suits(path)
    )
    return sorted(
        path.relative_to(root).as_posix()
        for path in folders
        if path.resolve().is_relative_to(root.resolve())
    )


def folder_state(root: Path) -> str:
    """Changes when a file in the folder does."""
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*")):
        if path.is_file():
            digest.update(f"{path.name} {path.stat().st_size} {path.stat().st_mtime_ns}".encode())
    return digest.hexdigest()


def pictures_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in _PICTURES)


def read_image(path: Path) -> Tensor:  # 1 H W 3
    return _read(path, "RGB")


def read_mask(path: Path) -> Tensor:  # 1 H W
    return _read(path, "L")


def _read(path: Path, mode: str) -> Tensor:
    picture = ImageOps.exif_transpose(Image.open(path)).convert(mode)
    return torch.from_numpy(np.asarray(picture, np.float32) / 255)[None]
