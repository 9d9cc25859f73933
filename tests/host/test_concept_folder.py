"""Folders of the official format, read from ComfyUI's input folder."""

from __future__ import annotations

from pathlib import Path

import folder_paths
import pytest
from PIL import Image

from magicportrait.host.pictures import concept_folder
from magicportrait.nodes.magicface import MagicFaceConceptFolder

YAML = """
ref_image_infos: {
  dataset/Vintage/image/woman.jpg: a woman,
  dataset/Vintage/image/clothes.png: a woman in clothes,
  dataset/Vintage/image/hair.jpg: a woman,
  }
target_prompt: "a woman with short hair, wearing photorealistic clothes"
ref_index: [2,10,5]
mask_weights: [2.5, 2.0, 1.2]
ca_scale: 0.6
negative_prompt: "lowres"
"""


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(folder_paths, "get_input_directory", lambda: str(tmp_path))
    root = tmp_path / "set" / "Vintage"
    for kind, mode in (("image", "RGB"), ("mask", "L")):
        (root / kind).mkdir(parents=True)
        for name in ("woman.jpg", "clothes.png", "hair.jpg"):
            picture = Image.new(mode, (48, 64))
            picture.paste("white", (10, 10, 40, 40))
            picture.save(root / kind / name)
    return root


def test_reads_the_yaml_file_in_its_order(folder):
    (folder / "config_stable_diffusion.yaml").write_text(YAML)
    concepts, prompt, negative, ca_scale = MagicFaceConceptFolder.execute("set/Vintage").args
    assert [concept.phrase for concept in concepts] == [
        "woman",
        "clothes",
        "hair",
    ], "token indices became words; 'photorealistic' is two tokens"
    assert [concept.prompt for concept in concepts] == ["a woman", "a woman in clothes", "a woman"]
    assert [concept.strength for concept in concepts] == [2.5, 2.0, 1.2]
    assert concepts[0].images.shape == (1, 64, 48, 3) and concepts[0].mask.shape == (1, 64, 48)
    assert (prompt, negative, ca_scale) == (
        "a woman with short hair, wearing photorealistic clothes",
        "lowres",
        0.6,
    )


def test_does_without_a_yaml_file(folder):
    concepts, prompt, *_ = MagicFaceConceptFolder.execute("set/Vintage").args
    assert [concept.phrase for concept in concepts] == ["clothes", "hair", "woman"]
    assert all(concept.phrase in prompt for concept in concepts)


def test_only_folders_of_the_format_are_listed(folder):
    (folder.parent / "Other" / "image").mkdir(parents=True)
    assert concept_folder.list_folders() == ["set/Vintage"]


@pytest.mark.parametrize("name", ["../Vintage", "/etc", "set/../set/Vintage", "missing", ""])
def test_nothing_else_can_be_read(folder, name):
    assert MagicFaceConceptFolder.validate_inputs(name) is not True
    with pytest.raises(ValueError, match="is not there"):
        concept_folder.read_folder(name, 2.5)


def test_a_missing_mask_is_named(folder):
    (folder / "mask" / "hair.jpg").unlink()
    with pytest.raises(ValueError, match=r"image/hair\.jpg has no mask: expected mask/hair\.jpg"):
        concept_folder.read_folder("set/Vintage", 2.5)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[2,10,5]", "[2,99,5]", "ref_index 99 is not in the target prompt"),
        ("[2.5, 2.0, 1.2]", "[2.5]", "as many of each are needed"),
        ("woman.jpg", "queen.jpg", "names 'queen'"),
    ],
)
def test_a_yaml_file_that_does_not_fit_is_refused(folder, old, new, message):
    (folder / "config.yaml").write_text(YAML.replace(old, new))
    with pytest.raises(ValueError, match=message):
        concept_folder.read_folder("set/Vintage", 2.5)


def test_a_changed_file_is_noticed(folder):
    before = MagicFaceConceptFolder.fingerprint_inputs("set/Vintage")
    Image.new("L", (48, 65)).save(folder / "mask" / "hair.jpg")
    assert MagicFaceConceptFolder.fingerprint_inputs("set/Vintage") != before
