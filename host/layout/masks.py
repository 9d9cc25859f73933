"""A recorded layout as masks and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

from ..pictures.captions import Lettering
from ..pictures.conversion import as_tensor
from ..pictures.palette import colour, colour_name
from .record import LayoutStep

_LINE = 14
"""Pixels from one line of a legend to the next."""
_LEGEND_LETTERS = Lettering(10, (0, 0, 0))


@dataclass(frozen=True)
class LayoutMasks:
    """phrases: for each phrase B H W; foreground: B H W. All 0 or 1."""

    phrases: tuple[Tensor, ...]
    foreground: Tensor


def layout_masks(step: LayoutStep, phrases: int, size: tuple[int, int]) -> LayoutMasks:
    """size: rows, columns of the picture. Edges are smoothed to the picture's resolution before
    they are cut."""

    def enlarged(mask: Tensor) -> Tensor:
        return (
            F.interpolate(mask[:, None].float(), size=size, mode="bicubic", align_corners=False)[
                :, 0
            ]
            >= 0.5
        ).float()

    concepts = torch.from_numpy(step.concepts)
    return LayoutMasks(
        tuple(enlarged(concepts == i) for i in range(phrases)),
        enlarged(torch.from_numpy(step.foreground)),
    )


def overlay(masks: LayoutMasks, phrases: Sequence[str], image: Tensor | None) -> tuple[Tensor, str]:
    """The regions in colour over the picture (or over the foreground in gray), with a legend below
    each; and the legend in words."""
    batch, _, width = masks.foreground.shape
    base = (
        masks.foreground[..., None].expand(-1, -1, -1, 3) * 0.35 + 0.25
        if image is None
        else image[:, ..., :3].expand(batch, -1, -1, -1)
    )
    painted = base.clone().float().cpu()
    for i, mask in enumerate(masks.phrases):
        paint = torch.tensor(colour(i)) / 255
        painted = torch.lerp(painted, paint.expand_as(painted), 0.6 * mask[..., None])
    strip = _legend(phrases, width)
    words = ", ".join(f"{phrase}: {colour_name(i)}" for i, phrase in enumerate(phrases))
    return torch.cat([painted, strip.expand(batch, -1, -1, -1)], dim=1), words


def _legend(phrases: Sequence[str], width: int) -> Tensor:  # 1 h W 3
    picture = Image.new("RGB", (width, _LINE * len(phrases) + 4), "white")
    draw = ImageDraw.Draw(picture)
    for i, phrase in enumerate(phrases):
        top = 3 + i * _LINE
        draw.rectangle((4, top, 13, top + 9), fill=colour(i))
        _LEGEND_LETTERS.write(picture, phrase, (18, top - 2))
    return as_tensor(picture)
