"""Mask shapes against slow definitions."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from magicportrait.magic.mask_shapes import feather, grow, threshold


def naive_octagon(mask: torch.Tensor, pixels: int) -> torch.Tensor:
    """The maximum over the octagon of the same four segments, point by point."""
    diagonal = min(round(pixels * (1 - 0.5**0.5)), max(0, pixels - 1) // 2)
    straight = pixels - 2 * diagonal
    offsets = {
        (a + c + d, b + c - d)
        for a in range(-straight, straight + 1)
        for b in range(-straight, straight + 1)
        for c in range(-diagonal, diagonal + 1)
        for d in range(-diagonal, diagonal + 1)
    }
    out = torch.zeros_like(mask)
    height, width = mask.shape[-2:]
    for y in range(height):
        for x in range(width):
            near = [
                mask[:, y + dy, x + dx]
                for dy, dx in offsets
                if 0 <= y + dy < height and 0 <= x + dx < width
            ]
            out[:, y, x] = torch.stack(near).amax(0)
    return out


@given(
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    pixels=st.integers(0, 6),
    seed=st.integers(0, 99),
)
def test_growing_is_the_maximum_over_an_octagon(height, width, pixels, seed):
    mask = torch.rand(2, height, width, generator=torch.Generator().manual_seed(seed)) ** 4
    assert torch.equal(grow(mask, pixels), naive_octagon(mask, pixels))
    assert torch.allclose(grow(mask, -pixels), 1 - naive_octagon(1 - mask, pixels), atol=1e-6)


@pytest.mark.parametrize("pixels", [1, 2, 3, 5, 10, 40])
def test_a_grown_dot_is_round_and_has_no_gaps(pixels):
    side = 2 * pixels + 5
    mask = torch.zeros(1, side, side)
    mask[0, side // 2, side // 2] = 1
    y, x = torch.meshgrid(*[torch.arange(side) - side // 2] * 2, indexing="ij")
    distance = (x**2 + y**2).float().sqrt()
    grown = grow(mask, pixels)[0] > 0
    assert grown[distance <= pixels * 0.92].all()
    if pixels > 4:
        assert not grown[distance > pixels * 1.1 + 1].any()
    assert grown.sum(1).amax() == 2 * pixels + 1 == grown.sum(0).amax()


def test_shrinking_undoes_growing_and_spares_the_border():
    mask = torch.zeros(1, 40, 40)
    mask[:, 10:30, 12:28] = 1
    assert torch.equal(grow(grow(mask, 4), -4), mask)
    assert torch.equal(grow(torch.ones(1, 8, 8), -5), torch.ones(1, 8, 8))


def test_threshold_counts_the_level_itself():
    assert threshold(torch.tensor([[[0.2, 0.5, 0.9]]]), 0.5).tolist() == [[[0, 1, 1]]]


def test_feather_is_a_gaussian_step():
    mask = torch.zeros(1, 3, 81)
    mask[..., 40:] = 1
    edge = feather(mask, 8.0)[0, 1]
    expected = [0.5 * (1 + math.erf((i - 39.5) / (4 * 2**0.5))) for i in range(81)]
    assert torch.allclose(edge, torch.tensor(expected), atol=4e-3)
    assert torch.equal(feather(mask, 0.0), mask)


@pytest.mark.parametrize(
    ("pixels", "sigma"), [(1.0, 0.5), (3.0, 1.5), (5.0, 2.5), (8.0, 4.0), (9.5, 4.75)]
)
def test_a_feathered_dot_is_a_gaussian_of_half_the_width(pixels, sigma):
    side = 41
    mask = torch.zeros(1, side, side)
    mask[0, side // 2, side // 2] = 1
    distance = torch.arange(side, dtype=torch.float64) - side // 2
    gauss = (-0.5 * (distance / sigma) ** 2).exp()
    gauss[distance.abs() > round(3 * sigma)] = 0
    gauss /= gauss.sum()
    expected = gauss[:, None] * gauss
    torch.testing.assert_close(feather(mask, pixels)[0].double(), expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (2, 2)])
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_even_masks_of_any_size_stay_as_they_are(size, value):
    mask = torch.full((3, *size), value)
    for changed in (grow(mask, 5), grow(mask, -5), feather(mask, 9.0), threshold(mask, 0.5)):
        assert changed.shape == mask.shape
        assert torch.allclose(changed, mask, atol=1e-6)
