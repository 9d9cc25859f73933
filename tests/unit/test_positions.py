"""Rotary positions: keys that are moved are keys that were rotated there, and where the five
placements put a reference."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from magicportrait.magic.boxes import Box
from magicportrait.magic.positions import (
    PLACEMENTS,
    Coordinates,
    ReferencePlace,
    Rotary,
    RotaryAxis,
    turned,
)

FLUX = Rotary.of((8, 12, 12), 10000)
FLUX2 = Rotary.of((8, 8, 8, 8), 2000)
ANIMA = Rotary((RotaryAxis(8, 1e4), RotaryAxis(12, 5e4), RotaryAxis(12, 3e4)), "halves")


def rotate(x, positions, rotary):
    """One number after the other, float64: x N D."""
    out = x.double().clone()
    for n in range(len(x)):
        pair = 0
        for axis, (dim, theta) in enumerate(rotary.axes):
            for i in range(dim // 2):
                angle = float(positions[n, axis]) * theta ** (-2 * i / dim)
                if rotary.pairing == "interleaved":
                    first, second = 2 * pair, 2 * pair + 1
                else:
                    first, second = pair, pair + rotary.head // 2
                a, b = float(x[n, first]), float(x[n, second])
                out[n, first] = a * math.cos(angle) - b * math.sin(angle)
                out[n, second] = a * math.sin(angle) + b * math.cos(angle)
                pair += 1
    return out


@pytest.mark.parametrize("rotary", [FLUX, FLUX2, ANIMA])
@given(seed=st.integers(0, 2**31), far=st.sampled_from([1, 40, 3000]))
def test_moved_keys_are_keys_rotated_there(rotary, seed, far):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(5, rotary.head, generator=generator)
    was, now = (
        (torch.rand(5, len(rotary.axes), generator=generator, dtype=torch.float64) - 0.5) * far
        for _ in range(2)
    )
    there = rotate(x, now, rotary)
    moved = turned(rotate(x, was, rotary).float(), rotary.angles(now - was), rotary.pairing)
    assert (moved.double() - there).abs().max() < 2e-6


def test_heads_and_batches_are_turned_alike_and_in_float32():
    x = torch.randn(2, 7, 3 * 32, generator=torch.Generator().manual_seed(0))
    angles = FLUX.angles(torch.rand(7, 3) * 50)
    out = turned(x, angles, "interleaved", heads=3)
    for row in range(2):
        for head in range(3):
            part = slice(32 * head, 32 * head + 32)
            one = turned(x[row, :, part], angles, "interleaved")
            assert torch.equal(out[row, :, part], one)
    half = turned(x.bfloat16(), angles, "interleaved", heads=3)
    assert half.dtype == torch.bfloat16
    assert torch.equal(half, turned(x.bfloat16().float(), angles, "interleaved", 3).bfloat16())


def test_axes_must_be_even():
    with pytest.raises(ValueError, match="even and at least 2, got 8, 7"):
        Rotary.of((8, 7), 10000)


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("rotary", [FLUX, FLUX2, ANIMA])
@pytest.mark.parametrize("is_centred", [False, True])
def test_every_placement_is_a_rotation_from_scratch(placement, rotary, is_centred):
    reference = Coordinates((4, 5), index=33, is_centred=is_centred)
    picture = Coordinates((6, 3), index=65, is_centred=is_centred)
    place = ReferencePlace(
        placement, 4, 1, 10.0, mask_box=Box(1, 0, 3, 2), region_box=Box(0, 2, 2, 4)
    )
    k = torch.randn(20, rotary.head, generator=torch.Generator().manual_seed(1))
    seen = rotate(k, reference.positions(len(rotary.axes)), rotary).float()
    moved = turned(seen, place.angles(rotary, reference, picture), rotary.pairing).double()
    positions = place.positions(reference, picture, len(rotary.axes))
    if placement == "attenuated":
        angles = rotary.angles(positions * torch.tensor([1, 0, 0, 1])[: len(rotary.axes)])
        for axis in (1, 2):
            only = torch.zeros_like(positions)
            only[:, axis] = positions[:, axis]
            slow = rotary.frequencies[axis].clamp(max=0.2) / rotary.frequencies[axis].clamp(
                min=1e-300
            )
            angles = angles + rotary.angles(only) * slow
        expected = turned(k, angles, rotary.pairing).double()
        assert (moved - rotate(k, positions, rotary)).abs().max() > 0.1
    else:
        expected = rotate(k, positions, rotary)
    assert (moved - expected).abs().max() < 2e-6


def test_same_moves_nothing_but_the_index_that_depends_on_the_text():
    place = ReferencePlace("same")
    picture, reference = Coordinates((6, 3), index=65), Coordinates((4, 5), index=33)
    delta = place.positions(reference, picture, 3) - reference.positions(3)
    assert torch.equal(delta, torch.tensor([[32.0, 0, 0]]).expand(20, 3).double())
    alike = Coordinates((4, 5), index=65)
    assert not place.angles(FLUX, alike, picture).any()


@pytest.mark.parametrize("is_centred", [False, True])
def test_aside_overlaps_neither_the_picture_nor_another_reference(is_centred):
    picture = Coordinates((6, 3), is_centred=is_centred)
    first, second = (Coordinates((4, 5), is_centred=is_centred) for _ in range(2))
    columns = [
        {float(x) for x in positions[:, 2]}
        for positions in (
            picture.positions(3),
            ReferencePlace("aside").positions(first, picture, 3),
            ReferencePlace("aside", columns_before=5).positions(second, picture, 3),
        )
    ]
    assert [len(part) for part in columns] == [3, 5, 5]
    joined = sorted(x for part in columns for x in part)
    assert joined == [joined[0] + i for i in range(13)]


def test_index_counts_the_references_by_the_models_own_step():
    picture, reference = Coordinates((2, 2), index=7), Coordinates((2, 2), index=3)
    for number in (0, 2):
        place = ReferencePlace("index", number=number, index_step=10)
        assert set(place.positions(reference, picture, 4)[:, 0].tolist()) == {7 + 10 * (number + 1)}


@given(data=st.data(), is_centred=st.booleans())
def test_region_lays_the_masks_box_on_the_regions_box(data, is_centred):
    def box(grid):
        top, left = (data.draw(st.integers(0, side - 1)) for side in grid)
        return Box(
            left,
            top,
            data.draw(st.integers(1, grid[1] - left)),
            data.draw(st.integers(1, grid[0] - top)),
        )

    reference = Coordinates((data.draw(st.integers(1, 9)), 7), is_centred=is_centred)
    picture = Coordinates((8, data.draw(st.integers(1, 9))), is_centred=is_centred)
    mask, region = box(reference.grid), box(picture.grid)
    place = ReferencePlace("region", mask_box=mask, region_box=region)
    moved = place.positions(reference, picture, 3).reshape(*reference.grid, 3)[mask.pixels]
    # Half a token of the stretched mask around each.
    half_row, half_column = (
        region.height / mask.height / 2,
        region.width / mask.width / 2,
    )
    top, left = (a + b for a, b in zip(picture.origin, (region.y, region.x), strict=True))
    assert float(moved[0, 0, 1] - half_row + 0.5) == pytest.approx(top)
    assert float(moved[0, 0, 2] - half_column + 0.5) == pytest.approx(left)
    assert float(moved[-1, -1, 1] + half_row + 0.5) == pytest.approx(top + region.height)
    assert float(moved[-1, -1, 2] + half_column + 0.5) == pytest.approx(left + region.width)


def test_region_without_a_box_stays_where_it_is():
    picture, reference = Coordinates((6, 3)), Coordinates((4, 5))
    for place in (
        ReferencePlace("region", mask_box=Box(0, 0, 1, 1)),
        ReferencePlace("region", region_box=Box(0, 0, 1, 1)),
    ):
        assert torch.equal(place.positions(reference, picture, 3), reference.positions(3))


def test_a_region_of_the_same_box_in_a_picture_of_the_same_size_moves_nothing():
    picture = Coordinates((6, 5), is_centred=True)
    place = ReferencePlace("region", mask_box=Box(1, 2, 3, 3), region_box=Box(1, 2, 3, 3))
    assert place.angles(FLUX, picture, picture).abs().max() < 1e-12
