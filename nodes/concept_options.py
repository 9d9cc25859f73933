"""Concept Options: what is rarely said of a concept, about the one before it in the chain."""

from __future__ import annotations

import dataclasses
from typing import Any

from comfy_api.latest import io

from ..magic.blocks import parse_weights
from ..magic.concepts import Concept
from ..magic.messages import shown
from .declare import Concepts, chain_output, choice_complaint, schema, text_complaint
from .inputs import Node, check_texts, refuse

DIRECTIONS = ("toward", "away")


class MagicConceptOptions(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MagicConceptOptions",
            display_name="Concept Options",
            category="MagicPortrait/MagicFace",
            description=(
                "More about the concept that is connected: a reference that the picture is led away"
                " from, and how much it counts in which layers. Put it behind that MagicFace"
                " Concept; the chain goes on from here."
            ),
            search_aliases=[
                "negative reference",
                "negative image",
                "not like this",
                "avoid",
                "layer weights",
                "block weights",
                "layers_weight",
            ],
            inputs=[
                Concepts.Input(
                    "concepts",
                    tooltip="The last one of them, a MagicFace Concept with a picture, is meant.",
                ),
                io.Combo.Input(
                    "direction",
                    options=list(DIRECTIONS),
                    default=DIRECTIONS[0],
                    tooltip=(
                        "'toward': the picture is drawn like the reference. 'away': unlike it, by"
                        " as much as the reference would change; a concept of the same phrase may"
                        " say what it is to be like."
                    ),
                ),
                io.String.Input(
                    "layer_weights",
                    default="",
                    tooltip=(
                        "How much the reference counts in layers where MagicFace Apply has it act,"
                        " such as 'mid: 0.5, o6-8: 0' or 'early: 0, late: 1': 0 not at all, 1 as"
                        " elsewhere, 2 twice the odds."
                    ),
                ),
            ],
            outputs=[chain_output()],
        )

    @classmethod
    def validate_inputs(cls, layer_weights: object = None) -> bool | str:
        return text_complaint(parse_weights, layer_weights) or True

    @classmethod
    def execute(
        cls,
        concepts: tuple[Concept, ...],
        direction: Any = DIRECTIONS[0],
        layer_weights: str = "",
    ) -> io.NodeOutput:
        check_texts(layer_weights=layer_weights)
        refuse(choice_complaint("direction", direction, DIRECTIONS))
        parse_weights(layer_weights)
        if not concepts:
            raise ValueError(
                "concepts is empty, and there is nothing to say more about: connect a MagicFace"
                " Concept"
            )
        *before, last = concepts
        if last.images is None:
            raise ValueError(
                f"concept '{shown(last.phrase)}' has no picture of which this could be said:"
                " connect a MagicFace Concept"
            )
        is_away = direction == DIRECTIONS[1]
        weights = layer_weights.strip() or last.layer_weights
        if (is_away, weights) == (last.is_away, last.layer_weights):
            return io.NodeOutput(concepts)
        own = dataclasses.replace(last, is_away=is_away, layer_weights=weights)
        return io.NodeOutput((*before, own))
