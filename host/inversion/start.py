"""Where sampling from inverted noise begins, and how it gets there through the host.

The host makes what a sampler begins with of a LATENT and of noise. Flow models have (1 - sigma) of
the LATENT in it, which at sigma 1 is nothing: whatever a LATENT holds is lost there. So there are
two ways: as NOISE, which any sampler adds, or as a LATENT for a SAMPLER of our own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..sampling.range import prediction_of

_NOTHING = 1e-4
"""A share of a LATENT that is as good as lost."""


def is_lost(model_sampling: Any, sigma: float) -> bool:
    """Whether the host's samplers, beginning at `sigma`, leave nothing of a LATENT."""
    return prediction_of(model_sampling) == "flow" and 1 - sigma < _NOTHING


def noisy_start(model_sampling: Any, sigma: float, noise: Tensor, latent: Tensor) -> Tensor:
    """What the host's samplers begin with, in the model's latent space. noise, latent: alike in
    shape, both in that space; latent: as a sampler has it, not as a LATENT."""
    highest = float(model_sampling.sigma_max)
    is_highest = math.isclose(highest, sigma, rel_tol=1e-5) or sigma > highest
    x: Tensor = model_sampling.noise_scaling(torch.tensor(sigma), noise, latent, is_highest)
    return x


def take_in(latent_format: Any, samples: Tensor) -> Tensor:
    """The samples of a LATENT in the model's latent space, as the host takes them in: it leaves
    empty ones as they are."""
    latent: Tensor = latent_format.process_in(samples) if samples.any() else samples
    return latent


def as_latent(model: Any, x: Tensor, sigma: float) -> Tensor:
    """The samples of the LATENT from which a sampler without added noise begins with x at `sigma`:
    the host's, or `FlowSampler` where these leave nothing of it."""
    sampling = model.get_model_object("model_sampling")
    if prediction_of(sampling) == "flow" and not is_lost(sampling, sigma):
        x = x / (1 - sigma)
    samples: Tensor = model.model.process_latent_out(x)
    return samples


def takes_latent_as_it_is(sampler: Any) -> bool:
    """Whether a SAMPLER is one of ours that begins with the LATENT at every sigma."""
    return isinstance(getattr(sampler, "sampler_function", None), FlowSampler)


@dataclass(frozen=True, eq=False)
class InvertedNoise:
    """The host's NOISE, for SamplerCustomAdvanced: with it any sampler begins with x, whatever
    LATENT of the same size it gets.

    x: B C h w in the model's latent space; sigma: its noise level, where sampling has to begin;
    model_sampling, latent_format: the host's, of the model; seed: what the host asks of a NOISE.
    """

    x: Tensor
    sigma: float
    model_sampling: Any
    latent_format: Any
    seed: int = 0

    @classmethod
    def of(cls, model: Any, x: Tensor, sigma: float) -> InvertedNoise:
        """For a MODEL."""
        sampling, latent_format = (
            model.get_model_object(name) for name in ("model_sampling", "latent_format")
        )
        return cls(x.clone(), sigma, sampling, latent_format)

    def generate_noise(self, input_latent: dict[str, Any]) -> Tensor:
        """What has to be added to a LATENT: B C h w. ValueError when it has another size."""
        samples = input_latent["samples"].to("cpu", torch.float32)
        x = self.x.to("cpu", torch.float32)
        if samples.shape[1:] != x.shape[1:] or x.shape[0] not in (1, samples.shape[0]):
            raise ValueError(
                f"the NOISE is of {list(x.shape)}, the latent_image of {list(samples.shape)}:"
                " connect the LATENT of the node that the NOISE is from"
            )
        latent, nothing = take_in(self.latent_format, samples), torch.zeros_like(samples)
        of_latent = noisy_start(self.model_sampling, self.sigma, nothing, latent)
        by = noisy_start(self.model_sampling, self.sigma, torch.ones_like(samples), nothing)
        return (x - of_latent) / by


class FlowSampler:
    """A sampler function for the host, for flow models: without added noise it begins with the
    LATENT as it is where the host leaves nothing of it.

    first: B C h w, where the inversion ended; stepper: the sampler function that goes on, None for
    Euler's.
    """

    __name__ = "magic_flow"

    def __init__(self, first: Tensor, stepper: Callable[..., Tensor] | None):
        self._first, self._stepper = first, stepper

    def __call__(
        self,
        model: Any,
        x: Tensor,
        sigmas: Tensor,
        extra_args: dict[str, Any],
        callback: Any,
        disable: bool,
    ) -> Tensor:
        """ValueError, before the model is called, for noise on top of the inversion's and for a
        mask."""
        from comfy.k_diffusion.sampling import sample_euler

        sigma, sampling = float(sigmas[0]), model.inner_model.inner_model.model_sampling
        if is_lost(sampling, sigma):
            # The host's object around the model holds what it made x of.
            if not model.noise.any():
                x = model.latent_image.clone()
            elif _is_same(model.latent_image, self._first) and not _is_same(x, self._first):
                raise ValueError(
                    "the sampler adds noise, but the LATENT of MagicStyle Invert is noise already:"
                    " turn add_noise off (SamplerCustom), or connect the NOISE of the same node"
                    " (SamplerCustomAdvanced)"
                )
        if extra_args.get("denoise_mask") is not None and _is_same(x, self._first):
            raise ValueError(
                "the LATENT has a noise mask, which means nothing to inverted noise: leave the mask"
                " out, and put the parts together after decoding (ImageCompositeMasked)"
            )
        stepper = sample_euler if self._stepper is None else self._stepper
        out: Tensor = stepper(
            model, x, sigmas, extra_args=extra_args, callback=callback, disable=disable
        )
        return out


def _is_same(x: Tensor, first: Tensor) -> bool:
    first = first.to(x)
    return first.shape == x.shape and torch.allclose(x, first, rtol=1e-3, atol=1e-3)
