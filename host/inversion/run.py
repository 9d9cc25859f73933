"""DDIM inversion in the host: its guider, its sampling loop (previews, progress, cancel, hooks,
ControlNet), our stepper."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from ...magic import inversion as steppers
from .fingerprint import fingerprint, model_fingerprint

Method = Literal["ddim", "fixed-point", "o-belm"]
METHODS: tuple[Method, ...] = ("fixed-point", "ddim", "o-belm")
_FORMAT = 1


@dataclass(frozen=True)
class Recipe:
    """How to invert. iterations and tolerance are for 'fixed-point' only."""

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

    sigmas: N + 1, falling to 0; latents: N + 1 B C h w in the model's own latent space, one for
    each of `sigmas`; conditioning: under which it was found; model: `model_fingerprint` of what it
    was found with; key: what it depends on, and its name in the cache; resampled: B C h w, the
    clean latents that sampling finds again (as the VAE takes them), None when nobody has looked.
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
        return self.latents.shape[1]

    def at(self, sigma: float) -> Tensor:
        """The latents at any sigma: B C h w."""
        return steppers.latent_at(self.latents, self.sigmas.tolist(), sigma)

    def check_model(self, model: Any, name: str) -> None:
        """ValueError when MODEL is another one than the inversion was made with."""
        other = model_fingerprint(model)
        if other != self.model:
            raise ValueError(
                f"{name} was inverted with another model: its weights and LoRAs are"
                f" {self.model[:8]}, those of this MODEL {other[:8]}. Connect the same model, with"
                " the same LoRAs, to both nodes"
            )

    def check_sigmas(self, sigmas: Sequence[float], name: str) -> None:
        """ValueError when a sampling run uses sigmas that the inversion does not have."""
        known = self.sigmas.tolist()
        if not all(
            any(abs(sigma - other) <= 1e-4 * max(1.0, other) for other in known) for sigma in sigmas
        ):
            raise ValueError(
                f"{name} was inverted over {len(known) - 1} steps from sigma {known[0]:.3f}, the"
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
        return (x - denoised) / sigma

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

    def __init__(self, recipe: Recipe):
        self._recipe = recipe
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
            self.latents = steppers.invert_belm(eps, x, rising, on_step)
        else:
            iterations = recipe.iterations if recipe.method == "fixed-point" else 0
            self.latents = steppers.invert_ddim(
                eps, x, rising, on_step, iterations, recipe.tolerance
            )
        self.calls = eps.calls
        return self.latents[-1]


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


def sampler_for(inversion: Inversion) -> Any:
    """The SAMPLER that turns the inversion's noise into its picture again."""
    import comfy.samplers

    if inversion.method == "o-belm":
        return comfy.samplers.KSAMPLER(_BelmSampler(inversion))
    return comfy.samplers.sampler_object("euler")


def inversion_key(
    model: Any, latent: Tensor, conds: dict[str, list[Any]], sigmas: Tensor, recipe: Recipe
) -> tuple[str, str]:
    """(the model's fingerprint, the fingerprint of all that an inversion depends on)."""
    import comfy.patcher_extension as extension

    weights = model_fingerprint(model)
    patches = (
        model.model_options,
        model.wrappers,
        model.callbacks,
        model.object_patches,
        model.attachments,
        model.hook_patches,
    )
    others = (model.injections, model.additional_models)
    # At CFG 1 the host leaves the negative out, unless a node wants it all the same, or sets
    # another CFG as it samples.
    overridden = model.model_options.get("disable_cfg1_optimization") or model.wrappers.get(
        extension.WrappersMP.PREDICT_NOISE
    )
    if math.isclose(recipe.cfg, 1.0) and not overridden:
        conds = {name: cond for name, cond in conds.items() if name != "negative"}
    return weights, fingerprint(
        _FORMAT, weights, patches, others, latent, conds, sigmas, recipe.as_used()
    )


def invert(
    model: Any,
    latent: Tensor,
    conds: dict[str, list[Any]],
    sigmas: Tensor,
    recipe: Recipe,
    callback: Any,
    key: tuple[str, str],
) -> Inversion:
    """Runs an inversion. latent: B C h w as the VAE gives it; conds: 'positive' and 'negative';
    sigmas: falling to 0."""
    import comfy.samplers

    began = time.perf_counter()
    sampler = _InversionSampler(recipe)
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
        sampler_for(inversion),
        inversion.sigmas.clone(),
        callback=callback,
        disable_pbar=True,
        seed=0,
    )
    # A guider leaves them where the model is.
    return samples.to(management.intermediate_device())


def start_latent(model: Any, inversion: Inversion) -> Tensor:
    """The inverted noise as a LATENT."""
    return model.model.process_latent_out(inversion.latents[0].clone())


def _guider(model: Any, conds: dict[str, list[Any]], cfg: float) -> Any:
    import comfy.samplers

    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(conds["positive"], conds["negative"])
    guider.set_cfg(cfg)
    return guider


def check_noise_model(model: Any) -> None:
    """ValueError for models whose noise is not added as x0 + sigma * eps (flow matching and the
    like), patched to be so or not."""
    import comfy.model_sampling as known

    sampling = model.get_model_object("model_sampling")
    if not isinstance(sampling, known.EPS) or isinstance(sampling, known.IMG_TO_IMG):
        kinds = [
            kind.__name__ for kind in type(sampling).__mro__ if kind.__module__ == known.__name__
        ]
        raise ValueError(
            "DDIM inversion needs a model with eps or v prediction (SD1.5, SD2.1, SDXL), got one"
            f" with {' and '.join(kinds)}: connect such a model, without a ModelSampling node for"
            " other kinds"
        )


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
