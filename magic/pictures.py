"""Pictures, masks and latents as other nodes and files give them: checked, brought into one form,
and compared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_ROUNDING = 8
"""Pixels by which a side may be off: masks often come from a resized copy of the picture."""
_BORDER = 0.02
"""Width of the rim that counts as a picture's border, in parts of the shorter side."""
_MOSTLY, _ALL = 0.9, 0.99
"""Shares of a border, and of what it surrounds, from which these count as covered."""


def picture_batch(image: Any, what: str) -> Tensor:
    """An IMAGE of another node: B H W 3, or 4 with opacity, in 0..1; gray (one channel) becomes
    three. ValueError says what came and what is expected. what: the input, for the message."""
    expected = "expected a batch of pictures with 3 channels (B H W 3)"
    if not isinstance(image, Tensor):
        raise ValueError(f"{what} is a {type(image).__name__}: {expected}")
    if image.ndim != 4 or image.shape[-1] not in (1, 3, 4) or 0 in image.shape:
        raise ValueError(f"{what} has the shape {list(image.shape)}: {expected}")
    _check_numbers(image, what)
    return image.expand(-1, -1, -1, 3) if image.shape[-1] == 1 else image


def mask_batch(mask: Any, what: str = "mask") -> Tensor:
    """A MASK of another node as B H W, whatever leading dimensions other packs leave out or add.
    ValueError, as in `picture_batch`."""
    expected = "expected a mask for each picture (B H W)"
    if not isinstance(mask, Tensor):
        raise ValueError(f"{what} is a {type(mask).__name__}: {expected}")
    if mask.ndim < 2 or 0 in mask.shape:
        raise ValueError(f"{what} has the shape {list(mask.shape)}: {expected}")
    _check_numbers(mask, what)
    return mask.reshape(-1, *mask.shape[-2:])


def latent_batch(samples: Any, what: str, channels: int | None = None) -> Tensor:
    """The tensor of a LATENT of another node: B C h w, or B C T h w. channels: those of the model
    that it is for, None for any. ValueError as in `picture_batch`."""
    latent = samples.get("samples") if isinstance(samples, dict) else None
    if not isinstance(latent, Tensor):
        raise ValueError(
            f"{what} is a {type(samples).__name__} without samples: expected a LATENT, such as a"
            " sampler's or VAE Encode's"
        )
    if latent.ndim not in (4, 5) or 0 in latent.shape:
        raise ValueError(f"{what} has the shape {list(latent.shape)}: expected B C h w")
    if channels is not None and latent.shape[1] != channels:
        raise ValueError(
            f"{what} has {latent.shape[1]} channels, this model works in {channels}: it is another"
            " model's. Encode the picture with this model's VAE"
        )
    _check_numbers(latent, what)
    return latent


def picked(samples: dict[str, Any], pictures: Sequence[int]) -> dict[str, Any]:
    """Some pictures of a LATENT, in this order, with what it has for each of them: their masks, and
    the numbers of their noise."""
    count, places = len(samples["samples"]), list(pictures)
    out = {**samples, "samples": samples["samples"][places]}
    mask = samples.get("noise_mask")
    # One mask may be for all.
    if isinstance(mask, Tensor) and len(mask) == count > 1:
        out["noise_mask"] = mask[places]
    numbers = samples.get("batch_index") or range(count)
    out["batch_index"] = [numbers[i] for i in places]
    return out


def as_rgb(picture: Tensor, name: str) -> Tensor:
    """A picture of H W C with 1 (gray), 3 or 4 (alpha, put on white) channels -> H W 3 in 0..1.
    ValueError, by its name, for anything else."""
    channels = picture.shape[-1]
    if picture.ndim != 3 or channels not in (1, 3, 4) or 0 in picture.shape:
        raise ValueError(
            f"{name} is no picture: expected height, width and 1, 3 or 4 channels, got"
            f" {list(picture.shape)}"
        )
    if channels == 4:
        picture = picture[..., :3] * picture[..., 3:] + 1 - picture[..., 3:]
    return picture.float().clamp(0, 1).expand(-1, -1, 3)


SMALLEST_SIDE = 8
"""Pixels, a cell of most latents: a picture of fewer on a side shows nothing."""


def check_size(size: tuple[float, float], what: str, smallest: int = SMALLEST_SIDE) -> None:
    """ValueError when a picture is too small to show anything. size: its height and width; what:
    whose they are, for the message."""
    height, width = size
    if min(size) < smallest:
        raise ValueError(
            f"{what} has {width:g}x{height:g} pixels, which is too small to show anything: take one"
            f" of {smallest} or more on each side"
        )


def differ_in_aspect(size: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether pictures of these heights and widths cannot be copies of one another at other
    sizes."""
    (height, width), (other_height, other_width) = size, other
    longest = max(height, width, other_height, other_width)
    return abs(width * other_height - height * other_width) > _ROUNDING * longest


def check_aspect(picture: tuple[int, int], mask: tuple[int, int], owner: str) -> None:
    """ValueError when a mask was drawn on another picture. picture, mask: height and width of each;
    owner: whose they are, for the message."""
    if differ_in_aspect(picture, mask):
        raise ValueError(
            f"mask and image of {owner} differ in aspect: the image is {picture[1]}x{picture[0]},"
            f" the mask {mask[1]}x{mask[0]}. Use a mask that was drawn on this image"
        )


def resized_masks(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """B H W as fp32 at a size of rows and columns: B h w."""
    single = masks[:, None].float()
    return F.interpolate(single, size=size, mode="bilinear", align_corners=False)[:, 0]


def check_mask_count(masks: int, pictures: int) -> None:
    """ValueError unless there is a mask for each of some pictures, or one for all."""
    if masks not in (1, pictures):
        raise ValueError(
            f"{pictures} pictures but {masks} masks: give one for each, or one for all"
        )


def check_target_region(region: Tensor, owner: str) -> None:
    """ValueError when a region that a user painted (B H W) is nowhere above one half, so that no
    place of the picture is in it. owner: whose it is, for the message."""
    what_to_do = "paint where it goes, or disconnect the mask"
    check_painted(region, 0.5, f"target region of {owner}", what_to_do)


def check_painted(mask: Tensor, least: float, owner: str, what_to_do: str) -> None:
    """ValueError when nothing of a mask is above `least`. To be called before anything else is
    looked at: Load Image gives an empty mask of another size until something is painted. Nobody
    knows here whether the mask was to be painted, or is what a node has found."""
    if float(mask.max()) <= least:
        raise ValueError(
            f"{owner} is empty: {what_to_do} (on a loaded picture: right-click its node, Open in"
            " MaskEditor; a mask that a node makes: look at what that has found)"
        )


def covers_border(mask: Tensor) -> bool:
    """Whether a mask (... H W in 0..1) has the picture's border but not all of the picture: as that
    of a cut-out has, which is what is transparent."""
    height, width = mask.shape[-2:]
    rim = max(1, round(_BORDER * min(height, width)))
    if min(height, width) <= 2 * rim:
        return False
    inside = mask[..., rim:-rim, rim:-rim].float()
    total = float(mask.float().sum(dtype=torch.float64))
    around = mask.numel() - inside.numel()
    of_border = (total - float(inside.sum(dtype=torch.float64))) / around
    return of_border >= _MOSTLY and float(inside.mean()) < _ALL


def _check_numbers(values: Tensor, what: str) -> None:
    if not bool(torch.isfinite(values).all()):
        raise ValueError(
            f"{what} has values in it that are no numbers (NaN or infinite): look at the node that"
            " made it"
        )
