"""Portrait Crop and Portrait Paste as nodes; their mathematics is in
tests/unit/test_portrait_crop.py."""

from __future__ import annotations

import pytest
import torch

from magicportrait.nodes.portrait_crop import MagicPortraitCrop, MagicPortraitPaste

IMAGES = torch.rand(2, 96, 64, 3, generator=torch.Generator().manual_seed(0))


def face(size: tuple[int, int] = (96, 64)) -> torch.Tensor:
    mask = torch.zeros(1, *size)
    mask[:, size[0] // 4 : size[0] // 2, size[1] // 4 : size[1] // 2] = 1
    return mask


@pytest.mark.parametrize("size", [(96, 64), (48, 32), (192, 128)])
def test_a_mask_may_have_another_size_than_the_picture(size):
    image, mask, crop = MagicPortraitCrop.execute(IMAGES, face(size), 0.5, 128, True).args
    # The box of 16 x 24 pixels, widened by half of its longer side, as a square.
    assert (crop.box.width, crop.box.height, crop.picture) == (48, 48, (96, 64))
    assert image.shape == (2, 128, 128, 3) and mask.shape == (1, 128, 128)
    assert float(mask[0, 64, 64]) == 1 and float(mask[0, 2, 2]) == 0


def test_masks_of_a_batch_are_cut_at_one_place():
    masks = torch.zeros(2, 96, 64)
    masks[0, 10:20, 10:20] = 1
    masks[1, 60:70, 40:50] = 1
    image, mask, crop = MagicPortraitCrop.execute(IMAGES, masks, 0.0, 64, False).args
    assert crop.box.corners == (10, 10, 50, 70)
    assert len(image) == len(mask) == 2 and all(side % 8 == 0 for side in image.shape[1:3])
    assert float(mask[0, 2, 2]) == 1 and float(mask[1, 2, 2]) == 0


def test_pasting_changes_the_crop_only():
    image, _, crop = MagicPortraitCrop.execute(IMAGES, face(), 0.0, 64, True).args
    out = MagicPortraitPaste.execute(IMAGES, 1 - image, crop, 0.1).args[0]
    inside = torch.zeros(96, 64, dtype=torch.bool)
    inside[crop.box.pixels] = True
    assert torch.equal(out[:, ~inside], IMAGES[:, ~inside]) and not torch.equal(
        out[:, inside], IMAGES[:, inside]
    )
    masked = MagicPortraitPaste.execute(IMAGES, 1 - image, crop, 0.1, torch.zeros(1, 64, 64)).args[
        0
    ]
    torch.testing.assert_close(masked, IMAGES)


def scene(size: tuple[int, int]) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    noise = torch.rand(1, 3, 12, 12, generator=generator)
    soft = torch.nn.functional.interpolate(noise, size=size, mode="bicubic").clamp(0, 1)
    return soft.movedim(1, -1)


def test_an_edited_patch_is_laid_back_and_only_what_changed_is_pasted():
    picture = scene((160, 160))
    area = torch.zeros(1, 160, 160)
    area[:, 20:140, 20:140] = 1
    cut_out, _, crop = MagicPortraitCrop.execute(picture, area, 0.0, 120, True).args
    # Three pixels off, tinted, and something new in the middle.
    patch = cut_out.roll((2, -3), (1, 2)) * 0.9
    patch[:, 50:70, 50:70] = torch.tensor([1.0, 0.0, 0.0])
    mask = torch.zeros(1, 120, 120)
    mask[:, 44:76, 44:76] = 1
    plain, changed = MagicPortraitPaste.execute(picture, patch, crop, 0.1).args
    assert float(changed.mean()) > 0.4
    options = {"align": True, "match_colour": 1.0}
    out, changed = MagicPortraitPaste.execute(picture, patch, crop, 0.1, **options).args
    rest = torch.ones(160, 160, dtype=torch.bool)
    rest[60:100, 60:100] = False
    before, after = ((x - picture)[0, rest].abs().mean() for x in (plain, out))
    assert after < before / 10
    options |= {"only_changed": 0.1}
    out, changed = MagicPortraitPaste.execute(picture, patch, crop, 0.1, mask, **options).args
    assert torch.equal(out[0, rest], picture[0, rest]) and not changed[0, rest].any()
    assert changed[0, 71:85, 76:90].all()
    assert float((out[0, 78, 83] - torch.tensor([1.0, 0.0, 0.0])).abs().max()) < 0.15


def test_batches_are_fitted_one_by_one():
    image, _, crop = MagicPortraitCrop.execute(IMAGES, face(), 0.5, 64, True).args
    options = {"align": True, "match_colour": 0.5, "only_changed": 0.1}
    patch = (image * 0.8 + 0.1).roll(1, 1)
    both = MagicPortraitPaste.execute(IMAGES, patch, crop, 0.1, **options).args[0]
    for i in range(2):
        alone = MagicPortraitPaste.execute(
            IMAGES[i : i + 1], patch[i : i + 1], crop, 0.1, **options
        ).args[0]
        assert torch.equal(alone[0], both[i])
    with pytest.raises(ValueError, match="2 pictures, 3 patches and 0 masks"):
        MagicPortraitPaste.execute(IMAGES, torch.rand(3, 64, 64, 3), crop, 0.1, align=True)


def test_another_picture_than_the_one_that_was_cut_is_refused():
    image, _, crop = MagicPortraitCrop.execute(IMAGES, face(), 0.0, 64, True).args
    with pytest.raises(
        ValueError,
        match=r"cut from a picture of 64x96, this one is 64x64: connect the picture that went into",
    ):
        MagicPortraitPaste.execute(IMAGES[:, :64], image, crop, 0.1)


def test_an_empty_mask_is_refused():
    with pytest.raises(ValueError, match="the mask is empty"):
        MagicPortraitCrop.execute(IMAGES, torch.zeros(1, 96, 64), 0.3, 64, True)


UNPAINTED = torch.zeros(1, 64, 64)
"""What Load Image gives as MASK of a picture without transparency."""


def test_an_unpainted_mask_is_called_empty_whatever_its_aspect():
    with pytest.raises(ValueError, match=r"the mask is empty: paint over .* Open in MaskEditor"):
        MagicPortraitCrop.execute(IMAGES, UNPAINTED, 0.3, 64, True)


def test_the_mask_of_a_cut_out_is_noticed_and_can_be_turned_round(caplog):
    cut_out = 1 - face()
    box = MagicPortraitCrop.execute(IMAGES, cut_out, 0.0, 64, False).args[2].box
    assert "the mask has the border of the picture and leaves out its middle" in caplog.text
    assert box.corners == (0, 0, 64, 96)
    caplog.clear()
    crop = MagicPortraitCrop.execute(IMAGES, cut_out, 0.0, 64, False, invert=True).args[2]
    assert crop == MagicPortraitCrop.execute(IMAGES, face(), 0.0, 64, False).args[2]
    assert not caplog.text
    MagicPortraitCrop.execute(IMAGES, face(), 0.0, 64, False, invert=True)
    assert "leaves out its middle. Turn off invert" in caplog.text


def test_a_mask_or_a_patch_of_another_aspect_is_refused():
    with pytest.raises(ValueError, match="mask and image of Portrait Crop differ in aspect"):
        MagicPortraitCrop.execute(IMAGES, torch.ones(1, 64, 64), 0.3, 64, True)
    image, _, crop = MagicPortraitCrop.execute(IMAGES, face(), 0.0, 64, True).args
    with pytest.raises(ValueError, match="the patch is 32x64, what was cut out had the aspect of"):
        MagicPortraitPaste.execute(IMAGES, image[:, :, :32], crop, 0.1)
    with pytest.raises(ValueError, match="the patch has 1x1 pixels, which is too small to show"):
        MagicPortraitPaste.execute(IMAGES, image[:, :1, :1], crop, 0.1)
    with pytest.raises(ValueError, match="mask and image of Portrait Paste differ in aspect"):
        MagicPortraitPaste.execute(IMAGES, image, crop, 0.1, torch.ones(1, 64, 32))


def test_pasting_with_an_empty_mask_is_noticed(caplog):
    image, _, crop = MagicPortraitCrop.execute(IMAGES, face(), 0.0, 64, True).args
    out = MagicPortraitPaste.execute(IMAGES, 1 - image, crop, 0.1, UNPAINTED).args[0]
    torch.testing.assert_close(out, IMAGES)
    assert "the mask is empty, so nothing of the patch is pasted" in caplog.text


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
def test_linked_numbers_out_of_range_are_refused(value):
    with pytest.raises(ValueError, match=r"margin is .*, expected 0 to 3"):
        MagicPortraitCrop.execute(IMAGES, face(), value, 64, True)


@pytest.mark.parametrize("size", [(1, 1), (7, 7), (1, 300)])
def test_the_smallest_pictures_are_cut_and_pasted(size):
    picture = torch.rand(1, *size, 3)
    image, _, crop = MagicPortraitCrop.execute(picture, torch.ones(1, *size), 0.3, 64, True).args
    assert MagicPortraitPaste.execute(picture, image, crop, 0.1).args[0].shape == picture.shape
