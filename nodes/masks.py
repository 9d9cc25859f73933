"""Masks of concepts from words, points and faces, and their refinement."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io

from ..host.faces.detection import face_models, missing_message
from ..host.models import folders as model_folders
from ..host.models.folders import DETECTORS, SAMS
from ..host.pictures import mask_parts
from ..host.pictures.host_boxes import as_host_boxes, from_host_boxes
from ..host.segmentation.concept_masks import (
    Backends,
    ConceptMasks,
    MaskRequest,
    concept_masks,
    overlay,
)
from ..host.segmentation.grounding_dino import detector_names, named_things
from ..magic.boxes import CHOICES, FACE_AREAS, parse_boxes, parse_points
from ..magic.mask_shapes import feather, grow, threshold
from ..magic.messages import shown
from ..magic.phrases import numbered
from ..magic.pictures import mask_batch, picture_batch
from .declare import (
    Boxes,
    advanced,
    choice_complaint,
    link_only,
    schema,
)
from .inputs import Node, check_ranges, check_texts, refuse

NO_SAM = "none (rectangles and ellipses)"
NO_MODEL = "none"
TARGETS = ("text", "points", "face")


class MagicConceptMask(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MagicConceptMask",
            display_name="Concept Mask",
            category="MagicPortrait/masks",
            description=(
                "Masks a thing in a picture: named in words (Grounding DINO and SAM), pointed at"
                " (SAM), or a face. Uses model files from your own model folders; nothing is"
                " downloaded."
            ),
            search_aliases=[
                "segment anything",
                "sam",
                "grounding dino",
                "face mask",
                "text to mask",
                "mask",
                "segment",
                "segmentation",
            ],
            inputs=[
                io.Image.Input(
                    "image",
                    tooltip="The pictures to mask. Each picture of a batch gets its own mask.",
                ),
                io.Combo.Input(
                    "target",
                    options=list(TARGETS),
                    default="text",
                    tooltip="How the thing is named: by words, by points or boxes, or as a face.",
                ),
                io.String.Input(
                    "text",
                    default="hat",
                    tooltip=(
                        "For text: what to mask. Several things separated by commas share the mask."
                    ),
                ),
                io.Combo.Input(
                    "sam",
                    options=[*model_folders.names(SAMS), NO_SAM],
                    tooltip=(
                        "The SAM checkpoint that finds the exact shape, from models/sams. Without"
                        " one, boxes become the mask."
                    ),
                ),
                io.Combo.Input(
                    "detector",
                    options=[*detector_names(), NO_MODEL],
                    tooltip=(
                        "For text: the Grounding DINO folder that finds words, from"
                        " models/grounding-dino."
                    ),
                ),
                io.Combo.Input(
                    "face_model",
                    options=[*face_models(), NO_MODEL],
                    tooltip=(
                        "For face: ComfyUI's MediaPipe file from models/detection, or a YuNet file"
                        " from models/face_detection."
                    ),
                ),
                io.Combo.Input(
                    "face_area",
                    options=list(FACE_AREAS),
                    default="face",
                    tooltip=(
                        "For face: from brows to chin, with the hair, or the whole head with the"
                        " neck's beginning."
                    ),
                ),
                io.Combo.Input(
                    "choose",
                    options=list(CHOICES),
                    default="all",
                    tooltip=(
                        "Which of several finds: all, the largest, or one by its index, counted"
                        " from left to right."
                    ),
                ),
                io.Int.Input(
                    "index", default=0, min=0, max=1000, tooltip="For index: 0 is the leftmost."
                ),
                io.Float.Input(
                    "threshold",
                    default=0.3,
                    min=0.01,
                    max=0.99,
                    step=0.01,
                    tooltip=(
                        "How sure a find must be: lower finds more, higher keeps only clear finds."
                    ),
                ),
                io.Combo.Input(
                    "if_nothing",
                    options=["error", "empty mask"],
                    default="error",
                    tooltip=(
                        "What happens when a picture does not show the thing: stop with a message,"
                        " or go on with an empty mask."
                    ),
                ),
                advanced(
                    io.String.Input(
                        "points",
                        default="",
                        tooltip=(
                            "For points: places inside the thing, in pixels, such as '120,80;"
                            " 64,200', or JSON from a points editor."
                        ),
                    )
                ),
                advanced(
                    io.String.Input(
                        "not_points",
                        default="",
                        tooltip=(
                            "For points: places outside the thing, in the same form, where the mask"
                            " took too much. They count beside points only."
                        ),
                    )
                ),
                advanced(
                    io.String.Input(
                        "box",
                        default="",
                        tooltip=(
                            "For points: boxes around the thing as x,y,width,height in pixels;"
                            " several with ';'."
                        ),
                    )
                ),
                link_only(
                    Boxes.Input(
                        "boxes",
                        optional=True,
                        tooltip=(
                            "For points: boxes from ComfyUI's bounding box nodes, beside or instead"
                            " of typed ones."
                        ),
                    )
                ),
            ],
            outputs=[
                io.Mask.Output(
                    display_name="mask", tooltip="The thing, one mask for each picture."
                ),
                Boxes.Output(
                    display_name="boxes",
                    tooltip=(
                        "The boxes that were found, of ComfyUI's type BOUNDING_BOX: for Portrait"
                        " Restore, Portrait Metrics and ComfyUI's own bounding box nodes."
                    ),
                ),
                io.Image.Output(
                    display_name="overlay", tooltip="The mask and the boxes over the picture."
                ),
            ],
        )

    @classmethod
    def validate_inputs(
        cls, sam: object = None, detector: object = None, face_model: object = None
    ) -> bool:
        # The host would refuse a graph for a model that its target has no use for.
        return True

    @classmethod
    def execute(
        cls,
        image: torch.Tensor,
        target: str,
        text: str,
        sam: str,
        detector: str,
        face_model: str,
        face_area: str,
        choose: str,
        index: int,
        threshold: float,
        if_nothing: str,
        points: str,
        not_points: str,
        box: str,
        boxes: Any = None,
    ) -> io.NodeOutput:
        check_ranges(cls, index=index, threshold=threshold)
        check_texts(text=text, points=points, not_points=not_points, box=box)
        image = picture_batch(image, "image")
        refuse(_complaint(target, text, sam, detector, face_model, points, not_points, box))
        typed = tuple(parse_boxes(box))
        linked = from_host_boxes(boxes, len(image)) if boxes is not None else ((),) * len(image)
        inside = tuple(parse_points(points))
        request = MaskRequest(
            target=target,
            text=text,
            inside=inside if target == "points" else (),
            outside=tuple(parse_points(not_points)),
            boxes=tuple((*typed, *more) for more in linked),
            area=face_area,
            which=choose,
            index=index,
            threshold=threshold,
        )
        if target == "points" and not inside and not any(request.boxes):
            raise ValueError(
                "points: nothing is pointed at: type points or a box, or connect boxes"
            )
        backends = Backends(
            *(None if name in (NO_SAM, NO_MODEL) else name for name in (sam, detector, face_model))
        )
        result = concept_masks(image, request, backends)
        if if_nothing == "error":
            cls._refuse_empty(result, request)
        return io.NodeOutput(result.masks, as_host_boxes(result.boxes), overlay(image, result))

    @staticmethod
    def _refuse_empty(result: ConceptMasks, request: MaskRequest) -> None:
        empty = [i for i, mask in enumerate(result.masks) if not mask.any()]
        if empty:
            what = {"text": f"'{request.text}'", "face": "a face"}.get(
                request.target, "anything at these points"
            )
            raise ValueError(
                f"picture {empty[0] + 1} of {len(result.masks)} does not show {what} at threshold"
                f" {request.threshold:g}: lower it, use other words, or set if_nothing to 'empty"
                " mask'"
            )


def _complaint(
    target: str,
    text: str,
    sam: str,
    detector: str,
    face_model: str,
    points: str,
    not_points: str,
    box: str,
) -> str | None:
    """What is wrong with what is asked for; None when nothing is. Models that the target does not
    use are not asked for."""
    if complaint := choice_complaint("target", target, TARGETS):
        return complaint
    if sam not in (NO_SAM, *model_folders.names(SAMS)):
        return f"sam: {model_folders.missing_message(SAMS, str(sam))}, or choose '{NO_SAM}'"
    if target == "text" and (counted := [one for one in named_things(text) if numbered(one)]):
        words, _ = numbered(counted[0]) or ("", 0)
        return (
            f"text: '{shown(counted[0])}' has a number, which counts words of a prompt and not what"
            f" is in a picture: write '{shown(words)}', and set choose to index"
        )
    if target == "text" and detector not in detector_names():
        name = "" if detector == NO_MODEL else str(detector)
        return f"detector: {model_folders.missing_message(DETECTORS, name)}"
    if target == "text" and not named_things(text):
        return "text is empty: write what to mask, such as 'hat'"
    if target == "face" and face_model not in face_models():
        return f"face_model: {missing_message('' if face_model == NO_MODEL else str(face_model))}"
    try:
        inside = parse_points(points)
        parse_points(not_points)
        parse_boxes(box)
    except ValueError as error:
        return str(error)
    if target == "points" and sam == NO_SAM and inside:
        return f"sam: points need SAM: {model_folders.missing_message(SAMS)}"
    return None


class MagicMaskRefine(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MagicMaskRefine",
            display_name="Refine Mask",
            category="MagicPortrait/masks",
            description=(
                "Cuts, cleans, grows and softens masks, in this order: threshold, largest part,"
                " holes, grow, feather."
            ),
            search_aliases=[
                "mask",
                "grow mask",
                "feather mask",
                "fill holes",
                "blur mask",
                "erode",
                "dilate",
                "shrink mask",
            ],
            inputs=[
                io.Mask.Input("mask", tooltip="Any masks; each of a batch by itself."),
                io.Float.Input(
                    "threshold",
                    default=0.5,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip=(
                        "Makes the mask hard: what is at least this becomes 1, the rest 0. Higher:"
                        " a smaller mask. 0 leaves it soft."
                    ),
                ),
                io.Boolean.Input(
                    "largest_part",
                    default=False,
                    tooltip="Keeps only the largest connected part: drops specks.",
                ),
                io.Boolean.Input(
                    "fill_holes", default=True, tooltip="Fills what the mask encloses on all sides."
                ),
                io.Int.Input(
                    "grow",
                    default=0,
                    min=-1024,
                    max=1024,
                    tooltip="Grows the mask by so many pixels to all sides; negative shrinks it.",
                ),
                io.Float.Input(
                    "feather",
                    default=0.0,
                    min=0.0,
                    max=256.0,
                    step=0.5,
                    tooltip=(
                        "Softens the edge over about so many pixels to both sides. 0 leaves it"
                        " hard."
                    ),
                ),
                advanced(
                    io.Boolean.Input(
                        "invert",
                        default=False,
                        tooltip="On: the mask covers everything but the thing, and not the thing.",
                    )
                ),
            ],
            outputs=[io.Mask.Output(display_name="mask", tooltip="The refined masks.")],
        )

    @classmethod
    def execute(
        cls,
        mask: torch.Tensor,
        threshold: float,
        largest_part: bool,
        fill_holes: bool,
        grow: int,
        feather: float,
        invert: bool,
    ) -> io.NodeOutput:
        check_ranges(cls, threshold=threshold, grow=grow, feather=feather)
        return io.NodeOutput(
            refined(mask, threshold, largest_part, fill_holes, grow, feather, invert)
        )


def refined(
    mask: torch.Tensor,
    level: float,
    largest_part: bool,
    fill_holes: bool,
    pixels: int,
    softness: float,
    invert: bool,
) -> torch.Tensor:
    mask = mask_batch(mask).float().clamp(0, 1)
    if level > 0:
        mask = threshold(mask, level)
    if largest_part:
        mask = mask_parts.largest_part(mask)
    if fill_holes:
        mask = mask_parts.fill_holes(mask)
    mask = feather(grow(mask, pixels), softness)
    return 1 - mask if invert else mask
