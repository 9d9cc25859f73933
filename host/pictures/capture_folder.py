"""Folders of training pictures inside ComfyUI's input folder: pictures of any size, captions of the
same names beside them, and face masks of the same names in mask/."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from ...magic.messages import shown
from .input_folders import (
    PictureFiles,
    files_in,
    find_folder,
    folders_that,
    has_pictures,
    input_root,
    log_others,
    state_of_files,
)
from .picture_files import read_mask, read_picture

NO_FOLDER = "(no folder)"


def list_folders() -> list[str]:
    """Folders that have pictures in them."""
    return folders_that(_suits)


def read_folder(folder: str) -> tuple[list[Tensor], list[Tensor] | None, list[str]]:
    """Pictures (H W 3), masks (H W) or None, and names. What is no picture is named in the log.
    ValueError says which mask is missing when there are some, or which file is damaged."""
    root = _resolve(folder)
    files, mask_files = files_in(root), _mask_files(root)
    captions = {shown(path.with_suffix(".txt").name) for path in files.pictures}
    others = [name for name in files.others if name not in captions]
    log_others(folder, [*others, *(f"mask/{name}" for name in mask_files.others)])
    masks = by_stem(mask_files.pictures, f"folder '{folder}': mask/")
    bare = [shown(path.name) for path in files.pictures if path.stem not in masks]
    if masks and bare:
        raise ValueError(
            f"folder '{folder}': {bare[0]} has no mask: put mask/{bare[0]} there, or remove"
            " the folder mask"
        )
    try:
        return (
            [read_picture(path).rgb[0] for path in files.pictures],
            [read_mask(masks[path.stem])[0] for path in files.pictures] if masks else None,
            [shown(path.name) for path in files.pictures],
        )
    except ValueError as error:
        raise ValueError(f"folder '{folder}': {error}") from error


def read_captions(folder: str) -> list[str]:
    """For each of `read_folder`'s pictures what stands in the text file of its name beside it,
    'anna.txt' for 'anna.jpg'; empty where there is none. ValueError for one that is no text."""
    captions = []
    for picture in files_in(_resolve(folder)).pictures:
        path = picture.with_suffix(".txt")
        try:
            captions.append(path.read_text("utf-8-sig").strip() if path.is_file() else "")
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(
                f"folder '{folder}': {shown(path.name)} cannot be read as text: save it in UTF-8"
            ) from error
    return captions


def by_stem(pictures: Sequence[Path], where: str) -> dict[str, Path]:
    """Pictures by their names without suffixes. ValueError when two share one. where: for the
    message."""
    paths: dict[str, Path] = {}
    for path in pictures:
        if other := paths.get(path.stem):
            raise ValueError(
                f"{where} has {shown(other.name)} and {shown(path.name)}: keep one of them"
            )
        paths[path.stem] = path
    return paths


def has_masks(folder: str) -> bool:
    return bool(_mask_files(_resolve(folder)).pictures)


def state_of(folder: str) -> str:
    """Changes when a file in the folder does; empty for no folder."""
    if folder == NO_FOLDER:
        return ""
    root = _resolve(folder)
    return state_of_files([root, root / "mask"])


def _suits(path: Path) -> bool:
    return path.name != "mask" and has_pictures(path)


def _mask_files(root: Path) -> PictureFiles:
    masks = root / "mask"
    return files_in(masks) if masks.is_dir() else PictureFiles((), ())


def _resolve(folder: str) -> Path:
    root = find_folder(folder, _suits)
    if root is None:
        raise ValueError(
            f"folder '{shown(folder)}' is not there: put a folder of pictures into {input_root()}"
        )
    return root
