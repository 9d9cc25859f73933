"""What comes in from other nodes, whatever shape it has."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from magicportrait.magic.pictures import (
    as_rgb,
    check_aspect,
    check_painted,
    covers_border,
    differ_in_aspect,
    latent_batch,
    mask_batch,
    picture_batch,
)


def test_gray_pictures_get_three_channels_and_others_stay() -> None:
    gray = torch.rand(2, 4, 5, 1)
    assert torch.equal(picture_batch(gray, "image"), gray.expand(-1, -1, -1, 3))
    for channels in (3, 4):
        image = torch.rand(1, 1, 1, channels)
        assert picture_batch(image, "image") is image


@pytest.mark.parametrize(
    ("image", "came"),
    [
        (torch.zeros(1, 8, 8, 2), r"the shape \[1, 8, 8, 2\]"),
        (torch.zeros(1, 16, 8, 8), r"the shape \[1, 16, 8, 8\]"),
        (torch.zeros(8, 8, 3), r"the shape \[8, 8, 3\]"),
        (torch.zeros(0, 8, 8, 3), r"the shape \[0, 8, 8, 3\]"),
        (torch.zeros(1, 0, 8, 3), r"the shape \[1, 0, 8, 3\]"),
        ({"samples": 1}, "a dict"),
        (None, "a NoneType"),
    ],
)
def test_what_is_no_picture_is_refused(image: Any, came: str) -> None:
    with pytest.raises(ValueError, match=rf"row_2 (is|has) {came}: expected a batch of pictures"):
        picture_batch(image, "row_2")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_no_numbers_are_refused(value: float) -> None:
    values = torch.zeros(1, 8, 8, 3)
    values[0, 3, 3, 1] = value
    for check in (
        lambda: picture_batch(values, "it"),
        lambda: mask_batch(values[..., 1], "it"),
        lambda: latent_batch({"samples": values.movedim(-1, 1)}, "it"),
    ):
        with pytest.raises(ValueError, match="it has values in it that are no numbers"):
            check()


@pytest.mark.parametrize("shape", [(4, 5), (1, 4, 5), (3, 4, 5), (3, 1, 4, 5), (2, 3, 1, 4, 5)])
def test_masks_have_one_form(shape: tuple[int, ...]) -> None:
    mask = torch.rand(*shape)
    batch = mask_batch(mask)
    assert batch.ndim == 3 and batch.shape[1:] == (4, 5) and batch.numel() == mask.numel()


@pytest.mark.parametrize("mask", [torch.zeros(5), torch.zeros(1, 0, 5), [[0.0]], torch.tensor(1.0)])
def test_what_is_no_mask_is_refused(mask: Any) -> None:
    with pytest.raises(ValueError, match=r"faces (is|has) .*: expected a mask for each picture"):
        mask_batch(mask, "faces")


def test_latents_are_told_from_other_things() -> None:
    latent = torch.zeros(1, 4, 8, 8)
    assert latent_batch({"samples": latent}, "samples", 4) is latent
    assert latent_batch({"samples": latent[:, :, None]}, "samples").ndim == 5
    with pytest.raises(
        ValueError, match="samples has 16 channels, this model works in 4: it is an"
    ):
        latent_batch({"samples": torch.zeros(1, 16, 8, 8)}, "samples", 4)
    for wrong in ({}, latent, None, {"samples": "x"}):
        with pytest.raises(ValueError, match=r"samples is a .* without samples: expected a LATENT"):
            latent_batch(wrong, "samples")
    with pytest.raises(ValueError, match=r"samples has the shape \[4, 8, 8\]: expected B C h w"):
        latent_batch({"samples": latent[0]}, "samples")


def test_aspects_may_differ_by_rounding_only() -> None:
    assert not differ_in_aspect((96, 64), (48, 32)) and not differ_in_aspect((96, 64), (47, 32))
    assert differ_in_aspect((96, 64), (64, 96)) and differ_in_aspect((64, 96), (64, 64))
    check_aspect((96, 64), (48, 32), "concept 'hat'")
    with pytest.raises(
        ValueError, match="of concept 'hat' differ in aspect: the image is 64x96, the"
    ):
        check_aspect((96, 64), (64, 64), "concept 'hat'")


def test_an_empty_mask_is_said_to_be_painted() -> None:
    check_painted(torch.tensor([[0.0, 0.2]]), 0.1, "the mask", "paint it")
    with pytest.raises(
        ValueError,
        match=r"the mask is empty: paint it \(.* Open in MaskEditor; a mask that a node makes",
    ):
        check_painted(torch.zeros(1, 64, 64), 0.0, "the mask", "paint it")


@pytest.mark.parametrize("size", [(64, 64), (40, 200), (7, 7)])
def test_a_cut_outs_mask_has_the_border_and_not_the_middle(size: tuple[int, int]) -> None:
    height, width = size
    thing = torch.zeros(2, *size)
    thing[:, height // 4 : -(height // 4), width // 4 : -(width // 4)] = 1
    assert covers_border(1 - thing)
    for mask in (thing, torch.ones(1, *size), torch.zeros(1, *size)):
        assert not covers_border(mask)


def test_half_of_a_picture_and_tiny_masks_are_no_cut_outs() -> None:
    half = torch.zeros(1, 64, 64)
    half[:, :32] = 1
    assert not covers_border(half) and not covers_border(torch.ones(1, 2, 2))


def test_a_picture_without_pixels_is_named() -> None:
    with pytest.raises(ValueError, match=r"a\.png is no picture: .* got \[0, 4, 3\]"):
        as_rgb(torch.zeros(0, 4, 3), "a.png")
