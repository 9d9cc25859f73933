"""Edit models (Flux.1 Kontext, Flux.2, Qwen-Image-Edit, Krea 2, Z-Image-Omni): each of the pictures
that they are given in its own region."""

from __future__ import annotations

import uuid
from typing import Any

import torch
from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker

from ..host.layout.patch import LayoutPatch
from ..host.layout.record import LayoutRecord
from ..host.page.live_layout import LayoutView, no_layout_on_page
from ..host.sampling.backbone import edit_model_of
from ..host.sampling.range import SamplingRange
from ..host.systems.edit_regions import (
    EditRegionsPatch,
    PlacedConcepts,
    reference_latents_of,
    sequence_references,
)
from ..host.text.prompts import TAG, tagged_conditioning
from ..magic.layout import automatic_ca_scale
from ..magic.messages import shown
from ..magic.pictures import check_target_region, mask_batch
from ..magic.sequence_references import OUTSIDES, EditReference
from .declare import (
    EditReferences,
    EditReferencesBefore,
    Layout,
    advanced,
    layers_input,
    node_id,
    schema,
    span_inputs,
)
from .inputs import Node, check_ranges, check_span, check_texts, invert_input, painted_mask


class MagicEditReference(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MagicEditReference",
            display_name="Edit Reference",
            category="MagicPortrait/edit",
            description=(
                "What one reference picture of an edit model is for: the first node is for picture"
                " 1, the second for picture 2, and so on. Chain them into Edit Regions."
            ),
            search_aliases=[
                "reference latent",
                "kontext",
                "qwen image edit",
                "flux 2",
                "multi reference",
                "regional",
                "reference mask",
                "reference strength",
            ],
            inputs=[
                io.String.Input(
                    "phrase",
                    default="",
                    tooltip=(
                        "The words of the prompt that this picture is for, such as 'hat': only"
                        " their region looks at it. Empty: all of the picture does, as for the"
                        " photo that is edited."
                    ),
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=10.0,
                    step=0.05,
                    tooltip=(
                        "How many times as much the picture that is made looks at this one. 1: as"
                        " the model was trained; 0.5 copies less, 2 more; 0 leaves it out."
                    ),
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip=(
                        "Which part of the reference picture is looked at, such as the hat only."
                        " Default: all of it. Soft edges count softly."
                    ),
                ),
                io.Mask.Input(
                    "target_region",
                    optional=True,
                    tooltip=(
                        "Where in the new picture it goes. Default: found by itself from the"
                        " phrase."
                    ),
                ),
                EditReferencesBefore.Input(
                    "references", optional=True, tooltip="The Edit Reference of the picture before."
                ),
                invert_input("the mask"),
            ],
            outputs=[
                EditReferences.Output(
                    display_name="references",
                    tooltip="All so far: connect to the next Edit Reference, or to Edit Regions.",
                )
            ],
        )

    @classmethod
    def execute(
        cls,
        phrase: str,
        strength: float,
        mask: torch.Tensor | None = None,
        target_region: torch.Tensor | None = None,
        references: tuple[EditReference, ...] = (),
        invert: bool = False,
    ) -> io.NodeOutput:
        check_ranges(cls, strength=strength)
        check_texts(phrase=phrase)
        phrase = phrase.strip()
        owner = f"mask of reference '{shown(phrase)}'"
        if mask is not None:
            what_to_do = "paint over the part of the picture to take"
            masks = painted_mask(mask, owner, what_to_do, invert)
            if len(masks) > 1:
                raise ValueError(
                    f"{owner} has {len(masks)} masks, a reference has one picture: connect one mask"
                )
            mask = masks[0]
        region = target_region
        if region is not None:
            owner = f"reference '{shown(phrase)}'"
            region = mask_batch(region, f"target_region of {owner}")
            check_target_region(region, owner)
        return io.NodeOutput((*references, EditReference(phrase, strength, mask, region)))


class MagicEditRegions(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MagicEditRegions",
            display_name="Edit Regions",
            category="MagicPortrait/edit",
            description=(
                "Keeps the reference pictures of an edit model apart: each region of the new"
                " picture looks at its own. Put it between the conditioning with the reference"
                " latents and the sampler."
            ),
            search_aliases=[
                "kontext",
                "qwen image edit",
                "flux 2",
                "klein",
                "multi reference",
                "regional",
                "reference bleed",
                "reference strength",
                "reference latent mask",
                "multi subject",
                "two people",
            ],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip=(
                        "Flux.1 Kontext, Flux.2, Qwen-Image-Edit, Krea 2 edit, Z-Image-Omni, or a"
                        " fine-tune."
                    ),
                ),
                io.Conditioning.Input(
                    "positive",
                    tooltip=(
                        "The prompt with its reference latents: from Reference Latent nodes, or"
                        " TextEncodeQwenImageEditPlus."
                    ),
                ),
                EditReferences.Input(
                    "references",
                    tooltip="One Edit Reference for each picture, in the order of the pictures.",
                ),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip=(
                        "The text encoder of the model, to find the phrases. Not needed when all"
                        " regions are painted."
                    ),
                ),
                io.String.Input(
                    "prompt",
                    multiline=True,
                    dynamic_prompts=False,
                    default="",
                    tooltip=(
                        "The same text as in the node that made positive, in which the phrases are:"
                        " best link one text to both."
                    ),
                ),
                io.Float.Input(
                    "inject_at",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip=(
                        "When each region begins to look at its own reference only, as a share of"
                        " sampling: 0 at once, 0.2 after a fifth, 1 never. Until then it looks at"
                        " all references. Higher: the layout is freer, more mixes."
                    ),
                ),
                io.Combo.Input(
                    "outside",
                    options=[str(name) for name in OUTSIDES],
                    default="all",
                    tooltip=(
                        "What places of no region look at. 'all': all references. 'none': only"
                        " those without a phrase, so that nothing of the others spills into the"
                        " background."
                    ),
                ),
                io.Boolean.Input(
                    "isolate",
                    default=False,
                    tooltip=(
                        "References do not look at each other: they mix even less, but the model"
                        " was not trained so. Off: as it was trained."
                    ),
                ),
                *span_inputs(
                    "Share of sampling after which regions, masks and strengths act.",
                    "Share of sampling after which they no longer act.",
                ),
                layers_input(
                    "all",
                    "Where they act: 'all', 'fine' (the later layers), 'early', 'middle', 'late',"
                    " or blocks such as 'd10-18,s0-37'. Fewer layers: more of a reference gets"
                    " through to the other regions.",
                ),
                advanced(
                    io.Float.Input(
                        "ca_scale",
                        default=0.0,
                        min=0.0,
                        max=1.0,
                        step=0.05,
                        tooltip=(
                            "How much the words that name no reference count in the layout: lower"
                            " gives the phrases more room. 0: automatic, 0.9 for one phrase and 0.6"
                            " for several."
                        ),
                    )
                ),
            ],
            outputs=[
                io.Model.Output(display_name="MODEL", tooltip="The patched model."),
                io.Conditioning.Output(
                    display_name="positive",
                    tooltip="The same prompt and references, for the sampler's positive input.",
                ),
                Layout.Output(
                    display_name="layout",
                    tooltip=(
                        "Which phrase owns which part of the picture: for Layout Masks, after"
                        " sampling."
                    ),
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        positive: list[Any],
        references: tuple[EditReference, ...],
        clip: Any = None,
        *,
        prompt: str,
        inject_at: float,
        outside: Any,
        isolate: bool,
        start: float,
        end: float,
        layers: str,
        ca_scale: float,
    ) -> io.NodeOutput:
        check_ranges(cls, inject_at=inject_at, ca_scale=ca_scale)
        check_span(cls, start, end)
        check_texts(prompt=prompt, layers=layers)
        backbone = edit_model_of(model)
        if any(TAG in options for _, options in positive):
            raise ValueError(
                "positive comes from another node of this pack, and a prompt belongs to one of"
                " them: connect the conditioning of the host's nodes"
            )
        blocks, latents = backbone.parse_layers(layers), reference_latents_of(positive)
        concepts = PlacedConcepts.of(references)
        if concepts.phrases and (clip is None or not prompt.strip()):
            raise ValueError(
                f"phrase '{shown(concepts.phrases[0])}' is to be found in the prompt: connect clip"
                " and write the prompt that positive was made of, or paint a target_region for"
                " every reference and leave its phrase empty"
            )
        tagged = tagged_conditioning(
            positive, clip, prompt, concepts.phrases, uuid.uuid4().hex, backbone.context
        )
        record = LayoutRecord(tagged.phrases, backbone.pixels)
        layout = LayoutPatch(
            prompt=tagged,
            backbone=backbone,
            ca_scale=ca_scale or automatic_ca_scale(len(tagged.phrases)),
            record=record,
            targets=concepts.targets[: len(tagged.phrases)],
            observers=(LayoutView(node_id(cls), tagged.phrases),) if tagged.phrases else (),
        )
        patch = EditRegionsPatch(
            layout=layout,
            backbone=backbone,
            references=sequence_references(references, latents, backbone),
            targets=concepts.targets,
            blocks=blocks,
            range=SamplingRange(start, end),
            inject_at=inject_at,
            is_isolated=isolate,
            outside=outside,
        )
        patched = patch.add_to(model)
        if tagged.phrases:
            return io.NodeOutput(patched, tagged.conditioning, record)
        # There is no layout of nothing: what is connected to it does not run.
        nothing = ExecutionBlocker(None)
        return io.NodeOutput(patched, tagged.conditioning, nothing, ui=no_layout_on_page())
