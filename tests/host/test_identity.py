"""Identity networks from the user's files."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import folder_paths
import pytest
import safetensors.torch
import torch

from magicportrait.host.faces.identity import list_files, load_identity
from magicportrait.magic.iresnet import SIDE, load_iresnet
from magicportrait.tests.unit.test_iresnet import weights


@pytest.fixture
def networks(tmp_path, monkeypatch) -> Path:
    """The folder of identity networks, and no other place where one could be."""
    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path))
    table = {
        name: entry
        for name, entry in folder_paths.folder_names_and_paths.items()
        if name != "face_identity"
    }
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", table)
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    (tmp_path / "face_identity").mkdir()
    return tmp_path / "face_identity"


def export(build: Callable[[], torch.nn.Module], path: Path, **options: Any) -> torch.nn.Module:
    """The network that it builds and writes, with the exporter that InsightFace's own files were
    made with."""
    with torch.inference_mode(False):
        network, face = build(), torch.zeros(1, 3, SIDE, SIDE)
        torch.onnx.export(
            network,
            face,
            str(path),
            opset_version=11,
            input_names=["data"],
            dynamo=False,
            **options,
        )
    return network


def test_safetensors_are_the_network_that_was_saved(networks):
    state = weights(False)
    safetensors.torch.save_file(state, networks / "arcface.safetensors")
    loaded, faces = load_identity("arcface.safetensors"), torch.rand(2, 3, SIDE, SIDE)
    expected = torch.nn.functional.normalize(load_iresnet(state)(faces * 2 - 1), dim=1)
    assert list_files() == ["arcface.safetensors"]
    torch.testing.assert_close(loaded.embed_crops(faces), expected)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    "options",
    [{}, {"dynamic_axes": {"data": {0: "batch"}}}, {"keep_initializers_as_inputs": True}],
    ids=str,
)
def test_onnx_is_the_network_that_was_exported(networks, options):
    """Also for more faces than it was exported with, and with a gradient, as the training needs
    it."""
    network = export(lambda: load_iresnet(weights(False)), networks / "arcface.onnx", **options)
    loaded = load_identity("arcface.onnx")
    with torch.inference_mode(False):
        faces = torch.rand(3, 3, SIDE, SIDE, requires_grad=True)
        embeddings = loaded.embed_crops(faces)
        torch.testing.assert_close(
            embeddings,
            torch.nn.functional.normalize(network(faces * 2 - 1), dim=1),
            rtol=1e-4,
            atol=1e-5,
        )
        (gradient,) = torch.autograd.grad(embeddings[:, 0].sum(), faces)
    assert gradient.abs().amax((1, 2, 3)).min() > 0


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_another_onnx_file_is_refused_with_its_name(networks):
    export(lambda: torch.nn.Conv2d(3, 4, 3), networks / "detector.onnx")
    with pytest.raises(
        ValueError,
        match=(
            r"detector\.onnx gives a tensor of shape \[1, 4, 110, 110\] for a face, .* take ArcFace"
        ),
    ):
        load_identity("detector.onnx")
    (networks / "broken.onnx").write_bytes(b"no network")
    with pytest.raises(
        ValueError, match=r"broken\.onnx cannot be used as a face-embedding network .* take ArcFace"
    ):
        load_identity("broken.onnx")


def test_without_the_package_the_message_says_what_to_install(networks, monkeypatch):
    (networks / "arcface.onnx").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "onnx2torch", None)
    with pytest.raises(
        ValueError, match=r"pip install onnx2torch, as in .*requirements-optional\.txt"
    ):
        load_identity("arcface.onnx")
