"""After generation: restored faces and more pixels."""

from __future__ import annotations

import logging
from typing import Any

import torch
from comfy_api.latest import io

from ..host.faces.restoration import SMALLEST_FACE, on_device, restore_face, upscale
from ..host.pictures.host_boxes import from_host_boxes
from ..host.pictures.mask_parts import boxes_of_parts
from ..magic.boxes import Box
from ..magic.pictures import check_aspect, check_mask_count, mask_batch, picture_batch
from .declare import Boxes, advanced, schema
from .inputs import Node, check_ranges, invert_input, inverted, warn_of_border


class MagicPortraitRestore(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MagicPortraitRestore",
            display_name="Portrait Restore",
            category="MagicPortrait/restore",
            description=(
                "Restores faces with GFPGAN, RestoreFormer or (with spandrel_extra_arches of"
                " requirements-optional.txt installed) CodeFormer, and optionally upscales the"
                " whole picture first. Load the models with Load Upscale Model."
            ),
            search_aliases=[
                "face",
                "gfpgan",
                "codeformer",
                "restoreformer",
                "face restore",
                "face fix",
                "upscale",
            ],
            inputs=[
                io.Image.Input("image", tooltip="The pictures."),
                io.UpscaleModel.Input(
                    "face_model", tooltip="A face restoration model, from Load Upscale Model."
                ),
                io.Mask.Input(
                    "faces",
                    optional=True,
                    tooltip=(
                        "Where the faces are: one mask a picture, or one for all. Separate areas"
                        " are separate faces."
                    ),
                ),
                io.MultiType.Input(
                    "boxes",
                    [io.BBOX, Boxes],
                    optional=True,
                    tooltip=(
                        "Instead of a mask, or beside one: the faces' boxes, from Concept Mask or"
                        " another detector. A single x, y, width and height (type BBOX) holds for"
                        " every picture."
                    ),
                ),
                io.UpscaleModel.Input(
                    "upscale_model",
                    optional=True,
                    tooltip=(
                        "Enlarges the whole picture before the faces are restored: sharper than"
                        " afterwards."
                    ),
                ),
                io.Float.Input(
                    "strength",
                    default=0.8,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip=(
                        "How much of the restored face shows: 0 none of it, 1 all. Lower keeps more"
                        " likeness."
                    ),
                ),
                io.Combo.Input(
                    "on_no_face",
                    options=["skip", "error"],
                    tooltip=(
                        "A picture without a face: pass it on (only upscaled), or stop with a"
                        " message."
                    ),
                ),
                advanced(
                    io.Float.Input(
                        "margin",
                        default=1.6,
                        min=1.0,
                        max=4.0,
                        step=0.05,
                        tooltip=(
                            "Side of the square that the model sees, in sides of the face's box."
                            " Higher: more of the head, fewer pixels for the face. These models"
                            " were trained on whole heads."
                        ),
                    )
                ),
                advanced(
                    io.Float.Input(
                        "feather",
                        default=0.1,
                        min=0.0,
                        max=0.5,
                        step=0.01,
                        tooltip=(
                            "Width of the soft edge, as a share of the pasted square. Wider hides"
                            " the seam and shows less of the restored face at its rim. 0: a hard"
                            " edge."
                        ),
                    )
                ),
                invert_input("the mask of faces"),
            ],
            outputs=[
                io.Image.Output(display_name="IMAGE", tooltip="The pictures with restored faces.")
            ],
        )

    @classmethod
    def execute(
        cls,
        image: torch.Tensor,
        face_model: Any,
        strength: float,
        on_no_face: str,
        margin: float,
        feather: float,
        faces: torch.Tensor | None = None,
        boxes: Any = None,
        upscale_model: Any = None,
        invert: bool = False,
    ) -> io.NodeOutput:
        import comfy.utils

        check_ranges(cls, strength=strength, margin=margin, feather=feather)
        image = picture_batch(image, "image")
        if faces is None and boxes is None:
            raise ValueError("no faces given: connect a mask of the faces, or boxes")
        masks = None if faces is None else mask_batch(faces, "the mask of faces")
        # An empty one stays empty: it is not what somebody painted.
        if masks is not None and invert and bool(masks.any()):
            masks = inverted(masks)
        places = _boxes(image, masks, boxes)
        if on_no_face == "error" and [] in places:
            raise ValueError(
                f"picture {places.index([]) + 1} has no face in its mask or boxes: give one, or set"
                " on_no_face to skip"
            )
        bar = comfy.utils.ProgressBar(
            sum(map(len, places)) + len(image) * (upscale_model is not None)
        )
        pictures = [picture.movedim(-1, 0)[None, :3].float() for picture in image]
        factor = 1.0
        if upscale_model is not None:
            factor = float(upscale_model.scale)
            for i, picture in enumerate(pictures):
                pictures[i] = upscale(picture, upscale_model)
                bar.update(1)
        with on_device(face_model) as model:
            for i, of_picture in enumerate(places):
                if not of_picture:
                    logging.warning(
                        "MagicPortrait: picture %d has no face in its mask or boxes: not restored",
                        i + 1,
                    )
                for box in of_picture:
                    pictures[i] = restore_face(
                        pictures[i], box.scaled(factor), model, margin, strength, feather
                    )
                    bar.update(1)
        return io.NodeOutput(torch.cat(pictures).movedim(1, -1).cpu())


def _boxes(image: torch.Tensor, masks: torch.Tensor | None, boxes: Any) -> list[list[Box]]:
    """The faces of each picture: those of the masks, then the boxes."""
    size = (image.shape[1], image.shape[2])
    places: list[list[Box]] = [[] for _ in image]
    if masks is not None:
        check_mask_count(len(masks), len(image))
        # One that is empty, as Load Image gives it unpainted, has a size of its own.
        if bool((masks > 0.5).any()):
            check_aspect(size, (masks.shape[1], masks.shape[2]), "Portrait Restore")
        warn_of_border(masks, "the mask of faces")
        factor = size[1] / masks.shape[2]
        of_masks = [
            [box.scaled(factor) for box in boxes_of_parts(mask, SMALLEST_FACE)] for mask in masks
        ]
        places = [list(of_masks[i if len(masks) > 1 else 0]) for i in range(len(image))]
    if boxes is not None:
        for of_picture, more in zip(places, from_host_boxes(boxes, len(image)), strict=True):
            of_picture += [part for box in more if (part := box.clipped(size))]
    return places
