"""Boxes in the forms of ComfyUI's types BBOX and BOUNDING_BOX."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...magic.boxes import Box


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
    one thing in every picture, or a list of them."""
    if isinstance(boxes, dict) or _is_bbox(boxes):
        boxes = [boxes]
    entries = list(boxes)
    is_for_all = all(isinstance(entry, dict) or _is_bbox(entry) for entry in entries)
    each = [entries] if is_for_all else [list(entry) for entry in entries]
    if len(each) not in (1, pictures):
        raise ValueError(
            f"boxes are for {len(each)} pictures, but {pictures} came: give boxes for one picture,"
            " or for each"
        )
    read = tuple(tuple(map(_read, of_picture)) for of_picture in each)
    return read * pictures if len(read) == 1 else read


def _is_bbox(value: Any) -> bool:
    return (
        isinstance(value, Sequence)
        and len(value) == 4
        and all(isinstance(number, (int, float)) for number in value)
    )


def _read(box: Any) -> Box:
    if _is_bbox(box):
        return Box(*box)
    return Box(
        box["x"],
        box["y"],
        box["width"],
        box["height"],
        str(box.get("label", "")),
        float(box.get("score", 1.0)),
    )
