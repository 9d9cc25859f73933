"""MagicFace Concept Folder: concepts in the data format of the official code."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..host.pictures import concept_folder
from ..magic.concepts import Concept
from ..magic.messages import shown
from .declare import Concepts, ConceptsBefore, defaults_of, schema
from .inputs import Node, warn_of_border
from .magicface_apply import MagicFaceApply
from .magicface_concept import DEFAULT_STRENGTH


class MagicFaceConceptFolder(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        folders = concept_folder.list_folders()
        return schema(
            node_id="MagicFaceConceptFolder",
            display_name="MagicFace Concept Folder",
            category="MagicPortrait/MagicFace",
            description=(
                "Reads a folder of MagicFace's own data format from ComfyUI's input folder: "
                "image/<concept>.jpg, mask/<concept>.jpg and, if there is one, config*.yaml."
            ),
            search_aliases=["dataset", "magicface yaml", "load concepts"],
            inputs=[
                io.Combo.Input(
                    "folder",
                    options=folders or [concept_folder.NO_FOLDER],
                    tooltip=(
                        "A folder inside ComfyUI's input folder that has image/ and mask/ in it."
                    ),
                ),
                ConceptsBefore.Input("concepts", optional=True, tooltip="Concepts before these."),
            ],
            outputs=[
                Concepts.Output(display_name="concepts", tooltip="The concepts of the folder."),
                io.String.Output(
                    display_name="prompt",
                    tooltip=(
                        "The target prompt of the YAML file, or one made from the concepts' names."
                    ),
                ),
                io.String.Output(
                    display_name="negative_prompt", tooltip="The negative prompt of the YAML file."
                ),
                io.Float.Output(
                    display_name="ca_scale",
                    tooltip=(
                        "ca_scale of the YAML file, for MagicFace Apply; 0 (automatic) without one."
                    ),
                ),
                io.Float.Output(
                    display_name="inject_at",
                    tooltip=(
                        "The share of sampling after the YAML file's inject_step, for MagicFace"
                        " Apply; without one what that node starts with."
                    ),
                ),
                io.Float.Output(
                    display_name="start",
                    tooltip="start_step of the YAML file as a share, for MagicFace Apply; else 0.",
                ),
                io.Float.Output(
                    display_name="end",
                    tooltip="end_step of the YAML file as a share, for MagicFace Apply; else 1.",
                ),
                io.String.Output(
                    display_name="layers",
                    tooltip=(
                        "layer_idx of the YAML file in the words of MagicFace Apply (SD1.5, SD2.1);"
                        " else what that node starts with."
                    ),
                ),
                io.Int.Output(
                    display_name="seed",
                    tooltip="The first of the YAML file's seeds, for the sampler; else 0.",
                ),
                io.String.Output(
                    display_name="report",
                    tooltip=(
                        "What was read, what was not, and what the YAML file asks for: connect it"
                        " to Preview as Text."
                    ),
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, folder: object = None) -> bool | str:
        is_known = folder is None or concept_folder.is_listed(str(folder))
        return True if is_known else concept_folder.missing_message(str(folder))

    @classmethod
    def fingerprint_inputs(cls, folder: Any = None, **_: Any) -> str:
        return concept_folder.state_of(folder) if concept_folder.is_listed(folder) else ""

    @classmethod
    def execute(cls, folder: str, concepts: tuple[Concept, ...] = ()) -> io.NodeOutput:
        read = concept_folder.read_folder(folder, DEFAULT_STRENGTH)
        for concept in read.concepts:
            if concept.mask is not None:
                warn_of_border(concept.mask, f"mask of concept '{shown(concept.phrase)}'")
        config = read.config
        settings = {**defaults_of(MagicFaceApply), **(config.settings if config else {})}
        report = [*read.report, *(config.requests if config else ())]
        return io.NodeOutput(
            (*concepts, *read.concepts),
            read.prompt,
            config.negative_prompt if config else "",
            *(settings[name] for name in ("ca_scale", "inject_at", "start", "end", "layers")),
            config.seeds[0] if config and config.seeds else 0,
            "\n".join(report),
        )
