"""MagicFace Concept with a picture of its own, and its strength in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from magicportrait.host.sampling.backbone import backbone_of
from magicportrait.host.sampling.references import prepare_references
from magicportrait.magic.concepts import Concept
from magicportrait.nodes.magicface_concept import MagicFaceConcept
from magicportrait.tests.host.sampling import parts


@pytest.fixture
def inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An input folder with a photo, the same one painted on, and a cut-out."""
    import folder_paths

    monkeypatch.setattr(folder_paths, "get_input_directory", lambda: str(tmp_path))
    photo = np.full((8, 8, 4), 255, np.uint8)
    photo[..., 0] = 51
    Image.fromarray(photo[..., :3]).save(tmp_path / "photo.png")
    photo[:, :4, 3] = 0
    (tmp_path / "clipspace").mkdir()
    Image.fromarray(photo).save(tmp_path / "clipspace-painted.png")
    Image.fromarray(photo).save(tmp_path / "clipspace" / "clipspace-mask.png")
    Image.fromarray(photo).save(tmp_path / "cut_out.png")
    return tmp_path


def concept(**inputs: Any) -> Concept:
    [[made]] = MagicFaceConcept.execute(**{"phrase": "hat", "strength": 3.0, **inputs}).args
    return made


def test_a_picture_of_the_input_folder_is_a_reference(inputs: Path) -> None:
    made = concept(picture="photo.png")
    assert made.images.shape == (1, 8, 8, 3) and made.mask is None
    assert made.images[0, 0, 0].tolist() == pytest.approx([0.2, 1, 1])


@pytest.mark.parametrize(
    ("picture", "left_half"),
    [
        ("clipspace-painted.png [input]", 1.0),
        ("clipspace/clipspace-mask.png [input]", 1.0),
        ("cut_out.png", 0.0),
    ],
)
def test_what_is_painted_is_taken_and_of_a_cut_out_what_it_shows(
    inputs: Path, picture: str, left_half: float
) -> None:
    mask = concept(picture=picture).mask
    assert mask is not None and mask.shape == (1, 8, 8)
    assert (mask[..., :4] == left_half).all() and (mask[..., 4:] == 1 - left_half).all()


def test_a_connected_image_and_mask_count_before_the_picture(inputs: Path) -> None:
    image, mask = torch.zeros(2, 8, 8, 3), torch.ones(1, 8, 8)
    connected = concept(image=image, picture="cut_out.png")
    assert connected.images is image and connected.mask is None
    assert torch.equal(concept(mask=mask, picture="cut_out.png").mask, mask)


def test_an_own_picture_with_nothing_to_take_is_to_be_painted_on_the_node(inputs: Path) -> None:
    Image.new("RGBA", (32, 32)).save(inputs / "glass.png")
    with pytest.raises(ValueError, match=r"mask of concept 'hat' is empty: .*Paint the mask"):
        concept(picture="glass.png")
    # What is connected is painted elsewhere.
    with pytest.raises(ValueError, match="is empty: paint over the part of the image to take \\("):
        concept(picture="glass.png", mask=torch.zeros(1, 32, 32))


def test_a_changed_file_is_another_state(inputs: Path) -> None:
    state = MagicFaceConcept.fingerprint_inputs(picture="photo.png")
    assert state == MagicFaceConcept.fingerprint_inputs(picture="photo.png")
    Image.new("RGB", (8, 8)).save(inputs / "photo.png")
    assert state != MagicFaceConcept.fingerprint_inputs(picture="photo.png")
    assert MagicFaceConcept.fingerprint_inputs(picture="nowhere.png") == ""


@pytest.mark.parametrize(
    ("picture", "complaint"),
    [
        ("", "no reference: connect an image, or choose or upload a picture"),
        ("nowhere.png", "picture 'nowhere.png' is not in ComfyUI's input folder"),
        ("../inputs.png", "is not in ComfyUI's input folder"),
        (7, "picture '7' is not in"),
    ],
)
def test_a_picture_that_is_not_there_is_named_before_the_run(
    inputs: Path, picture: Any, complaint: str
) -> None:
    Image.new("RGB", (8, 8)).save(inputs.parent / "inputs.png")
    assert complaint in str(MagicFaceConcept.validate_inputs(picture=picture))
    with pytest.raises(ValueError, match=complaint):
        concept(picture=picture)


def _unreadable(inputs: Path, kind: str) -> str:
    """Makes a file, or a folder, that is no picture; its name."""
    path = inputs / f"{kind}.png"
    whole = (inputs / "photo.png").read_bytes()
    contents = {
        "empty": b"",
        "tensors": b"\x08\0\0\0\0\0\0\0{}      ",
        "cut": whole[: whole.index(b"IDAT") + 6],
    }
    if kind == "folder":
        path.mkdir()
    else:
        path.write_bytes(contents[kind])
    return path.name


@pytest.mark.parametrize("kind", ["folder", "empty", "tensors", "cut"])
def test_what_is_no_picture_is_named(inputs: Path, kind: str) -> None:
    name = _unreadable(inputs, kind)
    sentence = f"picture '{name}' cannot be read as a picture: choose or upload another"
    with pytest.raises(ValueError) as refusal:
        concept(picture=name)
    assert str(refusal.value) == sentence
    MagicFaceConcept.fingerprint_inputs(picture=name)
    if kind == "folder":
        assert MagicFaceConcept.validate_inputs(picture=name) == sentence


def test_a_picture_of_one_pixel_is_read_or_named(inputs: Path) -> None:
    Image.new("L", (1, 1)).save(inputs / "one.png")
    try:
        assert concept(picture="one.png").images.shape == (1, 1, 1, 3)
    except ValueError as refusal:
        assert "picture 'one.png' cannot be read as a picture" in str(refusal)


def test_what_is_linked_is_not_complained_about(inputs: Path) -> None:
    assert MagicFaceConcept.validate_inputs(image=None) is True
    assert MagicFaceConcept.validate_inputs(picture=None) is True


@pytest.mark.parametrize("phrase", ["", "  "])
def test_an_empty_phrase_is_refused(inputs: Path, phrase: str) -> None:
    with pytest.raises(ValueError, match="phrase is empty: write the words of the target prompt"):
        concept(picture="photo.png", phrase=phrase)


@pytest.mark.parametrize(
    ("preset", "strength"), [("custom", 1.7), ("subtle", 2.0), ("normal", 3.0), ("strong", 4.0)]
)
def test_a_word_for_the_strength_counts_before_the_number(preset: str, strength: float) -> None:
    made = concept(image=torch.zeros(1, 8, 8, 3), strength=1.7, preset=preset)
    model, clip, vae = parts()
    [reference] = prepare_references([made], clip, vae, backbone_of(model))
    assert reference.strength == strength
