"""Looking into a sampling run: where words are in the picture, and where in the references the
picture looks."""

from __future__ import annotations

import dataclasses
import json
import uuid
from typing import Any

import torch
import torch.nn.functional as F
from comfy_api.latest import io

from ..host.analysis.attention_maps import AttentionMapPatch, AttentionRecord
from ..host.analysis.correspondence import Correspondence, CorrespondenceRecord, watched_model
from ..host.page.correspondence_view import view_data
from ..host.page.notices import notice
from ..host.sampling.backbone import backbone_of
from ..host.sampling.range import SamplingRange
from ..host.text.prompts import TAG, tagged_prompt
from ..magic.boxes import parse_points
from ..magic.concepts import Concept, with_loras_joined
from ..magic.heat import over_picture, unit_range
from ..magic.phrases import split_phrases
from ..magic.pictures import latent_batch, mask_batch, picture_batch
from .declare import (
    Attention,
    Concepts,
    Correspondences,
    advanced,
    layers_input,
    schema,
    span_inputs,
    text_complaint,
)
from .inputs import Node, check_ranges, check_span, check_texts, pictures_of

_FRONTEND_SIDE = 32


def _range_inputs() -> list[io.Input]:
    return span_inputs(
        "Share of sampling after which watching begins. Later leaves out the steps that place"
        " things.",
        "Share of sampling after which watching ends. Earlier leaves out the steps that draw"
        " details.",
    )


class MagicAttentionMap(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MagicAttentionMap",
            display_name="Attention Map",
            category="MagicPortrait/analysis",
            description=(
                "Watches how much each place of the picture looks at a phrase of the prompt,"
                " without changing the picture. Connect MODEL and CONDITIONING to a sampler, then"
                " use Attention Heatmap."
            ),
            search_aliases=["cross attention", "daam", "heatmap", "explain", "visualize attention"],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip=(
                        "Patched or not: SD1.5, SD2.1, SDXL, Flux.1, Flux.2, Z-Image, Lumina 2,"
                        " Qwen-Image, Krea 2, Chroma, SD3.5, HiDream-I1, Anima, or a fine-tune."
                    ),
                ),
                io.Clip.Input("clip", tooltip="The text encoder of the model."),
                io.String.Input(
                    "prompt",
                    multiline=True,
                    dynamic_prompts=True,
                    default="",
                    tooltip="The picture in words.",
                ),
                io.String.Input(
                    "phrases",
                    default="hat, scarf",
                    tooltip="Words of the prompt to watch, separated by commas.",
                ),
                layers_input(
                    "all",
                    "Which layers count: 'all', 'fine' (a UNet's two finest levels: the sharpest"
                    " maps), 'decoder' of UNets, 'early', 'middle' (where words are bound to"
                    " places), 'late' of transformers, or blocks such as 'o6-11,m0' or 'd10-18'.",
                ),
                *_range_inputs(),
                io.Conditioning.Input(
                    "positive",
                    optional=True,
                    tooltip=(
                        "The conditioning to watch instead of a new one, such as MagicFace Apply's,"
                        " made from the same prompt."
                    ),
                ),
            ],
            outputs=[
                io.Model.Output(
                    display_name="MODEL",
                    tooltip="The watched model; its pictures are those of the model that came in.",
                ),
                io.Conditioning.Output(
                    display_name="positive", tooltip="The prompt, for the sampler's positive input."
                ),
                Attention.Output(
                    display_name="attention", tooltip="For Attention Heatmap, after sampling."
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        prompt: str,
        phrases: str,
        layers: str,
        start: float,
        end: float,
        positive: list[Any] | None = None,
    ) -> io.NodeOutput:
        check_span(cls, start, end)
        check_texts(prompt=prompt, phrases=phrases, layers=layers)
        backbone, words = backbone_of(model), split_phrases(phrases)
        tagged = tagged_prompt(clip, prompt, words, uuid.uuid4().hex, backbone.context)
        if positive is not None:
            # Another node of ours may know this conditioning by its tag: it stays.
            tag = positive[0][1].get(TAG, tagged.tag)
            tagged = dataclasses.replace(
                tagged,
                conditioning=[[t, {**options, TAG: tag}] for t, options in positive],
                tag=tag,
            )
        record = AttentionRecord(tagged.phrases, backbone.pixels)
        patch = AttentionMapPatch(
            prompt=tagged,
            record=record,
            backbone=backbone,
            blocks=backbone.parse_layers(layers),
            range=SamplingRange(start, end),
        )
        return io.NodeOutput(patch.add_to(model), tagged.conditioning, record)


class MagicAttentionHeatmap(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MagicAttentionHeatmap",
            display_name="Attention Heatmap",
            category="MagicPortrait/analysis",
            description=(
                "The attention that a finished picture paid to each phrase: as colours over the"
                " picture, and as soft masks."
            ),
            search_aliases=["cross attention", "daam", "heatmap", "mask", "attention mask"],
            inputs=[
                Attention.Input("attention", tooltip="From Attention Map."),
                io.Latent.Input(
                    "samples",
                    tooltip=(
                        "The latent that the sampler made with that model: by it the run is found."
                    ),
                ),
                io.Image.Input(
                    "image",
                    optional=True,
                    tooltip=(
                        "The decoded picture: gives maps their size and lies under the colours."
                    ),
                ),
                io.Float.Input(
                    "strength",
                    default=0.8,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="How much the colours cover the picture; 0 hides them.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    display_name="heatmaps",
                    is_output_list=True,
                    tooltip="One batch for each phrase, in their order.",
                ),
                io.Mask.Output(
                    display_name="masks",
                    is_output_list=True,
                    tooltip="The same as masks: 0 where the phrase gets least, 1 where most.",
                ),
                io.String.Output(
                    display_name="legend",
                    tooltip=(
                        "The share of all attention that each phrase got, on average and at most."
                    ),
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        attention: AttentionRecord,
        samples: dict[str, Any],
        strength: float,
        image: torch.Tensor | None = None,
    ) -> io.NodeOutput:
        check_ranges(cls, strength=strength)
        latent = latent_batch(samples, "samples")
        image = None if image is None else pictures_of(image, latent, "image")
        maps = attention.run_of(latent, notice).maps.float()
        size = attention.picture_size(latent.shape) if image is None else tuple(image.shape[1:3])
        enlarged = F.interpolate(maps, size=size, mode="bicubic", align_corners=False).clamp(min=0)
        base = (
            torch.full((len(maps), *size, 3), 0.5)
            if image is None
            else image.cpu().expand(len(maps), -1, -1, -1)
        )
        masks = [unit_range(enlarged[:, i]) for i in range(maps.shape[1])]
        shares = [
            f"{phrase}: {maps[:, i].mean():.1%} (at most {maps[:, i].max():.1%})"
            for i, phrase in enumerate(attention.phrases)
        ]
        return io.NodeOutput(
            [over_picture(mask, base, strength) for mask in masks], masks, ", ".join(shares)
        )


class MagicCorrespondence(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MagicCorrespondence",
            display_name="Correspondence",
            category="MagicPortrait/analysis",
            description=(
                "Watches where in the references a place of the new picture looks. Put it between"
                " MagicFace Apply and the sampler, then use Correspondence Map. Pictures stay as"
                " they are."
            ),
            search_aliases=["attention visualization", "reference attention", "explain magicface"],
            inputs=[
                io.Model.Input("model", tooltip="The MODEL of MagicFace Apply."),
                io.String.Input(
                    "points",
                    default="64,40",
                    tooltip=(
                        "Places of the new picture in pixels, such as '256,120' or '256,120;"
                        " 300,90'. They count together."
                    ),
                ),
                *_range_inputs(),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="A region of the new picture, used instead of the points.",
                ),
                advanced(
                    io.Boolean.Input(
                        "explore",
                        default=True,
                        optional=True,
                        tooltip=(
                            "Also records where all other places look, so that Correspondence Map"
                            " can be explored in the browser. Off: a little faster, and up to 32 MB"
                            " of memory less for each run."
                        ),
                    )
                ),
            ],
            outputs=[
                io.Model.Output(
                    display_name="MODEL", tooltip="The watched model, for the sampler."
                ),
                Correspondences.Output(
                    display_name="correspondence", tooltip="For Correspondence Map, after sampling."
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, points: object = None) -> bool | str:
        return text_complaint(parse_points, points) or True

    @classmethod
    def execute(
        cls,
        model: Any,
        points: str,
        start: float,
        end: float,
        mask: torch.Tensor | None = None,
        explore: bool = True,
    ) -> io.NodeOutput:
        check_span(cls, start, end)
        check_texts(points=points)
        places = tuple(parse_points(points))
        if not places and mask is None:
            raise ValueError(
                "points is empty: write a place of the new picture, such as '256,120', or connect a"
                " mask"
            )
        masks = None if mask is None else mask_batch(mask)
        if masks is not None and len(masks) != 1:
            raise ValueError(
                f"{len(masks)} masks: give one, which counts for every picture of the run"
            )
        region = None if masks is None else masks[0]
        if region is not None and not region.any():
            raise ValueError(
                "the mask is empty: paint a region of the new picture, or disconnect it and use"
                " points"
            )
        outputs = watched_model(model, places, region, SamplingRange(start, end), explore)
        return io.NodeOutput(*outputs)


class MagicCorrespondenceMap(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MagicCorrespondenceMap",
            display_name="Correspondence Map",
            category="MagicPortrait/analysis",
            description=(
                "Where in each reference the watched place looked: colours over the reference, and"
                " numbers. In the browser, point at any other place to see where that one looked."
            ),
            search_aliases=["attention visualization", "reference heatmap", "explore attention"],
            inputs=[
                Correspondences.Input("correspondence", tooltip="From Correspondence."),
                io.Latent.Input(
                    "samples",
                    tooltip=(
                        "The latent that the sampler made with that model: by it the run is found."
                    ),
                ),
                Concepts.Input(
                    "concepts",
                    optional=True,
                    tooltip="The concepts of MagicFace Apply: their images lie under the colours.",
                ),
                io.Float.Input(
                    "strength",
                    default=0.8,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="How much the colours cover the reference; 0 hides them.",
                ),
                io.Image.Input(
                    "image",
                    optional=True,
                    tooltip=(
                        "The decoded picture: shown in the browser to point at. Without it a gray"
                        " one is."
                    ),
                ),
            ],
            outputs=[
                io.Image.Output(
                    display_name="heatmaps",
                    is_output_list=True,
                    tooltip="For each reference a batch: a map for each picture of the run.",
                ),
                io.String.Output(
                    display_name="json",
                    tooltip=(
                        "For each picture and reference: its share of the attention, and the place"
                        " seen most (0..1)."
                    ),
                ),
            ],
            # Of a workflow that has run already the host tells a page that comes later of output
            # nodes only.
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls,
        correspondence: CorrespondenceRecord,
        samples: dict[str, Any],
        strength: float,
        concepts: tuple[Concept, ...] = (),
        image: torch.Tensor | None = None,
    ) -> io.NodeOutput:
        check_ranges(cls, strength=strength)
        latent = latent_batch(samples, "samples")
        image = None if image is None else picture_batch(image, "image")[..., :3]
        run = correspondence.run_of(latent, notice)
        if image is not None and len(image) != len(latent):
            raise ValueError(
                f"image has {len(image)} pictures, but the run had {len(latent)}: connect the"
                " decoded samples"
            )
        images = [image for concept in with_loras_joined(concepts) for image in concept.views]
        if images and len(images) != len(run.maps):
            raise ValueError(
                f"concepts have {len(images)} images, but the run had {len(run.maps)}: connect"
                " those of MagicFace Apply"
            )
        bases = [each.cpu() for each in images] or [
            _gray(correspondence.picture_size(maps.shape)) for maps in run.maps
        ]
        pictures = []
        for base, maps in zip(bases, run.maps, strict=True):
            enlarged = F.interpolate(
                maps[:, None], size=base.shape[:2], mode="bicubic", align_corners=False
            )[:, 0].clamp(min=0)
            pictures.append(
                over_picture(unit_range(enlarged), base.expand(len(maps), -1, -1, -1), strength)
            )
        data = _as_data(run, correspondence.phrases)
        text = json.dumps(
            [
                [{k: v for k, v in entry.items() if k != "map"} for entry in entries]
                for entries in data
            ],
            indent=1,
        )
        views: dict[str, Any] = {"magic_correspondence": data}
        if run.exploration:
            drawn = (
                _gray(correspondence.picture_size(latent.shape)).expand(len(latent), -1, -1, -1)
                if image is None
                else image
            )
            references = [
                (correspondence.phrases[concept], base)
                for concept, base in zip(run.concepts, bases, strict=True)
            ]
            views["magic_exploration"] = [view_data(run.exploration, drawn, references)]
        return io.NodeOutput(pictures, text, ui=views)


def _gray(size: tuple[int, int]) -> torch.Tensor:
    """An empty picture of rows, columns: H W 3."""
    return torch.full((*size, 3), 0.5)


def _as_data(run: Correspondence, phrases: tuple[str, ...]) -> list[list[dict[str, Any]]]:
    """For each picture and reference: phrase, share (0..1), peak (x, y in 0..1), and the map in
    rows of 0..255."""
    pictures = []
    for image, shares in enumerate(run.shares.tolist()):
        entries = []
        for maps, share, concept in zip(run.maps, shares, run.concepts, strict=True):
            height, width = maps.shape[-2:]
            row, column = divmod(int(maps[image].argmax()), width)
            small = F.interpolate(
                maps[None, image : image + 1],
                size=[min(side, _FRONTEND_SIDE) for side in (height, width)],
                mode="area",
            )
            levels = (unit_range(small[0, 0]) * 255).round().int().tolist()
            peak = [round((column + 0.5) / width, 4), round((row + 0.5) / height, 4)]
            entries.append(
                {"phrase": phrases[concept], "share": round(share, 6), "peak": peak, "map": levels}
            )
        pictures.append(entries)
    return pictures
