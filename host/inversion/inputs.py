"""What an inversion starts from: a model of the right kind, the picture's latent, noise levels, and
the conditioning of a picture that nobody has described."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...magic.pictures import latent_batch, picture_batch
from ..sampling.backbone.families import family_of
from ..sampling.backbone.unet import UNet
from ..text.prompts import encode
from .run import passes_for_0

_SHOWN_SIGMAS = 8
_SMALLEST_SIDE = 64


def check_invertible(model: Any) -> None:
    """ValueError for models whose denoising is no ODE over sigma that we know: what they predict,
    patched or not, must be noise (x0 + sigma * eps) or a flow's velocity ((1 - sigma) * x0 + sigma
    * eps)."""
    import comfy.model_sampling as host

    sampling = model.get_model_object("model_sampling")
    # Older hosts do not know all of them.
    editing = tuple(
        getattr(host, name) for name in ("IMG_TO_IMG", "IMG_TO_IMG_FLOW") if hasattr(host, name)
    )
    if not isinstance(sampling, (host.EPS, host.CONST)) or isinstance(sampling, editing):
        kinds = [
            kind.__name__ for kind in type(sampling).__mro__ if kind.__module__ == host.__name__
        ]
        raise ValueError(
            "an inversion needs a model with eps or v prediction (SD1.5, SD2.1, SDXL) or a flow"
            f" model (Flux, Z-Image, Qwen-Image, SD3.5), got one with {' and '.join(kinds)}:"
            " connect such a model, without a ModelSampling node for other kinds"
        )


def picture_latent(
    model: Any, latent: dict[str, Any] | None, image: Tensor | None, vae: Any
) -> Tensor:
    """The picture's latent as the VAE gives it: B C h w, or B C 1 h w for models whose latents have
    a time.

    latent: the host's LATENT, which comes first; image: B H W 3 or more, which the vae encodes.
    ValueError when there is neither, and when they are not what MODEL takes.
    """
    if latent is not None:
        samples = latent_batch(latent, "the latent")
        if not samples.any():
            raise ValueError(
                "the latent is empty (all zeros): connect a picture (VAE Encode), not an Empty"
                " Latent Image"
            )
        return _checked_latent(model, samples, "the latent")
    if image is None or vae is None:
        raise ValueError("there is nothing to invert: connect latent, or both image and vae")
    return encoded_picture(model, image, vae, "image")


def encoded_picture(model: Any, image: Tensor, vae: Any, name: str) -> Tensor:
    """image: B H W 3 or more, in 0..1; name: what the user calls it. ValueError for anything else,
    and for a VAE of another kind of model. -> as `picture_latent`."""
    image = picture_batch(image, name)[..., :3]
    # VAEs of models of videos take a batch for the frames of one.
    batches = image.split(1) if _has_time(model) else (image,)
    try:
        latent = torch.cat([vae.encode(batch) for batch in batches])
    except RuntimeError as error:
        # A VAE makes nothing of a picture that is smaller than a cell of its latent.
        if min(image.shape[1:3]) >= _SMALLEST_SIDE:
            raise
        raise ValueError(
            f"{name} has {image.shape[2]}x{image.shape[1]} pixels, which is too small for the VAE:"
            f" connect one of {_SMALLEST_SIDE} or more on each side"
        ) from error
    return _checked_latent(model, latent, f"{name} as the vae gives it")


def decoded_pictures(vae: Any, samples: Tensor) -> Tensor:
    """What a VAE makes of latents, B H W 3: those of models of videos give frames."""
    images: Tensor = vae.decode(samples)
    return images.flatten(0, 1) if images.ndim == 5 else images


def _has_time(model: Any) -> bool:
    """Whether a model's latents are B C T h w."""
    return int(model.get_model_object("latent_format").latent_dimensions) == 3


def _checked_latent(model: Any, samples: Tensor, name: str) -> Tensor:
    channels, has_time = model.get_model_object("latent_format").latent_channels, _has_time(model)
    if has_time and samples.ndim == 4:
        # As the host's samplers take it.
        samples = samples.unsqueeze(2)
    if samples.ndim != (5 if has_time else 4):
        raise ValueError(
            f"{name} has the shape {list(samples.shape)}, this model takes B {channels} h w: it is"
            " another model's. Encode the picture with this model's VAE"
        )
    latent_batch({"samples": samples}, name, channels)
    if has_time and samples.shape[2] != 1:
        raise ValueError(
            f"{name} has {samples.shape[2]} frames: only pictures are inverted, a latent with one"
            " frame"
        )
    return samples


def sigmas_of(model: Any, scheduler: str, steps: int) -> Tensor:
    """The noise levels of one of the host's schedules: falling to 0. ValueError when they do not,
    with a schedule for other models."""
    import comfy.samplers

    sigmas = comfy.samplers.calculate_sigmas(
        model.get_model_object("model_sampling"), scheduler, steps
    )
    return checked_sigmas(sigmas)


def checked_sigmas(sigmas: Tensor) -> Tensor:
    """Noise levels in float, to 0 where a sampler wrote what it takes for 0. ValueError when they
    do not fall to 0 in two steps or more."""
    levels = sigmas.float()
    if levels.ndim == 1 and len(levels) and passes_for_0(float(levels[-1])):
        levels = torch.cat((levels[:-1], levels.new_zeros(1)))
    if (
        levels.ndim != 1
        or len(levels) < 3
        or not bool(levels.isfinite().all())
        or float(levels[-1]) != 0
        or not bool((levels[:-1] > levels[1:]).all())
    ):
        first = [round(value, 3) for value in levels.flatten()[:_SHOWN_SIGMAS].tolist()]
        raise ValueError(
            f"sigmas must fall to 0 in two steps or more, got {first}: take the low part of"
            " SplitSigmas, or leave the input open"
        )
    return levels


def empty_conditioning(model: Any, clip: Any) -> list[Any]:
    """The empty prompt as CONDITIONING, at the guidance of `with_guidance`. Without a CLIP zeros,
    for UNets; ValueError for transformers, to which zeros are no empty prompt."""
    if clip is not None:
        return with_guidance(model, encode(clip, ""))
    if UNet.read(model) is None:
        raise ValueError(
            f"{type(model.model).__name__} needs its own empty prompt: connect clip, the text"
            " encoder of the model"
        )
    return zero_conditioning(model)


def default_negative(model: Any, clip: Any, positive: list[Any], cfg: float) -> list[Any]:
    """The negative where none is connected: the empty prompt, or the positive where it is not
    looked at and there is no empty prompt to be had."""
    if clip is None and cfg == 1 and UNet.read(model) is None:
        return positive
    return empty_conditioning(model, clip)


def with_guidance(model: Any, conditioning: list[Any]) -> list[Any]:
    """A conditioning for an inversion: models that are told how strongly to guide are told 1, none,
    unless it says otherwise (FluxGuidance). For all others the same object."""
    family = family_of(model)
    if family is None or family.guidance is None:
        return conditioning
    return [[tensor, {"guidance": family.guidance, **options}] for tensor, options in conditioning]


def zero_conditioning(model: Any) -> list[Any]:
    """A conditioning of zeros, for models without a CLIP at hand."""
    config = model.model.model_config.unet_config
    pooled = None
    if width := config.get("adm_in_channels"):
        # With nothing pooled the model gives what else it knows (sizes and crops): the rest is the
        # text's.
        rest = model.model.encode_adm(pooled_output=torch.zeros(1, 0), device="cpu")
        pooled = None if rest is None else torch.zeros(1, width - rest.shape[1])
    return [[torch.zeros(1, 77, config.get("context_dim") or 768), {"pooled_output": pooled}]]
