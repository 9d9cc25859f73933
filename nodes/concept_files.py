"""Concepts that are kept: as files, for other workflows and other models."""

from __future__ import annotations

import dataclasses
from typing import Any

from comfy_api.latest import io

from ..host.models import concept_files
from ..host.page.thumbnails import thumbnails, thumbnails_on_page
from ..magic.concepts import Concept
from .declare import Concepts, ConceptsBefore, chain_output, file_complaint, schema
from .inputs import Node, check_texts

_NAME = "concept"
_NO_FILE = "(no concept file)"


class MagicConceptSave(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MagicConceptSave",
            display_name="Save Concept",
            category="MagicPortrait/MagicFace",
            description=(
                "Writes concepts to output/concepts, where Load Concept finds them: pictures,"
                " masks, words, strengths, and LoRAs by their names. For models of any kind."
            ),
            search_aliases=["concept file", "export concept", "save character", "keep"],
            inputs=[
                Concepts.Input(
                    "concepts", tooltip="From MagicFace Concept or MagicFace Concept LoRA."
                ),
                io.String.Input(
                    "name", default=_NAME, tooltip="The file's name; a number is added."
                ),
            ],
            outputs=[
                io.String.Output(
                    display_name="file", tooltip="The name of the file, as Load Concept lists it."
                )
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, concepts: tuple[Concept, ...], name: str) -> io.NodeOutput:
        check_texts(name=name)
        thumbnail = next((small for concept in concepts for small in thumbnails(concept)), "")
        return io.NodeOutput(
            concept_files.save_concepts(concepts, name.strip() or _NAME, thumbnail)
        )


class MagicConceptLoad(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MagicConceptLoad",
            display_name="Load Concept",
            category="MagicPortrait/MagicFace",
            description=(
                "Reads concepts that Save Concept wrote, from output/concepts or models/concepts,"
                " for MagicFace Apply."
            ),
            search_aliases=["concept file", "import concept", "load character"],
            inputs=[
                io.Combo.Input(
                    "file",
                    options=concept_files.list_files() or [_NO_FILE],
                    tooltip="A file that Save Concept wrote. It is checked before it is used.",
                ),
                io.String.Input(
                    "phrase",
                    default="",
                    tooltip=(
                        "What the concept is called in this prompt, if otherwise than in the file."
                        " Only for files of one concept. Empty: as in the file."
                    ),
                ),
                ConceptsBefore.Input("concepts", optional=True, tooltip="Concepts before these."),
            ],
            outputs=[chain_output()],
        )

    @classmethod
    def validate_inputs(cls, file: object = None) -> bool | str:
        return file_complaint(concept_files.path_of, file) or True

    @classmethod
    def fingerprint_inputs(cls, file: str | None = None, **_: Any) -> str:
        return "" if file is None else concept_files.state_of(file)

    @classmethod
    def execute(cls, file: str, phrase: str, concepts: tuple[Concept, ...] = ()) -> io.NodeOutput:
        check_texts(phrase=phrase)
        read = concept_files.read_concepts(concept_files.path_of(file))
        if words := phrase.strip():
            if len(read) > 1:
                raise ValueError(
                    f"'{file}' holds {len(read)} concepts, which cannot all be called"
                    f" '{words}': leave phrase empty"
                )
            read = (dataclasses.replace(read[0], phrase=words),)
        return io.NodeOutput((*concepts, *read), ui=thumbnails_on_page(read[0]))
