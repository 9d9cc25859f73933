"""Learned words in prompts, and as files of the embeddings folder."""

from __future__ import annotations

import json
import os
import struct
import sys
import unicodedata
from pathlib import Path
from typing import Any

import folder_paths
import pytest
import torch
from safetensors.torch import save_file

from magicportrait.host.text.embedding_files import load_embedding, save_embedding
from magicportrait.host.text.learned_words import Embedding, with_learned_words
from magicportrait.nodes.embeddings import MagicEmbeddingLoad
from magicportrait.tests.host.test_magicapture import models_of

WIDTH = 96


@pytest.fixture
def embeddings(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "embeddings"
    folder.mkdir()
    places = ([str(folder)], {".safetensors"})
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "embeddings", places)
    folder_paths.filename_list_cache.pop("embeddings", None)
    return folder


def word(name: str, value: float = 1.0) -> Embedding:
    return Embedding(name, {"clip_l": torch.full((1, WIDTH), value)})


def vectors_in(clip: Any, text: str) -> list[float]:
    tokens = clip.tokenize(text)["l"][0]
    return [token[0].mean().item() for token in tokens if isinstance(token[0], torch.Tensor)]


# ---- in prompts ----


@pytest.mark.parametrize(
    ("learned", "written"),
    [
        ("<Anna>", "<anna>"),
        ("<anna>", "<ANNA>"),
        ("sks", "Sks"),
        ("<Åse>", "<åse>"),
        (unicodedata.normalize("NFC", "<é>"), unicodedata.normalize("NFD", "<é>")),
        (unicodedata.normalize("NFD", "<é>"), unicodedata.normalize("NFC", "<É>")),
    ],
)
def test_a_word_is_read_as_the_text_encoder_reads_words(learned, written):
    """It tells neither capital letters nor two ways of writing an accent."""
    clip = with_learned_words(models_of()[1], [word(learned)])
    assert vectors_in(clip, f"a photo of {written}, smiling") == [1.0]


def test_words_that_differ_in_capital_letters_only_are_one():
    with pytest.raises(ValueError, match="'<anna>' is there twice"):
        with_learned_words(models_of()[1], [word("<Anna>"), word("<anna>")])


@pytest.mark.parametrize("character", ["\ue000", "\ue001", "\uf8ff", "\U000f0000"])
@pytest.mark.parametrize("around", ["a {} cat", "{}", "<anna> {} <ink>", "({}:1.3) <ink>"])
def test_a_character_for_private_use_is_no_learned_word(character, around):
    plain = models_of()[1]
    clip = with_learned_words(plain, [word("<anna>", 1.0), word("<ink>", 2.0)])
    text = around.format(character)
    names = {"<anna>": 1.0, "<ink>": 2.0}
    assert vectors_in(clip, text) == [value for name, value in names.items() if name in text]
    # What stands between the words is what it is without them.
    bare = around.replace("<anna>", "cat").replace("<ink>", "cat").format(character)
    cat = plain.tokenize("cat")["l"][0][1][0]
    found = [
        cat if isinstance(token, torch.Tensor) else token
        for token, *_ in clip.tokenize(text)["l"][0]
    ]
    assert found == [token for token, *_ in plain.tokenize(bare)["l"][0]]


def test_a_placeholder_of_such_a_character_is_one():
    clip = with_learned_words(models_of()[1], [word("\ue000", 1.0), word("<ink>", 2.0)])
    assert vectors_in(clip, "a \ue000 in <ink>, \ue001") == [1.0, 2.0]


def test_the_tokenizer_is_still_the_host_s():
    plain = models_of()[1]
    clip = with_learned_words(plain, [word("<anna>")])
    assert isinstance(clip.tokenizer, type(plain.tokenizer))
    assert vars(clip.tokenizer).keys() - {"_words"} == vars(plain.tokenizer).keys()
    assert clip.tokenizer.untokenize([(320, 1.0)]) == plain.tokenizer.untokenize([(320, 1.0)])


# ---- files ----


def file_of(folder: Path, tensors: dict[str, torch.Tensor], **metadata: str) -> str:
    save_file(tensors, folder / "word.safetensors", metadata or None)
    folder_paths.filename_list_cache.pop("embeddings", None)
    return "word.safetensors"


@pytest.mark.parametrize(
    ("tensors", "encoders"),
    [
        ({"emb_params": torch.ones(2, 768)}, {"clip_l": (2, 768)}),
        ({"<cat-toy>": torch.ones(768)}, {"clip_l": (1, 768)}),
        ({"emb_params": torch.ones(1, 3, 1024)}, {"clip_h": (3, 1024)}),
        ({"clip_g": torch.ones(1, 640)}, {"clip_g": (1, 640)}),
        (
            {"clip_l": torch.ones(2, 768), "clip_g": torch.ones(2, 1280)},
            {"clip_l": (2, 768), "clip_g": (2, 1280)},
        ),
    ],
)
def test_common_formats_are_read(embeddings, tensors, encoders):
    read = load_embedding(file_of(embeddings, tensors), "<a>")
    assert {name: tuple(tensor.shape) for name, tensor in read.vectors.items()} == encoders


@pytest.mark.parametrize(
    "tensors",
    [
        {"<cat>": torch.ones(1, 768), "<dog>": torch.ones(1, 768)},
        {"text_encoder": torch.ones(1, 768), "text_encoder_2": torch.ones(1, 1280)},
        {"clip_l": torch.ones(1, 768), "t5xxl": torch.ones(1, 4096)},
    ],
    ids=["two words", "encoders of diffusers", "another encoder"],
)
def test_a_format_that_is_not_known_is_called_so(embeddings, tensors):
    name = file_of(embeddings, tensors)
    with pytest.raises(ValueError, match=r"format is not known.*one tensor of any name") as error:
        load_embedding(name, "<a>")
    assert all(f"'{key}'" in str(error.value) for key in tensors)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({}, "is empty"),
        ({"emb_params": torch.tensor(1.0)}, r"shape \[\] in emb_params"),
        ({"emb_params": torch.ones(2, 0)}, r"shape \[2, 0\] in emb_params"),
        ({"emb_params": torch.ones(2, 3, 768)}, r"shape \[2, 3, 768\] in emb_params"),
        ({"emb_params": torch.ones(0, 768)}, "has 0 vectors"),
        ({"emb_params": torch.ones(2000, 8)}, "has 2000 vectors"),
        ({"emb_params": torch.full((1, 768), float("nan"))}, "numbers that are none"),
        ({"emb_params": torch.full((1, 768), float("inf"))}, "numbers that are none"),
    ],
    ids=[
        "empty",
        "no dimension",
        "no width",
        "three dimensions",
        "no vector",
        "many",
        "NaN",
        "inf",
    ],
)
def test_a_file_that_is_no_word_is_one_sentence(embeddings, tensors, message):
    with pytest.raises(ValueError, match=message) as error:
        load_embedding(file_of(embeddings, tensors), "<a>")
    assert "'word.safetensors'" in str(error.value)


@pytest.mark.parametrize("content", [b"", b"not a file of tensors", b"\xff" * 100])
def test_a_file_that_cannot_be_read_is_one_sentence(embeddings, content):
    (embeddings / "word.safetensors").write_bytes(content)
    ours = r"^embedding 'word\.safetensors' cannot be read as a safetensors file: fetch it again$"
    with pytest.raises(ValueError, match=ours):
        load_embedding("word.safetensors", "<a>")


def test_a_large_file_that_is_no_word_is_not_read(embeddings):
    """Only its header is: here nothing but the header is on the disk."""
    rows = 500_000
    header = {"model": {"dtype": "F32", "shape": [rows, 768], "data_offsets": [0, rows * 768 * 4]}}
    text = json.dumps(header).encode()
    path = embeddings / "word.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    os.truncate(path, 8 + len(text) + rows * 768 * 4)
    with pytest.raises(ValueError, match="has 500000 vectors"):
        load_embedding("word.safetensors", "<a>")


@pytest.mark.parametrize("stored", ["two words", "a,b"])
def test_a_word_of_a_file_that_prompts_cannot_hold_is_said_when_it_is_read(embeddings, stored):
    name = file_of(embeddings, {"emb_params": torch.ones(1, 768)}, placeholder=stored)
    with pytest.raises(ValueError, match=f"'{stored}' must be one word.*into 'placeholder'"):
        load_embedding(name, "")
    assert load_embedding(name, "<anna>").placeholder == "<anna>"


def test_two_words_never_share_a_file(embeddings):
    paths = [save_embedding(word("<a>", value), "same") for value in (1.0, 2.0)]
    assert [path.stem for path in paths] == ["same", "same_2"]
    folder_paths.filename_list_cache.pop("embeddings", None)
    values = [load_embedding(path.name, "").vectors["clip_l"][0, 0].item() for path in paths]
    assert values == [1.0, 2.0]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limit")
def test_a_full_disk_leaves_no_half_file(embeddings):
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(ValueError, match=r"learned word could not be saved.*larger than"):
            save_embedding(Embedding("<a>", {"clip_l": torch.ones(20, 768)}), "word")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(embeddings.iterdir())


def test_a_name_that_no_disk_takes_is_a_sentence(embeddings):
    with pytest.raises(ValueError, match=r"could not be saved.*take a shorter one"):
        save_embedding(word("<a>"), "a" * 300)


def test_a_missing_folder_is_a_sentence(embeddings, monkeypatch):
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "embeddings", ([], set()))
    with pytest.raises(ValueError, match="has no embeddings folder"):
        save_embedding(word("<a>"), "word")


def test_a_changed_file_is_noticed(embeddings):
    name = file_of(embeddings, {"emb_params": torch.ones(1, 768)})
    state = MagicEmbeddingLoad.fingerprint_inputs(file=name, placeholder="")
    assert state == MagicEmbeddingLoad.fingerprint_inputs(file=name, placeholder="") != ""
    file_of(embeddings, {"emb_params": torch.ones(2, 768)})
    assert MagicEmbeddingLoad.fingerprint_inputs(file=name, placeholder="") != state
    assert MagicEmbeddingLoad.fingerprint_inputs(file="gone.safetensors") == ""
