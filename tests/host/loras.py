"""Random LoRAs of every kind that the host's adapters know, for layers of a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

RANK = 2
_Make = Callable[[torch.Size, Callable[..., Tensor]], dict[str, Tensor]]


def _lora(shape: torch.Size, random: Callable[..., Tensor]) -> dict[str, Tensor]:
    return {
        "lora_up.weight": random(shape[0], RANK, *[1] * len(shape[2:])),
        "lora_down.weight": random(RANK, *shape[1:]),
        "alpha": torch.tensor(1.0),
    }


def _loha(shape: torch.Size, random: Callable[..., Tensor]) -> dict[str, Tensor]:
    into = shape[1:].numel()
    parts = {f"hada_w{i}_a": random(shape[0], RANK) for i in (1, 2)}
    return parts | {f"hada_w{i}_b": random(RANK, into) for i in (1, 2)}


def _lokr(shape: torch.Size, random: Callable[..., Tensor]) -> dict[str, Tensor]:
    if shape[1] % 2:
        return {"lokr_w1": random(2, 1), "lokr_w2": random(shape[0] // 2, *shape[1:])}
    return {"lokr_w1": random(2, 2), "lokr_w2": random(shape[0] // 2, shape[1] // 2, *shape[2:])}


def _glora(shape: torch.Size, random: Callable[..., Tensor]) -> dict[str, Tensor]:
    ones = [1] * len(shape[2:])
    return {
        "a1.weight": random(shape[1], RANK, *ones),
        "a2.weight": random(RANK, shape[1], *ones),
        "b1.weight": random(shape[0], RANK, *ones),
        "b2.weight": random(RANK, *shape[1:]),
        "alpha": torch.tensor(1.0),
    }


def _old_glora(shape: torch.Size, random: Callable[..., Tensor]) -> dict[str, Tensor]:
    into = shape[1:].numel()
    return {
        "a1.weight": random(RANK, into),
        "a2.weight": random(into, RANK),
        "b1.weight": random(RANK, into),
        "b2.weight": random(shape[0], RANK),
    }


def _dora_of_rows(shape: torch.Size, random: Callable[..., Tensor]) -> dict[str, Tensor]:
    scales = 1 + random(shape[0], *[1] * len(shape[1:]))
    return _lora(shape, random) | {"dora_scale": scales}


def _dora_of_columns(shape: torch.Size, random: Callable[..., Tensor]) -> dict[str, Tensor]:
    scales = 1 + random(1, shape[1], *[1] * len(shape[2:]))
    return _loha(shape, random) | {"dora_scale": scales}


def _dora_of_lokr(shape: torch.Size, random: Callable[..., Tensor]) -> dict[str, Tensor]:
    scales = 1 + random(shape[0], *[1] * len(shape[1:]))
    if len(shape) > 2 or shape[1] % 2:
        # Alpha counts for products only.
        return _lokr(shape, random) | {"dora_scale": scales, "alpha": torch.tensor(0.0)}
    return {
        "lokr_w1": random(2, 2),
        "lokr_w2_a": random(shape[0] // 2, RANK),
        "lokr_w2_b": random(RANK, shape[1] // 2),
        "alpha": torch.tensor(1.0),
        "dora_scale": scales,
    }


def _oft(shape: torch.Size, random: Callable[..., Tensor]) -> dict[str, Tensor]:
    return {"oft_blocks": random(shape[0] // 4, 4, 4)}


def _boft(shape: torch.Size, random: Callable[..., Tensor]) -> dict[str, Tensor]:
    return {"oft_blocks": random(2, shape[0] // 4, 4, 4), "alpha": torch.tensor(0.0)}


def _difference(shape: torch.Size, random: Callable[..., Tensor]) -> dict[str, Tensor]:
    return {"diff": random(*shape), "diff_b": random(shape[0])}


KINDS: dict[str, _Make] = {
    "lora": _lora,
    "loha": _loha,
    "lokr": _lokr,
    "oft": _oft,
    "boft": _boft,
    "difference": _difference,
    "glora": _glora,
    "old glora": _old_glora,
    "dora": _dora_of_rows,
    "dora of columns": _dora_of_columns,
    "dora of lokr": _dora_of_lokr,
}


def random_lora(
    model: Any, layers: Sequence[str], kind: str = "lora", seed: int = 0, size: float = 0.2
) -> dict[str, Tensor]:
    """A LoRA for layers of a MODEL, by their names in its network. size: of its numbers."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return size * torch.randn(*shape, generator=generator)

    network = model.model.diffusion_model
    return {
        f"diffusion_model.{layer}.{name}": tensor
        for layer in layers
        for name, tensor in KINDS[kind](network.get_submodule(layer).weight.shape, random).items()
    }
