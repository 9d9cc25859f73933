"""From a picture and what is asked for (words, points, faces) to masks, boxes and a picture that
shows them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from ...magic.boxes import FACE_AREAS, Box, Point, choose
from ..faces.detection import find_faces
from ..layout.masks import PALETTE
from .detectors import Segmenter, TextDetector, as_pixels


@dataclass(frozen=True)
class Wanted:
    """What to find. target: 'text', 'points' or 'face'; which, index: as for `choose`; boxes: for
    each picture, the user's own."""

    target: str
    text: str = ""
    inside: tuple[Point, ...] = ()
    outside: tuple[Point, ...] = ()
    boxes: tuple[tuple[Box, ...], ...] = ()
    area: str = "face"
    which: str = "all"
    index: int = 0
    threshold: float = 0.3


@dataclass(frozen=True)
class Backends:
    """Names of the models, None where none is chosen: a SAM checkpoint, a Grounding DINO folder, a
    face detector."""

    segmenter: str | None = None
    detector: str | None = None
    faces: str | None = None


@dataclass(frozen=True)
class ConceptMasks:
    """masks: B H W, 0 or 1; boxes: for each picture."""

    masks: Tensor
    boxes: tuple[tuple[Box, ...], ...]


def concept_masks(images: Tensor, wanted: Wanted, backends: Backends) -> ConceptMasks:
    """Boxes first, then the shape in each: SAM's, or, without one, a rectangle (an ellipse for
    faces). images: B H W C in 0..1."""
    from comfy.utils import ProgressBar

    size = tuple(images.shape[1:3])
    boxes = [_inside(found, size, wanted) for found in _boxes(images, wanted, backends)]
    is_needed = any(boxes) or bool(wanted.inside)
    segmenter = Segmenter(backends.segmenter) if backends.segmenter and is_needed else None
    progress = ProgressBar(len(images))
    masks = []
    for image, found in zip(images, boxes, strict=True):
        masks.append(_mask(image, found, wanted, segmenter))
        progress.update(1)
    return ConceptMasks(torch.stack(masks), tuple(tuple(found) for found in boxes))


def _boxes(images: Tensor, wanted: Wanted, backends: Backends) -> list[list[Box]]:
    if wanted.target == "face":
        faces = find_faces(backends.faces or "", images, wanted.threshold)
        return [
            [
                face.expanded(*FACE_AREAS[wanted.area])
                for face in choose(found, wanted.which, wanted.index)
            ]
            for found in faces
        ]
    if wanted.target == "text":
        detector = TextDetector(backends.detector or "")
        return [
            choose(detector.find(image, wanted.text, wanted.threshold), wanted.which, wanted.index)
            for image in images
        ]
    return [list(found) for found in wanted.boxes]


def _inside(boxes: Sequence[Box], size: tuple[int, ...], wanted: Wanted) -> list[Box]:
    clipped = [(box, box.clipped((size[0], size[1]))) for box in boxes]
    for box, part in clipped:
        if part is None and wanted.target == "points":
            left, top, right, bottom = (round(number) for number in box.corners)
            raise ValueError(
                f"box {left},{top} to {right},{bottom} is outside the picture, which is"
                f" {size[1]}x{size[0]}"
            )
    return [part for _, part in clipped if part is not None]


def _mask(
    image: Tensor, boxes: Sequence[Box], wanted: Wanted, segmenter: Segmenter | None
) -> Tensor:
    mask = torch.zeros(image.shape[:2])
    if segmenter is None:
        for box in boxes:
            mask = torch.maximum(
                mask,
                box_shape(box, (image.shape[0], image.shape[1]), is_round=wanted.target == "face"),
            )
        return mask
    if not boxes and not wanted.inside:
        return mask
    segmenter.look_at(image)
    if wanted.inside:
        # A single box narrows the points down; several are things of their own.
        mask = segmenter.mask_of_points(
            wanted.inside, wanted.outside, boxes[0] if len(boxes) == 1 else None
        )
        boxes = boxes if len(boxes) > 1 else ()
    for box in boxes:
        mask = torch.maximum(mask, segmenter.mask_of_box(box))
    return mask


def box_shape(box: Box, size: tuple[int, int], *, is_round: bool) -> Tensor:
    """A box, or the ellipse in it, as a mask: H W, 0 or 1. A box thinner than a pixel still covers
    one."""
    rows, columns = (torch.arange(side) + 0.5 for side in size)
    left, top, right, bottom = box.corners
    x, y = (
        (columns - (left + right) / 2) / max((right - left) / 2, 0.5),
        (rows - (top + bottom) / 2) / max((bottom - top) / 2, 0.5),
    )
    inside = y[:, None] ** 2 + x**2 <= 1 if is_round else (y[:, None].abs() <= 1) & (x.abs() <= 1)
    return inside.float()


def as_host_boxes(boxes: Sequence[Sequence[Box]]) -> list[list[dict[str, Any]]]:
    """In the form of the host's BOUNDING_BOX type: for each picture a list."""
    return [
        [
            {
                "x": b.x,
                "y": b.y,
                "width": b.width,
                "height": b.height,
                "label": b.label,
                "score": b.score,
            }
            for b in found
        ]
        for found in boxes
    ]


def from_host_boxes(boxes: Any, pictures: int) -> tuple[tuple[Box, ...], ...]:
    """BOUNDING_BOX as it comes from the host's widget (one box), or its nodes (a list for all
    pictures, or a list for each)."""
    found = [boxes] if isinstance(boxes, dict) else list(boxes)
    each = [list(entry) for entry in found] if found and not isinstance(found[0], dict) else [found]
    if len(each) not in (1, pictures):
        raise ValueError(
            f"boxes are for {len(each)} pictures, but {pictures} came: give boxes for one picture,"
            " or for each"
        )
    read = tuple(
        tuple(
            Box(
                b["x"],
                b["y"],
                b["width"],
                b["height"],
                str(b.get("label", "")),
                float(b.get("score", 1.0)),
            )
            for b in entry
        )
        for entry in each
    )
    return read * pictures if len(read) == 1 else read


def overlay(images: Tensor, found: ConceptMasks) -> Tensor:
    """The masks in colour over the pictures, with their boxes and scores. B H W 3."""
    colour = PALETTE[0][1]
    painted = []
    for image, mask, boxes in zip(images, found.masks, found.boxes, strict=True):
        tinted = torch.lerp(
            image[..., :3].cpu().float(),
            (torch.tensor(colour) / 255).expand(*mask.shape, 3),
            0.55 * mask[..., None],
        )
        picture = Image.fromarray(as_pixels(tinted))
        draw, line = ImageDraw.Draw(picture), max(1, round(min(mask.shape) / 200))
        for box in boxes:
            left, top, right, bottom = box.corners
            draw.rectangle(
                (left, top, max(left, right - 1), max(top, bottom - 1)), outline=colour, width=line
            )
            if box.label and min(mask.shape) >= 64:
                draw.text(
                    (left + line + 2, top + line + 1),
                    f"{box.label} {box.score:.2f}",
                    fill="white",
                    stroke_width=1,
                    stroke_fill="black",
                )
        painted.append(
            torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
            .view(*mask.shape, 3)
            .float()
            / 255
        )
    return torch.stack(painted)
