"""What an inversion starts from: a model of the right kind, the picture's latent, noise levels, and
the conditioning of a picture that nobody has described."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...magic.pictures import latent_batch, picture_batch
from ..text.prompts import encode
from .run import passes_for_0

_SHOWN_SIGMAS = 8
_SMALLEST_SIDE = 64


def check_noise_model(model: Any) -> None:
    """ValueError for models whose noise is not added as x0 + sigma * eps (flow matching and the
    like), patched to be so or not."""
    import comfy.model_sampling as host

    sampling = model.get_model_object("model_sampling")
    if not isinstance(sampling, host.EPS) or isinstance(sampling, host.IMG_TO_IMG):
        kinds = [
            kind.__name__ for kind in type(sampling).__mro__ if kind.__module__ == host.__name__
        ]
        raise ValueError(
            "DDIM inversion needs a model with eps or v prediction (SD1.5, SD2.1, SDXL), got one"
            f" with {' and '.join(kinds)}: connect such a model, without a ModelSampling node for"
            " other kinds"
        )


def picture_latent(
    model: Any, latent: dict[str, Any] | None, image: Tensor | None, vae: Any
) -> Tensor:
    """The picture's latent as the VAE gives it: B C h w.

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
        _check_latent(model, samples, "the latent")
        return samples
    if image is None or vae is None:
        raise ValueError("there is nothing to invert: connect latent, or both image and vae")
    return encoded_picture(model, image, vae, "image")


def encoded_picture(model: Any, image: Tensor, vae: Any, name: str) -> Tensor:
    """image: B H W 3 or more, in 0..1; name: what the user calls it. ValueError for anything else,
    and for a VAE of another kind of model. -> B C h w."""
    image = picture_batch(image, name)
    try:
        encoded: Tensor = vae.encode(image[..., :3])
    except RuntimeError as error:
        # A VAE makes nothing of a picture that is smaller than a cell of its latent.
        if min(image.shape[1:3]) >= _SMALLEST_SIDE:
            raise
        raise ValueError(
            f"{name} has {image.shape[2]}x{image.shape[1]} pixels, which is too small for the VAE:"
            f" connect one of {_SMALLEST_SIDE} or more on each side"
        ) from error
    _check_latent(model, encoded, f"{name} as the vae gives it")
    return encoded


def _check_latent(model: Any, samples: Tensor, name: str) -> None:
    channels = model.get_model_object("latent_format").latent_channels
    if samples.ndim != 4:
        raise ValueError(
            f"{name} has the shape {list(samples.shape)}, this model takes B {channels} h w: it is"
            " another model's. Encode the picture with this model's VAE"
        )
    latent_batch({"samples": samples}, name, channels)


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
    """The empty prompt as CONDITIONING; zeros without a CLIP."""
    return zero_conditioning(model) if clip is None else encode(clip, "")


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
