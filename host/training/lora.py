"""LoRA on linear layers, by hooks on a copy that belongs to the training, and in the key format of
the host's own trainer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn


class LoraLinear(nn.Module):
    """up(down(x)) beside a linear layer, in fp32, with scale 1 (alpha equals the rank). It starts
    as nothing: up is zero.

    strength: 1 while training, 0 to leave it out.
    """

    def __init__(self, layer: nn.Linear, rank: int, generator: torch.Generator):
        super().__init__()
        device = layer.weight.device
        down = torch.randn(rank, layer.in_features, generator=generator) / rank
        self.down = nn.Parameter(down.to(device))
        self.up = nn.Parameter(torch.zeros(layer.out_features, rank, device=device))
        self.strength = 1.0

    @classmethod
    def attach(cls, layer: nn.Linear, rank: int, generator: torch.Generator) -> LoraLinear:
        adapter = cls(layer, rank, generator)
        layer.register_forward_hook(adapter.add_to)
        return adapter

    def add_to(self, layer: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        if not self.strength:
            return output
        change = nn.functional.linear(nn.functional.linear(args[0], self.down), self.up)
        return output + (change if self.strength == 1 else change * self.strength)


def as_lora_model(adapters: Mapping[str, LoraLinear]) -> dict[str, Tensor]:
    """The host's LORA_MODEL: '<layer>.lora_up.weight', '.lora_down.weight' and '.alpha'."""
    state: dict[str, Tensor] = {}
    for name, adapter in adapters.items():
        state[f"{name}.lora_up.weight"] = adapter.up.detach().cpu().clone()
        state[f"{name}.lora_down.weight"] = adapter.down.detach().cpu().clone()
        state[f"{name}.alpha"] = torch.tensor(float(adapter.down.shape[0]))
    return state


def patched_weights(
    patcher: Any, prefix: str, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """All of `patched_tensors` at once."""
    return {name: value.to(dtype) for name, value in patched_tensors(patcher, prefix)}


def patched_tensors(patcher: Any, prefix: str) -> Iterator[tuple[str, Tensor]]:
    """Copies of a model's weights (fp32, on the CPU) as they are with its patches (LoRA and
    others), one after the other and without loading or changing the model."""
    import comfy.lora

    for key, (original, *patches) in patcher.get_key_patches(prefix).items():
        weight, convert = original
        # The host keeps quantised weights in forms of their own: its converter gives the numbers.
        value = convert(weight.detach().to("cpu"), inplace=False).to(torch.float32, copy=True)
        if patches:
            value = comfy.lora.calculate_weight(patches, value, key)
        yield key.removeprefix(prefix), value
