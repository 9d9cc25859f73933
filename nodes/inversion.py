"""DDIM inversion (arXiv 2010.02502): a picture as the noise that a sampler turns into it again,
with the whole way between."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from comfy_api.latest import io, ui

from ..host.inversion import files as inversion_files
from ..host.inversion.cache import invert_with_cache
from ..host.inversion.inputs import (
    checked_sigmas,
    decoded_pictures,
    default_negative,
    empty_conditioning,
    picture_latent,
    sigmas_of,
    with_guidance,
)
from ..host.inversion.run import (
    METHODS,
    Inversion,
    Recipe,
    method_today,
    sampler_for,
    start_latent,
    start_noise,
)
from ..host.text.prompts import check_conditioning
from ..magic.inversion import psnr
from ..magic.pictures import picture_batch
from .declare import (
    InversionType,
    NoiseType,
    SamplerType,
    advanced,
    as_text,
    cache_input,
    choice_complaint,
    file_complaint,
    schedule_inputs,
    schema,
)
from .inputs import Node, check_ranges, check_texts, refuse

_NO_FILE = "(no inversions saved yet)"
_NAME = "inversion"
_NOISE_TOOLTIP = (
    "Where sampling starts: connect to SamplerCustom with add_noise off, with the SAMPLER of this"
    " node on flow models."
)
_ADDED_TOOLTIP = (
    "The same start for SamplerCustomAdvanced, with any sampler. Its latent_image is then any"
    " LATENT of this size."
)


@dataclasses.dataclass(frozen=True)
class _Reconstruction:
    """What is made of an inverted picture, to compare. All B H W 3, in 0..1.

    limit: what the VAE alone makes of the latent; again: what sampling makes of its noise;
    original: the image, None when a latent was inverted.
    """

    limit: torch.Tensor
    again: torch.Tensor
    original: torch.Tensor | None

    def saved(self) -> list[dict[str, Any]]:
        """Pairs of pictures in the host's temporary folder, for the page and for whoever reads the
        history."""
        before = self.limit if self.original is None else self.original
        originals, again = (
            ui.ImageSaveHelper.save_images(pictures, "magic_comparison", io.FolderType.temp, None)
            for pictures in (before, self.again)
        )
        return [
            {"original": original, "reconstruction": picture}
            for original, picture in zip(originals, again, strict=True)
        ]


def _reconstruction(
    inversion: Inversion, samples: torch.Tensor, vae: Any, image: torch.Tensor | None
) -> _Reconstruction | None:
    if inversion.resampled is None or vae is None:
        return None
    limit, again = (decoded_pictures(vae, x) for x in (samples, inversion.resampled))
    return _Reconstruction(limit, again, None if image is None else _cropped(image, limit))


def _report(
    inversion: Inversion,
    is_cached: bool,
    samples: torch.Tensor,
    pictures: _Reconstruction | None,
) -> str:
    steps = len(inversion.sigmas) - 1
    lines = [
        f"{inversion.method}, {steps} steps up to sigma {float(inversion.sigmas[0]):.2f}:"
        f" {inversion.latents.nbytes / 1e6:.1f} MB"
    ]
    lines.append(
        f"{inversion.model_calls} model calls, {inversion.seconds:.1f}"
        f" s{', from the cache: none now' if is_cached else ''}"
    )
    if inversion.resampled is not None:
        truth = samples.to(inversion.resampled)
        lines.append(
            "latent sampled again:"
            f" {psnr(inversion.resampled, truth, float(truth.max() - truth.min())):.1f} dB"
        )
    if pictures is not None:
        lines.append(
            f"picture sampled again: {psnr(pictures.again, pictures.limit, 1.0):.1f} dB to what the"
            " VAE alone gives"
        )
        if pictures.original is not None:
            again, limit = (
                psnr(picture, pictures.original, 1.0)
                for picture in (pictures.again, pictures.limit)
            )
            lines.append(f"to the image: {again:.1f} dB; the VAE alone: {limit:.1f} dB")
    return "\n".join(lines)


def _method_complaint(method: object) -> str | None:
    """None for a name of an earlier version too."""
    name = method_today(method) if isinstance(method, str) else method
    return choice_complaint("method", name, METHODS)


def _cropped(image: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """The part of an image that the VAE took: it cuts the rest of 8 off on both sides."""
    top, left = ((image.shape[i] - like.shape[i]) // 2 for i in (1, 2))
    return image[:, top : top + like.shape[1], left : left + like.shape[2], :3]


class MagicStyleInvert(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MagicStyleInvert",
            display_name="MagicStyle Invert (DDIM inversion)",
            category="MagicPortrait/MagicStyle",
            description=(
                "Finds the noise that sampling turns into this picture again, and remembers the"
                " way. For MagicStyle Apply, or for editing with any prompt. The same picture,"
                " model and settings are computed once only, also after a restart."
            ),
            search_aliases=[
                "ddim inversion",
                "unsample",
                "unsampler",
                "invert",
                "inversion",
                "noise",
                "reconstruct",
                "null text",
                "belm",
            ],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip=(
                        "A UNet (SD1.5, SD2.1, SDXL) or a flow model (Flux, Z-Image, Qwen-Image,"
                        " SD3.5 and others). LoRAs and other patches take part."
                    ),
                ),
                io.Latent.Input(
                    "latent",
                    optional=True,
                    tooltip="The picture as a latent. Either this, or image and vae.",
                ),
                io.Image.Input(
                    "image", optional=True, tooltip="The picture. A batch is inverted together."
                ),
                io.Vae.Input(
                    "vae",
                    optional=True,
                    tooltip=(
                        "Encodes the image; with it the report also says how close the picture"
                        " comes."
                    ),
                ),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip=(
                        "Gives the empty prompt when no conditioning is connected. Transformers"
                        " need it then."
                    ),
                ),
                io.Conditioning.Input(
                    "positive",
                    optional=True,
                    tooltip=(
                        "What the picture shows. Default: the empty prompt of the CLIP, or zeros"
                        " without one. For styles leave it. Models that are told their guidance"
                        " are told 1, unless FluxGuidance says otherwise."
                    ),
                ),
                io.Conditioning.Input(
                    "negative",
                    optional=True,
                    tooltip=(
                        "Only used with CFG above 1. Default: the empty prompt of the CLIP, or"
                        " zeros without one."
                    ),
                ),
                io.Sigmas.Input(
                    "sigmas",
                    optional=True,
                    tooltip="Own noise levels instead of steps and scheduler: falling to 0.",
                ),
                *schedule_inputs(),
                io.Combo.Input(
                    "method",
                    options=list[str](METHODS),
                    default="fixed-point",
                    tooltip=(
                        "'fixed-point' comes very close at 2 to 3 model calls a step; 'euler' is"
                        " the plain one (DDIM), one call; 'warm' is closer at one call, by the"
                        " slope of the step before; 'fireflow' closer still on flow models, and"
                        " 'o-belm' exact, at one call with samplers of their own (SAMPLER output),"
                        " but their noise is further from real noise. In few steps of a flow model"
                        " 'fixed-point' may not converge."
                    ),
                ),
                advanced(
                    io.Float.Input(
                        "cfg",
                        default=1.0,
                        min=1.0,
                        max=20.0,
                        step=0.1,
                        tooltip="Guidance during inversion. Above 1 it is much less stable.",
                    )
                ),
                advanced(
                    io.Int.Input(
                        "iterations",
                        default=2,
                        min=1,
                        max=20,
                        tooltip=(
                            "Most corrections of a fixed-point step, one model call each. More"
                            " comes closer and takes longer: 2 to 5."
                        ),
                    )
                ),
                advanced(
                    io.Float.Input(
                        "tolerance",
                        default=0.0001,
                        min=0.0,
                        max=0.1,
                        step=0.0001,
                        round=False,
                        tooltip=(
                            "A fixed-point step ends early when a correction changes less than this"
                            " share. Higher: faster, less close. 0: never."
                        ),
                    )
                ),
                advanced(
                    io.Boolean.Input(
                        "measure",
                        default=True,
                        tooltip=(
                            "Samples the picture again to report how close it comes: one more model"
                            " call a step, once."
                        ),
                    )
                ),
                cache_input(
                    " (at 30 steps 2.3 MB each for SD1.5 at 512 px, 33 MB and the prompt's for"
                    " Flux.1, Z-Image and Qwen-Image at 1024 px)"
                ),
            ],
            outputs=[
                InversionType.Output(
                    display_name="inversion",
                    tooltip="The whole way to noise: for MagicStyle, or to save.",
                ),
                io.Latent.Output(
                    display_name="noise",
                    tooltip=_NOISE_TOOLTIP,
                ),
                io.Sigmas.Output(display_name="SIGMAS", tooltip="The noise levels to sample over."),
                SamplerType.Output(
                    display_name="SAMPLER",
                    tooltip=(
                        "The sampler that fits the method: Euler, or that of O-BELM or FireFlow."
                        " Flow models need it, or NOISE."
                    ),
                ),
                io.Conditioning.Output(
                    display_name="positive",
                    tooltip="The conditioning that was used: sample with it at CFG 1.",
                ),
                io.String.Output(
                    display_name="report",
                    tooltip="Model calls, time and how close the picture comes, in dB.",
                ),
                NoiseType.Output(display_name="NOISE", tooltip=_ADDED_TOOLTIP),
            ],
        )

    @classmethod
    def validate_inputs(cls, method: object = None) -> bool | str:
        # The host would refuse the names that saved graphs have.
        return True if as_text(method) is None else (_method_complaint(method) or True)

    @classmethod
    def execute(
        cls,
        model: Any,
        steps: int,
        scheduler: str,
        method: Any,
        cfg: float,
        iterations: int,
        tolerance: float,
        measure: bool,
        cache_mb: int,
        latent: dict[str, Any] | None = None,
        image: torch.Tensor | None = None,
        vae: Any = None,
        clip: Any = None,
        positive: list[Any] | None = None,
        negative: list[Any] | None = None,
        sigmas: torch.Tensor | None = None,
    ) -> io.NodeOutput:
        check_ranges(
            cls,
            steps=steps,
            cfg=cfg,
            iterations=iterations,
            tolerance=tolerance,
            cache_mb=cache_mb,
        )
        refuse(_method_complaint(method))
        image = None if image is None else picture_batch(image, "image")
        samples = picture_latent(model, latent, image, vae)
        if positive is None:
            positive = empty_conditioning(model, clip)
        if negative is None:
            negative = default_negative(model, clip, positive, cfg)
        conds = {"positive": positive, "negative": negative}
        for name, conditioning in conds.items():
            check_conditioning(conditioning, name)
        conds = {name: with_guidance(model, conditioning) for name, conditioning in conds.items()}
        levels = sigmas_of(model, scheduler, steps) if sigmas is None else checked_sigmas(sigmas)
        recipe = Recipe(method_today(method), iterations, tolerance, cfg)
        inversion, is_cached = invert_with_cache(
            model, samples, conds, levels, recipe, cache_mb, measure
        )
        pictures = _reconstruction(inversion, samples, vae, image if latent is None else None)
        report = _report(inversion, is_cached, samples, pictures)
        noise = {"samples": start_latent(model, inversion)}
        on_page: Any = None if pictures is None else {"magic_comparison": pictures.saved()}
        # A copy: uni_pc writes into what it is given.
        return io.NodeOutput(
            inversion,
            noise,
            inversion.sigmas.clone(),
            sampler_for(model, inversion),
            conds["positive"],
            report,
            start_noise(model, inversion),
            ui=on_page,
        )


class MagicInversionSave(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MagicInversionSave",
            display_name="Save Inversion",
            category="MagicPortrait/MagicStyle",
            description="Writes an inversion to output/inversions, where Load Inversion finds it.",
            search_aliases=["inversion", "inversion file", "export inversion"],
            inputs=[
                InversionType.Input("inversion", tooltip="What MagicStyle Invert found."),
                io.String.Input(
                    "name", default=_NAME, tooltip="The file's name; a number is added."
                ),
            ],
            outputs=[
                io.String.Output(
                    display_name="file", tooltip="The name of the file, as Load Inversion lists it."
                )
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, inversion: Inversion, name: str) -> io.NodeOutput:
        check_texts(name=name)
        return io.NodeOutput(inversion_files.save_inversion(inversion, name.strip() or _NAME))


class MagicInversionLoad(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MagicInversionLoad",
            display_name="Load Inversion",
            category="MagicPortrait/MagicStyle",
            description="Reads an inversion from output/inversions or models/inversions.",
            search_aliases=["inversion", "inversion file", "import inversion"],
            inputs=[
                io.Model.Input(
                    "model", tooltip="The model that it was made with: another one is refused."
                ),
                io.Combo.Input(
                    "file",
                    options=inversion_files.list_files() or [_NO_FILE],
                    tooltip="A file that Save Inversion wrote.",
                ),
            ],
            outputs=[
                InversionType.Output(display_name="inversion", tooltip="The whole way to noise."),
                io.Latent.Output(
                    display_name="noise",
                    tooltip=_NOISE_TOOLTIP,
                ),
                io.Sigmas.Output(display_name="SIGMAS", tooltip="The noise levels to sample over."),
                SamplerType.Output(
                    display_name="SAMPLER", tooltip="The sampler that fits the method."
                ),
                io.Conditioning.Output(
                    display_name="positive", tooltip="The conditioning under which it was inverted."
                ),
                NoiseType.Output(display_name="NOISE", tooltip=_ADDED_TOOLTIP),
            ],
        )

    @classmethod
    def validate_inputs(cls, file: object = None) -> bool | str:
        return file_complaint(inversion_files.path_of, file) or True

    @classmethod
    def fingerprint_inputs(cls, file: str | None = None, **_: Any) -> str:
        return "" if file is None else inversion_files.state_of(file)

    @classmethod
    def execute(cls, model: Any, file: str) -> io.NodeOutput:
        inversion = inversion_files.read_inversion(inversion_files.path_of(file))
        inversion.check_model(model, f"'{file}'")
        noise = {"samples": start_latent(model, inversion)}
        return io.NodeOutput(
            inversion,
            noise,
            inversion.sigmas.clone(),
            sampler_for(model, inversion),
            inversion.conditioning,
            start_noise(model, inversion),
        )
