"""DDIM inversion in the host: its guider, its sampling loop (previews, progress, cancel, hooks,
ControlNet), our stepper."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from ...magic import inversion as steppers
from ...magic.reference_passes import Prediction
from ..sampling.range import prediction_of
from .fingerprint import model_fingerprint
from .start import FlowSampler, InvertedNoise, as_latent

Method = Literal["euler", "fireflow", "fixed-point", "o-belm", "warm"]
METHODS: tuple[Method, ...] = ("fixed-point", "euler", "o-belm", "warm", "fireflow")
"""'euler' is DDIM's step on noise predictions."""
OLD_METHODS: Mapping[str, Method] = {"ddim": "euler"}
"""What graphs and files of earlier versions call them."""


_Name = TypeVar("_Name", bound=str)


def method_today(name: _Name) -> Method | _Name:
    """A method's name as it is now, of one that may be of an earlier version."""
    return OLD_METHODS.get(name, name)


_WRITTEN_FOR_0 = 1e-3
"""The host's uni_pc writes this into SIGMAS that end with 0, and what holds them keeps it."""


def passes_for_0(sigma: float) -> bool:
    """Whether a last sigma is what a sampler wrote where 0 stood."""
    return abs(sigma - _WRITTEN_FOR_0) <= 1e-6


@dataclass(frozen=True)
class Recipe:
    """How to invert.

    method: see `METHODS`; iterations: at most so many corrections of a step, and tolerance: a
    correction that changes less than this share of the latent's norm is the last one (both for
    'fixed-point' only); cfg: guidance, 1 for none.
    """

    method: Method
    iterations: int
    tolerance: float
    cfg: float

    def as_used(self) -> Recipe:
        """Without what the method does not look at: recipes that give the same inversion are
        equal."""
        return self if self.method == "fixed-point" else replace(self, iterations=0, tolerance=0.0)


@dataclass(frozen=True, eq=False)
class Inversion:
    """A picture's way to noise, or several pictures' of one size.

    sigmas: N + 1, falling to 0; latents: N + 1 B C h w (or B C 1 h w) in the model's own latent
    space, one for each of `sigmas`; conditioning: the host's CONDITIONING under which it was made;
    method: see `METHODS`; model: the text of `model_fingerprint` of what it was made with; key: the
    fingerprint of all that it depends on, its name in the cache; model_calls: how many it took;
    seconds: how long; resampled: B C h w, the clean latents that sampling arrives at (as the VAE
    takes them), None when nobody has looked.
    """

    sigmas: Tensor
    latents: Tensor
    conditioning: list[Any]
    method: Method
    model: str
    key: str
    model_calls: int
    seconds: float
    resampled: Tensor | None = None

    @property
    def batch(self) -> int:
        """How many pictures."""
        return self.latents.shape[1]

    def at(self, sigma: float) -> Tensor:
        """The latents at any sigma: B C h w."""
        return steppers.latent_at(self.latents, self.sigmas.tolist(), sigma)

    def check_model(self, model: Any, name: str) -> None:
        """ValueError when MODEL is another one than the inversion was made with."""
        other = model_fingerprint(model).text
        if other != self.model:
            raise ValueError(
                f"{name} was inverted with another model: its weights and LoRAs are"
                f" {self.model[:8]}, those of this MODEL {other[:8]}. Connect the same model, with"
                " the same LoRAs, to both nodes"
            )

    def check_single(self, name: str) -> None:
        """ValueError when it is that of several pictures."""
        if self.batch != 1:
            raise ValueError(
                f"{name} holds {self.batch} pictures: invert one at a time and chain MagicStyle"
                " Reference nodes"
            )

    def check_sigmas(self, sigmas: Sequence[float], name: str) -> None:
        """ValueError when a sampling run uses sigmas that the inversion does not have."""
        own = self.sigmas.tolist()
        ends_at_0 = passes_for_0(sigmas[-1])
        if not all(
            any(abs(sigma - other) <= 1e-4 * max(1.0, other) for other in own)
            for sigma in (sigmas[:-1] if ends_at_0 else sigmas)
        ):
            raise ValueError(
                f"{name} was inverted over {len(own) - 1} steps from sigma {own[0]:.3f}, the"
                f" sampler runs {len(sigmas) - 1} steps from {sigmas[0]:.3f} over other sigmas:"
                " connect the SIGMAS output of MagicStyle Invert to SamplerCustom"
            )


class _CountedDenoiser:
    """The host's denoiser as `Eps`."""

    def __init__(self, model: Any, extra_args: dict[str, Any]):
        self._model, self._extra_args = model, extra_args
        self.calls = 0
        self.denoised: Tensor | None = None

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        self.calls += 1
        denoised = self._model(x, x.new_full((x.shape[0],), sigma), **self._extra_args)
        self.denoised = denoised
        eps: Tensor = (x - denoised) / sigma
        return eps

    def reporter(
        self, sigmas: Sequence[float], callback: Callable[[dict[str, Any]], None] | None
    ) -> steppers.OnStep:
        def on_step(done: int, x: Tensor) -> None:
            if callback is not None:
                denoised = x if self.denoised is None else self.denoised
                # `sigma_hat` is what k-diffusion's samplers report beside sigma; the host logs
                # both.
                callback(
                    {
                        "i": done - 1,
                        "x": x,
                        "sigma": sigmas[done],
                        "sigma_hat": sigmas[done],
                        "denoised": denoised,
                    }
                )

        return on_step


class _InversionSampler:
    """A sampler function for the host that runs upwards; the latents it passed are `latents`
    afterwards."""

    __name__ = "magic_inversion"

    def __init__(self, recipe: Recipe, prediction: Prediction):
        self._recipe, self._prediction = recipe, prediction
        self.latents: list[Tensor] = []
        self.calls = 0

    def __call__(
        self,
        model: Any,
        x: Tensor,
        sigmas: Tensor,
        extra_args: dict[str, Any],
        callback: Any,
        disable: bool,
    ) -> Tensor:
        eps, rising, recipe = _CountedDenoiser(model, extra_args), sigmas.tolist(), self._recipe
        on_step = eps.reporter(rising, callback)
        if recipe.method == "o-belm":
            self.latents = steppers.invert_belm(eps, x, rising, on_step, self._guess())
        elif recipe.method == "fireflow":
            self.latents = steppers.step_by_midpoints(eps, x, rising, on_step, self._guess())
        else:
            iterations = recipe.iterations if recipe.method == "fixed-point" else 0
            self.latents = steppers.invert_ddim(
                eps, x, rising, on_step, iterations, recipe.tolerance, self._guess()
            )
        self.calls = eps.calls
        return self.latents[-1]

    def _guess(self) -> steppers.Guess:
        if self._recipe.method == "warm":
            return "warm"
        if self._prediction == "noise":
            return "scaled"
        # What is corrected anyway begins where it has the least to correct.
        return "warm" if self._recipe.method == "fixed-point" else "here"


class _BelmSampler:
    """The sampler that undoes an O-BELM inversion. From another latent, or over other sigmas, it
    takes a DDIM step first."""

    __name__ = "magic_belm"

    def __init__(self, inversion: Inversion):
        self._first, self._second = inversion.latents[0], inversion.latents[1]
        self._sigmas = inversion.sigmas[:2]

    def __call__(
        self,
        model: Any,
        x: Tensor,
        sigmas: Tensor,
        extra_args: dict[str, Any],
        callback: Any,
        disable: bool,
    ) -> Tensor:
        eps, falling = _CountedDenoiser(model, extra_args), sigmas.tolist()
        first, second = self._first.to(x), self._second.to(x)
        is_inverted = first.shape == x.shape and torch.allclose(
            first, x, rtol=1e-3, atol=1e-4 * falling[0]
        )
        is_inverted = is_inverted and torch.allclose(self._sigmas.to(sigmas), sigmas[:2], rtol=1e-4)
        start, next_one = (first, second) if is_inverted else (x, None)
        return steppers.sample_belm(eps, start, next_one, falling, eps.reporter(falling, callback))


class _MidpointSampler:
    """FireFlow's sampler, whose steps downwards are those of its inversion."""

    __name__ = "magic_fireflow"

    def __call__(
        self,
        model: Any,
        x: Tensor,
        sigmas: Tensor,
        extra_args: dict[str, Any],
        callback: Any,
        disable: bool,
    ) -> Tensor:
        eps, falling = _CountedDenoiser(model, extra_args), sigmas.tolist()
        return steppers.step_by_midpoints(eps, x, falling, eps.reporter(falling, callback))[-1]


def sampler_for(model: Any, inversion: Inversion) -> Any:
    """The SAMPLER that turns the inversion's noise into its picture again."""
    import comfy.samplers

    stepper: Callable[..., Tensor] | None = None
    if inversion.method == "o-belm":
        stepper = _BelmSampler(inversion)
    elif inversion.method == "fireflow":
        stepper = _MidpointSampler()
    if prediction_of(model.get_model_object("model_sampling")) == "flow":
        return comfy.samplers.KSAMPLER(FlowSampler(inversion.latents[0], stepper))
    if stepper is not None:
        return comfy.samplers.KSAMPLER(stepper)
    return comfy.samplers.sampler_object("euler")


def invert(
    model: Any,
    latent: Tensor,
    conds: dict[str, list[Any]],
    sigmas: Tensor,
    recipe: Recipe,
    callback: Any,
    key: tuple[str, str],
) -> Inversion:
    """Runs an inversion.

    latent: B C h w as the VAE gives it; conds: CONDITIONING by name, 'positive' and 'negative';
    sigmas: N + 1, falling to 0; callback: the host's, of a step, or None; key: the fingerprints of
    the model and of everything, for `Inversion`. ValueError when it does not stay finite.
    """
    import comfy.samplers

    began = time.perf_counter()
    sampler = _InversionSampler(recipe, prediction_of(model.get_model_object("model_sampling")))
    _guider(model, conds, recipe.cfg).sample(
        torch.zeros_like(latent),
        latent,
        comfy.samplers.KSAMPLER(sampler),
        sigmas.flip(0),
        callback=callback,
        disable_pbar=True,
        seed=0,
    )
    latents = torch.stack(sampler.latents[::-1]).cpu()
    sampler.latents = []
    if not latents.isfinite().all():
        raise ValueError(
            f"the inversion of {len(sigmas) - 1} steps did not stay finite: use more steps, fewer"
            " fixed-point iterations, or CFG 1"
        )
    seconds = time.perf_counter() - began
    return Inversion(
        sigmas.cpu(),
        latents,
        conds["positive"],
        recipe.method,
        key[0],
        key[1],
        sampler.calls,
        seconds,
    )


def resample(
    model: Any, inversion: Inversion, conds: dict[str, list[Any]], cfg: float, callback: Any
) -> Tensor:
    """The picture's latent from the inversion's noise, as the VAE takes it: what an inversion is
    measured by."""
    return resample_with(model, inversion, start_latent(model, inversion), conds, cfg, callback)


def resample_with(
    model: Any,
    inversion: Inversion,
    start: Tensor,
    conds: dict[str, list[Any]],
    cfg: float,
    callback: Any,
) -> Tensor:
    """Samples from `start` over the inversion's sigmas, with the sampler that fits it. start: B C h
    w, a LATENT's samples."""
    import comfy.model_management as management

    samples: Tensor = _guider(model, conds, cfg).sample(
        torch.zeros_like(start),
        start,
        sampler_for(model, inversion),
        inversion.sigmas.clone(),
        callback=callback,
        disable_pbar=True,
        seed=0,
    )
    # A guider leaves them where the model is.
    return samples.to(management.intermediate_device())


def start_latent(model: Any, inversion: Inversion) -> Tensor:
    """The inverted noise as a LATENT."""
    return as_latent(model, inversion.latents[0].clone(), float(inversion.sigmas[0]))


def start_noise(model: Any, inversion: Inversion) -> InvertedNoise:
    """The inverted noise as a NOISE."""
    return InvertedNoise.of(model, inversion.latents[0], float(inversion.sigmas[0]))


def _guider(model: Any, conds: dict[str, list[Any]], cfg: float) -> Any:
    import comfy.samplers

    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(conds["positive"], conds["negative"])
    guider.set_cfg(cfg)
    return guider
