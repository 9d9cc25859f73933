"""A recorded layout as masks and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..pictures.captions import Lettering
from ..pictures.conversion import as_image, as_tensor
from ..pictures.palette import colour_name, paint
from .record import LayoutStep

_LINE = 14
"""Pixels from one line of a legend to the next."""
_LETTERS = 10
_MOST_LINES = 64
_SWATCH, _BESIDE_SWATCH = 10, 18
"""Pixels: side of the piece of colour before each phrase, and where the phrase begins."""


@dataclass(frozen=True)
class LayoutMasks:
    """phrases: for each phrase B H W; foreground: B H W. All 0 or 1."""

    phrases: tuple[Tensor, ...]
    foreground: Tensor


def layout_masks(step: LayoutStep, phrases: int, size: tuple[int, int]) -> LayoutMasks:
    """size: rows, columns of the picture. Edges are smoothed to the picture's resolution before
    they are cut."""

    def enlarge(mask: Tensor) -> Tensor:
        return (
            F.interpolate(mask[:, None].float(), size=size, mode="bicubic", align_corners=False)[
                :, 0
            ]
            >= 0.5
        ).float()

    concepts = torch.from_numpy(step.concepts)
    return LayoutMasks(
        tuple(enlarge(concepts == i) for i in range(phrases)),
        enlarge(torch.from_numpy(step.foreground)),
    )


def overlay(masks: LayoutMasks, phrases: Sequence[str], image: Tensor | None) -> tuple[Tensor, str]:
    """The regions in colour over the picture (or over the foreground in gray), with a legend below
    each; and the legend in words."""
    batch, height, width = masks.foreground.shape
    base = (
        masks.foreground[..., None].expand(-1, -1, -1, 3) * 0.35 + 0.25
        if image is None
        else image[:, ..., :3].expand(batch, -1, -1, -1)
    )
    pictures = base.clone().float().cpu()
    for i, mask in enumerate(masks.phrases):
        colours = paint(i, height, width).expand_as(pictures)
        pictures = torch.lerp(pictures, colours, 0.6 * mask[..., None])
    strip = _legend(phrases, width)
    words = ", ".join(f"{phrase}: {colour_name(i)}" for i, phrase in enumerate(phrases))
    return torch.cat([pictures, strip.expand(batch, -1, -1, -1)], dim=1), words


def _legend(phrases: Sequence[str], width: int) -> Tensor:  # 1 h W 3
    lettering = Lettering(_LETTERS, (0, 0, 0))
    lines = list(phrases[:_MOST_LINES])
    if len(phrases) > len(lines):
        lines.append(f"and {len(phrases) - len(lines)} more")
    picture = Image.new("RGB", (width, _LINE * len(lines) + 4), "white")
    for i, line in enumerate(lines):
        top = 3 + i * _LINE
        if i < _MOST_LINES:
            picture.paste(as_image(paint(i, _SWATCH, _SWATCH)), (4, top))
        text = lettering.wrap(line, max(1, width - _BESIDE_SWATCH), 1)
        lettering.write(picture, text, (_BESIDE_SWATCH, top - 2))
    return as_tensor(picture)
