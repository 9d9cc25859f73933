"""What MagicStyle Invert leaves in the history: its picture, and what sampling makes of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from comfy_server import ComfyServer


def prompt(measure: bool) -> dict[str, Any]:
    options = {
        "scheduler": "ddim_uniform",
        "method": "fixed-point",
        "cfg": 1.0,
        "iterations": 2,
        "tolerance": 1e-4,
        "cache_mb": 0,
    }
    links = {"model": ["1", 0], "clip": ["1", 1], "vae": ["1", 2], "image": ["2", 0]}
    return {
        "1": {"class_type": "MagicToyCheckpoint", "inputs": {}},
        "2": {
            "class_type": "MagicToyPortrait",
            "inputs": {"seed": 3, "part": "face", "style": "cartoon", "size": 128},
        },
        "3": {
            "class_type": "MagicStyleInvert",
            "inputs": {**links, **options, "steps": 20, "measure": measure},
        },
        "4": {
            "class_type": "MagicInversionSave",
            "inputs": {"inversion": ["3", 0], "name": "test"},
        },
    }


@pytest.mark.parametrize("measure", [True, False])
def test_original_and_reconstruction_are_kept_when_measured(
    server: ComfyServer, measure: bool
) -> None:
    result = server.queue(prompt(measure))
    if not measure:
        assert "3" not in result.outputs
        return
    [pair] = result.outputs["3"]["magic_comparison"]
    original, again = (
        np.asarray(server.fetch_image(pair[name]), np.float32)
        for name in ("original", "reconstruction")
    )
    assert original.shape == again.shape == (128, 128, 3)
    assert 0 < abs(original - again).mean() < 20
