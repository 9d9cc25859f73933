"""Makes ComfyUI importable in the tests of this folder: the one of COMFYUI_PATH, or the one that
dev.py finds."""

from __future__ import annotations

import pytest
import torch

from devkit.comfyui import use_host

use_host()

import comfy.cli_args  # noqa: E402 (the host is found from here on)

# What the host takes by itself on a GPU, and a sixth cheaper than what it takes on a CPU, which the
# servers of tests/e2e use.
comfy.cli_args.args.use_pytorch_cross_attention = True


@pytest.fixture(autouse=True)
def in_folders_of_its_own(tmp_path, monkeypatch):
    """What is cached goes to a folder of the test, not to the user's."""
    import folder_paths

    monkeypatch.setattr(folder_paths, "user_directory", str(tmp_path / "user"))
    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path / "temp"))


@pytest.fixture
def model_calls(monkeypatch) -> list[int]:
    """The rows of every model call, as they come."""
    import comfy.model_base

    calls: list[int] = []
    original = comfy.model_base.BaseModel.apply_model

    def count_rows(self, x, *args, **kwargs):
        calls.append(len(x))
        return original(self, x, *args, **kwargs)

    monkeypatch.setattr(comfy.model_base.BaseModel, "apply_model", count_rows)
    return calls


@pytest.fixture(autouse=True)
def as_the_host_runs_nodes():
    with torch.inference_mode():
        yield
