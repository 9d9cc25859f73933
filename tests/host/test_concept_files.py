"""Concepts as files: what is read is what was saved, and a file from elsewhere is not believed."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from magicportrait.host.models import concept_files
from magicportrait.host.models.concept_files import UnreadableConcept, read_concepts
from magicportrait.host.page import concept_picker
from magicportrait.magic.concepts import Concept, ConceptLora
from magicportrait.magic.curves import Curve
from magicportrait.magic.region_texts import PhraseText
from magicportrait.nodes.concept_files import MagicConceptLoad, MagicConceptSave
from magicportrait.tests.host import sampling


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    import folder_paths

    output, loras = tmp_path / "output", tmp_path / "loras"
    loras.mkdir()
    save_file({"x.lora_up.weight": torch.ones(2, 2)}, loras / "hat.safetensors")
    known = dict(folder_paths.folder_names_and_paths)
    known.pop(concept_files.FOLDER_KIND, None)
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", known)
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path / "models"))
    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(output))
    known["loras"] = ([str(loras)], {".safetensors"})
    yield output / "concepts"


def save(concepts: tuple[Concept, ...], name: str = "people/hat") -> str:
    file: str = MagicConceptSave.execute(concepts, name).args[0]
    return file


def test_what_is_read_is_what_was_saved(folders: Path) -> None:
    lora = ConceptLora(
        "hat.safetensors", {}, 0.7, "none", True, True, 0.1, 0.9, Curve(((0.0, 1.0), (0.5, 0.25)))
    )
    first, second = sampling.concepts(2)
    own = Concept("red hat", None, None, "", 0.0, loras=(lora,))
    file = save((first, second, own))
    assert file == "people/hat_00001_.safetensors" and (folders / file).is_file()
    before = sampling.concepts(1)
    read = MagicConceptLoad.execute(file, "", before).args[0]
    assert read[0] is before[0]
    for concept, again in zip((first, second), read[1:], strict=False):
        assert (again.phrase, again.prompt, again.strength, again.level) == (
            concept.phrase,
            concept.prompt,
            concept.strength,
            concept.level,
        )
        assert (again.images - concept.images).abs().max() <= 0.5 / 255 + 1e-6
        assert torch.equal(again.mask, concept.mask)
    [last] = read[3].loras
    assert (last.name, last.strength, last.text) == ("hat.safetensors", 0.7, "none")
    assert last.is_global and last.is_inside_target
    assert (last.start, last.end, last.curve) == (lora.start, lora.end, lora.curve)
    assert torch.equal(last.weights["x.lora_up.weight"], torch.ones(2, 2))
    # What was read once stays as it is.
    again = MagicConceptLoad.execute(save(read[1:2], "b"), "").args[0]
    assert torch.equal(again[0].images, read[1].images)


def test_a_text_of_a_phrase_is_saved_too(folders: Path) -> None:
    text = PhraseText("a red hat", "snow", 0.5, True, 0.1, 0.9, Curve(((0.0, 1.0), (0.5, 0.25))))
    file = save((Concept("hat", None, None, "", 0.0, text=text),))
    [again] = MagicConceptLoad.execute(file, "").args[0]
    assert again.text == text
    header = json.dumps(
        [{"phrase": "hat", "prompt": "", "strength": 0.0, "level": None, "loras": [], "text": {}}]
    )
    with pytest.raises(UnreadableConcept, match="does not say what its concepts are"):
        concept_files._checked_fields("x", header)


@pytest.mark.parametrize("is_of_strength", [False, True])
def test_times_are_saved_too(is_of_strength: bool) -> None:
    [concept] = sampling.concepts(1)
    curve = Curve(((0.0, 1.0), (0.5, 0.25)), is_of_strength)
    own = dataclasses.replace(concept, start=0.25, end=0.75, curve=curve)
    [again] = MagicConceptLoad.execute(save((own,)), "").args[0]
    assert (again.start, again.end, again.curve) == (0.25, 0.75, curve)


def test_options_are_saved_too() -> None:
    [concept] = sampling.concepts(1)
    own = dataclasses.replace(concept, is_away=True, layer_weights="mid: 0.5")
    [again] = MagicConceptLoad.execute(save((own,)), "").args[0]
    assert again.is_away and again.layer_weights == "mid: 0.5"


def test_a_concept_may_be_called_otherwise() -> None:
    [concept] = sampling.concepts(1)
    [again] = MagicConceptLoad.execute(save((concept,)), "top hat").args[0]
    assert again.phrase == "top hat"
    several = save(sampling.concepts(2))
    with pytest.raises(ValueError, match="cannot all be called 'top hat'"):
        MagicConceptLoad.execute(several, "top hat")


def test_other_tools_see_a_picture(folders: Path) -> None:
    from safetensors import safe_open

    with safe_open(folders / save(sampling.concepts(1)), "pt") as file:
        assert file.metadata()["modelspec.thumbnail"].startswith("data:image/jpeg;base64,/9j/")


def test_a_page_gets_the_picture_of_a_file_whatever_it_is_called(folders: Path) -> None:
    name = "people/ü & 'näme' #1 100%"
    picture = concept_picker.answer(save(sampling.concepts(1), name))
    assert picture is not None
    assert max(Image.open(io.BytesIO(picture)).size) == 96


def test_a_file_without_a_picture_has_none(folders: Path) -> None:
    path = folders / save(sampling.concepts(1))
    file = path.relative_to(folders).as_posix()
    whole = path.read_bytes()
    key = concept_files._THUMBNAIL
    for url in (
        "",
        "data:image/svg+xml;base64,PHN2Zy8+",
        "data:image/jpeg;base64,PHN2Zy8+",
        "data:image/jpeg;base64,no base64!",
        f"data:image/jpeg;base64,{'/9j/' * 60_000}",
    ):
        rewritten(path, **{key: url})
        assert concept_picker.answer(file) is None
    for content in (b"", whole[:40], b"no safetensors file"):
        path.write_bytes(content)
        assert concept_picker.answer(file) is None
    path.write_bytes(whole)
    assert concept_picker.answer(file)
    assert concept_picker.answer(f"../concepts/{file}") is None
    assert concept_picker.answer(str(path)) is None


def test_another_file_of_that_name_is_noticed(folders: Path) -> None:
    file = save(sampling.concepts(1))
    state = MagicConceptLoad.fingerprint_inputs(file)
    (folders / file).write_bytes((folders / save(sampling.concepts(2))).read_bytes())
    assert MagicConceptLoad.fingerprint_inputs(file) != state != ""
    assert MagicConceptLoad.fingerprint_inputs("nowhere") == ""


def test_a_lora_that_is_no_file_cannot_be_saved() -> None:
    concept = Concept("hat", None, None, "", 0.0, loras=(ConceptLora("lora_model", {}, 1.0),))
    with pytest.raises(ValueError, match="save it with Save LoRA"):
        save((concept,))


def test_a_lora_that_is_not_there_is_named(tmp_path: Path) -> None:
    lora = ConceptLora("other.safetensors", {}, 1.0)
    file = save((Concept("hat", None, None, "", 0.0, loras=(lora,)),))
    with pytest.raises(ValueError, match=r"LoRA 'other\.safetensors' is not among"):
        MagicConceptLoad.execute(file, "")


def test_another_file_of_its_lora_is_noticed(tmp_path: Path) -> None:
    own = Concept("hat", None, None, "", 0.0, loras=(ConceptLora("hat.safetensors", {}, 1.0),))
    file = save((own,))
    before = MagicConceptLoad.fingerprint_inputs(file)
    save_file({"x.lora_up.weight": torch.ones(4, 2)}, tmp_path / "loras" / "hat.safetensors")
    assert MagicConceptLoad.fingerprint_inputs(file) != before


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/passwd", "none.safetensors"])
def test_only_listed_files_are_opened(name: str) -> None:
    assert "is not there" in str(MagicConceptLoad.validate_inputs(name))
    with pytest.raises(ValueError, match="is not there"):
        MagicConceptLoad.execute(name, "")


def rewritten(path: Path, concepts: Any = None, tensors: Any = None, **metadata: str) -> Path:
    """A file like another, with a checksum that fits."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        own = dict(file.metadata())
    held = load_file(path) if tensors is None else tensors
    if concepts is not None:
        own["concepts"] = json.dumps(concepts)
    own["checksum"] = concept_files._checksum(own["concepts"], held)
    save_file(held, path, own | metadata)
    return path


ENTRY = {"phrase": "hat", "prompt": "", "strength": 1.0, "level": None, "loras": []}
LORA = {
    "name": "hat.safetensors",
    "strength": 1.0,
    "text": "phrase",
    "is_global": False,
    "is_inside_target": False,
    "start": 0.0,
    "end": 1.0,
    "curve": None,
}


@pytest.mark.parametrize(
    "entry",
    [
        {**ENTRY, "strength": float("nan")},
        {**ENTRY, "strength": 1e9},
        {**ENTRY, "strength": True},
        {**ENTRY, "phrase": 3},
        {**ENTRY, "phrase": " "},
        {**ENTRY, "phrase": "x" * 20_000},
        {**ENTRY, "level": "huge"},
        {**ENTRY, "loras": [LORA] * 17},
        {**ENTRY, "loras": [{**LORA, "text": "some"}]},
        {**ENTRY, "loras": [{**LORA, "weights": {}}]},
        {**ENTRY, "loras": [{**LORA, "start": 2}]},
        {**ENTRY, "loras": [{**LORA, "curve": []}]},
        {**ENTRY, "loras": [{**LORA, "curve": [[0.5, 1], [0.2, 1]]}]},
        {**ENTRY, "more": 1},
        [],
        None,
    ],
)
def test_words_that_cannot_be_are_not_believed(folders: Path, entry: Any) -> None:
    path = folders / save(sampling.concepts(1))
    with pytest.raises(UnreadableConcept):
        read_concepts(rewritten(path, [entry]))


@pytest.mark.parametrize(
    "tensors",
    [
        {"pictures.0": torch.zeros(1, 8, 8, 3)},
        {"pictures.0": torch.zeros(1, 8, 8, 4, dtype=torch.uint8)},
        {"pictures.0": torch.zeros(300, 1, 1, 3, dtype=torch.uint8)},
        {"pictures.0": torch.zeros(1, 1, 20_000, 3, dtype=torch.uint8)},
        {"pictures.0": torch.zeros(8, 8, 3, dtype=torch.uint8)},
        {"pictures.1": torch.zeros(1, 8, 8, 3, dtype=torch.uint8)},
        {"code": torch.zeros(1, dtype=torch.uint8)},
        {"nothing": torch.zeros(1, dtype=torch.uint8)},
    ],
)
def test_tensors_that_cannot_be_are_not_believed(folders: Path, tensors: Any) -> None:
    path = folders / save(sampling.concepts(1))
    with pytest.raises(UnreadableConcept):
        read_concepts(rewritten(path, tensors=tensors))


def test_files_that_are_damaged_or_something_else_are_refused(folders: Path) -> None:
    path = folders / save(sampling.concepts(1))
    whole = path.read_bytes()
    assert read_concepts(rewritten(path, [ENTRY]))[0].phrase == "hat"
    for content in (b"", whole[:-100], b"\x80\x04K\x01.", whole[:8] + b"x" + whole[9:]):
        path.write_bytes(content)
        with pytest.raises(UnreadableConcept, match="damaged or no safetensors file"):
            read_concepts(path)
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(UnreadableConcept, match="was changed after it was written"):
        read_concepts(path)
    path.write_bytes(whole)
    with pytest.raises(UnreadableConcept, match="holds no concepts"):
        read_concepts(rewritten(path, mark="something"))
