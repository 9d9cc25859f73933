"""The inverters against ODEs whose solution is known: eps = rate * x, and the noise of Gaussian
pictures."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from magicportrait.magic.inversion import (
    OnStep,
    belm_step,
    invert_belm,
    invert_ddim,
    latent_at,
    psnr,
    sample_belm,
    step_by_midpoints,
)

SPREAD = 0.5
RATE = 0.4


class Watched:
    """An eps-model that notes the sigmas it is asked at."""

    def __init__(self, eps: Any) -> None:
        self._eps = eps
        self.sigmas: list[float] = []

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        self.sigmas.append(sigma)
        out: Tensor = self._eps(x, sigma)
        return out


def ignore(done: int, x: Tensor) -> None:
    pass


def linear(x: Tensor, sigma: float) -> Tensor:
    return RATE * x


def gaussian(x: Tensor, sigma: float) -> Tensor:
    """The best noise prediction for pictures of deviation SPREAD."""
    return sigma / (SPREAD**2 + sigma**2) * x


def gaussian_solution(x0: Tensor, sigma: float) -> Tensor:
    return x0 * math.sqrt(SPREAD**2 + sigma**2) / SPREAD


def bent(x: Tensor, sigma: float) -> Tensor:
    """Not linear, not local: every place depends on its neighbour."""
    return torch.tanh(0.9 * x + 0.3 * x.roll(1, -1)) + 0.1 * torch.sin(3 * x) / (1 + sigma)


def flow(x: Tensor, sigma: float) -> Tensor:
    """The best velocity of a flow, x = (1 - sigma) x0 + sigma noise, for pictures of deviation
    SPREAD."""
    kept = (1 - sigma) * SPREAD**2
    return (sigma - kept) / ((1 - sigma) * kept + sigma**2) * x


def flow_solution(x0: Tensor, sigma: float) -> Tensor:
    return x0 * math.sqrt((1 - sigma) ** 2 * SPREAD**2 + sigma**2) / SPREAD


def bent_flow(x: Tensor, sigma: float) -> Tensor:
    """A velocity that is neither linear nor local."""
    return flow(x, sigma) + 0.3 * torch.sin(2 * x + x.roll(1, -1))


def picture(seed: int = 0) -> Tensor:
    return torch.randn(
        2, 4, 5, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


def model_sigmas(steps: int) -> list[float]:
    """Rising from 0 as the host's 'ddim_uniform' does with SD1.5's noise levels."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    alpha_bar = (1 - betas).cumprod(0)
    levels = ((1 - alpha_bar) / alpha_bar).sqrt()
    return [0.0, *levels[1 :: 1000 // steps].tolist()]


def sample(eps: Any, x: Tensor, rising: list[float]) -> Tensor:
    """Euler, from the last of `rising` to the first."""
    for sigma, following in zip(rising[:0:-1], rising[-2::-1]):
        x = x + (following - sigma) * eps(x, sigma)
    return x


def even(steps: int, end: float = 2.0) -> list[float]:
    return [end * i / steps for i in range(steps + 1)]


def error(out: Tensor, truth: Tensor) -> float:
    return float((out - truth).norm() / truth.norm())


# DDIM and fixed-point, in closed form


def test_ddim_of_a_linear_model() -> None:
    sigmas, x = [0.0, 0.3, 1.0, 2.5], picture()
    latents = invert_ddim(linear, x, sigmas, ignore)
    expected = [x]
    for sigma, following in pairwise(sigmas):
        grown = math.sqrt((1 + following**2) / (1 + sigma**2))
        expected.append(expected[-1] * (1 + (following - sigma) * RATE * grown))
    assert len(latents) == len(sigmas) and latents[0] is x
    for out, truth in zip(latents, expected):
        assert error(out, truth) <= 1e-14


def test_many_fixed_point_iterations_are_the_implicit_euler_step() -> None:
    sigmas, x = [0.0, 0.3, 1.0, 2.5], picture()
    latents = invert_ddim(linear, x, sigmas, ignore, iterations=80)
    factor = 1.0
    for i, (sigma, following) in enumerate(pairwise(sigmas), start=1):
        factor /= 1 - RATE * (following - sigma)
        assert error(latents[i], factor * x) <= 1e-13


@pytest.mark.parametrize("iterations", [0, 1, 2, 5])
def test_each_iteration_shrinks_the_residual_by_the_models_slope(iterations: int) -> None:
    x, step = picture(), 0.5
    exact = x / (1 - RATE * step)
    first = error(invert_ddim(linear, x, [0.0, step], ignore)[1], exact)
    out = invert_ddim(linear, x, [0.0, step], ignore, iterations)[1]
    assert error(out, exact) == pytest.approx(first * (RATE * step) ** iterations, rel=1e-9)


def test_sampling_undoes_a_converged_fixed_point_inversion() -> None:
    x, sigmas = picture(), even(12)
    plain = error(sample(bent, invert_ddim(bent, x, sigmas, ignore)[-1], sigmas), x)
    corrected = error(
        sample(bent, invert_ddim(bent, x, sigmas, ignore, iterations=2)[-1], sigmas), x
    )
    converged = error(
        sample(bent, invert_ddim(bent, x, sigmas, ignore, iterations=60)[-1], sigmas), x
    )
    assert converged <= 1e-12
    assert corrected < plain / 20


def test_calls_without_a_tolerance() -> None:
    for iterations in (0, 1, 4):
        eps = Watched(bent)
        invert_ddim(eps, picture(), even(5), ignore, iterations)
        assert len(eps.sigmas) == 5 * (1 + iterations)


def test_the_tolerance_ends_a_step_as_soon_as_a_correction_is_that_small() -> None:
    # The start takes eps at x * grown, and every correction is RATE * step of the one before it.
    step, tolerance = 0.5, 1e-4
    shrink, grown = RATE * step, math.sqrt(1 + step**2)
    y, following, needed = 1 + shrink * grown, 0.0, 0
    while True:
        y, following = 1 + shrink * y, y
        needed += 1
        if abs(y - following) <= tolerance * y:
            break
    assert 2 < needed < 20
    eps = Watched(linear)
    out = invert_ddim(eps, picture(), [0.0, step], ignore, iterations=20, tolerance=tolerance)[1]
    assert len(eps.sigmas) == 1 + needed
    assert error(out, picture() / (1 - shrink)) <= tolerance


def test_the_residual_is_within_the_tolerance() -> None:
    x, sigmas, tolerance = picture(), even(10), 1e-6
    eps = Watched(bent)
    latents = invert_ddim(eps, x, sigmas, ignore, iterations=50, tolerance=tolerance)
    assert len(eps.sigmas) < 10 * 25
    for before, y, sigma, following in zip(latents, latents[1:], sigmas, sigmas[1:]):
        residual = before + (following - sigma) * bent(y, following) - y
        assert float(residual.norm()) <= tolerance * float(y.norm())


@pytest.mark.parametrize("iterations", [0, 60])
def test_ddim_and_fixed_point_are_of_first_order(iterations: int) -> None:
    x0 = picture()
    errors = [
        error(
            invert_ddim(gaussian, x0, even(steps), ignore, iterations)[-1],
            gaussian_solution(x0, 2.0),
        )
        for steps in (40, 80, 160)
    ]
    orders = [math.log2(coarse / fine) for coarse, fine in pairwise(errors)]
    assert errors[-1] <= 0.03
    assert orders == pytest.approx([1.0, 1.0], abs=0.15)


# O-BELM


def test_belm_of_a_linear_model_on_even_sigmas_is_the_leapfrog() -> None:
    # x[n+1] = x[n-1] + 2 h RATE x[n]: the roots of r^2 - 2 h RATE r - 1.
    x, sigmas = picture(), even(8)
    h = sigmas[1]
    growing, flipping = (h * RATE + sign * math.sqrt(1 + (h * RATE) ** 2) for sign in (1, -1))
    second = 1 + h * RATE * math.sqrt(1 + h**2)
    share = (second - flipping) / (growing - flipping)
    latents = invert_belm(linear, x, sigmas, ignore)
    assert len(latents) == len(sigmas)
    for n, out in enumerate(latents):
        assert error(out, (share * growing**n + (1 - share) * flipping**n) * x) <= 1e-13


def test_belm_is_exact_for_parabolas() -> None:
    """The latent moves on a parabola over sigma whatever its value: no step may add an error to
    that."""

    def slope(x: Tensor, sigma: float) -> Tensor:
        return torch.full_like(x, 3 * sigma - 1)

    def truth(sigma: float) -> Tensor:
        return picture() + 1.5 * sigma**2 - sigma

    before, x, sigmas = truth(0.1), truth(0.7), [0.1, 0.7, 0.9, 2.2]
    for i in (1, 2):
        before, x = (
            x,
            belm_step(before, x, slope(x, sigmas[i]), sigmas[i - 1], sigmas[i], sigmas[i + 1]),
        )
    assert error(x, truth(2.2)) <= 1e-14


def test_belm_is_of_second_order() -> None:
    x0 = picture()
    errors = [
        error(invert_belm(gaussian, x0, even(steps), ignore)[-1], gaussian_solution(x0, 2.0))
        for steps in (40, 80, 160)
    ]
    orders = [math.log2(coarse / fine) for coarse, fine in pairwise(errors)]
    assert errors[-1] <= 1e-3
    assert orders == pytest.approx([2.0, 2.0], abs=0.3)


@pytest.mark.parametrize("steps", [2, 10, 20, 50])
def test_belm_round_trip_is_exact_whatever_the_model(steps: int) -> None:
    x, rising = picture(), model_sigmas(steps)
    latents = invert_belm(bent, x, rising, ignore)
    assert error(latents[-1], x) > 0.5, "nothing moved"
    back = sample_belm(bent, latents[-1], latents[-2], rising[::-1], ignore)
    assert error(back, x) <= 1e-5


def test_belm_from_noise_alone_begins_with_a_ddim_step() -> None:
    x, falling = picture(), [2.0, 1.2, 0.5, 0.0]
    second = x + (1.2 - 2.0) * bent(x, 2.0)
    assert torch.equal(
        sample_belm(bent, x, None, falling, ignore), sample_belm(bent, x, second, falling, ignore)
    )


@st.composite
def belm_steps(draw: Any) -> tuple[Tensor, Tensor, Tensor, list[float]]:
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    before, x, noise = (torch.from_numpy(rng.normal(size=(1, 2, 3, 3))) for _ in range(3))
    sigmas = draw(st.lists(st.floats(0.0, 20.0), min_size=3, max_size=3, unique=True).map(sorted))
    gaps = np.diff(sigmas)
    # Neighbouring steps of a schedule differ by far less.
    assume(gaps.min() > 1e-3 and gaps.max() / gaps.min() < 100)
    return before, x, noise, sigmas if draw(st.booleans()) else sigmas[::-1]


@given(belm_steps())
def test_a_belm_step_undoes_itself(case: tuple[Tensor, Tensor, Tensor, list[float]]) -> None:
    before, x, noise, (first, second, third) = case
    after = belm_step(before, x, noise, first, second, third)
    assert error(belm_step(after, x, noise, third, second, first), before) <= 1e-8


@given(belm_steps())
def test_a_belm_step_is_the_parabola(case: tuple[Tensor, Tensor, Tensor, list[float]]) -> None:
    before, x, noise, (first, second, third) = case
    curve = (before - x - (first - second) * noise) / (first - second) ** 2
    expected = x + (third - second) * noise + (third - second) ** 2 * curve
    assert error(belm_step(before, x, noise, first, second, third), expected) <= 1e-10


# Flow models


@pytest.mark.parametrize(
    ("order", "options"),
    [(1, {"guess": "here"}), (1, {"guess": "warm"}), (1, {"guess": "warm", "iterations": 60})],
    ids=["euler", "warm", "fixed-point"],
)
def test_steps_of_a_flow_are_of_first_order(order: int, options: dict[str, Any]) -> None:
    x0 = picture()
    errors = [
        error(invert_ddim(flow, x0, even(steps, 1.0), ignore, **options)[-1], flow_solution(x0, 1))
        for steps in (40, 80, 160)
    ]
    assert errors[-1] <= 0.03
    assert [math.log2(a / b) for a, b in pairwise(errors)] == pytest.approx([order] * 2, abs=0.15)


def test_belm_of_a_flow_is_of_second_order() -> None:
    x0 = picture()
    errors = [
        error(invert_belm(flow, x0, even(steps, 1.0), ignore, "here")[-1], flow_solution(x0, 1))
        for steps in (40, 80, 160)
    ]
    assert errors[-1] <= 1e-3
    assert [math.log2(a / b) for a, b in pairwise(errors)] == pytest.approx([2.0] * 2, abs=0.3)


def test_a_warm_start_of_a_linear_model() -> None:
    """Each step asks at what the slope before makes of the latent; the first has none before."""
    x, sigmas = picture(), [0.0, 0.3, 1.0, 2.5]
    out, slope, expected = x, torch.zeros_like(x), [x]
    for sigma, following in pairwise(sigmas):
        slope = RATE * (out + (following - sigma) * slope)
        out = out + (following - sigma) * slope
        expected.append(out)
    for latent, truth in zip(invert_ddim(linear, x, sigmas, ignore, guess="warm"), expected):
        assert error(latent, truth) <= 1e-14


def test_what_a_flow_keeps_of_a_round_trip() -> None:
    """The warm start gains an order in the round trip for no call more, a correction another."""
    x, worse = picture(), []
    for steps in (20, 40):
        sigmas = even(steps, 1.0)
        trips = []
        for guess, iterations in (("here", 0), ("warm", 0), ("warm", 1), ("warm", 60)):
            eps = Watched(bent_flow)
            latents = invert_ddim(eps, x, sigmas, ignore, iterations, guess=guess)
            assert len(eps.sigmas) == steps * (1 + iterations)
            trips.append(error(sample(bent_flow, latents[-1], sigmas), x))
        euler, warm, corrected, converged = trips
        assert warm < euler / 5 and corrected < warm / 5 and converged <= 1e-12
        worse.append((euler, warm))
    (euler, warm), (finer_euler, finer_warm) = worse
    assert euler / finer_euler == pytest.approx(2, abs=0.5)
    assert warm / finer_warm > 3


def test_midpoints_of_a_flow_are_of_second_order_for_one_call_a_step() -> None:
    """Upwards, and in the round trip, where a warm start of the same calls is worse."""
    x, errors, trips = picture(), [], []
    for steps in (40, 80, 160):
        rising, eps = even(steps, 1.0), Watched(flow)
        there = step_by_midpoints(eps, x, rising, ignore)
        assert len(there) == steps + 1
        assert eps.sigmas == pytest.approx([(a + b) / 2 for a, b in pairwise(rising)])
        errors.append(error(there[-1], flow_solution(x, 1)))
        bent = Watched(bent_flow)
        top = step_by_midpoints(bent, x, rising, ignore)[-1]
        back = step_by_midpoints(bent, top, rising[::-1], ignore)
        assert len(bent.sigmas) == 2 * steps + 1 and min(bent.sigmas) > 0
        trips.append(error(back[-1], x))
        warm = invert_ddim(bent_flow, x, rising, ignore, guess="warm")[-1]
        assert trips[-1] < error(sample(bent_flow, warm, rising), x) / 2
    assert errors[-1] <= 1e-3
    assert [math.log2(a / b) for a, b in pairwise(errors)] == pytest.approx([2.0] * 2, abs=0.3)
    assert all(math.log2(a / b) > 1.7 for a, b in pairwise(trips))


def test_midpoints_of_a_linear_model() -> None:
    x, sigmas = picture(), [0.0, 0.4, 1.0]
    for guess, grown in (("here", 1.0), ("scaled", math.sqrt(1 + 0.2**2))):
        slope = RATE * grown * x
        first = x + 0.4 * slope
        second = first + 0.6 * RATE * (first + 0.3 * slope)
        out = step_by_midpoints(linear, x, sigmas, ignore, guess)  # type: ignore[arg-type]
        assert error(out[1], first) <= 1e-14 and error(out[2], second) <= 1e-14


@pytest.mark.parametrize("steps", [2, 8, 20])
def test_belm_round_trip_of_a_flow_is_exact(steps: int) -> None:
    x, rising = picture(), even(steps, 1.0)
    latents = invert_belm(bent_flow, x, rising, ignore, "here")
    assert error(latents[-1], x) > 0.5, "nothing moved"
    back = sample_belm(bent_flow, latents[-1], latents[-2], rising[::-1], ignore)
    assert error(back, x) <= 1e-9


# All of them


@pytest.mark.parametrize("invert", [invert_ddim, invert_belm])
def test_the_model_is_never_asked_at_zero_and_once_a_step(invert: Any) -> None:
    eps, done = Watched(bent), []
    sigmas = even(6)
    on_step: OnStep = lambda step, x: done.append((step, x))  # noqa: E731
    latents = invert(eps, picture(), sigmas, on_step)
    assert eps.sigmas == (sigmas[1:] if invert is invert_ddim else [sigmas[1], *sigmas[1:-1]])
    assert [step for step, _ in done] == [1, 2, 3, 4, 5, 6]
    assert all(x is latent for (_, x), latent in zip(done, latents[1:]))
    assert all(latent.dtype == torch.float64 for latent in latents)


def test_sampling_with_belm_asks_at_every_sigma_but_zero() -> None:
    x, falling, done = picture(), even(6)[::-1], []
    for second, expected in ((None, falling[:-1]), (x, falling[1:-1])):
        eps = Watched(bent)
        out = sample_belm(eps, x, second, falling, lambda step, latent: done.append((step, latent)))
        assert eps.sigmas == expected
        assert [step for step, _ in done] == [1, 2, 3, 4, 5, 6] and done.pop()[1] is out
        done.clear()


# The trajectory


@given(st.lists(st.floats(0.01, 20), min_size=2, max_size=6, unique=True), st.floats(0, 25))
def test_a_latent_between_two_sigmas(levels: list[float], sigma: float) -> None:
    sigmas = [*sorted(levels, reverse=True), 0.0]
    values = np.random.default_rng(len(levels)).normal(size=(len(sigmas), 2))
    latents = torch.from_numpy(values)[..., None, None, None]
    out = latent_at(latents, sigmas, sigma).flatten()
    expected = [np.interp(sigma, sigmas[::-1], values[::-1, i]) for i in range(2)]
    np.testing.assert_allclose(out.numpy(), expected, atol=1e-9)


def test_the_latent_at_a_known_sigma_is_that_latent_bit_for_bit() -> None:
    sigmas, latents = [14.6, 3.1, 0.7, 0.0], torch.randn(4, 1, 4, 2, 2)
    for sigma, latent in zip(sigmas, latents):
        assert torch.equal(latent_at(latents, sigmas, sigma), latent)
    assert torch.equal(latent_at(latents, sigmas, 99.0), latents[0])


# PSNR


@pytest.mark.parametrize(
    ("offset", "span", "expected"),
    [(0.1, 1.0, 20.0), (0.01, 1.0, 40.0), (0.1, 10.0, 40.0), (2.0, 2.0, 0.0)],
)
def test_psnr_of_a_constant_error(offset: float, span: float, expected: float) -> None:
    truth = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert psnr(truth + offset, truth, span) == pytest.approx(expected, abs=1e-3)


def test_psnr_of_equals_is_infinite_and_of_half_precision_is_not_rounded() -> None:
    truth = torch.full((1, 4, 64, 64), 0.0625, dtype=torch.float16)
    assert psnr(truth, truth, 1.0) == math.inf
    # Squared, this is below the smallest float16.
    assert psnr(truth + 2**-13, truth, 1.0) == pytest.approx(20 * math.log10(2**13), abs=1e-3)
