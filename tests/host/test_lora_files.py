"""LoRA files: what a training writes into one, and what a node says of one."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import folder_paths
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from magicportrait.host.models import lora_files, safe_files
from magicportrait.host.training.metadata import BaseModel, TrainingAccount
from magicportrait.host.training.settings import CaptureSettings
from magicportrait.magic.capture_sets import Subject
from magicportrait.nodes import concept_lora, magicapture_train
from magicportrait.nodes.magicapture_train import MagiCaptureTrain
from magicportrait.tests.host import test_flow_training as flows
from magicportrait.tests.host.models import call_node
from magicportrait.tests.host.test_capture_nodes import (
    TRAIN,
    folders,  # noqa: F401
    without_an_estimate,  # noqa: F401
)
from magicportrait.tests.host.test_coexistence import core_node
from magicportrait.tests.host.test_magicapture import SIDE, models_of, sets

PREVIOUS = {"lora_steps": 1, "inversion_steps": 0, "versions": 1, "preview_every": 0}


@pytest.fixture
def loras(folders: Path, monkeypatch) -> Path:  # noqa: F811
    """ComfyUI's loras folder, which is where its server looks for what it has written, too."""
    folder = folders / "output" / "loras"
    folder.mkdir()
    monkeypatch.setitem(
        folder_paths.folder_names_and_paths, "loras", ([str(folder)], {".safetensors"})
    )
    folder_paths.filename_list_cache.pop("loras", None)
    return folder


def train(family: str, subject: Subject | None = None, **inputs: Any) -> Any:
    given = models_of() if family == "sd15" else flows.parts(family)
    own, style = sets()
    chosen = {**TRAIN, **PREVIOUS, **inputs}
    return MagiCaptureTrain.execute(*given, subject or own, style, **chosen)


def metadata_of(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        metadata: dict[str, str] = file.metadata()
    return metadata


def test_a_file_says_how_to_use_it_and_how_it_was_made(loras, monkeypatch):
    model = flows.parts("zimage")[0]
    monkeypatch.setattr(
        model,
        "cached_patcher_init",
        (print, ("/models/zimage_base.safetensors", {})),
        raising=False,
    )
    train("zimage", rank=3, seed=7)
    assert not list(loras.iterdir()), "written unasked"
    lora, _, _, report = train("zimage", save_as="people/anna", rank=3, seed=7).args
    path = loras / "people" / "anna_00001_.safetensors"
    assert f"saved as {path}" in report
    metadata = metadata_of(path)
    about = json.loads(metadata["magicapture"])
    assert [(word["kind"], word["phrase"], word["pictures"]) for word in about["words"]] == [
        ("subject", "<anna> woman", 2),
        ("style", "<ink>", 2),
    ]
    assert about["base_model"] == {"family": "Lumina2", "file": "zimage_base.safetensors"}
    assert about["settings"]["rank"] == 3 and about["settings"]["seed"] == 7
    assert about["steps"] == 1 and about["side"] == SIDE and not about["learns_words"]
    assert about["versions"]["torch"] == torch.__version__
    assert about["versions"]["magicportrait"] in Path("pyproject.toml").read_text()
    known = {
        "modelspec.trigger_phrase": "<anna> woman, <ink>",
        "modelspec.architecture": "lumina-2/lora",
        "modelspec.title": "anna",
        "ss_network_dim": "3",
        "ss_network_alpha": "3",
        "ss_sd_model_name": "zimage_base.safetensors",
        "ss_network_module": "networks.lora",
        "ss_steps": "1",
    }
    assert {key: metadata[key] for key in known} == known
    assert "in the style of <ink>" in metadata["modelspec.usage_hint"]
    assert json.loads(metadata["ss_tag_frequency"]) == {
        "magicapture": {"<anna> woman": 2, "<ink>": 2}
    }
    # The host reads it as what came out of the node.
    loader = core_node("nodes_train", "LoraModelLoader")
    read = lora_files.load_lora("people/anna_00001_.safetensors")
    assert not flows.changes(lora, read) and lora.keys() == read.keys()
    import nodes as core

    clip = flows.parts("zimage")[1]
    saved, _ = core.LoraLoader().load_lora(model, clip, "people/anna_00001_.safetensors", 1.0, 1.0)
    fresh = call_node(loader, model=model, lora=lora, strength_model=1.0)[0]
    assert saved.patches.keys() == fresh.patches.keys() and len(saved.patches) * 3 == len(lora)


def test_words_that_are_learned_are_said_to_be_in_files_of_their_own():
    settings = CaptureSettings(adapter="LoKr")
    base = BaseModel("SD15", "dream.safetensors")
    account = TrainingAccount(base, *sets(), settings, True, 512, 2700, "0123", started=1.0)
    metadata = account.metadata("anna", 3601.0)
    assert "files of their own" in metadata["modelspec.usage_hint"]
    assert json.loads(metadata["magicapture"])["learns_words"]
    assert metadata["ss_network_module"] == "lycoris.kohya"
    assert json.loads(metadata["ss_network_args"]) == {"algo": "lokr"}
    assert metadata["ss_base_model_version"] == "sd_v1"
    assert metadata["modelspec.date"] == "1970-01-01T01:00:01+00:00"
    assert all(isinstance(value, str) for value in metadata.values())


def test_a_name_that_cannot_be_is_said_before_the_training(loras, monkeypatch):
    monkeypatch.setattr(magicapture_train, "CaptureTraining", lambda *_: pytest.fail("too late"))
    with pytest.raises(safe_files.UnwritableFile, match="leads out of"):
        train("zimage", save_as="../../anna")
    loras.rmdir()
    loras.write_text("no folder")
    with pytest.raises(safe_files.UnwritableFile, match="a file where a folder is needed"):
        train("zimage", save_as="anna")


def test_a_file_that_cannot_be_written_in_the_end_loses_nothing(loras, monkeypatch, caplog):
    def full(*_: Any) -> None:
        raise safe_files.UnwritableFile("the disk is full: make room there")

    monkeypatch.setattr(magicapture_train, "save_lora", full)
    lora, _, _, report = train("zimage", save_as="anna").args
    assert lora and "the LoRA is not saved: the disk is full" in report
    assert "Save LoRA can still write it" in caplog.text
    assert not list(loras.iterdir()), "the test of the folder has left something"


# ---- what a node says of a file ----


def write_lora(loras: Path, **metadata: str) -> str:
    save_file({"x.alpha": torch.ones(())}, loras / "other.safetensors", metadata or None)
    folder_paths.filename_list_cache.pop("loras", None)
    return lora_files.lora_account("other.safetensors")


def test_concept_lora_says_what_is_in_a_file(loras, caplog):
    train("zimage", save_as="anna")
    folder_paths.filename_list_cache.pop("loras", None)
    with caplog.at_level(logging.INFO):
        concept_lora.MagicConceptLora.execute("woman", "anna_00001_.safetensors")
    assert "write <anna> woman, <ink>; made for Lumina2; steps 1; rank 2; date 2" in caplog.text


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        (
            {"ss_base_model_version": "sd_v1", "ss_steps": "900", "ss_sd_model_name": "a.ckpt"},
            "made for sd_v1 a.ckpt; steps 900",
        ),
        (
            {"modelspec.architecture": "flux-1-dev/lora", "modelspec.trigger_phrase": "sks"},
            "write sks; made for flux-1-dev",
        ),
        ({"ss_steps": "900"}, ""),
        ({}, ""),
        ({"magicapture": "[" * 100_000}, ""),
        ({"magicapture": '{"base_model": 3, "versions": []}'}, ""),
        ({"modelspec.trigger_phrase": "x" * 500}, f"write {'x' * 200}..."),
    ],
)
def test_files_of_others_say_what_they_know(loras, metadata, said):
    assert write_lora(loras, **metadata) == said


def test_what_cannot_be_read_says_nothing(loras):
    (loras / "other.safetensors").write_bytes(b"no file")
    folder_paths.filename_list_cache.pop("loras", None)
    assert lora_files.lora_account("other.safetensors") == ""


def test_a_base_model_is_called_as_the_host_calls_it():
    import comfy.supported_models

    config = comfy.supported_models.SDXL({})
    model = SimpleNamespace(model=SimpleNamespace(model_config=config))
    assert BaseModel.of(model) == BaseModel("SDXL", "")
    assert BaseModel.of(flows.parts("flux")[0]).family == "Flux"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (".", "begins with a dot"),
        ("..", "begins with a dot"),
        ("people/.", ""),
        ("people/..", "begins with a dot"),
        (".anna", "begins with a dot"),
        (".people/anna", "'.people' in '.people/anna' begins with a dot"),
        ("people/.x/anna", "begins with a dot"),
        ("./people/anna", ""),
        ("an\u200bna", r"nobody sees \(U\+200B\)"),
        ("\u200fanna", r"nobody sees \(U\+200F\)"),
        ("people\u3164/anna", r"nobody sees \(U\+3164\)"),
        ("می\u200cخواهم", ""),
        ("anna\nand me", "control character"),
        ("/", "leads out of"),
        ("../..", "begins with a dot"),
        ("CON", ""),
        ("安娜　一", ""),
    ],
)
def test_names_that_make_no_file_to_be_seen_are_refused_in_one_sentence(
    tmp_path, monkeypatch, name, reason
):
    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path))
    if reason:
        with pytest.raises(safe_files.UnwritableFile, match=reason):
            lora_files.check_saving(name)
        assert not [*tmp_path.rglob("*_*")]
    else:
        lora_files.check_saving(name)
        assert lora_files.save_lora(name, {"a": torch.zeros(2)}, {}).name[0].isalnum()


def test_a_name_that_can_be_tried_can_be_written(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path))
    longest = 255 - len("_00001_.safetensors")
    lora_files.check_saving("n" * longest)
    path = lora_files.save_lora("n" * longest, {"a": torch.zeros(2)}, {"file": "caf\udce9"})
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"file": "caf?"}
    for act in (
        lora_files.check_saving,
        lambda name: lora_files.save_lora(name, {"a": torch.zeros(2)}, {}),
    ):
        with pytest.raises(safe_files.UnwritableFile, match=str(longest)):
            act("n" * (longest + 1))
