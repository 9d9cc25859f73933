"""A sampling run that begins with the noise of an inversion, and goes the same way back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..inversion.run import Inversion
from ..inversion.start import (
    InvertedNoise,
    as_latent,
    is_lost,
    noisy_start,
    take_in,
    takes_latent_as_it_is,
)
from ..sampling.patch import SamplingStart


@dataclass(frozen=True, eq=False)
class InvertedStart:
    """Where such a run begins, and what it must be like.

    content: the inversion; latent: B C h w in the model's latent space, what sampling begins with:
    the content's noise, changed or not; pixels: of the picture along a side of a latent pixel;
    node: the name of the node whose LATENT it is; instead_of_mask: what to do where a part of the
    LATENT is masked.
    """

    content: Inversion
    latent: Tensor
    pixels: int
    node: str
    instead_of_mask: str

    @property
    def _sigma(self) -> float:
        return float(self.content.sigmas[0])

    def samples(self, model: Any) -> Tensor:
        """The samples of a LATENT for a MODEL."""
        return as_latent(model, self.latent, self._sigma)

    def noise(self, model: Any) -> InvertedNoise:
        """The same as a NOISE."""
        return InvertedNoise.of(model, self.latent, self._sigma)

    def check(self, start: SamplingStart) -> None:
        """ValueError when a run would not begin with it, or does not go the inversion's way."""
        self._check_beginning(start)
        if start.is_masked:
            raise ValueError(
                "the LATENT has a noise mask, but MagicStyle draws all of the picture anew: leave"
                f" the mask out, and {self.instead_of_mask}"
            )
        self.content.check_sigmas(start.sigmas, "the content")
        self._check_size(start.shape)
        self._check_first_sigma(start)

    def _check_beginning(self, start: SamplingStart) -> None:
        """ValueError when the host does not begin with the start, but with what it makes of it."""
        sampling, sigma = start.model_sampling, start.sigmas[0]
        if start.adds_noise:
            if not self._is_ours(start):
                raise ValueError(
                    f"the sampler adds noise, but the LATENT of {self.node} is noise already:"
                    f" turn add_noise off (SamplerCustom), or connect the NOISE of {self.node},"
                    " or DisableNoise (SamplerCustomAdvanced)"
                )
        elif is_lost(sampling, sigma) and not takes_latent_as_it_is(start.sampler):
            raise ValueError(
                f"the sampler begins at sigma {sigma:.3f} of a flow model, where the host leaves"
                " nothing of a LATENT without added noise: connect the SAMPLER of MagicStyle"
                f" Invert, or with SamplerCustomAdvanced the NOISE of {self.node}"
            )

    def _is_ours(self, start: SamplingStart) -> bool:
        """Whether what the sampler adds noise to becomes the start."""
        expected, sigma = self.latent, start.sigmas[0]
        latent = start.latent.to(expected)
        if latent.shape[1:] != expected.shape[1:]:
            return False
        latent = take_in(start.guider.model_patcher.get_model_object("latent_format"), latent)
        x = noisy_start(start.model_sampling, sigma, start.noise.to(expected), latent)
        if expected.shape[0] not in (1, x.shape[0]):
            return False
        return torch.allclose(x, expected.expand_as(x), rtol=1e-3, atol=1e-3 * sigma)

    def _check_size(self, shape: Sequence[int]) -> None:
        expected = self.content.latents.shape[1:]
        if tuple(shape[1:]) != tuple(expected[1:]):
            own, other = (
                f"{size[-1] * self.pixels}x{size[-2] * self.pixels}" for size in (expected, shape)
            )
            raise ValueError(
                f"the content was inverted at {own}, the sampler runs at {other}: connect"
                f" the LATENT output of {self.node} to the sampler"
            )
        if expected[0] not in (1, shape[0]):
            raise ValueError(
                f"the content holds {expected[0]} pictures, the sampler runs {shape[0]}: use a"
                " batch of the same size"
            )

    def _check_first_sigma(self, start: SamplingStart) -> None:
        """A run may go on from another one, but not begin late with what the first one needs."""
        first, begins = self._sigma, start.sigmas[0]
        if begins >= first * (1 - 1e-3):
            return
        noise = self.samples(start.guider.model_patcher)
        if torch.allclose(noise, start.latent.to(noise), rtol=1e-3, atol=1e-3 * first):
            raise ValueError(
                f"the sampler starts at sigma {begins:.3f}, but the LATENT of {self.node} is"
                f" the noise of sigma {first:.3f}: connect all of the SIGMAS of MagicStyle Invert"
                " (no SplitSigmas before the first sampler, no denoise below 1)"
            )
