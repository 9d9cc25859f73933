"""MagiCapture Apply: the words and the LoRA of a training, on a model and its text encoder."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io

from ..host.models.lora_patches import check_lora
from ..host.text.learned_words import Embedding, with_learned_words
from .declare import EmbeddingsType, LoraModel, schema
from .inputs import Node, check_ranges


class MagiCaptureApply(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MagiCaptureApply",
            display_name="MagiCapture Apply",
            category="MagicPortrait/MagiCapture",
            description=(
                "A model and a text encoder that know the subject and the style: write the new"
                " words in any prompt."
            ),
            search_aliases=["load lora", "embedding", "textual inversion", "dreambooth"],
            inputs=[
                io.Model.Input("model", tooltip="The model that was trained, or a relative of it."),
                io.Clip.Input("clip", tooltip="Its text encoder."),
                EmbeddingsType.Input(
                    "embeddings", tooltip="The new words, from MagiCapture Train or Load Embedding."
                ),
                LoraModel.Input(
                    "lora",
                    optional=True,
                    tooltip=(
                        "From MagiCapture Train. A saved one can be loaded with a LoRA loader"
                        " before this node instead."
                    ),
                ),
                io.Float.Input(
                    "strength_model",
                    default=0.6,
                    min=-10.0,
                    max=10.0,
                    step=0.05,
                    tooltip=(
                        "How strongly the LoRA of the UNet or transformer acts. Higher: closer to"
                        " the training pictures; 0: not at all. The paper samples with 0.6, the toy"
                        " workflow with 1."
                    ),
                ),
                io.Float.Input(
                    "strength_clip",
                    default=0.9,
                    min=-10.0,
                    max=10.0,
                    step=0.05,
                    tooltip=(
                        "How strongly the text encoders' LoRA acts. Higher: closer to the training"
                        " pictures; 0: not at all. The paper samples with 0.9, the toy workflow"
                        " with 1."
                    ),
                ),
            ],
            outputs=[
                io.Model.Output(display_name="MODEL", tooltip="For the sampler."),
                io.Clip.Output(
                    display_name="CLIP", tooltip="For prompts with the new words in them."
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        embeddings: tuple[Embedding, ...],
        strength_model: float,
        strength_clip: float,
        lora: dict[str, torch.Tensor] | None = None,
    ) -> io.NodeOutput:
        import comfy.sd

        check_ranges(cls, strength_model=strength_model, strength_clip=strength_clip)
        clip = with_learned_words(clip, embeddings)
        if lora is not None:
            check_lora("lora", lora, model, clip)
            model, clip = comfy.sd.load_lora_for_models(
                model, clip, lora, strength_model, strength_clip
            )
        return io.NodeOutput(model, clip)
