"""What comes in from other nodes: checked before anything is done with it."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io

from ..host.page.notices import notice
from ..magic.pictures import check_painted, covers_border, mask_batch
from .declare import advanced, range_complaint


def check_ranges(node: type[io.ComfyNode], **values: Any) -> None:
    """ValueError when a number is none, or not in the range of its widget. For `execute`: what
    comes from other nodes is not looked at before."""
    if complaint := range_complaint(node, **values):
        raise ValueError(complaint)


def invert_input(what: str) -> io.Input:
    """Turns a mask round. what: the mask's input."""
    return advanced(
        io.Boolean.Input(
            "invert",
            default=False,
            optional=True,
            tooltip=(
                f"Turns {what} round. On for the MASK that Load Image gives of a cut-out: that is"
                " what is transparent, so everything but the thing."
            ),
        )
    )


def painted_mask(mask: Any, owner: str, what_to_do: str, invert: bool = False) -> torch.Tensor:
    """A mask as B H W, turned round if asked. ValueError when nothing is painted; a notice when it
    has the picture's border and not its middle. owner: whose mask, for both; what_to_do: when it is
    empty."""
    masks = mask_batch(mask, owner)
    check_painted(masks, 0.0, owner, what_to_do)
    masks = inverted(masks) if invert else masks
    warn_of_border(masks, owner)
    return masks


def inverted(masks: torch.Tensor) -> torch.Tensor:
    return 1 - masks.float().clamp(0, 1)


def warn_of_border(masks: torch.Tensor, owner: str) -> None:
    """A notice when masks have the picture's border and not its middle."""
    if covers_border(masks):
        notice(
            f"{owner} has the border of the picture and leaves out its middle. Of a cut-out Load"
            " Image gives what is transparent: turn on invert, or put Invert Mask before, if the"
            " thing itself is meant"
        )
