"""From a picture and what is asked for (words, points, faces) to masks, boxes and a picture that
shows them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import ImageDraw
from torch import Tensor

from ...magic.boxes import FACE_AREAS, Box, Point, choose
from ..faces.detection import find_faces
from ..pictures.captions import Lettering
from ..pictures.conversion import as_image, as_tensor
from ..pictures.palette import colour
from .grounding_dino import TextDetector
from .sam import Segmenter

_SMALLEST_LABELLED = 64
"""Pixels on the shorter side below which boxes are drawn without their labels."""
_LETTERS = 10


@dataclass(frozen=True)
class MaskRequest:
    """What to mask.

    target: 'text', 'points' or 'face'. text: for text, what to mask, in words. inside, outside: for
    points, places in the thing and places that are not it. boxes: for points, the user's own, for
    each picture. area: for face, a name of FACE_AREAS. which, index: which of several finds, as for
    `choose`. threshold: how sure a find must be, 0..1.
    """

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
    """The models to use, by name, None where none is chosen. segmenter: a SAM checkpoint, for
    shapes; detector: a Grounding DINO folder, for words; faces: a face detector."""

    segmenter: str | None = None
    detector: str | None = None
    faces: str | None = None


@dataclass(frozen=True)
class ConceptMasks:
    """What was asked for. masks: B H W, 0 or 1; boxes: of each picture, inside of it."""

    masks: Tensor
    boxes: tuple[tuple[Box, ...], ...]


def concept_masks(images: Tensor, request: MaskRequest, backends: Backends) -> ConceptMasks:
    """Boxes first, then the shape in each: SAM's, or, without one, a rectangle (an ellipse for
    faces). images: B H W C in 0..1."""
    from comfy.utils import ProgressBar

    size = (images.shape[1], images.shape[2])
    boxes = [_inside(of_picture, size, request) for of_picture in _boxes(images, request, backends)]
    is_needed = any(boxes) or bool(request.inside)
    segmenter = Segmenter(backends.segmenter) if backends.segmenter and is_needed else None
    progress = ProgressBar(len(images))
    masks = []
    for image, of_picture in zip(images, boxes, strict=True):
        masks.append(_mask(image, of_picture, request, segmenter))
        progress.update(1)
    return ConceptMasks(torch.stack(masks), tuple(map(tuple, boxes)))


def _boxes(images: Tensor, request: MaskRequest, backends: Backends) -> list[list[Box]]:
    if request.target == "points":
        return [list(of_picture) for of_picture in request.boxes]
    if request.target == "face":
        growth = FACE_AREAS[request.area]
        finds = [
            [face.expanded(*growth) for face in faces]
            for faces in find_faces(backends.faces or "", images, request.threshold)
        ]
    else:
        detector = TextDetector(backends.detector or "")
        finds = [detector.find(image, request.text, request.threshold) for image in images]
    return [choose(of_picture, request.which, request.index) for of_picture in finds]


def _inside(boxes: Sequence[Box], size: tuple[int, int], request: MaskRequest) -> list[Box]:
    pairs = [(box, box.clipped(size)) for box in boxes]
    for box, part in pairs:
        if part is None and request.target == "points":
            left, top, right, bottom = box.corners
            raise ValueError(
                f"box {left:g},{top:g} to {right:g},{bottom:g} is outside the picture, which is"
                f" {size[1]}x{size[0]}"
            )
    return [part for _, part in pairs if part is not None]


def _mask(
    image: Tensor, boxes: Sequence[Box], request: MaskRequest, segmenter: Segmenter | None
) -> Tensor:
    size = (image.shape[0], image.shape[1])
    mask = torch.zeros(size)
    if segmenter is None:
        is_round = request.target == "face"
        for box in boxes:
            mask = torch.maximum(mask, box_shape(box, size, is_round=is_round))
        return mask
    if not boxes and not request.inside:
        return mask
    segmenter.look_at(image)
    if request.inside:
        # A single box narrows the points down; several are things of their own.
        mask = segmenter.mask_of_points(
            request.inside, request.outside, boxes[0] if len(boxes) == 1 else None
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


def overlay(images: Tensor, result: ConceptMasks) -> Tensor:
    """The masks in colour over the pictures, with their boxes and scores. B H W 3."""
    paint, lettering = colour(0), Lettering(_LETTERS, (255, 255, 255), outline=(0, 0, 0))
    pictures = []
    for image, mask, boxes in zip(images, result.masks, result.boxes, strict=True):
        blend = torch.lerp(
            image[..., :3].cpu().float(),
            (torch.tensor(paint) / 255).expand(*mask.shape, 3),
            0.55 * mask[..., None],
        )
        picture = as_image(blend)
        draw, line = ImageDraw.Draw(picture), max(1, round(min(mask.shape) / 200))
        for box in boxes:
            left, top, right, bottom = box.corners
            draw.rectangle(
                (left, top, max(left, right - 1), max(top, bottom - 1)), outline=paint, width=line
            )
            if box.label and min(mask.shape) >= _SMALLEST_LABELLED:
                x, y = left + line + 2, top + line + 1
                room = max(1, round(picture.width - x))
                label = lettering.wrap(f"{box.label} {box.score:.2f}", room, 1)
                lettering.write(picture, label, (x, y))
        pictures.append(as_tensor(picture))
    return torch.cat(pictures)
