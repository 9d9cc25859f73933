"""DDIM inversion: from a picture's latent back to the noise that a deterministic sampler turns into
it again.

Everything is in the form in which ComfyUI samples, x = x0 + sigma * eps with sigma = sqrt(1 -
alpha_bar) / sqrt(alpha_bar). There a DDIM step (arXiv 2010.02502, equation 12, eta 0) is an Euler
step, x' = x + (sigma' - sigma) * eps(x, sigma), for eps and v prediction alike. Flow models, x =
(1 - sigma) * x0 + sigma * eps, have the same step with their velocity in place of eps: both are
dx/dsigma, which the host's samplers compute as (x - denoised) / sigma.

`Eps` is called as eps(x, sigma) with x: B C h w (or B C T h w) and a positive sigma; it is never
called at 0, where a noise prediction means nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

Eps = Callable[[Tensor, float], Tensor]
OnStep = Callable[[int, Tensor], None]
"""(how many steps are done, the latent reached)."""
Guess = Literal["scaled", "here", "warm"]
"""Where a step upwards looks first for the slope at its end. 'scaled': at the latent as it would
grow if it were noise alone, for noise predictions; 'here': at the latent as it is; 'warm': at what
the slope of the step before makes of it (Uni-Inv of UniEdit-Flow, arXiv 2504.13109)."""


def invert_ddim(
    eps: Eps,
    x: Tensor,
    sigmas: Sequence[float],
    on_step: OnStep,
    iterations: int = 0,
    tolerance: float = 0.0,
    guess: Guess = "scaled",
) -> list[Tensor]:
    """The latents of the inversion, one for each of `sigmas`.

    x: B C h w, the clean latent; sigmas: rising, from 0. The step that has to be undone is x = y +
    (sigma - sigma') * eps(y, sigma'), which names y on both sides. With no iterations eps is taken
    at `guess` instead ('scaled' or 'here': the usual DDIM inversion, as in arXiv 2211.09794); each
    iteration puts the last y in its place (fixed-point inversion, arXiv 2309.04907), until y
    changes by less than `tolerance` of its norm.
    """
    latents, slope = [x], None
    for i in range(len(sigmas) - 1):
        sigma, following = sigmas[i], sigmas[i + 1]
        if guess == "scaled":
            # As in alpha_bar's own scale, where the latent keeps its size while the noise rises.
            first = x * math.sqrt((1 + following**2) / (1 + sigma**2))
        elif guess == "warm" and slope is not None:
            first = x + (following - sigma) * slope
        else:
            first = x
        slope = eps(first, following)
        y = x + (following - sigma) * slope
        for _ in range(iterations):
            slope = eps(y, following)
            before, y = y, x + (following - sigma) * slope
            if tolerance > 0 and float((y - before).norm()) <= tolerance * float(y.norm()):
                break
        x = y
        latents.append(x)
        on_step(i + 1, x)
    return latents


def belm_step(
    before: Tensor, x: Tensor, noise: Tensor, sigma_before: float, sigma: float, sigma_after: float
) -> Tensor:
    """The latent at `sigma_after` from those at `sigma_before` and `sigma`, and noise = eps(x,
    sigma).

    O-BELM (arXiv 2410.07273) in this form: the parabola through both latents with the slope at the
    second. It works in both directions, and one direction undoes the other exactly, whatever eps
    is.
    """
    ratio = (sigma_after - sigma) / (sigma_before - sigma)
    return ratio**2 * before + (1 - ratio**2) * x + (sigma_after - sigma) * (1 - ratio) * noise


def invert_belm(
    eps: Eps, x: Tensor, sigmas: Sequence[float], on_step: OnStep, guess: Guess = "scaled"
) -> list[Tensor]:
    """As `invert_ddim`, exactly: `sample_belm` from the last two of these latents ends at x again.
    sigmas: at least 0 and one more."""
    latents = invert_ddim(eps, x, sigmas[:2], on_step, guess=guess)
    for i in range(1, len(sigmas) - 1):
        noise = eps(latents[i], sigmas[i])
        latents.append(
            belm_step(latents[i - 1], latents[i], noise, sigmas[i - 1], sigmas[i], sigmas[i + 1])
        )
        on_step(i + 1, latents[i + 1])
    return latents


def sample_belm(
    eps: Eps, x: Tensor, second: Tensor | None, sigmas: Sequence[float], on_step: OnStep
) -> Tensor:
    """Samples with O-BELM. x: B C h w at sigmas[0]; second: the latent at sigmas[1] (None: a DDIM
    step finds it); sigmas: falling."""
    before, x = x, x + (sigmas[1] - sigmas[0]) * eps(x, sigmas[0]) if second is None else second
    on_step(1, x)
    for i in range(1, len(sigmas) - 1):
        before, x = (
            x,
            belm_step(before, x, eps(x, sigmas[i]), sigmas[i - 1], sigmas[i], sigmas[i + 1]),
        )
        on_step(i + 1, x)
    return x


def step_by_midpoints(
    eps: Eps, x: Tensor, sigmas: Sequence[float], on_step: OnStep, guess: Guess = "here"
) -> list[Tensor]:
    """FireFlow's steps (arXiv 2412.07517), upwards or downwards: the latents at `sigmas`.

    The midpoint rule, of which the midpoint is looked for with the slope at the midpoint before it:
    second order for one call a step. The first step has none before: it asks where it begins, or
    from 0, where that means nothing, takes `guess` ('scaled' or 'here').
    """
    latents, slope = [x], None
    for i in range(len(sigmas) - 1):
        sigma, following = sigmas[i], sigmas[i + 1]
        middle = (sigma + following) / 2
        if slope is None and sigma > 0:
            slope = eps(x, sigma)
        if slope is not None:
            first = x + (middle - sigma) * slope
        else:
            first = x * math.sqrt(1 + middle**2) if guess == "scaled" else x
        slope = eps(first, middle)
        x = x + (following - sigma) * slope
        latents.append(x)
        on_step(i + 1, x)
    return latents


def latent_at(latents: Tensor, sigmas: Sequence[float], sigma: float) -> Tensor:
    """A trajectory's latent at any sigma, linear between the two nearest. latents: N B C h w at
    `sigmas`, which fall. -> B C h w."""
    if sigma >= sigmas[0]:
        return latents[0]
    for i in range(1, len(sigmas)):
        if sigma >= sigmas[i]:
            share = (sigma - sigmas[i]) / (sigmas[i - 1] - sigmas[i])
            return latents[i] if share == 0 else torch.lerp(latents[i], latents[i - 1], share)
    return latents[-1]


def psnr(x: Tensor, truth: Tensor, span: float) -> float:
    """Peak signal-to-noise ratio in dB; `span`: the distance between the smallest and largest
    possible value."""
    error = float((x.float() - truth.to(x.device).float()).square().mean().detach())
    return float("inf") if error == 0 else 10 * float(torch.tensor(span**2 / error).log10())
