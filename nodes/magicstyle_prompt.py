"""MagicStyle where a prompt leads: the look of a picture in a new one, and a picture edited by
other words. Both are this pack's own; the paper has no such use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from comfy_api.latest import io

from ..host.inversion.inputs import empty_conditioning, encoded_picture
from ..host.inversion.run import Inversion
from ..host.layout.masks import layout_masks
from ..host.layout.record import LayoutRecord
from ..host.sampling.backbone import Backbone, backbone_of
from ..host.sampling.feature_store import FeatureStore
from ..host.sampling.range import SamplingRange
from ..host.sampling.references import fit
from ..host.systems.magicstyle import Style
from ..host.systems.new_style import NewStylePatch, StylePicture
from ..host.systems.prompt_edit import HOLDS, PromptEditPatch
from ..magic.concepts import LEVELS
from ..magic.phrases import named_words, phrases_in
from ..magic.pictures import check_size, picture_batch
from .declare import (
    EVERY_STEP,
    PASSES,
    InversionType,
    Layout,
    NoiseType,
    Styles,
    advanced,
    choice_complaint,
    keep_features_input,
    layers_input,
    optional,
    reference_passes_input,
    schema,
    span_complaint,
    span_inputs,
)
from .inputs import Node, check_ranges, check_texts, invert_input, painted_mask, refuse
from .magicstyle import PLACEMENTS

_CUSTOM = "custom"
_USUAL = "usual"
_WHAT_STAYS = "paint what must not change, or disconnect it to let everything change"


class MagicStyleNewPicture(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MagicStyleNewPicture",
            display_name="MagicStyle New Picture",
            category="MagicPortrait/MagicStyle",
            description=(
                "Pictures drawn from a prompt take the look of a style picture; without one, all of"
                " a batch take the look of its first. Between the model and any sampler: without"
                " inversion or training."
            ),
            search_aliases=[
                "style reference",
                "style aligned",
                "stylealigned",
                "visual style prompting",
                "ip-adapter style",
                "reference only",
                "shared attention",
                "consistent style",
                "sketch",
            ],
            inputs=[
                io.Model.Input(
                    "model", tooltip="SD1.5, SD2.1, SDXL, or a transformer that the README lists."
                ),
                io.Image.Input(
                    "image",
                    optional=True,
                    tooltip=(
                        "The style picture, of any size. Several share. Without image and styles,"
                        " the pictures of a batch take the look of the first."
                    ),
                ),
                io.Vae.Input(
                    "vae", optional=True, tooltip="The VAE of the model. Needed with image."
                ),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip=(
                        "The text encoder of the model: gives image its empty prompt. Zeros without"
                        " it; transformers need it."
                    ),
                ),
                Styles.Input(
                    "styles",
                    optional=True,
                    tooltip=(
                        "Style pictures with a weight and a mask each: MagicStyle Reference. They"
                        " come beside image, or in its place."
                    ),
                ),
                io.Combo.Input(
                    "preset",
                    options=[*(str(level) for level in LEVELS), _CUSTOM],
                    default="normal",
                    tooltip=(
                        "How much style, in words that fit every model: subtle, normal and strong"
                        " are a strength of 0, 1, 2 on UNets and of -1.5, 0, 1.5 on transformers"
                        " (Flux, Z-Image, ...). 'custom' takes the number of strength."
                    ),
                ),
                advanced(
                    io.Float.Input(
                        "strength",
                        default=1.0,
                        min=-10.0,
                        max=10.0,
                        step=0.05,
                        tooltip=(
                            "Custom: added to the logits of style tokens. Higher is more style, and"
                            " more of what the style picture shows."
                        ),
                    )
                ),
                io.Float.Input(
                    "colour",
                    default=0.5,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip=(
                        "How far the picture takes the style's mean colour and contrast. Lower it"
                        " when colours of the prompt get lost."
                    ),
                ),
                *span_inputs(
                    "Share of sampling after which the style begins. Later leaves the composition"
                    " to the prompt.",
                    "Share of sampling after which the style ends and the model draws on alone.",
                ),
                layers_input(
                    _USUAL,
                    "Where the style is seen. 'usual': 'decoder' on UNets, 'late' on transformers."
                    " Also 'fine', 'all', or blocks such as 'o6-11'; in transformers 'early',"
                    " 'middle', or blocks such as 's0-37'.",
                ),
                advanced(
                    io.Combo.Input(
                        "positions",
                        options=[str(name) for name in PLACEMENTS],
                        default=PLACEMENTS[0],
                        tooltip=(
                            "Transformers only: where the style picture lies to the new one."
                            " 'attenuated': on it, but content counts more than place. 'same': on"
                            " it. 'aside': next to it. 'index': as another picture."
                        ),
                    )
                ),
                optional(
                    keep_features_input(
                        "'memory': what the style pictures showed is kept for the next run, which"
                        " then costs little more than plain sampling. Without a style picture there"
                        " is nothing to keep."
                    )
                ),
                reference_passes_input(
                    "How often the model looks at the style pictures, which costs time. 'sparse':"
                    " in some steps only, 8 of 25 on UNets and 13 on transformers; steps between"
                    " use what was seen last."
                ),
            ],
            outputs=[io.Model.Output(display_name="MODEL", tooltip="The patched model.")],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        preset: str,
        strength: float,
        colour: float,
        start: float,
        end: float,
        layers: str,
        positions: Any,
        image: torch.Tensor | None = None,
        vae: Any = None,
        clip: Any = None,
        styles: tuple[Style, ...] = (),
        keep_features: str = "off",
        reference_passes: str = EVERY_STEP,
    ) -> io.NodeOutput:
        check_ranges(cls, strength=strength, colour=colour, start=start, end=end)
        refuse(choice_complaint("preset", preset, [*LEVELS, _CUSTOM]))
        refuse(span_complaint(start, end))
        check_texts(layers=layers)
        if image is not None:
            image = picture_batch(image, "image")[..., :3]
            check_size((image.shape[1], image.shape[2]), "image")
            if vae is None:
                raise ValueError(
                    "image needs the VAE of the model: connect vae, or disconnect image"
                )
        backbone = backbone_of(model)
        is_usual = layers.strip() == _USUAL
        blocks = backbone.parse_layers(backbone.habits.style_layers if is_usual else layers)
        pictures = [_inverted(model, style, number) for number, style in enumerate(styles, 1)]
        if image is not None:
            pictures += _noised(model, image, vae, clip, backbone)
        level = next((level for level in LEVELS if level == preset), None)
        patch = NewStylePatch(
            pictures=tuple(pictures),
            strength=strength if level is None else backbone.habits.style_strengths[level],
            colour=colour,
            backbone=backbone,
            blocks=blocks,
            range=SamplingRange(start, end),
            placement=positions,
            store=FeatureStore() if keep_features == "memory" else None,
            bands=PASSES[reference_passes],
        )
        return io.NodeOutput(patch.add_to(model))


def _inverted(model: Any, style: Style, number: int) -> StylePicture:
    """ValueError when the style is another model's, or several pictures."""
    inversion = style.inversion
    inversion.check_model(model, f"style {number}")
    inversion.check_single(f"style {number}")
    return StylePicture(
        inversion.latents[-1], inversion.conditioning, style.weight, style.mask, inversion
    )


def _noised(
    model: Any, image: torch.Tensor, vae: Any, clip: Any, backbone: Backbone
) -> list[StylePicture]:
    """Pictures (B H W 3) that are not inverted; ValueError without what the model needs."""
    empty = empty_conditioning(model, clip)
    return [
        StylePicture(encoded_picture(model, fit(one, backbone), vae, "image"), empty)
        for one in image.split(1)
    ]


class MagicStyleEdit(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MagicStyleEdit",
            display_name="MagicStyle Edit (new prompt)",
            category="MagicPortrait/MagicStyle",
            description=(
                "Draws a picture again under another prompt, from the noise that MagicStyle Invert"
                " made of it, and holds its structure."
                " Sample with SamplerCustom: add_noise off, the new prompt as positive, CFG 3 to 7"
                " (1 for distilled models), SAMPLER and SIGMAS of MagicStyle Invert, and the LATENT"
                " of this node. Or with SamplerCustomAdvanced and NOISE."
            ),
            search_aliases=[
                "prompt to prompt",
                "plug and play",
                "pnp",
                "masactrl",
                "image editing",
                "edit picture",
                "img2img",
                "rf edit",
            ],
            inputs=[
                io.Model.Input("model", tooltip="The model of the picture's MagicStyle Invert."),
                InversionType.Input(
                    "content",
                    tooltip=(
                        "The picture, after MagicStyle Invert; best with its own words as positive"
                        " there."
                    ),
                ),
                io.Mask.Input(
                    "keep",
                    optional=True,
                    tooltip=(
                        "What must not change. May be soft. Layout Masks and Concept Mask make one"
                        " from a word. Default: everything may change."
                    ),
                ),
                io.Float.Input(
                    "until",
                    default=0.8,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip=(
                        "Share of sampling to which the structure is held. Higher keeps shapes,"
                        " lower lets the prompt change them. 0: not at all."
                    ),
                ),
                advanced(
                    io.Float.Input(
                        "structure",
                        default=1.0,
                        min=0.0,
                        max=1.0,
                        step=0.05,
                        tooltip=(
                            "How much of what is held is the picture's, as long as it is held: what"
                            " is left of 1 is the new one's own."
                        ),
                    )
                ),
                io.Combo.Input(
                    "hold",
                    options=[str(name) for name in HOLDS],
                    default=HOLDS[0],
                    tooltip=(
                        "What is held. 'structure': queries and keys, so that the words may change"
                        " colours and material. 'structure and look': values, too, so that what the"
                        " new words do not speak of stays as it is; on transformers words then"
                        " hardly act as long as it is held."
                    ),
                ),
                layers_input(
                    "all",
                    "Where the structure is held: 'decoder', 'fine', 'all', or blocks such as"
                    " 'o6-11'. In transformers 'decoder' and 'fine' are the later blocks; 'early',"
                    " 'middle', 'late', or blocks such as 's0-37'.",
                ),
                invert_input(
                    "keep",
                    "Off: what keep and keep_phrase show stays as it is. On: what keep_phrase names"
                    " (without words, what keep covers) may change, and all else stays.",
                ),
                Layout.Input(
                    "layout",
                    optional=True,
                    tooltip=(
                        "Of the Semantic Layout whose MODEL and positive went into the content's"
                        " MagicStyle Invert. Only needed for keep_phrase."
                    ),
                ),
                io.String.Input(
                    "keep_phrase",
                    default="",
                    optional=True,
                    tooltip=(
                        "What must not change, in words: phrases of the layout, separated by"
                        " commas, beside what keep shows. With invert on they say what alone may"
                        " change. Empty: none."
                    ),
                ),
            ],
            outputs=[
                io.Model.Output(display_name="MODEL", tooltip="The patched model."),
                io.Latent.Output(
                    display_name="LATENT", tooltip="Where sampling starts: the picture's noise."
                ),
                NoiseType.Output(
                    display_name="NOISE",
                    tooltip=(
                        "The same start for SamplerCustomAdvanced, with any sampler. Its"
                        " latent_image is then any LATENT of this size."
                    ),
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        content: Inversion,
        until: float,
        structure: float,
        hold: Any,
        layers: str,
        keep: torch.Tensor | None = None,
        invert: bool = False,
        layout: LayoutRecord | None = None,
        keep_phrase: str = "",
    ) -> io.NodeOutput:
        check_ranges(cls, until=until, structure=structure)
        refuse(choice_complaint("hold", hold, HOLDS))
        check_texts(layers=layers, keep_phrase=keep_phrase)
        phrases = phrases_in(keep_phrase)
        if keep is not None:
            # What stays is mostly what is around the thing that changes.
            turned = invert and not phrases
            keep = painted_mask(keep, "keep", _WHAT_STAYS, turned, is_of_a_thing=False).cpu()
            if len(keep) not in (1, content.batch):
                raise ValueError(
                    f"keep has {len(keep)} masks, the content {content.batch} pictures: give one"
                    " mask, or one for each (for one of several: Convert Mask to Image,"
                    " ImageFromBatch, Convert Image to Mask)"
                )
        content.check_model(model, "the content")
        if content.method == "o-belm" and (keep is not None or phrases):
            raise ValueError(
                "what o-belm has inverted cannot be kept: its sampler goes on from two steps at"
                " once, of which only one is put back. Invert the content with another method, or"
                " leave keep and keep_phrase empty"
            )
        backbone = backbone_of(model)
        if phrases:
            keep = _kept(_places(content, layout, phrases), keep, invert)
        blocks = backbone.parse_layers(layers)
        patch = PromptEditPatch(
            content=content,
            structure=structure if until else 0.0,
            hold=hold,
            backbone=backbone,
            blocks=blocks,
            range=SamplingRange(0.0, until),
            keep=keep,
        )
        latent = {"samples": patch.start_samples(model)}
        return io.NodeOutput(patch.add_to(model), latent, patch.start_noise(model))


def _kept(places: torch.Tensor, keep: torch.Tensor | None, invert: bool) -> torch.Tensor:
    """What must not change, B H W in 0..1: the places of phrases (B H W), and what a mask shows (1
    or B, H W). ValueError when that is everywhere, and to be turned round."""
    if keep is not None:
        size = places.shape[-2:]
        keep = F.interpolate(keep[:, None].float().clamp(0, 1), size=size, mode="area")[:, 0]
        places = torch.maximum(places, keep)
    return painted_mask(places, "keep_phrase", _WHAT_STAYS, invert, is_of_a_thing=False)


def _places(
    content: Inversion, layout: LayoutRecord | None, phrases: Sequence[str]
) -> torch.Tensor:
    """Where phrases are in the pictures of an inversion, B H W, 0 or 1: phrases of the layout, in
    any spelling; those that share a name are all meant. ValueError where that was not measured, and
    where a phrase is not in each of the pictures."""
    if layout is None:
        raise ValueError(
            "keep_phrase needs to know where its words are: connect layout of a Semantic Layout"
            " whose MODEL and positive go into MagicStyle Invert, or leave keep_phrase empty"
        )
    own = [named_words(phrase) for phrase in layout.phrases]
    if unknown := [phrase for phrase in phrases if named_words(phrase) not in own]:
        raise ValueError(
            f"keep_phrase: '{unknown[0]}' is none of the layout's phrases"
            f" ({', '.join(layout.phrases) or 'it has none'}): write it into phrases of Semantic"
            " Layout, or take one of these"
        )
    latents = content.latents[-1]
    run = layout.run_that_made(latents)
    if run is None:
        raise ValueError(
            "the layout has not seen the content: connect MODEL and positive of the same Semantic"
            " Layout to the MagicStyle Invert that gives content (an inversion that was loaded from"
            " a file was seen by none)"
        )
    step = run.steps[max(run.steps)]
    masks = layout_masks(step, len(layout.phrases), layout.picture_size(latents.shape)).phrases
    places = []
    for phrase in phrases:
        named = [mask for mask, key in zip(masks, own, strict=True) if key == named_words(phrase)]
        place = torch.stack(named).amax(0)
        if lacking := [i for i, picture in enumerate(place, start=1) if not picture.any()]:
            which = "the picture" if len(place) == 1 else f"picture {lacking[0]} of the content"
            apart = "" if len(place) == 1 else ", or edit the pictures that have it by themselves"
            raise ValueError(
                f"keep_phrase: '{phrase}' is nowhere in {which}, as the layout shows it: name it"
                f" otherwise in the prompt of Semantic Layout, or paint keep{apart}"
            )
        places.append(place)
    return torch.stack(places).amax(0)
