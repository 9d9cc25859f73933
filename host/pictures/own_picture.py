"""The picture that a node has of its own: a file of ComfyUI's input folder, uploaded on the node
and painted in the Mask Editor."""

from __future__ import annotations

from pathlib import Path, PurePath
from typing import Any

import torch
from torch import Tensor

from .picture_files import is_whole

NO_PICTURE = ""
_PAINT_PREFIX = "clipspace-"
"""How names of the Mask Editor's files begin, which are transparent where the brush was."""


def list_pictures() -> list[str]:
    """The pictures of the input folder, as Load Image lists them."""
    [files, *_] = _loader().INPUT_TYPES()["required"]["image"]
    return list(files)


def complaint_about(picture: Any) -> str | None:
    """What is wrong with a choice; None when there is such a picture."""
    import folder_paths

    if picture == NO_PICTURE:
        return "no reference: connect an image, or choose or upload a picture on the node"
    if isinstance(picture, str):
        # Older hosts follow a path out of the folder.
        path = PurePath(picture)
        leads_out = path.is_absolute() or ".." in path.parts
        if not leads_out and folder_paths.exists_annotated_filepath(picture):
            return None if _path_of(picture).is_file() else _no_picture(picture)
    return f"picture '{picture}' is not in ComfyUI's input folder: choose or upload another"


def state_of(picture: str) -> str:
    """Changes when the file does."""
    return "" if complaint_about(picture) else str(_loader().IS_CHANGED(picture))


def read(picture: str) -> tuple[Tensor, Tensor | None]:
    """1 H W 3, and the mask of what to take, 1 H W: what the brush covered, or what a cut-out
    shows; None where nothing is transparent. ValueError when there is no such picture, or it is
    damaged or none."""
    if complaint := complaint_about(picture):
        raise ValueError(complaint)
    # Of what is cut off the host makes black.
    if not is_whole(_path_of(picture)):
        raise ValueError(_no_picture(picture))
    try:
        image, transparent = _loader()().load_image(picture)
    # Its decoders have many ways to fail.
    except Exception as error:
        raise ValueError(_no_picture(picture)) from error
    if not transparent.any():
        return image, None
    is_painted = PurePath(picture).name.startswith(_PAINT_PREFIX)
    return image, (transparent if is_painted else 1 - transparent).to(torch.float32)


def _no_picture(picture: str) -> str:
    return f"picture '{picture}' cannot be read as a picture: choose or upload another"


def _path_of(picture: str) -> Path:
    import folder_paths

    return Path(folder_paths.get_annotated_filepath(picture))


def _loader() -> Any:
    """The host's Load Image: what it reads, a node's own picture may be."""
    import nodes

    return nodes.LoadImage
