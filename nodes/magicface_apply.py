"""MagicFace Apply (arXiv 2408.07433): portraits from one masked reference image per concept,
without training."""

from __future__ import annotations

import dataclasses
import uuid
from typing import Any

from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker

from ..host.layout.patch import LayoutPatch
from ..host.layout.record import LayoutRecord
from ..host.page.live_layout import LayoutView, no_layout_on_page
from ..host.page.notices import notice
from ..host.sampling.backbone import Backbone, backbone_of, check_reads_texts, edit_model_of
from ..host.sampling.feature_store import FeatureStore
from ..host.sampling.observers import ObservedPatch
from ..host.sampling.patch import patches_of
from ..host.sampling.range import SamplingRange
from ..host.sampling.references import (
    advise,
    check_latents,
    check_masks,
    curve_on,
    prepare_references,
    weights_on,
)
from ..host.systems.concept_lora import loras_of
from ..host.systems.edit_regions import ConceptPictures, EditRegionsPatch
from ..host.systems.magicface import MagicFacePatch, ReferenceTime
from ..host.systems.region_texts import texts_of
from ..host.text.prompts import (
    TaggedPrompt,
    encode,
    tagged_prompt,
    with_lora_text,
    with_reference_latents,
    words_of_phrases,
    words_that_stand_once,
)
from ..magic.concepts import CELLS, Concept, with_loras_joined
from ..magic.layout import automatic_ca_scale
from ..magic.positions import PLACEMENTS
from .declare import (
    EVERY_STEP,
    PASSES,
    Concepts,
    Layout,
    advanced,
    bypass_conditioning,
    keep_features_input,
    layers_input,
    node_id,
    reference_passes_input,
    schema,
    span_inputs,
)
from .inputs import Node, check_ranges, check_span, check_texts

REFERENCE_PASS, IN_THE_SEQUENCE = "reference pass", "in the sequence"


class MagicFaceApply(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MagicFaceApply",
            display_name="MagicFace Apply",
            category="MagicPortrait/MagicFace",
            description=(
                "Makes a model draw the concepts of the reference images. Connect MODEL and"
                " CONDITIONING to any sampler. SD1.5, SD2.1, SDXL; Flux, Z-Image, Qwen-Image and"
                " other transformers."
            ),
            search_aliases=[
                "face",
                "identity",
                "personalize",
                "reference",
                "reference only",
                "faceid",
                "instantid",
                "pulid",
                "ip adapter",
                "subject driven",
                "multi subject",
                "character",
                "consistent character",
                "outfit",
                "clothes",
                "clothes swap",
                "try on",
                "face swap",
                "hat",
                "scarf",
                "glasses",
            ],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip=(
                        "SD1.5, SD2.1, SDXL, Flux.1, Flux.2, Z-Image, Lumina 2, Qwen-Image, Krea 2,"
                        " Chroma, SD3.5, HiDream-I1, Anima, or a fine-tune. LoRAs and other patches"
                        " may come before or after."
                    ),
                ),
                io.Clip.Input("clip", tooltip="The text encoder of the model."),
                io.Vae.Input("vae", tooltip="The VAE of the model: encodes the references."),
                Concepts.Input(
                    "concepts",
                    optional=True,
                    tooltip=(
                        "One or more MagicFace Concept nodes. Without any, the picture is the plain"
                        " model's."
                    ),
                ),
                io.String.Input(
                    "prompt",
                    multiline=True,
                    dynamic_prompts=True,
                    default="a portrait of a woman wearing a hat",
                    tooltip=(
                        "The new picture in words. Every concept's phrase must be in it, best"
                        " without the colours that its reference shows: others would count, too."
                    ),
                ),
                io.Float.Input(
                    "inject_at",
                    default=0.2,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip=(
                        "When each part of the picture begins to look at its own concept's"
                        " reference only: 0.2 is after a fifth of sampling. Until then it looks at"
                        " all references. Lower: concepts mix less. Higher: pose and layout are"
                        " freer. The paper: 0.42; on transformers 0 is best."
                    ),
                ),
                io.Boolean.Input(
                    "semantic_cfg",
                    default=True,
                    tooltip=(
                        "Guides every word's region equally strongly. Needs CFG above 1; costs the"
                        " layout in every step. Off: the sampler's plain CFG."
                    ),
                ),
                *span_inputs(
                    "Share of sampling after which references act. Later: the prompt alone sets"
                    " pose and layout, less is copied.",
                    "Share of sampling after which references no longer act. Earlier: the model"
                    " finishes alone, fewer details are copied.",
                ),
                layers_input(
                    "fine",
                    "Where references act: 'fine' (what suits the model: a UNet's two finest levels"
                    " of the decoder, Flux's single blocks, the last two thirds of other"
                    " transformers), 'all' (changes more of the rest of the picture), 'decoder' of"
                    " UNets, 'early', 'middle', 'late' of transformers, or blocks such as"
                    " 'o6-11,m0,i7-8' or 'd10-18,s0-37'.",
                ),
                advanced(
                    io.Float.Input(
                        "ca_scale",
                        default=0.0,
                        min=0.0,
                        max=1.0,
                        step=0.05,
                        tooltip=(
                            "How much the words that name no concept count in the layout: lower"
                            " gives concepts more room. 0: automatic, 0.9 for one concept and 0.6"
                            " for several."
                        ),
                    )
                ),
                advanced(
                    io.Combo.Input(
                        "reference_noise",
                        options=["fixed", "per step"],
                        default="fixed",
                        tooltip=(
                            "'fixed': the same noise on a reference in all steps, which"
                            " keep_features needs. 'per step': fresh noise each step, as in the"
                            " official code."
                        ),
                    )
                ),
                advanced(
                    io.Int.Input(
                        "noise_seed",
                        default=0,
                        min=0,
                        max=0xFFFFFFFFFFFFFFFF,
                        control_after_generate=False,
                        tooltip=(
                            "Which noise the references are seen through. Another number gives a"
                            " variant of the picture; higher is not better."
                        ),
                    )
                ),
                keep_features_input(
                    "'memory': what the references showed is kept for the next run with the same"
                    " steps, which then costs little more than plain sampling. For SD1.5 up to 24"
                    " MB a reference and step in half precision; above 2 GB on disk."
                ),
                advanced(
                    io.Combo.Input(
                        "mask_cells",
                        options=[str(name) for name in CELLS],
                        optional=True,
                        default="share",
                        tooltip=(
                            "How a reference's mask is laid on the model's tokens. 'share': each"
                            " counts by how much of it the mask covers. 'nearest': all or nothing,"
                            " as in the official code: harder edges, thin things may fall out."
                        ),
                    )
                ),
                bypass_conditioning(),
                reference_passes_input(
                    "How often the model looks at the references, which costs time. 'sparse': in"
                    " some steps only, most of them where details are drawn; steps between use what"
                    " was seen last. Of 25 steps 8."
                ),
                advanced(
                    io.Combo.Input(
                        "positions",
                        options=[str(name) for name in PLACEMENTS],
                        optional=True,
                        default="region",
                        tooltip=(
                            "Transformers only: where a reference lies to the picture. 'region':"
                            " its mask on the place of the concept. 'same': where it is in its own"
                            " image. 'aside': next to the picture. 'index': as another picture."
                            " 'attenuated': content counts more than place."
                        ),
                    )
                ),
                advanced(
                    io.Combo.Input(
                        "references",
                        options=[REFERENCE_PASS, IN_THE_SEQUENCE],
                        optional=True,
                        default=REFERENCE_PASS,
                        tooltip=(
                            "'reference pass': on every model. 'in the sequence': edit models"
                            " (Kontext, Flux.2, Qwen-Image-Edit, Krea 2 edit) are given the"
                            " pictures as they were trained, without a pass; strength 0 is then as"
                            " trained, 'fine' all layers."
                        ),
                    )
                ),
            ],
            outputs=[
                io.Model.Output(display_name="MODEL", tooltip="The patched model."),
                io.Conditioning.Output(
                    display_name="positive", tooltip="The prompt, for the sampler's positive input."
                ),
                Layout.Output(
                    display_name="layout",
                    tooltip=(
                        "Which word owns which part of the picture: for Layout Masks, after"
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
        clip: Any,
        vae: Any,
        concepts: tuple[Concept, ...] = (),
        *,
        prompt: str,
        inject_at: float,
        semantic_cfg: bool,
        start: float,
        end: float,
        layers: str,
        ca_scale: float,
        reference_noise: str,
        noise_seed: int,
        keep_features: str,
        mask_cells: Any = "share",
        positive: Any = None,
        reference_passes: str = EVERY_STEP,
        positions: Any = "region",
        references: str = REFERENCE_PASS,
    ) -> io.NodeOutput:
        check_ranges(cls, inject_at=inject_at, ca_scale=ca_scale, noise_seed=noise_seed)
        check_span(cls, start, end)
        check_texts(prompt=prompt, layers=layers)
        if not concepts:
            # There is no layout of nothing: what is connected to it does not run.
            plain = encode(clip, prompt)
            return io.NodeOutput(model, plain, ExecutionBlocker(None), ui=no_layout_on_page())
        backbone = backbone_of(model)
        if any(isinstance(patch, ObservedPatch) for *_, patch in patches_of(model)):
            raise ValueError(
                "this MODEL comes from a MagicFace Apply already: chain all MagicFace Concept nodes"
                " into one MagicFace Apply"
            )
        named = [concept.phrase for concept in concepts]
        once = words_that_stand_once(clip, prompt, named, backbone.context)
        concepts = with_loras_joined(concepts, once)
        ca_scale = ca_scale or automatic_ca_scale(len(concepts))
        if references == IN_THE_SEQUENCE:
            edit = dataclasses.replace(
                cls._in_the_sequence(
                    model, clip, vae, concepts, prompt, mask_cells, layers, ca_scale
                ),
                range=SamplingRange(start, end),
                inject_at=inject_at,
            )
            prompted = edit.layout.prompt.conditioning
            return io.NodeOutput(edit.add_to(model), prompted, edit.layout.record)
        blocks = backbone.parse_layers(layers)
        loras = loras_of(model, concepts)
        for lora in loras:
            if lora.adapters.left_out:
                notice(
                    f"LoRA '{lora.lora.name}' also changes weights of which it is not known how"
                    f" they act in a part of the picture ({len(lora.adapters.left_out)} of them,"
                    f" such as {lora.adapters.left_out[0]}): they are left out"
                )
        phrases = [concept.phrase for concept in concepts]
        tagged = tagged_prompt(clip, prompt, phrases, uuid.uuid4().hex, backbone.context)
        if loras:
            pairs = [(lora.concept, lora.lora) for lora in loras]
            tagged = with_lora_text(clip, tagged, pairs, backbone.context)
        texts = texts_of(clip, concepts)
        if texts:
            check_reads_texts(backbone)
        words = words_of_phrases(clip, prompt, phrases, backbone.context)
        homes = tuple(i for i, concept in enumerate(concepts) for _ in concept.away)
        away = tuple(own for concept in concepts for own in concept.away)
        # An image of a man is of 'a man', and not of the second one.
        shown_words = tuple(
            concept
            if concept.prompt or name == concept.phrase
            else dataclasses.replace(concept, prompt=name)
            for concept, name in [
                *zip(concepts, words, strict=True),
                *((own, words[home]) for own, home in zip(away, homes, strict=True)),
            ]
        )
        prepared = prepare_references(shown_words, clip, vae, backbone, mask_cells)
        channels = model.get_model_object("latent_format").latent_channels
        check_latents((reference.latent for reference in prepared), channels)
        check_masks(prepared, shown_words, blocks, backbone)
        advise(prepared, backbone, inject_at)
        layout = cls._layout(tagged, concepts, backbone, ca_scale)
        is_kept = keep_features == "memory" and reference_noise == "fixed"
        patch = MagicFacePatch(
            layout=layout,
            references=tuple(prepared),
            blocks=blocks,
            range=SamplingRange(start, end),
            inject_at=inject_at,
            semantic_cfg=semantic_cfg,
            noise_seed=noise_seed,
            noise_per_step=reference_noise == "per step",
            store=FeatureStore() if is_kept else None,
            bands=PASSES[reference_passes],
            placement=positions,
            loras=loras,
            texts=texts,
            times=tuple(
                ReferenceTime(
                    SamplingRange(concept.start, concept.end),
                    curve_on(backbone, concept),
                    weights_on(backbone, concept),
                )
                for concept in shown_words
            ),
            away=homes,
        )
        return io.NodeOutput(patch.add_to(model), tagged.conditioning, layout.record)

    @classmethod
    def _layout(
        cls,
        tagged: TaggedPrompt,
        concepts: tuple[Concept, ...],
        backbone: Backbone,
        ca_scale: float,
    ) -> LayoutPatch:
        """What is measured, and shown on the node."""
        return LayoutPatch(
            prompt=tagged,
            backbone=backbone,
            ca_scale=ca_scale,
            record=LayoutRecord(tagged.phrases, backbone.pixels),
            targets=tuple(concept.target_region for concept in concepts),
            observers=(LayoutView(node_id(cls), tagged.phrases, concepts),),
        )

    @classmethod
    def _in_the_sequence(
        cls,
        model: Any,
        clip: Any,
        vae: Any,
        concepts: tuple[Concept, ...],
        prompt: str,
        mask_cells: Any,
        layers: str,
        ca_scale: float,
    ) -> EditRegionsPatch:
        """Of an edit model, which is given the concepts' pictures."""
        backbone = edit_model_of(model)
        blocks = backbone.parse_layers("all" if layers.strip() == "fine" else layers)
        pictures = ConceptPictures.of(concepts, vae, backbone, mask_cells)
        check_latents(pictures.latents, model.get_model_object("latent_format").latent_channels)
        tagged = tagged_prompt(
            clip,
            prompt,
            [concept.phrase for concept in concepts],
            uuid.uuid4().hex,
            backbone.context,
            pictures.for_text,
        )
        return EditRegionsPatch(
            layout=cls._layout(
                with_reference_latents(tagged, pictures.latents), concepts, backbone, ca_scale
            ),
            backbone=backbone,
            references=pictures.references,
            targets=tuple(concept.target_region for concept in concepts),
            blocks=blocks,
        )
