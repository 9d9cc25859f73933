"""MagicStyle (arXiv 2409.08156): a portrait in the style of another picture, without training. The
fusion rule is our reconstruction."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io

from ..host.inversion.cache import invert_with_cache
from ..host.inversion.inputs import (
    decoded_pictures,
    empty_conditioning,
    encoded_picture,
    sigmas_of,
)
from ..host.inversion.run import Inversion, Recipe, resample_with
from ..host.sampling.backbone import backbone_of
from ..host.sampling.feature_store import FeatureStore
from ..host.sampling.range import SamplingRange, prediction_of
from ..host.systems.magicstyle import MagicStylePatch, Style
from ..magic.feature_fusion import KEYS, PRESETS, Fusion, Preset
from ..magic.pictures import picture_batch
from ..magic.positions import Placement
from ..magic.reference_passes import BandStarts
from .declare import (
    EVERY_STEP,
    PASSES,
    InversionType,
    NoiseType,
    Styles,
    StylesBefore,
    advanced,
    cache_input,
    choice_complaint,
    keep_features_input,
    layers_input,
    reference_passes_input,
    schedule_inputs,
    schema,
    span_complaint,
    span_inputs,
)
from .inputs import Node, check_ranges, check_texts, invert_input, painted_mask, refuse

_CUSTOM = "custom"
_LAYERS_TOOLTIP = (
    "Where features are fused: 'decoder', 'fine' (its two finest levels), 'all', or blocks such as"
    " 'o6-11'. On the toy checkpoint these three come out alike. In transformers 'decoder' and"
    " 'fine' are the later blocks; 'early', 'middle', 'late', or blocks such as 's0-37'."
)
PLACEMENTS: tuple[Placement, ...] = ("attenuated", "same", "aside", "index")
"""Of those that there are: a style has no region. The first keeps most of the structure at equal
style (docs/magicstyle_flow.md)."""

_WHERE_IT_ACTS = "paint where it acts, or disconnect it to use it everywhere"


def _patch(
    model: Any,
    content: Inversion,
    styles: tuple[Style, ...],
    preset: Preset,
    layers: str,
    fuses_negative: bool,
    is_kept: bool,
    bands: BandStarts | None = None,
    placement: Placement = PLACEMENTS[0],
) -> MagicStylePatch:
    """ValueError when content, styles and model do not belong together."""
    content.check_model(model, "the content")
    for number, style in enumerate(styles, start=1):
        name = f"style {number}"
        style.inversion.check_model(model, name)
        style.inversion.check_sigmas(content.sigmas.tolist(), name)
        style.inversion.check_single(name)
    backbone = backbone_of(model)
    return MagicStylePatch(
        content=content,
        styles=styles,
        fusion=preset.fusion,
        backbone=backbone,
        blocks=backbone.parse_layers(layers),
        range=SamplingRange(preset.start, preset.end),
        fuses_negative=fuses_negative,
        adain=preset.adain,
        store=FeatureStore() if is_kept else None,
        bands=bands,
        placement=placement,
    )


def _recipe(model: Any) -> Recipe:
    """How the one-node sampler inverts. On flow models one call a step does what three do by
    corrections, which do not converge in few steps (docs/magicstyle_flow.md)."""
    if prediction_of(model.get_model_object("model_sampling")) == "flow":
        return Recipe("fireflow", 0, 0.0, 1.0)
    return Recipe("fixed-point", 2, 1e-4, 1.0)


def _preset_complaint(
    preset: str, start: float, end: float, alpha: float, beta: float
) -> str | None:
    """What is wrong with the choice and its values; None when nothing is."""
    if complaint := choice_complaint("preset", preset, [*PRESETS, _CUSTOM]):
        return complaint
    if preset in PRESETS:
        # It has values of its own.
        return None
    if complaint := span_complaint(start, end):
        return complaint
    if alpha + beta > 1.0001:
        return f"alpha ({alpha}) and beta ({beta}) add up to more than 1"
    return None


class MagicStyleReference(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MagicStyleReference",
            display_name="MagicStyle Reference",
            category="MagicPortrait/MagicStyle",
            description=(
                "A style to draw in. Chain several: each with its weight, and where in the picture"
                " it acts."
            ),
            search_aliases=["style transfer", "style image", "style reference"],
            inputs=[
                InversionType.Input(
                    "inversion", tooltip="The style picture after MagicStyle Invert. Any size."
                ),
                io.Float.Input(
                    "weight",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip=(
                        "How much of the picture it gives: less leaves more of the content's own"
                        " look. Styles that overlap share."
                    ),
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip=(
                        "Where in the content's picture it acts. Default: everywhere. May be soft."
                    ),
                ),
                StylesBefore.Input("styles", optional=True, tooltip="Styles before this one."),
                invert_input("the mask"),
            ],
            outputs=[
                Styles.Output(
                    display_name="styles",
                    tooltip="All styles so far: to the next reference, or to MagicStyle Apply.",
                )
            ],
        )

    @classmethod
    def execute(
        cls,
        inversion: Inversion,
        weight: float,
        mask: torch.Tensor | None = None,
        styles: tuple[Style, ...] = (),
        invert: bool = False,
    ) -> io.NodeOutput:
        check_ranges(cls, weight=weight)
        if mask is None:
            return io.NodeOutput((*styles, Style(inversion, weight)))
        masks = painted_mask(mask, "the mask of a style", _WHERE_IT_ACTS, invert).cpu()
        if len(masks) != 1:
            raise ValueError(
                f"{len(masks)} masks for one style: give one, which counts for every picture of the"
                " content (for one of several: Convert Mask to Image, ImageFromBatch, Convert Image"
                " to Mask)"
            )
        return io.NodeOutput((*styles, Style(inversion, weight, masks[0])))


class MagicStyleApply(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        default = PRESETS["balanced"]
        return schema(
            node_id="MagicStyleApply",
            display_name="MagicStyle Apply",
            category="MagicPortrait/MagicStyle",
            description=(
                "Makes a model draw the content in the look of the styles. Sample with"
                " SamplerCustom: add_noise off, CFG 1, the SAMPLER, SIGMAS and positive of the"
                " content's MagicStyle Invert, and the LATENT of this node. Or with"
                " SamplerCustomAdvanced and NOISE."
            ),
            search_aliases=[
                "style transfer",
                "stylize",
                "stylise",
                "ffa",
                "styleid",
                "visual style prompting",
            ],
            inputs=[
                io.Model.Input("model", tooltip="The model of the MagicStyle Invert nodes before."),
                InversionType.Input(
                    "content",
                    tooltip=(
                        "The picture to draw anew, after MagicStyle Invert. A batch is drawn"
                        " together."
                    ),
                ),
                Styles.Input("styles", tooltip="One or more MagicStyle Reference nodes."),
                io.Combo.Input(
                    "preset",
                    options=[*PRESETS, _CUSTOM],
                    default="balanced",
                    tooltip=(
                        "How far the style goes: 'gentle' keeps most of the structure, 'strong'"
                        " least. Only 'custom' uses the values from alpha to end; layers and what"
                        " follows count always."
                    ),
                ),
                advanced(
                    io.Float.Input(
                        "alpha",
                        default=default.fusion.alpha,
                        min=0.0,
                        max=1.0,
                        step=0.05,
                        tooltip=(
                            "Custom: weight of the content's queries. Higher keeps more of its"
                            " structure. The paper: 0.8."
                        ),
                    )
                ),
                advanced(
                    io.Float.Input(
                        "beta",
                        default=default.fusion.beta,
                        min=0.0,
                        max=1.0,
                        step=0.05,
                        tooltip=(
                            "Custom: weight of the style's queries: more is more style and less"
                            " structure. The paper: 0.2. What alpha and beta leave of 1 is the"
                            " picture's own."
                        ),
                    )
                ),
                advanced(
                    io.Combo.Input(
                        "keys",
                        options=[str(name) for name in KEYS],
                        default=default.fusion.keys,
                        tooltip=(
                            "Custom: whose keys and values the queries meet. 'content+style': both"
                            " at once; 'style': the style's only, more style and less structure;"
                            " 'blend': both apart, mixed by alpha and beta; 'content': none of the"
                            " style's."
                        ),
                    )
                ),
                advanced(
                    io.Float.Input(
                        "style_scale",
                        default=default.fusion.style_scale,
                        min=-5.0,
                        max=10.0,
                        step=0.05,
                        tooltip=(
                            "Custom, with 'content+style': added to the logits of style tokens."
                            " Higher is more style: 0 is neutral, 1 to 2 strong; below 0 is less."
                        ),
                    )
                ),
                advanced(
                    io.Float.Input(
                        "temperature",
                        default=default.fusion.temperature,
                        min=0.1,
                        max=5.0,
                        step=0.05,
                        tooltip=(
                            "Custom: factor on the attention logits. Above 1 each place looks at"
                            " fewer, more similar ones: sharper; below 1 at more: smoother. 1 is"
                            " neutral, StyleID uses 1.5."
                        ),
                    )
                ),
                advanced(
                    io.Float.Input(
                        "adain",
                        default=default.adain,
                        min=0.0,
                        max=1.0,
                        step=0.05,
                        tooltip=(
                            "Custom: how far the start takes the style's mean and contrast: 0 not"
                            " at all, 1 fully. The strongest single lever for colour."
                        ),
                    )
                ),
                *span_inputs(
                    "Custom: share of sampling after which fusion begins. Later leaves the first"
                    " steps to the model; on the toy checkpoint 0.3 changes next to nothing.",
                    "Custom: share of sampling after which fusion ends and the model draws on"
                    " alone. Earlier keeps more structure, hardly less style.",
                    default.start,
                    default.end,
                ),
                layers_input("decoder", _LAYERS_TOOLTIP),
                advanced(
                    io.Boolean.Input(
                        "fuse_negative",
                        default=False,
                        tooltip=(
                            "With CFG above 1: fuses the unconditional rows too, which weakens the"
                            " prompt."
                        ),
                    )
                ),
                keep_features_input(
                    "'memory': what content and styles showed is kept for the next run, which then"
                    " costs little more than plain sampling. For SD1.5 about 40 MB a picture and"
                    " step in half precision; above 2 GB on disk."
                ),
                reference_passes_input(
                    "How often the model looks at content and styles, which costs time. 'sparse':"
                    " in some steps only, 2 of 25 with 'balanced'; steps between use what was seen"
                    " last. On the toy checkpoint structure stays as it is."
                ),
                advanced(
                    io.Combo.Input(
                        "positions",
                        options=[str(name) for name in PLACEMENTS],
                        optional=True,
                        default=PLACEMENTS[0],
                        tooltip=(
                            "Transformers only: where the style's picture lies to the content's."
                            " 'attenuated': on it, but content counts more than place, which keeps"
                            " most structure. 'same': on it, so that places look at the same places"
                            " of the style. 'aside': next to it. 'index': as another picture."
                        ),
                    )
                ),
            ],
            outputs=[
                io.Model.Output(display_name="MODEL", tooltip="The patched model."),
                io.Latent.Output(
                    display_name="LATENT",
                    tooltip=(
                        "Where sampling starts: the content's noise, with the styles' statistics."
                    ),
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
        styles: tuple[Style, ...],
        preset: str,
        alpha: float,
        beta: float,
        keys: Any,
        style_scale: float,
        temperature: float,
        adain: float,
        start: float,
        end: float,
        layers: str,
        fuse_negative: bool,
        keep_features: str,
        reference_passes: str = EVERY_STEP,
        positions: Any = PLACEMENTS[0],
    ) -> io.NodeOutput:
        check_ranges(
            cls,
            alpha=alpha,
            beta=beta,
            style_scale=style_scale,
            temperature=temperature,
            adain=adain,
            start=start,
            end=end,
        )
        refuse(_preset_complaint(preset, start, end, alpha, beta))
        check_texts(layers=layers)
        own = Preset(Fusion(alpha, beta, keys, style_scale, temperature), adain, start, end)
        values = own if preset == _CUSTOM else PRESETS[preset]
        patch = _patch(
            model,
            content,
            styles,
            values,
            layers,
            fuse_negative,
            keep_features == "memory",
            PASSES[reference_passes],
            positions,
        )
        latent = {"samples": patch.start_samples(model)}
        return io.NodeOutput(patch.add_to(model), latent, patch.start_noise(model))


class MagicStyleSampler(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MagicStyleSampler",
            display_name="MagicStyle Sampler (image + style)",
            category="MagicPortrait/MagicStyle",
            description=(
                "A portrait in the style of another picture, in one node: inverts both, fuses,"
                " samples."
            ),
            search_aliases=[
                "style transfer",
                "stylize",
                "stylise portrait",
                "cartoon",
                "anime",
                "painting",
                "sketch",
                "image to image style",
            ],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip=(
                        "SD1.5, SD2.1, SDXL, or a transformer that the README lists (Flux, Z-Image,"
                        " Qwen-Image, SD3.5 and others)."
                    ),
                ),
                io.Vae.Input("vae", tooltip="The VAE of the model."),
                io.Image.Input(
                    "content", tooltip="The picture to draw anew. A batch is drawn together."
                ),
                io.Image.Input("style", tooltip="The picture whose look it takes: one. Any size."),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip=(
                        "The text encoder of the model: gives the empty prompt. Zeros without it;"
                        " transformers need it."
                    ),
                ),
                io.Combo.Input(
                    "preset",
                    options=list(PRESETS),
                    default="balanced",
                    tooltip=(
                        "How far the style goes: 'gentle' keeps most of the portrait's structure,"
                        " 'strong' least."
                    ),
                ),
                *schedule_inputs(),
                layers_input("decoder", _LAYERS_TOOLTIP),
                cache_input(),
            ],
            outputs=[
                io.Latent.Output(
                    display_name="LATENT", tooltip="The stylised picture, to go on working with it."
                ),
                io.Image.Output(display_name="IMAGE", tooltip="The stylised picture, decoded."),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        vae: Any,
        content: torch.Tensor,
        style: torch.Tensor,
        preset: str,
        steps: int,
        scheduler: str,
        layers: str,
        cache_mb: int,
        clip: Any = None,
    ) -> io.NodeOutput:
        import latent_preview

        check_ranges(cls, steps=steps, cache_mb=cache_mb)
        check_texts(layers=layers)
        content, style = picture_batch(content, "content"), picture_batch(style, "style")
        if len(style) != 1:
            raise ValueError(
                f"style has {len(style)} pictures, this node draws in the look of one: pick one"
                " (ImageFromBatch), or chain a MagicStyle Reference for each into MagicStyle Apply"
            )
        # A wrong name is an error before the inversions.
        backbone_of(model).parse_layers(layers)
        empty = empty_conditioning(model, clip)
        conds = {"positive": empty, "negative": empty}
        sigmas, recipe = sigmas_of(model, scheduler, steps), _recipe(model)
        inverted, style_inverted = (
            invert_with_cache(
                model,
                encoded_picture(model, picture, vae, name),
                conds,
                sigmas,
                recipe,
                cache_mb,
                measures=False,
            )[0]
            for name, picture in (("content", content), ("style", style))
        )
        values, styles = PRESETS[preset], (Style(style_inverted, 1.0),)
        patch = _patch(model, inverted, styles, values, layers, False, False)
        start = patch.start_samples(model)
        callback = latent_preview.prepare_callback(model, len(sigmas) - 1)
        samples = resample_with(patch.add_to(model), inverted, start, conds, 1.0, callback)
        return io.NodeOutput({"samples": samples}, decoded_pictures(vae, samples))
