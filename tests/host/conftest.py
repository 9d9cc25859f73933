"""Makes ComfyUI importable in the tests of this folder: the one of COMFYUI_PATH, or the one that dev.py finds."""

from __future__ import annotations

import pytest
import torch

import dev

dev.use_host()


@pytest.fixture(autouse=True)
def as_the_host_runs_nodes():
    with torch.inference_mode():
        yield
