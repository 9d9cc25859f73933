"""What comes in from other nodes: checked before anything is done with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from comfy_api.latest import io

from ..host.page.notices import notice
from ..magic.pictures import check_painted, covers_border, mask_batch, picture_batch
from .declare import advanced, range_complaint, span_complaint


def refuse(complaint: str | None) -> None:
    """ValueError with a complaint of validate_inputs, if there is one. For `execute`: what comes
    from other nodes is not looked at before."""
    if complaint is not None:
        raise ValueError(complaint)


def check_ranges(node: type[io.ComfyNode], **values: Any) -> None:
    """ValueError when a number is none, or not in the range of its widget. For `execute`, as
    `refuse`."""
    missing = next((name for name, value in values.items() if value is None), None)
    refuse(f"{missing} is empty, a number is expected" if missing else None)
    refuse(range_complaint(node, **values))


def check_texts(**texts: Any) -> None:
    """ValueError when one is no text, or has half a letter in it, which no tokenizer, font or file
    name takes. For `execute`, as `refuse`."""
    for name, text in texts.items():
        if not isinstance(text, str):
            raise ValueError(f"{name} is {text!r:.40}, a text is expected")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"{name} has half a letter in it, {text[error.start]!r} at place"
                f" {error.start + 1}, whole ones are expected: type that place anew"
            ) from error


def check_span(node: type[io.ComfyNode], start: float, end: float) -> None:
    """ValueError when these are no two shares of sampling, one after the other."""
    check_ranges(node, start=start, end=end)
    refuse(span_complaint(start, end))


def pictures_of(image: Any, latent: torch.Tensor, what: str) -> torch.Tensor:
    """The decoded pictures of a sampled latent, or one for all: B H W 3. ValueError for another
    number of them."""
    pictures = picture_batch(image, what)
    if len(pictures) not in (1, len(latent)):
        raise ValueError(
            f"{what} has {len(pictures)} pictures, but the latent {len(latent)}: connect the"
            " decoded samples"
        )
    return pictures[..., :3]


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
    if invert:
        masks = inverted(masks)
        check_painted(masks, 0.0, f"{owner}, turned round,", "turn off invert, or paint less")
    warn_of_border(masks, owner)
    return masks


def inverted(masks: torch.Tensor) -> torch.Tensor:
    return 1 - masks.float().clamp(0, 1)


def warn_of_border(masks: torch.Tensor | Sequence[torch.Tensor], owner: str) -> None:
    """A notice when masks have the picture's border and not its middle. masks: B H W, or H W each
    of its own size, of which one is enough."""
    parts = [masks] if isinstance(masks, torch.Tensor) else masks
    if any(map(covers_border, parts)):
        notice(
            f"{owner} has the border of the picture and leaves out its middle. Of a cut-out Load"
            " Image gives what is transparent: turn on invert, or put Invert Mask before, if the"
            " thing itself is meant"
        )
