"""Makes ComfyUI importable in the tests of this folder: the one of COMFYUI_PATH, or the one that dev.py finds."""

from __future__ import annotations

import sys

import pytest
import torch

import dev


def use_host() -> None:
    sys.path.insert(0, str(dev.find_comfyui()))
    from comfy.cli_args import args

    # comfy.model_management reads this when it is imported, and refuses to work without a device.
    args.cpu = not (torch.cuda.is_available() or torch.backends.mps.is_available())


use_host()


@pytest.fixture(autouse=True)
def as_the_host_runs_nodes():
    with torch.inference_mode():
        yield
