"""The areas of a picture that are drawn anew, each by a text of its own: which text is for which
area, which concept for which text, and how an area goes back."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .boxes import Box, box_of_mask
from .mask_shapes import feather, grow
from .messages import shown
from .phrases import places_in_text, words_of
from .pictures import resized_masks
from .portrait_crop import Crop, cut, rim


def lines_of(text: str) -> list[str]:
    """The lines of a text that have something in them. ValueError when there is none."""
    lines = [stripped for line in text.splitlines() if (stripped := line.strip())]
    if not lines:
        raise ValueError(
            "text is empty: write what the areas show, one line for all of them or one for each,"
            " such as 'a woman wearing a hat'"
        )
    return lines


def names(text: str, phrase: str) -> bool:
    """Whether a text has a phrase in it."""
    return bool(places_in_text(words_of(phrase), text))


def texts_of_areas(lines: Sequence[str], areas: int, picture: int) -> list[str]:
    """The text of each area of a picture: one line is for all of them, several are for one each.

    picture: its number from 1, for the message. ValueError when there is another number of areas,
    of which nobody knows who is who; none at all are no fault.
    """
    if len(lines) == 1:
        return [lines[0]] * areas
    if areas not in (0, len(lines)):
        raise ValueError(
            f"text has {len(lines)} lines, but picture {picture} has {areas} areas: write one line"
            " for all areas, or one for each from left to right"
        )
    return list(lines[:areas])


def phrases_of_lines(lines: Sequence[str], phrases: Sequence[str]) -> list[list[int]]:
    """For each line the phrases that it names, by their indices. ValueError when it names none."""
    named = [[i for i, phrase in enumerate(phrases) if names(line, phrase)] for line in lines]
    for line, own in zip(lines, named, strict=True):
        if not own:
            raise ValueError(
                f"the line '{shown(line)}' of text names no phrase of the layout"
                f" ({', '.join(map(shown, phrases))}): write the phrase of the part that it is for"
                " into it"
            )
    return named


def rectangle(box: Box, size: tuple[int, int]) -> Tensor | None:
    """A box as a mask of `size` (rows, columns), H W of 0 and 1, one pixel at least; None when it
    is outside."""
    inside = box.clipped(size)
    if inside is None:
        return None
    mask = torch.zeros(size)
    left, top, right, bottom = inside.corners
    rows, columns = (
        slice(min(int(first), length - 1), max(round(last), min(int(first), length - 1) + 1))
        for first, last, length in ((top, bottom, size[0]), (left, right, size[1]))
    )
    mask[rows, columns] = 1
    return mask


def soft_area(mask: Tensor, crop: Crop, share: float) -> Tensor:
    """What of a cut-out goes back: 1 on the area, falling to 0 outside of it, and to 0 where the
    cut-out ends inside the picture.

    mask: H W in 0..1, in the picture; share: width of the soft edge, as a share of the cut-out's
    shorter side. -> 1 h w, exactly 0 from two and a half widths on.
    """
    inside = (cut(mask[None, None].float(), crop.box)[0] > 0.5).float()
    pixels = round(share * min(inside.shape[-2:]))
    if not pixels:
        return inside
    return feather(grow(inside, pixels), pixels) * rim(crop, share)


def target_in(region: Tensor, picture: int, size: tuple[int, int], box: Box) -> Tensor | None:
    """What a region painted on the whole picture is in a cut-out: 1 h w, None when it is not there.

    region: B H W of any size, one for all or one for each picture; size: rows and columns of the
    pictures.
    """
    own = region[picture if len(region) > 1 else 0]
    part: Tensor = cut(resized_masks(own[None], size)[None], box)[0]
    return None if box_of_mask(part[0]) is None else part
