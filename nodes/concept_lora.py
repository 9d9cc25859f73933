"""Concept LoRA: a LoRA that acts only where its phrase is in the picture."""

from __future__ import annotations

import logging
from typing import Any

import torch
from comfy_api.latest import io

from ..host.models.lora_files import list_loras, load_lora, lora_account, lora_state
from ..host.models.lora_patches import check_finite
from ..host.page.notices import say_on_node
from ..host.sampling.adapters import check_host
from ..magic.concepts import LORA_TEXTS, Concept, ConceptLora
from ..magic.messages import shown
from ..magic.pictures import mask_batch
from .declare import (
    ConceptsBefore,
    LoraModel,
    advanced,
    chain_output,
    choice_complaint,
    curve_complaint,
    curve_input,
    curve_of,
    optional,
    schema,
    span_inputs,
)
from .inputs import Node, check_ranges, check_span, check_texts, refuse

NO_LORA = "(none)"
_RANGE = (-10.0, 10.0)
"""Of a strength."""
REGIONS = ("replaces layout", "limits layout")


class MagicConceptLora(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MagicConceptLora",
            display_name="MagicFace Concept LoRA",
            category="MagicPortrait/MagicFace",
            description=(
                "A LoRA for one phrase of the prompt: it acts where that thing is in the picture,"
                " and nowhere else, so that several LoRAs do not mix. Chain it with MagicFace"
                " Concept; one of the same phrase gets reference and LoRA."
            ),
            search_aliases=[
                "lora",
                "regional lora",
                "lora mask",
                "masked lora",
                "two characters",
                "two people",
                "several loras",
                "character lora",
                "lora bleeding",
                "attention couple",
                "freefuse",
            ],
            inputs=[
                io.String.Input(
                    "phrase",
                    default="hat",
                    tooltip=(
                        "The words of the target prompt that name what the LoRA is for, such as"
                        " 'hat' or 'man'. The LoRA's own trigger words belong into the prompt too."
                    ),
                ),
                io.Combo.Input(
                    "lora",
                    options=[NO_LORA, *list_loras()],
                    default=NO_LORA,
                    tooltip=(
                        "A safetensors file of ComfyUI's loras folder, made for the model: LoRA,"
                        " LoHa, LoKr, OFT. Counts only as long as nothing is connected to"
                        " lora_model."
                    ),
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=_RANGE[0],
                    max=_RANGE[1],
                    step=0.05,
                    tooltip=(
                        "How strongly the LoRA acts in its place: 1 is as trained, 0 off, more than"
                        " 1.5 often breaks the picture. Below 0 it leads away."
                    ),
                ),
                LoraModel.Input(
                    "lora_model",
                    optional=True,
                    tooltip=(
                        "A LoRA that was just trained, by MagiCapture Train or ComfyUI's Train"
                        " LoRA, in place of a file."
                    ),
                ),
                io.Mask.Input(
                    "target_region",
                    optional=True,
                    tooltip=(
                        "Where in the new picture the LoRA acts; soft edges count softly. Default:"
                        " found by itself from the prompt, in every step anew."
                    ),
                ),
                ConceptsBefore.Input(
                    "concepts", optional=True, tooltip="Concepts before this one."
                ),
                io.Combo.Input(
                    "region",
                    options=list(REGIONS),
                    optional=True,
                    default=REGIONS[0],
                    tooltip=(
                        "With a target_region. 'replaces layout': the LoRA acts in all of it, from"
                        " the first step on. 'limits layout': only where the phrase is inside of"
                        " it."
                    ),
                ),
                advanced(
                    io.Combo.Input(
                        "text",
                        options=[str(name) for name in LORA_TEXTS],
                        optional=True,
                        default="phrase",
                        tooltip=(
                            "Which tokens of the prompt take the LoRA. 'phrase': its own. 'all':"
                            " all, as Load LoRA does, so that words of others change too. 'none':"
                            " the picture's tokens alone."
                        ),
                    )
                ),
                advanced(
                    io.Boolean.Input(
                        "global_layers",
                        default=False,
                        optional=True,
                        tooltip=(
                            "Layers that have no place in the picture (of the time, of the pooled"
                            " text). On: the LoRA acts in them too, which changes all of the"
                            " picture a little."
                        ),
                    )
                ),
                *(
                    optional(item)
                    for item in span_inputs(
                        "Share of sampling after which the LoRA acts. Later: the model lays out"
                        " the picture alone.",
                        "Share of sampling after which the LoRA no longer acts. Earlier: the model"
                        " draws the details alone.",
                    )
                ),
                curve_input("0: 1, 0.5: 0.4"),
            ],
            outputs=[chain_output()],
        )

    @classmethod
    def validate_inputs(cls, strength_curve: object = None) -> bool | str:
        return curve_complaint(strength_curve, *_RANGE) or True

    @classmethod
    def fingerprint_inputs(cls, lora: Any = None, lora_model: Any = None, **_: Any) -> str:
        is_file = lora_model is None and isinstance(lora, str) and lora != NO_LORA
        return lora_state(lora) if is_file else ""

    @classmethod
    def execute(
        cls,
        phrase: str,
        lora: str = NO_LORA,
        strength: float = 1.0,
        lora_model: dict[str, torch.Tensor] | None = None,
        target_region: torch.Tensor | None = None,
        concepts: tuple[Concept, ...] = (),
        region: str = REGIONS[0],
        text: Any = "phrase",
        global_layers: bool = False,
        start: float = 0.0,
        end: float = 1.0,
        strength_curve: str = "",
    ) -> io.NodeOutput:
        check_host()
        check_ranges(cls, strength=strength)
        check_span(cls, start, end)
        check_texts(phrase=phrase, strength_curve=strength_curve)
        curve = curve_of(strength_curve, *_RANGE, strength)
        refuse(choice_complaint("text", text, LORA_TEXTS))
        refuse(choice_complaint("region", region, REGIONS))
        if not phrase.strip():
            raise ValueError(
                "phrase is empty: write the words of the target prompt that name what the LoRA is"
                " for, such as 'hat'"
            )
        painted = None if target_region is None else mask_batch(target_region, "target_region")
        if lora_model is not None:
            name, weights = "lora_model", dict(lora_model)
            check_finite(name, weights)
        elif lora == NO_LORA:
            raise ValueError(
                f"concept '{shown(phrase)}' has no LoRA: choose a file of ComfyUI's loras folder"
                " (models/loras), or connect lora_model"
            )
        else:
            name, weights = lora, load_lora(lora)
            if account := lora_account(lora):
                logging.info("MagicPortrait: %s: %s", lora, account)
                say_on_node(account)
        own = ConceptLora(
            name,
            weights,
            strength,
            text,
            global_layers,
            is_inside_target=region == REGIONS[1],
            start=start,
            end=end,
            curve=curve,
        )
        concept = Concept(phrase.strip(), None, None, "", 0.0, painted, loras=(own,))
        return io.NodeOutput((*concepts, concept))
