from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from magicportrait.magic.guidance import guide_by_region, semantic_rate
from magicportrait.magic.layout import SemanticLayout
from magicportrait.tests.unit import naive_magicface as naive


def layout_of(regions: Any, foreground: Any) -> SemanticLayout:
    regions = torch.as_tensor(regions)
    return SemanticLayout(
        regions,
        torch.as_tensor(foreground, dtype=torch.bool),
        torch.zeros(regions.shape[0], 0, *regions.shape[1:]),
    )


@dataclass(frozen=True)
class Case:
    cond: np.ndarray
    uncond: np.ndarray
    regions: np.ndarray
    foreground: np.ndarray
    cfg: float

    def __repr__(self) -> str:
        return (
            f"Case({self.cond.shape}, regions {self.regions.tolist()}, foreground"
            f" {self.foreground.tolist()}, cfg {self.cfg})"
        )

    @property
    def layout(self) -> SemanticLayout:
        return layout_of(self.regions, self.foreground)

    def rates(self) -> np.ndarray:
        guidance = self.cond.astype(np.float64) - self.uncond
        return np.stack(
            [
                naive.semantic_rate(*one, self.cfg)
                for one in zip(guidance, self.regions, self.foreground)
            ]
        )


@st.composite
def cases(draw: Any) -> Case:
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    batch, channels, level = (
        draw(st.integers(1, 3)),
        draw(st.sampled_from([1, 4])),
        draw(st.sampled_from([1, 2, 4])),
    )
    size = (draw(st.integers(1, 11)), draw(st.integers(1, 11)))
    grid = tuple(-(-side // level) for side in size)
    # Norms that differ by far more than the clamps allow, and by less.
    spread = draw(st.sampled_from([0.2, 2.0]))
    cond, uncond = (
        (
            rng.normal(size=(batch, channels, *size))
            * np.exp(rng.normal(size=(batch, 1, *size)) * spread)
        ).astype(np.float32)
        for _ in range(2)
    )
    tokens = draw(st.sampled_from([[-1], [0, 3], [-1, 0, 4, 5], [-1, 76, 153]]))
    regions = rng.choice(tokens, (batch, *grid))
    foreground = rng.random((batch, *grid)) < draw(st.sampled_from([0.0, 0.5, 1.0]))
    return Case(
        cond, uncond, regions, foreground, draw(st.sampled_from([1.5, 4.0, 5.0, 7.5, 12.0, 30.0]))
    )


@given(cases())
def test_the_rate_is_the_formula(case: Case) -> None:
    # The fast code sees the float32 difference: what is tested is the rate, not the subtraction.
    guidance = case.cond - case.uncond
    exact = Case(guidance, np.zeros_like(guidance), case.regions, case.foreground, case.cfg)
    out = semantic_rate(torch.from_numpy(guidance), case.layout, case.cfg)
    assert out.shape == (guidance.shape[0], 1, *guidance.shape[2:])
    assert naive.relative_error(out[:, 0], exact.rates()) <= 1e-5


@given(cases())
def test_guiding_is_the_formula(case: Case) -> None:
    cond, uncond = torch.from_numpy(case.cond), torch.from_numpy(case.uncond)
    out = guide_by_region(uncond + case.cfg * (cond - uncond), cond, uncond, case.layout)
    expected = [
        naive.guide(c.astype(np.float64), u.astype(np.float64), case.cfg, rate)
        for c, u, rate in zip(case.cond, case.uncond, case.rates())
    ]
    assert naive.relative_error(out, np.stack(expected)) <= 1e-5


# Three bands, so wide that the middle of each is out of reach of the smoothing: background, a weak
# and a strong token.
BANDS = [-1] * 3 + [2] * 3 + [7] * 3
MIDDLES = (1, 4, 7)


def banded_rates(
    norms: tuple[float, float, float], cfg: float, foreground: tuple[int, ...] = (-1, 2, 7)
) -> list[float]:
    """The rate in the middle of each band."""
    regions = torch.tensor(BANDS).expand(1, 3, 9)
    guidance = torch.tensor([norm for norm in norms for _ in range(3)]).expand(1, 1, 3, 9)
    rate: Tensor = semantic_rate(
        guidance, layout_of(regions, torch.isin(regions, torch.tensor(foreground))), cfg
    )
    return [float(rate[0, 0, 1, middle]) for middle in MIDDLES]


def test_norms_become_that_of_the_foreground() -> None:
    # The foreground's mean is 1.25, the background's 9 does not count.
    assert banded_rates((9.0, 1.0, 1.5), 3.0, foreground=(2, 7)) == pytest.approx(
        [0.8, 1.25, 1.25 / 1.5], rel=1e-5
    )


def test_the_background_gets_the_least() -> None:
    assert banded_rates((1.0, 1.0, 1.0), 3.0)[0] == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("cfg", "upper"), [(1.5, 3.0), (5.0, 3.0), (6.0, 2.5), (7.5, 2.0), (15.0, 1.0), (30.0, 0.5)]
)
def test_the_clamps(cfg: float, upper: float) -> None:
    _, weak, strong = banded_rates((1.0, 0.01, 100.0), cfg)
    assert (weak, strong) == pytest.approx((upper, min(0.8, upper)))


def test_guidance_of_zero_changes_nothing() -> None:
    zero = torch.zeros(1, 4, 3, 9)
    denoised = torch.rand(1, 4, 3, 9, generator=torch.Generator().manual_seed(0))
    regions = torch.tensor(BANDS).expand(1, 3, 9)
    assert torch.equal(
        guide_by_region(denoised, zero, zero, layout_of(regions, regions > 0)), denoised
    )


def test_what_guided_counts_whatever_a_setting_says() -> None:
    """Nodes with rules of their own guide each picture by another factor, or not at all."""
    cond, uncond = torch.randn(2, 3, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    layout = layout_of(torch.arange(48).view(3, 4, 4) % 3 - 1, torch.ones(3, 4, 4))
    factors = torch.tensor([1.0, 3.0, 8.0]).view(3, 1, 1, 1)
    together = guide_by_region(uncond + factors * (cond - uncond), cond, uncond, layout)
    torch.testing.assert_close(together[0], cond[0])
    for i in (1, 2):
        one = slice(i, i + 1)
        part = layout_of(layout.regions[one], layout.foreground[one])
        plain = uncond[one] + factors[one] * (cond[one] - uncond[one])
        alone = guide_by_region(plain, cond[one], uncond[one], part)
        torch.testing.assert_close(together[one], alone)
        assert not torch.allclose(alone, plain)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_type_stays(dtype: torch.dtype) -> None:
    cond, uncond = torch.randn(2, 1, 4, 4, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    layout = layout_of(torch.zeros(1, 2, 2, dtype=torch.long), torch.ones(1, 2, 2))
    assert guide_by_region(cond, cond, uncond, layout).dtype == dtype
