"""The user's models by name: what is listed is what can be opened, and nothing else."""

from __future__ import annotations

import os
from pathlib import Path

import folder_paths
import pytest

from magicportrait.host.models import folders
from magicportrait.host.models.folders import IDENTITIES, SAMS, ModelFolder


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
