"""Weights of a MODEL as they are with its patches, without loading or changing it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def with_patches(key: str, entry: Sequence[Any]) -> Tensor:
    """A copy of a weight (fp32, on the CPU) as it is with a model's patches (LoRA and others).
    entry: what the host's `get_key_patches` has under the key."""
    import comfy.lora

    (weight, convert), *patches = entry
    # The host keeps quantised weights in forms of their own: its converter gives the numbers.
    value: Tensor = convert(weight.detach().to("cpu"), inplace=False).to(torch.float32, copy=True)
    return comfy.lora.calculate_weight(patches, value, key) if patches else value


def patched_weight(patcher: Any, key: str) -> Tensor:
    """As `with_patches`, of one weight of a MODEL: the host's table of all stumbles over what
    quantised layers have in their state."""
    from comfy.model_patcher import get_key_weight

    weight, _, convert = get_key_weight(patcher.model, key)
    if (before := patcher.backup.get(key)) is not None:
        weight = before.weight
    entry = (weight, convert or (lambda value, **_: value))
    return with_patches(key, (entry, *patcher.patches.get(key, ())))
