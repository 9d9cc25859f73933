"""Which noise levels get a reference pass, whatever the number of steps, scheduler and sampler."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from magicportrait.magic.reference_passes import (
    SPARSE,
    NoiseBands,
    Prediction,
    is_served,
    pass_levels,
)

# SD1.5's noise levels, by timestep.
BETAS = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
LEVELS: list[float] = ((1 - (1 - BETAS).cumprod(0)) / (1 - BETAS).cumprod(0)).sqrt().tolist()
SHIFT = 3.0
"""Of the flow's schedule, as SD3 has it."""
Schedule = Callable[[int], list[float]]
"""The sigmas at which so many steps begin."""


def unet_sigma(timestep: float) -> float:
    """Between timesteps log sigma is linear."""
    low = min(int(timestep), 998)
    part = timestep - low
    return math.exp((1 - part) * math.log(LEVELS[low]) + part * math.log(LEVELS[low + 1]))


def flow_sigma(time: float) -> float:
    return SHIFT * time / (1 + (SHIFT - 1) * time)


def simple(steps: int) -> list[float]:
    return [LEVELS[-(1 + int(i * 1000 / steps))] for i in range(steps)]


def normal(steps: int) -> list[float]:
    return [unet_sigma(999 * (1 - i / max(1, steps - 1))) for i in range(steps)]


def karras(steps: int) -> list[float]:
    high, low = LEVELS[-1] ** (1 / 7), LEVELS[0] ** (1 / 7)
    return [(high + i / max(1, steps - 1) * (low - high)) ** 7 for i in range(steps)]


def flow_simple(steps: int) -> list[float]:
    return [flow_sigma(1 - i / steps) for i in range(steps)]


def bands_of(prediction: Prediction) -> NoiseBands:
    """As the host's models have them."""
    return NoiseBands(
        tuple(
            unet_sigma(999 * (1 - share)) if prediction == "noise" else flow_sigma(1 - share)
            for share in SPARSE[prediction]
        )
    )


UNET, FLOW = bands_of("noise"), bands_of("flow")


def steps_with_a_pass(sigmas: Sequence[float], bands: NoiseBands) -> list[int]:
    return [sigmas.index(level) for level in pass_levels(sigmas, bands)]


@pytest.mark.parametrize(
    ("schedule", "steps", "expected"),
    [
        (simple, 1, [0]),
        (simple, 4, [0, 2, 3]),
        (simple, 8, [0, 3, 6, 7]),
        (simple, 25, [0, 8, 16, 20, 21, 22, 23, 24]),
        (simple, 50, [0, 16, 32, 40, 42, 44, 46, 48]),
        (normal, 4, [0, 1, 2, 3]),
        (normal, 8, [0, 3, 5, 6, 7]),
        (normal, 25, [0, 8, 16, 20, 21, 22, 23, 24]),
        (normal, 50, [0, 16, 32, 40, 42, 44, 46, 48]),
        # Two fifths of Karras' steps lie in the last fifth of sampling.
        (karras, 4, [0, 2, 3]),
        (karras, 8, [0, 3, 4, 5, 6]),
        (karras, 25, [0, 9, 13, 16, 17, 18, 19]),
        (karras, 50, [0, 17, 27, 31, 33, 34, 36, 39]),
    ],
    ids=lambda value: value.__name__ if callable(value) else str(value),
)
def test_a_unet_has_passes_at_the_same_noise_levels(
    schedule: Schedule, steps: int, expected: list[int]
) -> None:
    assert steps_with_a_pass(schedule(steps), UNET) == expected


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (1, [0]),
        (4, [0, 1, 2, 3]),
        (8, [0, 1, 2, 3, 4, 6, 7]),
        (25, [*range(9), 12, 16, 20, 24]),
        (50, [*range(0, 18, 2), 24, 32, 40, 48]),
    ],
)
def test_a_flow_has_most_passes_early(steps: int, expected: list[int]) -> None:
    assert steps_with_a_pass(flow_simple(steps), FLOW) == expected


def test_a_run_that_begins_late_begins_with_a_pass() -> None:
    """Image to image, a second stage, or a start of the references' range."""
    sigmas = simple(25)[10:]
    assert steps_with_a_pass(sigmas, UNET) == [0, 6, 10, 11, 12, 13, 14]


def test_samplers_that_call_the_model_twice_a_step_have_no_more_passes() -> None:
    heun = [sigma for pair in itertools.pairwise(simple(25)) for sigma in pair]
    assert pass_levels(heun, UNET) == pass_levels(simple(25), UNET)
    halves = [level for a, b in itertools.pairwise(simple(25)) for level in (a, math.sqrt(a * b))]
    assert len(pass_levels(halves, UNET)) <= len(UNET.starts) + 1


def test_noise_that_rises_again_has_passes_again() -> None:
    falling = simple(25)
    assert pass_levels([*falling, *falling], UNET) == 2 * pass_levels(falling, UNET)


LEVEL = st.floats(1e-3, 1e3)


@given(st.lists(LEVEL), st.lists(LEVEL, unique=True))
def test_every_call_is_served_by_the_last_pass_before_it(
    sigmas: list[float], starts: list[float]
) -> None:
    bands = NoiseBands(tuple(sorted(starts, reverse=True)))
    levels = iter(pass_levels(sigmas, bands))
    last = next(levels, None)
    coming = next(levels, None)
    for sigma in sigmas:
        assert last is not None
        if sigma == coming and not is_served(last, sigma, bands):
            last, coming = sigma, next(levels, None)
        assert bands.band(last) == bands.band(sigma)
    assert coming is None


@given(st.lists(LEVEL, unique=True))
def test_without_bands_every_noise_level_has_a_pass(sigmas: list[float]) -> None:
    twice = [sigma for sigma in sigmas for _ in range(2)]
    assert pass_levels(twice, None) == sigmas


@pytest.mark.parametrize("prediction", SPARSE)
def test_bands_are_shares_of_sampling_in_order(prediction: Prediction) -> None:
    shares = SPARSE[prediction]
    assert all(0 < share < 1 for share in shares)
    assert all(a < b for a, b in itertools.pairwise(shares))
