from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from magicportrait.magic.boxes import Box
from magicportrait.magic.portrait_crop import (
    Crop,
    crop_box,
    feathered,
    paste,
    resize,
    working_size,
)


def paint(height: int, width: int, *boxes: tuple[int, int, int, int]) -> Tensor:
    """A mask of boxes (left, top, right, bottom)."""
    mask = torch.zeros(height, width)
    for left, top, right, bottom in boxes:
        mask[top:bottom, left:right] = 1
    return mask


def gradient(batch: int, height: int, width: int) -> Tensor:
    """Smooth pictures, each another."""
    y, x = torch.meshgrid(
        torch.linspace(0.1, 0.9, height), torch.linspace(0.2, 0.8, width), indexing="ij"
    )
    return torch.stack([torch.stack([y, x, (y + x) / (2 + image)], -1) for image in range(batch)])


# Boxes


@st.composite
def masks(draw: Any) -> tuple[Tensor, tuple[int, int, int, int]]:
    height, width = draw(st.integers(1, 60)), draw(st.integers(1, 60))
    left, top = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
    right, bottom = draw(st.integers(left + 1, width)), draw(st.integers(top + 1, height))
    return paint(height, width, (left, top, right, bottom)), (left, top, right, bottom)


@given(masks(), st.floats(0, 3), st.sampled_from([None, 1.0, 0.6, 2.5]))
def test_a_box_holds_the_mask_and_lies_in_the_picture(
    case: tuple[Tensor, Any], margin: float, aspect: float | None
) -> None:
    mask, (left, top, right, bottom) = case
    box = crop_box(mask, margin, aspect)
    box_left, box_top, box_right, box_bottom = box.corners
    assert 0 <= box_left <= left and right <= box_right <= mask.shape[1]
    assert 0 <= box_top <= top and bottom <= box_bottom <= mask.shape[0]


@given(masks())
def test_without_margin_and_aspect_the_box_is_the_masks(
    case: tuple[Tensor, tuple[int, int, int, int]],
) -> None:
    assert crop_box(case[0], 0.0) == Box.between(*case[1])


@given(masks(), st.floats(0, 1), st.sampled_from([1.0, 0.6, 2.5]))
def test_the_aspect_is_met_where_the_picture_is_large_enough(
    case: tuple[Tensor, Any], margin: float, aspect: float
) -> None:
    mask, _ = case
    roomy = torch.nn.functional.pad(mask, (400, 400, 400, 400))
    box = crop_box(roomy, margin, aspect)
    assert abs(box.width - box.height * aspect) <= 0.5 + 0.5 * aspect + 1e-6


def test_the_margin_is_a_share_of_the_longer_side() -> None:
    mask = paint(100, 100, (40, 30, 60, 70))
    assert crop_box(mask, 0.25) == Box.between(30, 20, 70, 80)
    assert crop_box(mask, 0.25, 1.0) == Box.between(20, 20, 80, 80)


@pytest.mark.parametrize(
    ("corner", "expected"),
    [
        ((0, 0, 10, 10), Box.between(0, 0, 30, 30)),
        ((70, 0, 80, 10), Box.between(50, 0, 80, 30)),
        ((0, 50, 10, 60), Box.between(0, 30, 30, 60)),
        ((70, 50, 80, 60), Box.between(50, 30, 80, 60)),
        ((70, 20, 80, 30), Box.between(50, 10, 80, 40)),
    ],
)
def test_a_box_that_sticks_out_is_moved_inside_at_its_size(
    corner: tuple[int, int, int, int], expected: Box
) -> None:
    assert crop_box(paint(60, 80, corner), 1.0, 1.0) == expected


def test_a_box_larger_than_the_picture_is_the_picture() -> None:
    assert crop_box(paint(20, 50, (20, 5, 30, 15)), 3.0, 1.0) == Box.between(0, 0, 50, 20)


def test_all_parts_of_a_mask_count_and_faint_ones_do_not() -> None:
    mask = paint(40, 40, (5, 6, 8, 9), (20, 21, 30, 35))
    mask[38, 38] = 0.5
    assert crop_box(mask, 0.0) == Box.between(5, 6, 30, 35)


@pytest.mark.parametrize("value", [0.0, 0.5])
def test_an_empty_mask_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="the mask is empty: paint over the part of the picture"):
        crop_box(torch.full((8, 8), value), 0.1)


# Sizes


@given(st.integers(1, 3000), st.integers(1, 3000), st.sampled_from([64, 128, 512, 1024]))
def test_working_sizes(height: int, width: int, side: int) -> None:
    sizes = working_size(Box.between(3, 5, 3 + width, 5 + height), side)
    assert all(size >= 8 and size % 8 == 0 for size in sizes)
    if 1 / 4 <= height / width <= 4:
        assert sizes[0] * sizes[1] == pytest.approx(side * side, rel=16 / side + 0.02)
        assert sizes[0] / sizes[1] == pytest.approx(height / width, rel=16 / side + 0.02)


def test_a_square_box_has_exactly_the_side() -> None:
    assert working_size(Box.between(10, 20, 87, 97), 512) == (512, 512)


def test_resizing_keeps_what_has_the_size_and_stays_in_range() -> None:
    image = torch.rand(2, 16, 24, 3, generator=torch.Generator().manual_seed(0)).round()
    assert resize(image, (16, 24)) is image
    for size in ((40, 8), (7, 61)):
        out = resize(image, size)
        assert out.shape == (2, *size, 3) and float(out.min()) >= 0 and float(out.max()) <= 1


# Feathers


@pytest.mark.parametrize(
    "open_sides",
    [(False,) * 4, (True, False, False, False), (False, True, False, True), (True,) * 4],
)
def test_only_open_sides_are_feathered(open_sides: tuple[bool, bool, bool, bool]) -> None:
    share = feathered(40, 60, 0.25, open_sides)
    assert share.shape == (40, 60) and float(share[20, 30]) == 1.0
    edges = (share[20, 0], share[0, 30], share[20, -1], share[-1, 30])
    for is_open, edge in zip(open_sides, edges):
        assert float(edge) < 0.02 if is_open else float(edge) == 1.0


def test_a_feather_is_smooth_symmetric_and_as_wide_as_asked() -> None:
    share = feathered(100, 200, 0.2, (True, True, True, True))
    row = share[50]
    assert torch.equal(row, row.flip(0)) and torch.equal(share[:, 100], share[:, 100].flip(0))
    assert bool((row[:20] < 1).all()) and bool((row[20:180] == 1).all())
    steps = row[:21].diff()
    assert bool((steps > 0).all()) and float(steps.max()) < 1.6 / 20
    # Half way, half of it.
    assert float((row[9] + row[10]) / 2) == pytest.approx(0.5, abs=1e-6)


def test_no_feather_is_a_hard_edge() -> None:
    assert torch.equal(feathered(5, 7, 0.0, (True,) * 4), torch.ones(5, 7))


# Pasting


def part(picture: Tensor, box: Box) -> Tensor:
    rows, columns = box.pixels
    return picture[:, rows, columns]


@given(masks(), st.integers(1, 3), st.floats(0, 1), st.sampled_from([0.0, 0.3]))
def test_pasting_what_was_cut_changes_nothing(
    case: tuple[Tensor, Any], batch: int, margin: float, feather: float
) -> None:
    size = (case[0].shape[0], case[0].shape[1])
    picture = torch.rand(batch, *size, 3, generator=torch.Generator().manual_seed(batch))
    box = crop_box(case[0], margin, 1.0)
    out = paste(picture, part(picture, box), Crop(box, size), feather)
    torch.testing.assert_close(out, picture, rtol=0, atol=1e-6)


def test_pasting_back_from_a_larger_working_size_keeps_a_smooth_picture() -> None:
    picture, box = gradient(2, 60, 80), Box.between(10, 5, 42, 37)
    patch = resize(part(picture, box), working_size(box, 128))
    assert patch.shape == (2, 128, 128, 3)
    out = paste(picture, patch, Crop(box, (60, 80)), 0.0)
    torch.testing.assert_close(out, picture, rtol=0, atol=2e-3)
    assert not torch.equal(out, picture)


@given(masks(), st.floats(0, 1), st.floats(0, 0.5))
def test_outside_the_box_nothing_changes(
    case: tuple[Tensor, Any], margin: float, feather: float
) -> None:
    size = (case[0].shape[0], case[0].shape[1])
    picture, box = (
        torch.rand(1, *size, 3, generator=torch.Generator().manual_seed(0)),
        crop_box(case[0], margin),
    )
    before = picture.clone()
    out = paste(picture, 1 - part(picture, box), Crop(box, size), feather)
    outside = paint(*size, box.corners) == 0
    assert torch.equal(out[:, outside], picture[:, outside]) and torch.equal(picture, before)


def test_a_hard_edge_replaces_the_whole_box() -> None:
    picture, box = torch.zeros(1, 20, 20, 3), Box.between(4, 6, 12, 16)
    out = paste(picture, torch.ones(1, 10, 8, 3), Crop(box, (20, 20)), 0.0)
    assert torch.equal(out[0, ..., 0], paint(20, 20, (4, 6, 12, 16)))


@pytest.mark.parametrize("transposed", [False, True])
def test_a_box_near_the_border_is_soft_on_all_sides(transposed: bool) -> None:
    size, box = (
        ((40, 30), Box.between(5, 12, 25, 32))
        if transposed
        else ((30, 40), Box.between(12, 5, 32, 25))
    )
    out = paste(torch.zeros(1, *size, 3), torch.ones(1, 20, 20, 3), Crop(box, size), 0.3)[0, ..., 0]
    rows, columns = box.pixels
    middle = (rows.start + 10, columns.start + 10)
    edges = (
        out[middle[0], columns.start],
        out[middle[0], columns.stop - 1],
        out[rows.start, middle[1]],
        out[rows.stop - 1, middle[1]],
    )
    assert float(out[middle]) == 1 and all(float(edge) < 0.1 for edge in edges)


def test_at_the_pictures_border_the_patch_is_whole() -> None:
    out = paste(
        torch.zeros(1, 30, 40, 3),
        torch.ones(1, 20, 20, 3),
        Crop(Box.between(0, 10, 20, 30), (30, 40)),
        0.3,
    )[0, ..., 0]
    assert float(out[29, 0]) == 1.0 and float(out[25, 5]) == 1.0
    assert float(out[10, 5]) < 0.1 and float(out[25, 19]) < 0.1, "sides inside the picture are soft"


@pytest.mark.parametrize(("pictures", "patches"), [(3, 1), (1, 3), (3, 3)])
def test_batches_and_single_images(pictures: int, patches: int) -> None:
    picture, patch = (
        torch.zeros(pictures, 16, 16, 3),
        torch.arange(1.0, patches + 1)[:, None, None, None].expand(-1, 8, 8, 3) / 4,
    )
    out = paste(picture, patch, Crop(Box.between(4, 4, 12, 12), (16, 16)), 0.0)
    assert out.shape == (3, 16, 16, 3)
    inside = [float(image[8, 8, 0]) for image in out]
    assert inside == ([0.25] * 3 if patches == 1 else [0.25, 0.5, 0.75])


@pytest.mark.parametrize("count", [1, 3])
def test_only_the_masked_part_is_pasted(count: int) -> None:
    picture, patch, box = (
        torch.zeros(3, 16, 16, 3),
        torch.ones(3, 8, 8, 3),
        Box.between(4, 4, 12, 12),
    )
    mask = paint(8, 8, (0, 0, 4, 8)).expand(count, -1, -1).clone()
    if count == 3:
        mask[2] = 1 - mask[2]
    out = paste(picture, patch, Crop(box, (16, 16)), 0.0, mask)
    assert torch.equal(out[0, ..., 0], paint(16, 16, (4, 4, 8, 12)))
    assert torch.equal(
        out[2, ..., 0], paint(16, 16, (8, 4, 12, 12) if count == 3 else (4, 4, 8, 12))
    )


def test_masks_of_several_pictures_on_one_picture() -> None:
    masks = torch.stack([paint(8, 8, (0, 0, 4, 8)), paint(8, 8, (4, 0, 8, 8))])
    out = paste(
        torch.zeros(1, 16, 16, 3),
        torch.ones(1, 8, 8, 3),
        Crop(Box.between(4, 4, 12, 12), (16, 16)),
        0.0,
        masks,
    )
    assert out.shape[0] == 2
    assert torch.equal(out[0, ..., 0], paint(16, 16, (4, 4, 8, 12))) and torch.equal(
        out[1, ..., 0], paint(16, 16, (8, 4, 12, 12))
    )


def test_a_mask_at_another_size_than_the_patch() -> None:
    everywhere, mask = (
        Crop(Box.between(0, 0, 16, 16), (16, 16)),
        paint(32, 32, (0, 0, 16, 32))[None],
    )
    out = paste(torch.zeros(1, 16, 16, 3), torch.ones(1, 64, 64, 3), everywhere, 0.0, mask)
    np.testing.assert_allclose(out[0, :, :7, 0], 1.0, atol=1e-6)
    np.testing.assert_allclose(out[0, :, 9:, 0], 0.0, atol=1e-6)


def test_batches_of_different_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="2 pictures, 3 patches"):
        paste(
            torch.zeros(2, 16, 16, 3),
            torch.ones(3, 8, 8, 3),
            Crop(Box.between(4, 4, 12, 12), (16, 16)),
            0.0,
        )
