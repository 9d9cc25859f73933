"""What the keys and values of references take, and whether there is room for them."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch

from ...magic.blocks import Block
from ...magic.messages import size_in_words
from .backbone import Backbone
from .feature_store import DEFAULT_BUDGET
from .references import Reference

_MARGIN = 1.1
"""While they are gathered and turned, some are there twice."""


def feature_bytes(
    references: Sequence[Reference], backbone: Backbone, blocks: Collection[Block]
) -> int:
    """Bytes of the keys and values of one step: of all tokens that the masks leave, in all layers.
    0 for models of which that is not known."""
    if not backbone.feature_bytes:
        return 0
    # All layers of a transformer have the same tokens.
    layers: Counter[int] = Counter()
    for layer in backbone.layers:
        if layer.block in blocks:
            layers[layer.downscale] += layer.depth
    tokens = sum(
        len(reference.visible_tokens(reference.grid(downscale))[0]) * count
        for downscale, count in layers.items()
        for reference in references
    )
    return tokens * backbone.feature_bytes


def check_kept_room(size: int, steps: int) -> None:
    """ValueError when what is kept of all steps fits neither into the store nor on the disk."""
    import folder_paths

    folder = Path(folder_paths.get_temp_directory())
    folder.mkdir(parents=True, exist_ok=True)
    room = DEFAULT_BUDGET + shutil.disk_usage(folder).free
    if size * steps > room:
        raise ValueError(
            f"keep_features: the references take {size_in_words(size)} a step,"
            f" {size_in_words(size * steps)} in {steps} steps, and there is room for"
            f" {size_in_words(room)}."
            " Turn keep_features off, or take fewer layers"
        )


def make_room(size: int, guider: Any, device: torch.device) -> None:
    """Lets the host unload what this sampling does not need. ValueError when that is not enough for
    `size` bytes of references."""
    import comfy.model_management as management

    room = size * _MARGIN
    if room <= management.get_free_memory(device):
        return
    used = [guider.model_patcher, *(getattr(guider, "loaded_models", None) or ())]
    ours = [
        entry
        for entry in management.current_loaded_models
        if any(entry.model is model for model in used)
    ]
    management.free_memory(room, device, keep_loaded=ours)
    free = management.get_free_memory(device)
    if room > free:
        raise ValueError(
            f"the references take {size_in_words(room)} in each step, and {size_in_words(free)}"
            " are free."
            " Take fewer layers (such as 'late'), tighter masks or smaller pictures"
        )


class ReferenceRoom:
    """Room for the references of one sampling run, made before its first model call that has them.
    size: bytes, 0 where that is not known."""

    def __init__(self, size: int):
        self.size = size
        self._is_made = not size

    def ensure(self, guider: Any, device: torch.device) -> None:
        """ValueError when there is not enough."""
        if not self._is_made:
            make_room(self.size, guider, device)
            self._is_made = True
