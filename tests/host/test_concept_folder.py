"""Folders of the official format, read from ComfyUI's input folder."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace

import folder_paths
import pytest
from PIL import Image

from magicportrait.host.pictures import concept_folder
from magicportrait.nodes.concept_folder import MagicFaceConceptFolder
from magicportrait.nodes.declare import defaults_of
from magicportrait.nodes.magicface_apply import MagicFaceApply

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
    concepts, prompt, negative, ca_scale, *_ = MagicFaceConceptFolder.execute("set/Vintage").args
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


# ---- the settings of the official file ----

SETTINGS = """
start_step: 5
inject_step: 20
end_step: 45
layer_idx: [3, 6, 10, 11, 12, 13, 14, 15]
seeds: [391243, 7]
gpu: 2
model_path: "stabilityai/stable-diffusion-2-1-base"
"""
OUTPUTS = ("inject_at", "start", "end", "layers", "seed", "report")


def outputs() -> dict[str, object]:
    names = [output.display_name for output in MagicFaceConceptFolder.define_schema().outputs]
    return dict(zip(names, MagicFaceConceptFolder.execute("set/Vintage").args, strict=True))


def test_the_files_settings_are_handed_on(folder):
    (folder / "config.yaml").write_text(YAML + SETTINGS)
    read = outputs()
    assert [read[name] for name in OUTPUTS[:-1]] == [0.42, 0.1, 0.9, "i5,m0,o6-11", 391243]
    for line in (
        "config.yaml asks for",
        "- MagicFace Apply: ca_scale 0.6, start 0.1, inject_at 0.42, end 0.9, layers i5,m0,o6-11",
        "- sampler: seed 391243, 50 steps of ddim",
        "- more seeds: 7",
        "- made for the model stabilityai/stable-diffusion-2-1-base",
        "- not used here: gpu",
        "- woman: woman.jpg, masked by woman.jpg, 2.5",
    ):
        assert line in str(read["report"]).splitlines()


def test_what_the_file_does_not_say_is_what_apply_starts_with(folder):
    (folder / "config.yaml").write_text(YAML)
    defaults = defaults_of(MagicFaceApply)
    for read in (outputs(), (folder / "config.yaml").unlink() or outputs()):
        assert [read[name] for name in OUTPUTS[:4]] == [defaults[name] for name in OUTPUTS[:4]]
        assert read["seed"] == 0


@pytest.mark.parametrize(
    ("indices", "layers"),
    [
        # All published files: the two finest levels of the decoder.
        ("[10,11,12,13,14,15]", "o6-11"),
        ("[15, 0, 6, 5, 7]", "i1,i8,m0,o3,o11"),
        ("3", "i5"),
    ],
)
def test_layers_get_the_names_that_apply_knows(folder, indices, layers):
    (folder / "config.yaml").write_text(f"{YAML}layer_idx: {indices}")
    assert outputs()["layers"] == layers


# ---- bad files ----


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("target_prompt: [", r"config\.yaml, line 1: not understood as YAML"),
        ("a: b: c", r"config\.yaml, line 1: not understood as YAML"),
        ("a: 1\n\tb: 2", r"config\.yaml, line 2: not understood as YAML"),
        ("a: 1\n--- \nb: 1", "not understood as YAML: but found another document"),
        ("a: 1\na: 2", r"config\.yaml, line 2: a is there twice"),
        ("a: \x07", r"config\.yaml, line 1: U\+0007 is a character that YAML does not allow"),
        ("- a\n- b", r"config\.yaml: expected settings"),
        ("", r"config\.yaml: expected settings"),
        ("? [a]\n: b", r"config\.yaml, line 1: expected a setting's name"),
        ("a: &x 1\nb: *x", r"line 2: references \('\*x'\) are not read"),
        ("a: " + "[" * 3000, r"line 1: brackets or indents are more than 8 deep"),
        ("a: " + "x" * 70_000, r"config\.yaml: larger than 64 KB"),
        ("target_prompt: a hat", r"ref_image_infos: expected the pictures with their prompts"),
        ("ref_image_infos: 3", r"line 1: ref_image_infos: expected the pictures"),
        ("ref_image_infos: {}", r"line 1: ref_image_infos: expected the pictures"),
        ("ref_image_infos: [a.jpg]", r"line 1: ref_image_infos: expected the pictures"),
        ("ref_image_infos: {a.jpg: [1]}", r"line 1: ref_image_infos: expected text"),
        ("ref_image_infos: {a.jpg: x, b/a.png: y}", r"ref_image_infos: 'a' is there twice"),
        ("ref_image_infos: {x/: y}", "ref_image_infos: expected the pictures"),
    ],
)
def test_a_file_that_is_not_understood_is_named_with_the_line(folder, text, complaint):
    (folder / "config.yaml").write_text(text)
    with pytest.raises(ValueError, match=f"^concept folder 'set/Vintage': .*{complaint}"):
        concept_folder.read_folder("set/Vintage", 2.5)


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ('"a woman with short hair, wearing photorealistic clothes"', "", "expected the new"),
        ('"a woman with short hair, wearing photorealistic clothes"', "~", "expected the new"),
        ("[2,10,5]", "[2.5,10,5]", "ref_index: expected a whole number from 1 to 1000"),
        ("[2,10,5]", "[0,10,5]", "ref_index: expected a whole number from 1 to 1000"),
        ("[2,10,5]", "[2,{},5]", "ref_index: expected text"),
        ("[2,10,5]", f"[2,{'9' * 400},5]", "ref_index: expected a whole number"),
        ("[2.5, 2.0, 1.2]", "[.nan, 2.0, 1.2]", "mask_weights: expected a number from -5 to 10"),
        ("[2.5, 2.0, 1.2]", "[nan, 2.0, 1.2]", "mask_weights: expected a number from -5 to 10"),
        ("[2.5, 2.0, 1.2]", "[.inf, 2.0, 1.2]", "mask_weights: expected a number from -5 to 10"),
        ("[2.5, 2.0, 1.2]", "strong", "mask_weights: expected a number from -5 to 10"),
        ("[2.5, 2.0, 1.2]", "{a: 1}", "mask_weights: expected at most 64 numbers"),
        ("ca_scale: 0.6", "ca_scale: 7", "line 10: ca_scale: expected a number from 0 to 1"),
        ("ca_scale: 0.6", "use_null_ref_prompts: maybe", "expected True or False"),
        ("ca_scale: 0.6", "inject_step: -1", "inject_step: expected a whole number"),
        ("ca_scale: 0.6", "layer_idx: [16]", "layer_idx: expected a whole number from 0 to 15"),
        ("ca_scale: 0.6", "seeds: [1e3]", "seeds: expected a whole number"),
        ('"lowres"', "x" * 5000, "negative_prompt: 5000 characters, 4000 are the most"),
        ('"lowres"', "[a]", "negative_prompt: expected text"),
    ],
)
def test_a_field_of_another_kind_is_named_with_its_line(folder, old, new, complaint):
    assert old in YAML
    (folder / "config.yaml").write_text(YAML.replace(old, new))
    with pytest.raises(ValueError, match=rf"config\.yaml, line \d+: .*{complaint}|{complaint}"):
        concept_folder.read_folder("set/Vintage", 2.5)


def test_a_file_that_is_no_text_is_named(folder):
    (folder / "config.yaml").write_bytes(b"a: 1\nb: \xff\xfe")
    with pytest.raises(ValueError, match=r"config\.yaml, line 2: not UTF-8"):
        concept_folder.read_folder("set/Vintage", 2.5)


def test_words_are_taken_as_they_are_written(folder):
    """YAML alone would make False, 1984 and a date of them."""
    text = YAML.replace("clothes.png: a woman in clothes", "clothes.png: no").replace(
        "hair.jpg: a woman", "hair.jpg: 1984"
    )
    (folder / "config.yaml").write_bytes(b"\xef\xbb\xbf" + text.encode())
    read = concept_folder.read_folder("set/Vintage", 2.5)
    assert [concept.prompt for concept in read.concepts] == ["a woman", "no", "1984"]


def test_shared_references_are_refused_before_anything_is_built(folder, monkeypatch):
    """237 bytes that stand for gigabytes."""
    import yaml

    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    for before, name in itertools.pairwise("abcdefghij"):
        lines.append(f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]")
    (folder / "config.yaml").write_text("\n".join([*lines, "target_prompt: *j"]))
    monkeypatch.setattr(yaml, "compose", lambda *_, **__: pytest.fail("was built"))
    with pytest.raises(ValueError, match=r"line 2: references \('\*a'\) are not read"):
        concept_folder.read_folder("set/Vintage", 2.5)


def test_words_are_cut_into_tokens_no_further_than_an_index_asks(folder, monkeypatch):
    import comfy.sd1_clip

    words: list[str] = []

    class Tokenizer:
        def __init__(self) -> None:
            self.clip_l = SimpleNamespace(tokenizer=self.tokenize)

        def tokenize(self, word: str) -> dict[str, list[int]]:
            words.append(word)
            return {"input_ids": [0, 1, 2]}

    monkeypatch.setattr(comfy.sd1_clip, "SD1Tokenizer", Tokenizer)
    assert concept_folder.words_at("a hat " + "b " * 1000, [2]) == ["hat"]
    assert words == ["a", "hat"]
    assert concept_folder.words_at("a hat", []) == [] and len(words) == 2
