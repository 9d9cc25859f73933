"""Layout Conditioning: a longer text of its own for what a phrase of the prompt names."""

from __future__ import annotations

import torch
from comfy_api.latest import io

from ..magic.concepts import Concept
from ..magic.pictures import mask_batch
from ..magic.region_texts import PhraseText
from .concept_lora import REGIONS
from .declare import (
    ConceptsBefore,
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

_RANGE = (0.0, 1.0)
"""Of a strength."""


class MagicLayoutConditioning(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MagicLayoutConditioning",
            display_name="Layout Conditioning",
            category="MagicPortrait/MagicFace",
            description=(
                "A longer text for one phrase of the prompt: only the place of that thing in the"
                " picture reads it, so that colours and clothes stay with their owner. Chain it"
                " with MagicFace Concept and Concept LoRA."
            ),
            search_aliases=[
                "regional prompt",
                "regional prompting",
                "regional conditioning",
                "attention couple",
                "prompt for a region",
                "area prompt",
                "two people",
                "two characters",
                "color bleeding",
                "colour bleeding",
                "attribute binding",
                "prompt bleeding",
                "couple",
            ],
            inputs=[
                io.String.Input(
                    "phrase",
                    default="man",
                    tooltip=(
                        "The words of the target prompt that name what the text is of, such as"
                        " 'man'. 'man#2' is the second 'man' of the prompt."
                    ),
                ),
                io.String.Input(
                    "text",
                    multiline=True,
                    dynamic_prompts=True,
                    default="",
                    tooltip=(
                        "What is at that place, in full: 'a man with black hair wearing a yellow"
                        " shirt'. The rest of the picture does not read it."
                    ),
                ),
                io.Float.Input(
                    "strength",
                    default=0.75,
                    min=_RANGE[0],
                    max=_RANGE[1],
                    step=0.05,
                    tooltip=(
                        "How much of what the place reads is this text; the rest is the whole"
                        " prompt, which holds the picture together. 1: this text alone. 0: off."
                    ),
                ),
                io.String.Input(
                    "negative_text",
                    multiline=True,
                    dynamic_prompts=True,
                    default="",
                    optional=True,
                    tooltip=(
                        "What is not to be at that place, such as 'green hat'. Empty: the sampler's"
                        " negative prompt, as everywhere. Needs CFG above 1."
                    ),
                ),
                io.Mask.Input(
                    "target_region",
                    optional=True,
                    tooltip=(
                        "Where in the new picture the text is read; soft edges count softly."
                        " Default: found by itself from the prompt, in every step anew."
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
                        "With a target_region. 'replaces layout': the text is read in all of it,"
                        " from the first step on. 'limits layout': only where the phrase is inside"
                        " of it."
                    ),
                ),
                *(
                    optional(item)
                    for item in span_inputs(
                        "Share of sampling after which the text is read. Later: the whole prompt"
                        " lays out the picture alone.",
                        "Share of sampling after which the text is no longer read. Earlier: the"
                        " whole prompt draws the details alone.",
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
    def execute(
        cls,
        phrase: str,
        text: str = "",
        strength: float = 0.75,
        negative_text: str = "",
        target_region: torch.Tensor | None = None,
        concepts: tuple[Concept, ...] = (),
        region: str = REGIONS[0],
        start: float = 0.0,
        end: float = 1.0,
        strength_curve: str = "",
    ) -> io.NodeOutput:
        check_ranges(cls, strength=strength)
        check_span(cls, start, end)
        check_texts(
            phrase=phrase, text=text, negative_text=negative_text, strength_curve=strength_curve
        )
        curve = curve_of(strength_curve, *_RANGE, strength)
        refuse(choice_complaint("region", region, REGIONS))
        if not phrase.strip():
            raise ValueError(
                "phrase is empty: write the words of the target prompt that name what the text is"
                " of, such as 'man'"
            )
        painted = None if target_region is None else mask_batch(target_region, "target_region")
        own = PhraseText(
            text.strip(),
            negative_text.strip(),
            strength,
            is_inside_target=region == REGIONS[1],
            start=start,
            end=end,
            curve=curve,
        )
        concept = Concept(phrase.strip(), None, None, "", 0.0, painted, text=own)
        return io.NodeOutput((*concepts, concept))
