from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from magicportrait.magic.concepts import MINIMUM_COVERAGE, Concept, visible_tokens
from magicportrait.tests.unit import naive_magicface as naive


def concept(phrase: str = "red hat", images: Any = None, mask: Any = None) -> Concept:
    return Concept(
        phrase,
        torch.rand(2, 48, 32, 3) if images is None else images,
        mask,
        "a red hat on a table",
        3.0,
    )


@pytest.mark.parametrize("size", [(48, 32), (24, 16), (96, 64), (47, 32), (25, 16)])
@pytest.mark.parametrize("count", [1, 2])
def test_a_mask_may_have_another_resolution_and_serve_all_images(
    size: tuple[int, int], count: int
) -> None:
    mask = torch.ones(count, *size)
    assert concept(mask=mask).mask is mask


def test_a_mask_is_optional() -> None:
    assert concept().mask is None


@pytest.mark.parametrize("phrase", ["", "  \n"])
def test_a_concept_needs_a_phrase(phrase: str) -> None:
    with pytest.raises(
        ValueError,
        match="needs a phrase: the words of the target prompt that name it, such as 'hat'",
    ):
        concept(phrase)


@pytest.mark.parametrize("shape", [(0, 8, 8, 3), (1, 0, 8, 3), (8, 8, 3), (1, 1, 8, 8, 3)])
def test_a_concept_needs_an_image(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"'red hat'.*expected B H W C") as caught:
        concept(images=torch.zeros(shape))
    assert str(list(shape)) in str(caught.value)


@pytest.mark.parametrize("size", [(1, 1), (7, 64), (64, 7)])
def test_an_image_of_a_few_pixels_shows_nothing(size: tuple[int, int]) -> None:
    message = f"image of concept 'red hat' has {size[1]}x{size[0]} pixels, .* one of 8 or more"
    with pytest.raises(ValueError, match=message):
        concept(images=torch.rand(1, *size, 3), mask=None)


def test_as_many_masks_as_images() -> None:
    with pytest.raises(
        ValueError, match="'red hat' has 2 images but 3 masks: give one for each, or one for all"
    ):
        concept(mask=torch.ones(3, 48, 32))


@pytest.mark.parametrize("size", [(32, 48), (48, 48), (480, 160)])
def test_a_mask_of_another_picture(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError) as caught:
        concept(mask=torch.ones(1, *size))
    message = str(caught.value)
    assert "'red hat'" in message and "Use a mask that was drawn on this image" in message
    assert "the image is 32x48" in message and f"the mask {size[1]}x{size[0]}" in message


@pytest.mark.parametrize("level", [0.0, MINIMUM_COVERAGE / 2])
def test_an_empty_mask(level: float) -> None:
    with pytest.raises(
        ValueError,
        match="mask of concept 'red hat' is empty: paint over the part of the image to take",
    ):
        concept(mask=torch.full((1, 48, 32), level))


def test_one_painted_pixel_is_not_empty() -> None:
    mask = torch.zeros(1, 48, 32)
    mask[0, 5, 5] = 1.0
    concept(mask=mask)


# Visible tokens


@given(
    st.tuples(st.integers(1, 8), st.integers(1, 8)),
    st.tuples(st.integers(1, 24), st.integers(1, 24)),
    st.sampled_from(["soft", "hard", "rare"]),
    st.integers(0, 10**6),
)
def test_visible_tokens_are_those_that_the_mask_covers(
    grid: tuple[int, int], size: tuple[int, int], kind: str, seed: int
) -> None:
    picture = np.random.default_rng(seed).random(size)
    mask = (picture if kind == "soft" else picture > (0.6 if kind == "hard" else 0.97)).astype(
        np.float32
    )
    index, log_coverage = visible_tokens(torch.from_numpy(mask), grid)
    coverage = naive.area(mask, grid).reshape(-1)
    expected = [
        token for token in range(coverage.size) if coverage[token] >= naive.MINIMUM_COVERAGE
    ]
    assert index.tolist() == expected
    np.testing.assert_allclose(
        log_coverage.numpy(), np.log(coverage[expected]), rtol=1e-5, atol=1e-6
    )


def test_without_a_mask_all_tokens_count_fully() -> None:
    index, log_coverage = visible_tokens(None, (3, 5))
    assert index.tolist() == list(range(15)) and log_coverage.tolist() == [0.0] * 15


def test_an_empty_mask_shows_nothing() -> None:
    index, log_coverage = visible_tokens(torch.zeros(8, 8), (4, 4))
    assert index.shape == log_coverage.shape == (0,)


def test_a_cell_covered_too_little_is_left_out() -> None:
    mask = torch.tensor([[0.09, 0.11, 1.0, 1.5]])
    index, log_coverage = visible_tokens(mask, (1, 4))
    assert index.tolist() == [1, 2, 3]
    torch.testing.assert_close(log_coverage, torch.tensor([0.11, 1.0, 1.0]).log())


def test_a_hard_edge_through_a_cell_is_soft() -> None:
    mask = torch.tensor([[1.0, 1.0, 1.0, 0.0], [1.0, 1.0, 0.0, 0.0]])
    index, log_coverage = visible_tokens(mask, (1, 2))
    assert index.tolist() == [0, 1]
    torch.testing.assert_close(log_coverage, torch.tensor([1.0, 0.25]).log())
