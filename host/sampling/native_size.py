"""A word on pictures of a size that a model was not made for: it draws them, without saying that
they will be bad. And none drawn from references of a size that it cannot read."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor

from .backbone import JointTransformer, backbone_of

_LARGEST, _SMALLEST = 1.5, 0.5
"""Sides, as shares of the native one, from which the toys draw several people for one, or a part
of one."""
_FROM_NOISE = 0.8
"""The share of the highest sigma from which there is no picture yet whose places would stay."""
_FAR = 1.3
"""How many times as large as the area that references were trained with theirs may be, or as small:
sides of 113 to 145 px for 128. The edit toy takes garments from 128 and 144 px as it should, from
112 less often, from 96 by halves."""
_KEY = "magicportrait_native_size"
_KEY_OF_REFERENCES = "magicportrait_reference_size"


def add_size_notice(model: Any, tell: Callable[[str], None]) -> None:
    """Has MODEL say a sentence when it is to draw a picture from noise, with the area of a square
    1.5 times as wide as those that it was trained on, or half as wide. Nothing else changes.

    model: nobody else's, as it was loaded (a clone would lose how that was done on older hosts).
    tell: gets the sentence, at the start of the sampling.
    """
    import comfy.patcher_extension as extension

    backbone = backbone_of(model)
    native, pixels = backbone.native_side, backbone.pixels

    def sample(
        executor: Any,
        noise: Tensor,
        latent_image: Tensor,
        sampler: Any,
        sigmas: Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        sampling = executor.class_obj.model_patcher.get_model_object("model_sampling")
        highest = float(sampling.sigma_max)
        if len(sigmas) and float(sigmas[0]) >= _FROM_NOISE * highest:
            height, width = (pixels * side for side in latent_image.shape[-2:])
            share = math.sqrt(height * width) / native
            if share >= _LARGEST or 0 < share <= _SMALLEST:
                tell(_sentence(height, width, native))
        samples: Tensor = executor(noise, latent_image, sampler, sigmas, *args, **kwargs)
        return samples

    model.add_wrapper_with_key(extension.WrappersMP.OUTER_SAMPLE, _KEY, sample)


def _sentence(height: int, width: int, native: int) -> str:
    is_large = height * width > native**2
    becomes = "several people, or one in pieces" if is_large else "only a part of a person"
    return (
        f"the latent is {width} x {height} px, and this model was trained on {native} x {native}:"
        f" it will draw {becomes}. Set width and height of the empty latent to {native}"
    )


def refuse_other_references(model: Any) -> None:
    """Has MODEL refuse reference latents of another area than it was trained with, before the first
    step: of those it draws rubbish. Its record says the side in pixels (`reference_side`); one
    without was trained with none. Models that do not look at any are left alone.

    model: nobody else's, as for `add_size_notice`.
    """
    import comfy.patcher_extension as extension

    backbone = backbone_of(model)
    if not isinstance(backbone, JointTransformer):
        return
    # Asked of the class: the host's instances answer every unknown name, with a warning.
    side = getattr(type(model.model.model_config), "reference_side", None)
    pixels = backbone.pixels

    def sample(executor: Any, *args: Any, **kwargs: Any) -> Tensor:
        for conds in executor.class_obj.conds.values():
            for cond in conds or ():
                for latent in cond.get("reference_latents") or ():
                    _check_reference(pixels * latent.shape[-2], pixels * latent.shape[-1], side)
        samples: Tensor = executor(*args, **kwargs)
        return samples

    model.add_wrapper_with_key(extension.WrappersMP.OUTER_SAMPLE, _KEY_OF_REFERENCES, sample)


def _check_reference(height: int, width: int, side: int | None) -> None:
    if side is None:
        raise ValueError(
            "this toy was not trained to look at reference latents: choose 'transformer, edit' in"
            " Toy Checkpoint, or leave the Reference Latent out"
        )
    if not 1 / _FAR <= height * width / side**2 <= _FAR:
        raise ValueError(
            f"a reference latent is of a picture of {width} x {height} px, and this toy was trained"
            f" with references of {side} x {side}: scale the picture to that before VAE Encode"
            f" (size {side} on Toy Portrait)"
        )
