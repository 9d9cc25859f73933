"""Weights of a MODEL or of a CLIP's model as they are with its patches (LoRA and others), without
loading or changing it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor


def patched_weight(patcher: Any, key: str) -> Tensor:
    """A copy of a weight, fp32, on the CPU."""
    import comfy.lora
    from comfy.model_patcher import get_key_weight

    weight, _, convert = get_key_weight(patcher.model, key)
    if (before := patcher.backup.get(key)) is not None:
        weight = before.weight
    if (before := patcher.hook_backup.get(key)) is not None:
        weight = before[0]
    value = weight.detach().to("cpu")
    if convert is not None:
        # The host keeps quantised weights in forms of their own: its converter gives the numbers.
        value = convert(value, inplace=False)
    own: Tensor = value.to(torch.float32, copy=True)
    patches = patcher.patches.get(key)
    return comfy.lora.calculate_weight(patches, own, key) if patches else own


def patched_weights(patcher: Any, prefix: str) -> Iterator[tuple[str, Tensor]]:
    """`patched_weight` of all that begin with a prefix, without it, one after the other."""
    # The host's own table of them stumbles over what quantised layers have in their state besides.
    model = patcher.model
    own = {name for name, _ in itertools.chain(model.named_parameters(), model.named_buffers())}
    for key in patcher.model_state_dict():
        if key.startswith(prefix) and key in own:
            yield key.removeprefix(prefix), patched_weight(patcher, key)
