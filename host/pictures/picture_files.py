"""Pictures and masks from files, of every kind that ComfyUI's Load Image reads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from ...magic.messages import shown
from ...magic.pictures import as_rgb
from .conversion import as_image
from .input_folders import input_root

_SIXTEEN_BITS = 65535


@dataclass(frozen=True, eq=False)
class FilePicture:
    """A picture from a file. rgb: 1 H W 3 in 0..1, what is transparent put on white; opacity: 1 H W
    in 0..1, None when all of it is opaque."""

    rgb: Tensor
    opacity: Tensor | None


def read_picture(path: Path) -> FilePicture:
    """The first picture of a file, the right way up. ValueError names the file when it is damaged
    or none."""
    image = _open(path)
    opacity = _opacity(image)
    rgb = _levels(image, "RGB")
    if opacity is not None:
        rgb = as_rgb(torch.cat([rgb, opacity[..., None]], -1), shown(path.name))
    return FilePicture(rgb[None], None if opacity is None else opacity[None])


def read_mask(path: Path) -> Tensor:
    """A mask from a file: 1 H W in 0..1. Of a picture with transparency it is what is transparent,
    as ComfyUI's MaskEditor saves it and Load Image gives it; of others what is bright. ValueError
    as in `read_picture`."""
    image = _open(path)
    opacity = _opacity(image)
    return _levels(image, "L")[None, ..., 0] if opacity is None else 1 - opacity[None]


def is_whole(path: Path) -> bool:
    """Whether PIL reads the first picture of a file to its end. True also for kinds that it does
    not know: those are the host's matter."""
    try:
        with Image.open(path) as image:
            image.load()
    except UnidentifiedImageError:
        return True
    # Each kind of file has its own ways to fail.
    except Exception:
        return False
    return True


def _levels(image: Image.Image, mode: str) -> Tensor:
    """The colours (mode 'RGB', H W 3) or the brightness ('L', H W 3 of one value) in 0..1."""
    if image.mode in ("RGB", "RGBA"):
        levels = np.asarray(image.convert(mode), np.float32) / 255
    else:
        # 16 bits of gray, of which PIL's own conversions would cut off what is above 255.
        levels = np.asarray(image).astype(np.float32).clip(0, _SIXTEEN_BITS) / _SIXTEEN_BITS
    tensor = torch.from_numpy(levels)
    return tensor if tensor.ndim == 3 else tensor[..., None].expand(-1, -1, 3)


def _opacity(image: Image.Image) -> Tensor | None:
    """H W in 0..1; None when all of the picture is opaque."""
    if image.mode != "RGBA":
        return None
    opacity = torch.from_numpy(np.asarray(image.getchannel("A"), np.float32) / 255)
    return opacity if bool((opacity < 1).any()) else None


def _open(path: Path) -> Image.Image:
    """The picture in mode RGB or RGBA; where it has 16 bits of gray, in one of PIL's modes I."""
    try:
        with Image.open(path) as image:
            # Damage shows when a file is read to its end.
            image.load()
            upright = ImageOps.exif_transpose(image)
        if upright.mode.startswith("I"):
            return upright
        has_opacity = "A" in upright.getbands() or "transparency" in upright.info
        return upright.convert("RGBA" if has_opacity else "RGB")
    except UnidentifiedImageError:
        return _open_by_host(path)
    # Each kind of file has its own ways to fail.
    except Exception as error:
        raise _unreadable(path, error) from error


def _open_by_host(path: Path) -> Image.Image:
    """Of kinds that PIL does not know."""
    import nodes

    try:
        name = path.relative_to(input_root()).as_posix()
        pictures, masks = nodes.LoadImage().load_image(name)
        levels = pictures[0, ..., :3].float()
        if masks.shape[1:] == levels.shape[:2]:
            levels = torch.cat([levels, 1 - masks[0, ..., None].float()], -1)
        return as_image(levels)
    except Exception as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> ValueError:
    return ValueError(
        f"{shown(path.name)} is damaged or no picture ({error}): replace it, or take it out"
    )
