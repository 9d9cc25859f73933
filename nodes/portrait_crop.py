"""Cut a face out, work on it at the size the model likes, and put it back: for portraits whose face
is small."""

from __future__ import annotations

import torch
from comfy_api.latest import io

from ..host.page.notices import notice
from ..magic.pictures import (
    check_aspect,
    check_size,
    differ_in_aspect,
    mask_batch,
    picture_batch,
    resized_masks,
)
from ..magic.portrait_crop import Crop, crop_box, cut, paste, resize, working_size
from ..magic.registration import Fit, fitted
from .declare import CropType, advanced, schema
from .inputs import Node, check_ranges, invert_input, inverted, painted_mask

_SEEN = 2 / 255
"""Difference of a colour from which a place is another one."""
_WHAT_TO_CUT = "paint over the part of the picture to cut out, or connect a face mask"


class MagicPortraitCrop(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MagicPortraitCrop",
            display_name="Portrait Crop",
            category="MagicPortrait/image",
            description=(
                "Cuts the box of a mask out of a picture and brings it to a working size. Portrait"
                " Paste puts it back."
            ),
            search_aliases=[
                "crop face",
                "face crop",
                "crop by mask",
                "face detailer",
                "inpaint crop",
                "small face",
            ],
            inputs=[
                io.Image.Input(
                    "image",
                    tooltip=(
                        "The whole picture. A batch is cut at one place: the box of all masks"
                        " together."
                    ),
                ),
                io.Mask.Input("mask", tooltip="What to cut out, such as the face."),
                io.Float.Input(
                    "margin",
                    default=0.3,
                    min=0.0,
                    max=3.0,
                    step=0.05,
                    tooltip=(
                        "Room around the mask's box, as a share of its longer side. More context,"
                        " fewer pixels for the face."
                    ),
                ),
                io.Int.Input(
                    "size",
                    default=512,
                    min=64,
                    max=4096,
                    step=8,
                    tooltip=(
                        "About how many pixels a side the cut-out gets: what the model was trained"
                        " at (512; SDXL, Flux 1024; toy 128 or 256)."
                    ),
                ),
                advanced(
                    io.Boolean.Input(
                        "square",
                        default=True,
                        tooltip=(
                            "Grows the box to a square as far as the picture allows. Off: the"
                            " mask's box and its margin as they are."
                        ),
                    )
                ),
                invert_input("the mask"),
            ],
            outputs=[
                io.Image.Output(
                    display_name="IMAGE",
                    tooltip="The cut-out at working size; both sides are multiples of 8.",
                ),
                io.Mask.Output(display_name="MASK", tooltip="The mask in the cut-out."),
                CropType.Output(
                    display_name="crop", tooltip="Where it was cut out: for Portrait Paste."
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        image: torch.Tensor,
        mask: torch.Tensor,
        margin: float,
        size: int,
        square: bool,
        invert: bool = False,
    ) -> io.NodeOutput:
        check_ranges(cls, margin=margin, size=size)
        image = picture_batch(image, "image")
        masks = painted_mask(mask, "the mask", _WHAT_TO_CUT, invert).float().cpu()
        picture: tuple[int, int] = (image.shape[1], image.shape[2])
        check_aspect(picture, (masks.shape[1], masks.shape[2]), "Portrait Crop")
        masks = resized_masks(masks, picture)
        box = crop_box(masks.amax(0), margin, 1.0 if square else None)
        target = working_size(box, size)
        part = cut(image.movedim(-1, 1), box).movedim(1, -1)
        shape = cut(masks[:, None], box).movedim(1, -1)
        return io.NodeOutput(
            resize(part, target), resize(shape, target)[..., 0], Crop(box, picture)
        )


class MagicPortraitPaste(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MagicPortraitPaste",
            display_name="Portrait Paste",
            category="MagicPortrait/image",
            description=(
                "Puts what was cut out with Portrait Crop, and changed, back into the picture with"
                " a soft edge."
            ),
            search_aliases=["uncrop", "paste face", "inpaint stitch", "stitch"],
            inputs=[
                io.Image.Input("image", tooltip="The whole picture that was cut."),
                io.Image.Input(
                    "patch", tooltip="The changed cut-out, at any size of the same aspect."
                ),
                CropType.Input("crop", tooltip="Where it was cut out, from Portrait Crop."),
                io.Float.Input(
                    "feather",
                    default=0.1,
                    min=0.0,
                    max=0.5,
                    step=0.01,
                    tooltip=(
                        "How wide the soft edge is, as a share of the shorter side. Wider hides the"
                        " seam and shows less of the patch at its rim. 0: a hard edge."
                    ),
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip=(
                        "Only this part of the cut-out is pasted, such as the face. Its edge counts"
                        " as it is: soften it with Refine Mask."
                    ),
                ),
                invert_input("the mask"),
                advanced(
                    io.Boolean.Input(
                        "align",
                        default=False,
                        optional=True,
                        tooltip=(
                            "Lays the patch on the picture again where the mask is not: edit models"
                            " shift and scale what they keep by a few pixels."
                        ),
                    )
                ),
                advanced(
                    io.Float.Input(
                        "match_colour",
                        default=0.0,
                        min=0.0,
                        max=1.0,
                        step=0.05,
                        optional=True,
                        tooltip=(
                            "How far the patch takes the picture's brightness and contrast where"
                            " the mask is not: 1 takes a tint away, 0 leaves it."
                        ),
                    )
                ),
                advanced(
                    io.Float.Input(
                        "only_changed",
                        default=0.0,
                        min=0.0,
                        max=1.0,
                        step=0.01,
                        optional=True,
                        tooltip=(
                            "Above 0 only what has changed is pasted: places whose colour differs"
                            " by more than this, such as 0.1. Higher pastes less. 0: all of the"
                            " patch."
                        ),
                    )
                ),
            ],
            outputs=[
                io.Image.Output(
                    display_name="IMAGE", tooltip="The whole picture with the patch in it."
                ),
                io.Mask.Output(
                    display_name="changed",
                    tooltip="Where the picture is another one now: 1, elsewhere 0.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        image: torch.Tensor,
        patch: torch.Tensor,
        crop: Crop,
        feather: float,
        mask: torch.Tensor | None = None,
        invert: bool = False,
        align: bool = False,
        match_colour: float = 0.0,
        only_changed: float = 0.0,
    ) -> io.NodeOutput:
        check_ranges(cls, feather=feather, match_colour=match_colour, only_changed=only_changed)
        image, patch = picture_batch(image, "image"), picture_batch(patch, "patch")
        region = None if mask is None else mask_batch(mask, "the mask")
        if tuple(image.shape[1:3]) != crop.picture:
            raise ValueError(
                f"the crop was cut from a picture of {crop.picture[1]}x{crop.picture[0]}, this one"
                f" is {image.shape[2]}x{image.shape[1]}: connect the picture that went into"
                " Portrait Crop"
            )
        size, box = (patch.shape[1], patch.shape[2]), crop.box
        if differ_in_aspect((round(box.height), round(box.width)), size):
            raise ValueError(
                f"the patch is {size[1]}x{size[0]}, what was cut out had the aspect of"
                f" {box.width:g}x{box.height:g}: connect the cut-out of the same Portrait Crop,"
                " changed but not cropped"
            )
        check_size(size, "the patch")
        if region is not None:
            if region.any():
                check_aspect(size, (region.shape[1], region.shape[2]), "Portrait Paste")
            elif not invert:
                notice("the mask is empty, so nothing of the patch is pasted: paint it")
            region = inverted(region) if invert else region
        image, patch = image[..., :3], patch[..., :3]
        fit = Fit(align, match_colour, only_changed)
        if fit != Fit():
            patch, region = fitted(image, patch, crop, region, fit)
        out = paste(image, patch, crop, feather, region)
        return io.NodeOutput(out, ((out - image).abs().amax(-1) > _SEEN).float())
