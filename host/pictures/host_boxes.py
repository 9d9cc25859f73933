"""Boxes in the forms of ComfyUI's types BBOX and BOUNDING_BOX."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ...magic.boxes import Box

_EXPECTATION = "expected boxes with the numbers x, y, width and height in pixels"
_MOST_LETTERS = 80
"""Letters of a box that a message has at most."""
_LARGE = 2**53


def as_host_boxes(boxes: Sequence[Sequence[Box]]) -> list[list[dict[str, Any]]]:
    """BOUNDING_BOX: for each picture a list."""
    return [
        [
            {
                "x": box.x,
                "y": box.y,
                "width": box.width,
                "height": box.height,
                "label": box.label,
                "score": box.score,
            }
            for box in of_picture
        ]
        for of_picture in boxes
    ]


def from_host_boxes(boxes: Any, pictures: int) -> tuple[tuple[Box, ...], ...]:
    """The boxes of each picture. boxes: BOUNDING_BOX as it comes from the host's widget (one box)
    or its nodes (a list for all pictures, or a list for each); or BBOX, (x, y, width, height) of
    one thing in every picture, or a list of them. ValueError for anything else."""
    if isinstance(boxes, dict) or _is_bbox(boxes):
        boxes = [boxes]
    if not _is_list(boxes):
        raise ValueError(f"boxes is a {type(boxes).__name__}: {_EXPECTATION}")
    is_for_all = all(isinstance(entry, dict) or _is_bbox(entry) for entry in boxes)
    each = [boxes] if is_for_all else [entry if _is_list(entry) else [entry] for entry in boxes]
    if len(each) not in (1, pictures):
        raise ValueError(
            f"boxes are for {len(each)} pictures, but {pictures} came: give boxes for one picture,"
            " or for each"
        )
    read = tuple(tuple(map(_read, of_picture)) for of_picture in each)
    return read * pictures if len(read) == 1 else read


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _is_bbox(value: Any) -> bool:
    return (
        _is_list(value)
        and len(value) == 4
        and all(isinstance(number, (int, float)) for number in value)
    )


def _read(box: Any) -> Box:
    if isinstance(box, dict):
        sides = [_number(box.get(side)) for side in ("x", "y", "width", "height")]
        score = _number(box.get("score"))
        label = str(box.get("label") or "")
    else:
        sides = [_number(side) for side in box] if _is_bbox(box) else []
        score, label = math.nan, ""
    if len(sides) != 4 or not all(map(math.isfinite, sides)):
        raise ValueError(f"boxes: {repr(box)[:_MOST_LETTERS]} is no box: {_EXPECTATION}")
    x, y, width, height = sides
    return Box(x, y, width, height, label, score if math.isfinite(score) else 1.0)


def _number(value: Any) -> float:
    """Not-a-number for what is none."""
    try:
        return value if isinstance(value, int) and abs(value) < _LARGE else float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan
