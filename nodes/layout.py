"""The semantic layout by itself, and as masks."""

from __future__ import annotations

import uuid
from typing import Any

import torch
from comfy_api.latest import io

from ..host.layout.masks import layout_masks, overlay
from ..host.layout.patch import LayoutPatch
from ..host.layout.record import LayoutRecord
from ..host.page.live_layout import LayoutView
from ..host.page.notices import notice
from ..host.sampling.backbone import backbone_of
from ..host.text.prompts import tagged_prompt
from ..magic.phrases import split_phrases
from ..magic.pictures import latent_batch
from .declare import Layout, advanced, bypass_conditioning, node_id, schema
from .inputs import Node, check_ranges, check_texts, pictures_of


class MagicSemanticLayout(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MagicSemanticLayout",
            display_name="Semantic Layout",
            category="MagicPortrait/layout",
            description=(
                "Watches where the words of a prompt end up in the picture, without changing it. "
                "Connect MODEL and CONDITIONING to a sampler, then use Layout Masks."
            ),
            search_aliases=["attention map", "segment", "segmentation", "mask from prompt", "daam"],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip=(
                        "SD1.5, SD2.1, SDXL, Flux.1, Flux.2, Z-Image, Lumina 2, Qwen-Image, Krea 2,"
                        " Chroma, SD3.5, HiDream-I1, Anima, or a fine-tune."
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
                    tooltip="Words of the prompt to find in the picture, separated by commas.",
                ),
                advanced(
                    io.Float.Input(
                        "ca_scale",
                        default=0.6,
                        min=0.05,
                        max=1.0,
                        step=0.05,
                        tooltip=(
                            "How much the other words of the prompt count: lower gives the phrases"
                            " more room. Below 0.9 they are kept off the background."
                        ),
                    )
                ),
                bypass_conditioning(),
            ],
            outputs=[
                io.Model.Output(
                    display_name="MODEL",
                    tooltip="The watched model; its pictures are those of the model that came in.",
                ),
                io.Conditioning.Output(
                    display_name="positive", tooltip="The prompt, for the sampler's positive input."
                ),
                Layout.Output(display_name="layout", tooltip="For Layout Masks, after sampling."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        prompt: str,
        phrases: str,
        ca_scale: float,
        positive: Any = None,
    ) -> io.NodeOutput:
        check_ranges(cls, ca_scale=ca_scale)
        check_texts(prompt=prompt, phrases=phrases)
        backbone, words = backbone_of(model), split_phrases(phrases)
        tagged = tagged_prompt(clip, prompt, words, uuid.uuid4().hex, backbone.context)
        record = LayoutRecord(tagged.phrases, backbone.pixels)
        view = LayoutView(node_id(cls), tagged.phrases)
        patch = LayoutPatch(tagged, backbone, ca_scale, record, observers=(view,))
        return io.NodeOutput(patch.add_to(model), tagged.conditioning, record)


class MagicLayoutMasks(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MagicLayoutMasks",
            display_name="Layout Masks",
            category="MagicPortrait/layout",
            description=(
                "The layout of a finished picture as masks, one for each phrase, and as a coloured"
                " overlay."
            ),
            search_aliases=[
                "mask",
                "mask from attention",
                "segment",
                "segmentation",
                "region masks",
            ],
            inputs=[
                Layout.Input("layout", tooltip="From MagicFace Apply or Semantic Layout."),
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
                        "The decoded picture: gives masks their size and lies under the overlay."
                    ),
                ),
                io.Int.Input(
                    "step",
                    default=-1,
                    min=-1,
                    max=10000,
                    tooltip=(
                        "Which step's layout; -1 is the last. The nearest step that was measured is"
                        " taken."
                    ),
                ),
            ],
            outputs=[
                io.Mask.Output(
                    display_name="masks",
                    is_output_list=True,
                    tooltip="One mask for each phrase, in the order of the phrases.",
                ),
                io.Mask.Output(
                    display_name="foreground",
                    tooltip="Everything that the prompt describes, as against the background.",
                ),
                io.Image.Output(
                    display_name="overlay", tooltip="The regions in colour over the picture."
                ),
                io.String.Output(display_name="legend", tooltip="Which colour is which phrase."),
            ],
        )

    @classmethod
    def execute(
        cls,
        layout: LayoutRecord,
        samples: dict[str, Any],
        step: int,
        image: torch.Tensor | None = None,
    ) -> io.NodeOutput:
        check_ranges(cls, step=step)
        latent = latent_batch(samples, "samples")
        image = None if image is None else pictures_of(image, latent, "image")
        steps = layout.run_of(latent, notice).steps
        nearest = max(steps) if step < 0 else min(steps, key=lambda number: abs(number - step))
        size = (
            layout.picture_size(latent.shape) if image is None else (image.shape[1], image.shape[2])
        )
        masks = layout_masks(steps[nearest], len(layout.phrases), size)
        picture, legend = overlay(masks, layout.phrases, image)
        return io.NodeOutput(list(masks.phrases), masks.foreground, picture, legend)
