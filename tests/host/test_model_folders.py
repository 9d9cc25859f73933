"""The user's models: what is listed is what can be opened and nothing else, and what is damaged is
named."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import folder_paths
import pytest
import torch
from safetensors.torch import save_file

from magicportrait.host.faces.detection import find_faces
from magicportrait.host.faces.identity import load_identity
from magicportrait.host.models import folders
from magicportrait.host.models.folders import IDENTITIES, SAMS, ModelFolder
from magicportrait.host.segmentation.grounding_dino import TextDetector
from magicportrait.host.segmentation.sam import Segmenter
from magicportrait.nodes.metrics import MagicPortraitMetrics
from magicportrait.tests.host import tiny_vision


@pytest.fixture(params=[SAMS, IDENTITIES], ids=lambda folder: folder.name)
def kind(request, tmp_path, monkeypatch) -> ModelFolder:
    """A kind of models, of which there are some: in two places, below, behind links, in a
    transformers folder."""
    chosen: ModelFolder = request.param
    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path / "models"))
    elsewhere = tmp_path / "elsewhere"
    monkeypatch.setitem(
        folder_paths.folder_names_and_paths, chosen.name, ([str(elsewhere)], set[str]())
    )
    root = tmp_path / "models" / chosen.places[0]
    for path in (
        root / "first.safetensors",
        root / "below" / "second.SAFETENSORS",
        root / "below" / ".safetensors",
        root / "below" / "words.txt",
        root / "whole" / "config.json",
        root / "whole" / "model.safetensors",
        root / "whole" / "part" / "third.safetensors",
        root / "two words" / "fourth.safetensors",
        elsewhere / "first.safetensors",
        elsewhere / "fifth.safetensors",
        tmp_path / "outside" / "sixth.safetensors",
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(str(path))
    (root / "folder.safetensors").mkdir()
    (root / "inside.safetensors").symlink_to(root / "first.safetensors")
    (root / "outside.safetensors").symlink_to(tmp_path / "outside" / "sixth.safetensors")
    (root / "nowhere.safetensors").symlink_to(tmp_path / "nothing")
    (root / "linked").symlink_to(tmp_path / "outside")
    return chosen


def test_what_is_listed_can_be_opened_and_nothing_else(kind):
    plain = {
        "first.safetensors",
        "below/second.SAFETENSORS",
        "whole/part/third.safetensors",
        "two words/fourth.safetensors",
        "fifth.safetensors",
        "inside.safetensors",
    }
    behind_links = {"outside.safetensors", "linked/sixth.safetensors"}
    names = {name.replace(os.sep, "/") for name in folders.names(kind)}
    assert names == plain | (behind_links if kind.follows_links else set())
    for name in folders.names(kind):
        assert folders.path_of(kind, name).is_file() and folders.state_of(kind, name)
    for name in (
        "below/.safetensors",
        "below/words.txt",
        "whole/model.safetensors",
        "folder.safetensors",
        "nowhere.safetensors",
        "below//second.SAFETENSORS",
        "./first.safetensors",
        "below/../first.safetensors",
        str(folders.path_of(kind, "first.safetensors")),
        "nul\0letter.safetensors",
        "x" * 300 + ".safetensors",
        "half \ud800 letter.safetensors",
        *(() if kind.follows_links else behind_links),
    ):
        assert folders.state_of(kind, name) == "", name
        with pytest.raises(ValueError, match="is not among the models"):
            folders.path_of(kind, name)


def test_of_two_places_the_first_counts(kind):
    [first, *_] = (root / "first.safetensors" for root in folders.roots(kind))
    assert folders.path_of(kind, "first.safetensors") == first


def test_one_file_is_looked_up_without_a_look_at_the_others(kind, monkeypatch):
    def listing(*_: object, **__: object) -> None:
        raise AssertionError("the folder is listed")

    monkeypatch.setattr(os, "walk", listing)
    monkeypatch.setattr(os, "scandir", listing)
    assert folders.state_of(kind, "first.safetensors")
    assert folders.path_of(kind, "first.safetensors")


def test_a_listing_follows_only_links(kind, monkeypatch):
    looked_up: list[Path] = []
    original = Path.resolve

    def resolve(self: Path, strict: bool = False) -> Path:
        looked_up.append(self)
        return original(self, strict)

    monkeypatch.setattr(Path, "resolve", resolve)
    folders.names(kind)
    links = [path for path in looked_up if path not in folders.roots(kind)]
    assert all(path.is_symlink() for path in links)


# ---- damaged files, and those of something else ----


def shorten(path: Path) -> None:
    """As a download that was cut off leaves it."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def exchange(path: Path) -> None:
    """A file of tensors with the right beginning, and the rest of another model."""
    save_file(
        {
            "image_encoder.pos_embed": torch.zeros(1, 2, 2, 8),
            "layer1.0.conv1.weight": torch.zeros(3),
            "conv1.weight": torch.zeros(2, 2),
            "fc.weight": torch.zeros(3),
        },
        path,
    )


@pytest.fixture(params=[shorten, empty, exchange], ids=lambda harm: harm.__name__)
def harm(request, tmp_path, monkeypatch) -> Callable[[Path], None]:
    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path))
    kinds = {"sams", "grounding-dino", "face_detection", "metrics", "face_identity"}
    table = {
        name: entry
        for name, entry in folder_paths.folder_names_and_paths.items()
        if name not in kinds
    }
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", table)
    chosen: Callable[[Path], None] = request.param
    return chosen


def identity(folder: Path, harm: Callable[[Path], None]) -> Callable[[], Any]:
    file = folder / "face_identity" / "arcface.safetensors"
    file.parent.mkdir()
    save_file({"conv1.weight": torch.zeros(64, 3, 3, 3)}, file)
    harm(file)
    return lambda: load_identity("arcface.safetensors")


def sam(folder: Path, harm: Callable[[Path], None]) -> Callable[[], Any]:
    tiny_vision.write_sam(folder / "sams" / "sam.pth")
    harm(folder / "sams" / "sam.pth")
    if harm is exchange:
        (folder / "sams" / "sam.pth").rename(folder / "sams" / "sam.safetensors")
        return lambda: Segmenter("sam.safetensors")
    return lambda: Segmenter("sam.pth")


def words(folder: Path, harm: Callable[[Path], None]) -> Callable[[], Any]:
    tiny_vision.write_grounding_dino(folder / "grounding-dino" / "words")
    harm(folder / "grounding-dino" / "words" / "model.safetensors")
    return lambda: TextDetector("words")


def faces(folder: Path, harm: Callable[[Path], None]) -> Callable[[], Any]:
    pytest.importorskip("cv2")
    (folder / "face_detection").mkdir()
    file = folder / "face_detection" / "yunet.onnx"
    file.write_bytes(bytes(range(256)))
    harm(file)
    return lambda: find_faces("yunet.onnx", torch.zeros(1, 64, 64, 3), 0.5)


@pytest.mark.parametrize("network", [identity, sam, words, faces])
def test_a_damaged_network_is_named(harm, tmp_path, network):
    with pytest.raises(ValueError, match=r"(cannot be read as|is not a SAM)") as refusal:
        network(tmp_path, harm)()
    assert any(name in str(refusal.value) for name in ("arcface", "sam.", "words", "yunet"))
    place = refusal.traceback[-1].frame.f_globals["__name__"]
    assert place.startswith("magicportrait."), "another library's words"


def test_a_damaged_network_for_a_metric_leaves_the_others(harm, tmp_path):
    tiny_vision.write_clip(tmp_path / "metrics" / "clip")
    tiny_vision.write_dino(tmp_path / "metrics" / "dino")
    harm(tmp_path / "metrics" / "clip" / "model.safetensors")
    pictures = torch.rand(1, 70, 70, 3)
    table = MagicPortraitMetrics.execute(pictures, pictures, "a hat").args[0]
    assert "clip cannot be read as a folder for CLIPVisionModelWithProjection" in table
    assert "| 1 | 1.00" in table, "DINO of a picture to itself"
