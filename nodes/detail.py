"""The detail pass: each person of a picture drawn anew, larger, by an own text and own concepts."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from comfy_api.latest import io

from ..host.layout.masks import layout_masks
from ..host.layout.record import LayoutRecord
from ..host.page.notices import notice
from ..host.pictures.host_boxes import from_host_boxes
from ..host.pictures.mask_parts import parts_of, without_specks
from ..host.sampling.backbone import backbone_of
from ..host.sampling.observers import ObservedPatch
from ..host.sampling.patch import patches_of
from ..host.systems.detail_pass import Detail, DetailSampling, draw_details
from ..host.text.prompts import check_phrases, encode
from ..magic.concepts import Concept, with_loras_joined
from ..magic.detail_areas import (
    Line,
    check_concepts,
    check_named,
    check_numbers,
    lines_of,
    numbers_as_text,
    read_lines,
    rectangle,
    target_in,
    texts_of_areas,
)
from ..magic.messages import shown
from ..magic.pictures import (
    check_aspect,
    check_mask_count,
    latent_batch,
    mask_batch,
    picture_batch,
    resized_masks,
)
from ..magic.portrait_crop import Crop, crop_box, working_size
from .declare import (
    Boxes,
    Concepts,
    Layout,
    advanced,
    choice_complaint,
    defaults_of,
    link_only,
    schema,
)
from .inputs import (
    Node,
    check_ranges,
    check_texts,
    invert_input,
    inverted,
    refuse,
    warn_of_border,
)
from .magicface_apply import MagicFaceApply

_SMALLEST = 8
"""Pixels that an area has at least on each side; less is a speck."""
_SPECK = 0.1
"""Of the largest part of a layout's region: what is smaller is a speck."""
_MULTIPLE = 16
"""Of the sides at which areas are drawn: two latent pixels of most models, one of Flux.2."""
_ON_NO_AREA = ("skip", "error")


class MagicDetailPass(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        import comfy.samplers

        return schema(
            node_id="MagicDetailPass",
            display_name="Detail Pass",
            category="MagicPortrait/MagicFace",
            description=(
                "Draws parts of finished pictures anew, larger and each by a text of its own, with"
                " the concepts that this text names: every person of a group, or a small face. Cuts"
                " out, samples and pastes back in one node."
            ),
            search_aliases=[
                "face detailer",
                "adetailer",
                "detailer",
                "inpaint face",
                "small face",
                "fix faces",
                "two people",
                "two characters",
                "group picture",
                "regional",
            ],
            inputs=[
                io.Image.Input("image", tooltip="The finished pictures, one or a batch."),
                io.Model.Input(
                    "model",
                    tooltip=(
                        "The plain model, as it goes into MagicFace Apply: each area gets its own"
                        " concepts here."
                    ),
                ),
                io.Clip.Input("clip", tooltip="The text encoder of the model."),
                io.Vae.Input("vae", tooltip="The VAE of the model."),
                Concepts.Input(
                    "concepts",
                    optional=True,
                    tooltip=(
                        "From MagicFace Concept and MagicFace Concept LoRA: each acts in the areas"
                        " whose text has its phrase. Without any the model draws by the text alone."
                    ),
                ),
                io.Mask.Input(
                    "masks",
                    optional=True,
                    tooltip=(
                        "Where the areas are: for each picture one, or one for all, whose separate"
                        " parts are separate areas from left to right. For a single picture also"
                        " several masks, an area each."
                    ),
                ),
                link_only(
                    Boxes.Input(
                        "boxes",
                        optional=True,
                        tooltip=(
                            "In place of masks: the boxes of the areas, such as faces, from Concept"
                            " Mask."
                        ),
                    )
                ),
                Layout.Input(
                    "layout",
                    optional=True,
                    tooltip=(
                        "In place of masks: where the phrases are, from MagicFace Apply or Semantic"
                        " Layout. Each line of text is then an area, that of the phrases in it."
                    ),
                ),
                io.Latent.Input(
                    "samples",
                    optional=True,
                    tooltip="For layout: the latent of the pictures, by which the run is found.",
                ),
                io.String.Input(
                    "text",
                    multiline=True,
                    dynamic_prompts=True,
                    default="a portrait of a woman",
                    tooltip=(
                        "What the areas show: one line for all of them, or one line for each, from"
                        " left to right. 'man#2' is the second man of all lines."
                    ),
                ),
                io.String.Input(
                    "negative",
                    multiline=True,
                    dynamic_prompts=True,
                    default="",
                    tooltip="What no area should show. Counts with cfg above 1.",
                ),
                io.Int.Input(
                    "size",
                    default=512,
                    min=64,
                    max=4096,
                    step=8,
                    tooltip=(
                        "About how many pixels a side an area is drawn at: what the model was"
                        " trained at (512; SDXL, Flux 1024; toy 128 or 256)."
                    ),
                ),
                io.Float.Input(
                    "margin",
                    default=0.5,
                    min=0.0,
                    max=3.0,
                    step=0.05,
                    tooltip=(
                        "Room around the area's box, as a share of its longer side. More: it fits"
                        " better to what is around it, with fewer pixels for itself."
                    ),
                ),
                io.Float.Input(
                    "denoise",
                    default=0.5,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    tooltip=(
                        "How much is drawn anew: 0.3 sharpens, 0.5 changes details, 0.7 and more"
                        " changes who is there. References need 0.5 or more."
                    ),
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="The noise of each picture's first area; the next has the next seed.",
                ),
                io.Int.Input(
                    "steps",
                    default=25,
                    min=1,
                    max=1000,
                    tooltip="Sampling steps of each area.",
                ),
                io.Float.Input(
                    "cfg",
                    default=7.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    tooltip="How strongly the text counts, as on a KSampler.",
                ),
                io.Combo.Input(
                    "sampler_name",
                    options=list(comfy.samplers.SAMPLER_NAMES),
                    default="euler",
                    tooltip="The sampler, as on a KSampler.",
                ),
                io.Combo.Input(
                    "scheduler",
                    options=list(comfy.samplers.SCHEDULER_NAMES),
                    default="normal",
                    tooltip="How the steps are spread over the noise levels, as on a KSampler.",
                ),
                advanced(
                    io.Float.Input(
                        "feather",
                        default=0.05,
                        min=0.0,
                        max=0.5,
                        step=0.01,
                        tooltip=(
                            "How far the area reaches softly beyond its edge, as a share of the"
                            " cut-out's shorter side. 0: a hard edge."
                        ),
                    )
                ),
                advanced(
                    io.Boolean.Input(
                        "keep_around",
                        default=True,
                        tooltip=(
                            "On: what is around the area stays as it is while sampling, so that the"
                            " area fits to it. Off: all of the cut-out is drawn, which gives more"
                            " freedom and may show a seam."
                        ),
                    )
                ),
                advanced(
                    io.Boolean.Input(
                        "square",
                        default=False,
                        tooltip=(
                            "Off: the area's box and its margin are cut out as they are, with"
                            " little of the neighbours. On: grown to a square, for models that draw"
                            " other shapes badly."
                        ),
                    )
                ),
                advanced(
                    io.Float.Input(
                        "inject_at",
                        default=0.2,
                        min=0.0,
                        max=1.0,
                        step=0.01,
                        tooltip=(
                            "For concepts, as on MagicFace Apply: when each part begins to look at"
                            " its own reference only, as a share of sampling."
                        ),
                    )
                ),
                advanced(
                    io.Combo.Input(
                        "on_no_area",
                        options=list(_ON_NO_AREA),
                        default=_ON_NO_AREA[0],
                        tooltip=(
                            "A picture in which there is no area: pass it on as it is, or stop with"
                            " a message."
                        ),
                    )
                ),
                invert_input("the masks"),
            ],
            outputs=[
                io.Image.Output(
                    display_name="IMAGE",
                    tooltip="The pictures with their areas drawn anew; the rest as it was.",
                ),
                io.Mask.Output(
                    display_name="changed", tooltip="How much of each place was drawn anew."
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        image: torch.Tensor,
        model: Any,
        clip: Any,
        vae: Any,
        text: str,
        negative: str,
        size: int,
        margin: float,
        denoise: float,
        seed: int,
        steps: int,
        cfg: float,
        sampler_name: str,
        scheduler: str,
        feather: float,
        keep_around: bool,
        square: bool,
        inject_at: float,
        on_no_area: str,
        concepts: tuple[Concept, ...] = (),
        masks: torch.Tensor | None = None,
        boxes: Any = None,
        layout: LayoutRecord | None = None,
        samples: Any = None,
        invert: bool = False,
    ) -> io.NodeOutput:
        numbers = {"size": size, "margin": margin, "denoise": denoise, "seed": seed, "cfg": cfg}
        check_ranges(cls, **numbers, steps=steps, feather=feather, inject_at=inject_at)
        check_texts(text=text, negative=negative)
        refuse(choice_complaint("on_no_area", on_no_area, _ON_NO_AREA))
        image = picture_batch(image, "image")[..., :3]
        written = lines_of(text)
        _check_sources(masks, boxes, layout, samples)
        if any(isinstance(patch, ObservedPatch) for *_, patch in patches_of(model)):
            raise ValueError(
                "this MODEL comes from a MagicFace Apply: connect the one that goes into it. Each"
                " area gets its own concepts here"
            )
        concepts = with_loras_joined(concepts)
        phrases = [concept.phrase for concept in concepts]
        check_numbers(written, phrases, layout.phrases if layout is not None else ())
        lines = read_lines(written, phrases)
        check_concepts(written, lines, phrases)
        if layout is not None:
            by_layout = read_lines(written, layout.phrases)
            check_named(written, by_layout, layout.phrases)
            # A number may be one of the layout's phrases only.
            shorn = read_lines([line.text for line in lines], layout.phrases)
            lines = [Line(a.text, b.named) for a, b in zip(shorn, lines, strict=True)]
            named = [[*line.named] for line in by_layout]
            areas = _areas_of_layout(layout, samples, image, named, lines)
        elif masks is not None:
            areas = _with_texts(_areas_of_masks(masks, image, invert), lines)
        else:
            areas = _with_texts(_areas_of_boxes(boxes, image), lines)
        if unread := numbers_as_text(lines):
            notice(
                f"'{shown(unread[0])}' in text is read by the model as it stands there: no concept"
                " and no phrase of a layout is called so"
            )
        for i, of_picture in enumerate(areas, 1):
            if not of_picture and on_no_area == "error":
                raise ValueError(
                    f"picture {i} has no area to draw anew: give it one, or set on_no_area to skip"
                )
            if not of_picture:
                notice(f"picture {i} has no area to draw anew: it stays as it is")
        painter = _Painter(model, clip, vae, concepts, inject_at)
        painter.check(lines)
        details = []
        for i, of_picture in enumerate(areas):
            for number, (mask, line) in enumerate(of_picture):
                box = crop_box(mask, margin, 1.0 if square else None)
                crop = Crop(box, (image.shape[1], image.shape[2]))
                applied = painter.model_for(line, i, crop)
                side = working_size(box, size, _MULTIPLE)
                details.append(Detail(i, number, mask, crop, side, *applied))
        if not details:
            return io.NodeOutput(image, torch.zeros(image.shape[:3]))
        sampling = DetailSampling(
            seed, steps, cfg, sampler_name, scheduler, denoise, keep_around, feather
        )
        return io.NodeOutput(*draw_details(image, details, sampling, encode(clip, negative), vae))


_Areas = list[list[tuple[torch.Tensor, Line]]]
"""For each picture its areas, H W each, and their texts."""


class _Painter:
    """Patches the model for the texts of the areas, each text once."""

    def __init__(
        self, model: Any, clip: Any, vae: Any, concepts: Sequence[Concept], inject_at: float
    ) -> None:
        self._parts = (model, clip, vae)
        self._concepts = concepts
        self._settings = {**defaults_of(MagicFaceApply), "inject_at": inject_at}
        self._made: dict[tuple[Any, ...], tuple[Any, Any]] = {}

    def check(self, lines: Sequence[Line]) -> None:
        """ValueError when the model reads a line without a phrase that it names, before anything
        is prepared for another."""
        model, clip, _ = self._parts
        for line in lines:
            if not line.named:
                continue
            try:
                check_phrases(clip, line.text, [*line.named.values()], backbone_of(model).context)
            except ValueError as error:
                raise ValueError(f"the line '{shown(line.text)}' of text: {error}") from error

    def model_for(self, line: Line, picture: int, crop: Crop) -> tuple[Any, Any]:
        """MODEL and CONDITIONING of an area. A concept with a painted region acts in areas that
        have a part of it."""
        own = [
            concept
            if concept.phrase == line.named[i]
            else dataclasses.replace(concept, phrase=line.named[i])
            for i, concept in enumerate(self._concepts)
            if i in line.named
        ]
        if all(concept.target_region is None for concept in own):
            key = (line.text, *sorted(line.named.items()))
            if key not in self._made:
                self._made[key] = self._applied(line.text, own)
            return self._made[key]
        placed = []
        for concept in own:
            region = concept.target_region
            if region is not None:
                region = target_in(region, picture, crop.picture, crop.box)
                if region is None:
                    continue
            placed.append(dataclasses.replace(concept, target_region=region))
        return self._applied(line.text, placed)

    def _applied(self, text: str, concepts: Sequence[Concept]) -> tuple[Any, Any]:
        if not concepts:
            model, clip, _ = self._parts
            return model, encode(clip, text)
        settings = {**self._settings, "prompt": text}
        model, positive, _ = MagicFaceApply.execute(*self._parts, tuple(concepts), **settings).args
        return model, positive


def _check_sources(masks: Any, boxes: Any, layout: Any, samples: Any) -> None:
    given = {"masks": masks, "boxes": boxes, "layout": layout}
    connected = [name for name, value in given.items() if value is not None]
    if not connected:
        raise ValueError(
            "there is nothing to draw anew: connect masks, boxes or layout, which say where the"
            " areas are"
        )
    if len(connected) > 1:
        raise ValueError(
            f"{' and '.join(connected)} are connected, one of them is expected: disconnect the"
            " others"
        )
    if layout is not None and samples is None:
        raise ValueError(
            "samples is not connected, by which the layout's run is found: connect the LATENT of"
            " the sampler that made the pictures"
        )


def _with_texts(areas: Sequence[Sequence[torch.Tensor]], lines: Sequence[Line]) -> _Areas:
    return [
        list(zip(own, texts_of_areas(lines, len(own), i), strict=True))
        for i, own in enumerate(areas, 1)
    ]


def _areas_of_masks(
    given: torch.Tensor, image: torch.Tensor, invert: bool
) -> list[list[torch.Tensor]]:
    masks = mask_batch(given, "masks").float().cpu()
    # An empty one, as Load Image gives it unpainted, has a size of its own, and stays empty.
    if not bool((masks > 0.5).any()):
        return [[] for _ in image]
    masks = inverted(masks) if invert else masks
    size = (image.shape[1], image.shape[2])
    check_aspect(size, (masks.shape[1], masks.shape[2]), "Detail Pass")
    warn_of_border(masks, "the mask of areas", invert)
    masks = resized_masks(masks, size)
    if len(image) == 1 and len(masks) > 1:
        return [[mask for mask in masks if bool((mask > 0.5).any())]]
    check_mask_count(len(masks), len(image))
    parts = [parts_of(mask, _SMALLEST) for mask in masks]
    return parts * len(image) if len(parts) == 1 else parts


def _areas_of_boxes(boxes: Any, image: torch.Tensor) -> list[list[torch.Tensor]]:
    size = (image.shape[1], image.shape[2])
    areas = []
    for of_picture in from_host_boxes(boxes, len(image)):
        masks = (rectangle(box, size) for box in sorted(of_picture, key=lambda box: box.x))
        areas.append([mask for mask in masks if mask is not None])
    return areas


def _areas_of_layout(
    layout: LayoutRecord,
    samples: Any,
    image: torch.Tensor,
    named: Sequence[Sequence[int]],
    lines: Sequence[Line],
) -> _Areas:
    """For each line the places of the phrases that it names. named: these, by their indices."""
    latent = latent_batch(samples, "samples")
    if len(latent) != len(image):
        raise ValueError(
            f"image has {len(image)} pictures, but samples {len(latent)}: connect the decoded"
            " samples"
        )
    steps = layout.run_of(latent, notice).steps
    masks = layout_masks(
        steps[max(steps)], len(layout.phrases), (image.shape[1], image.shape[2])
    ).phrases
    areas: _Areas = []
    for i in range(len(image)):
        own = [
            (without_specks(torch.stack([masks[p][i] for p in phrases]).amax(0), _SPECK), line)
            for line, phrases in zip(lines, named, strict=True)
        ]
        areas.append([(mask, line) for mask, line in own if bool(mask.any())])
    return areas
