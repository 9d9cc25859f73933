"""What is trained on linear layers: LoRA, or another of the host's adapters. It acts by hooks on a
copy that belongs to the training, and is in the key format of the host's own trainer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from .float8 import Float8Linear

ADAPTERS = ("LoRA", "LoHa", "LoKr", "OFT")
"""What can be trained, as the host calls it."""
_ALPHA = {"OFT": 0.0}
"""Of those that the host's classes train, where it is not 1 as in the host's own trainer. OFT's is
the most that all of a layer's blocks may turn together, and 0 for no such limit."""
_NO_WEIGHT = "alpha"
"""Among the parameters of the host's classes."""
_Adapter = TypeVar("_Adapter", bound="Adapter")


class Adapter(nn.Module, ABC):
    """Something that is trained beside a linear layer, in fp32. It starts as nothing.

    strength: 1 while training, 0 to leave it out.
    """

    strength = 1.0

    def attached(self: _Adapter, layer: nn.Linear) -> _Adapter:
        """Itself, acting on a layer from now on."""
        layer.register_forward_hook(self.add_to)
        return self

    def add_to(self, layer: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        if not self.strength:
            return output
        change = self.change(layer, args[0])
        return output + (change if self.strength == 1 else change * self.strength)

    @property
    @abstractmethod
    def learned(self) -> list[nn.Parameter]:
        """All that is trained of it."""

    @abstractmethod
    def change(self, layer: nn.Module, x: Tensor) -> Tensor:
        """What it adds to the layer's output for an input: B N in -> B N out."""

    @abstractmethod
    def named(self) -> dict[str, Tensor]:
        """Its numbers by the ends of their keys in a LORA_MODEL."""


class LoraLinear(Adapter):
    """up(down(x)) with scale 1 (alpha equals the rank). up is zero at first."""

    def __init__(self, layer: nn.Linear, rank: int, generator: torch.Generator):
        super().__init__()
        device = layer.weight.device
        down = torch.randn(rank, layer.in_features, generator=generator) / rank
        self.down = nn.Parameter(down.to(device))
        self.up = nn.Parameter(torch.zeros(layer.out_features, rank, device=device))

    @property
    def learned(self) -> list[nn.Parameter]:
        return [self.up, self.down]

    def change(self, layer: nn.Module, x: Tensor) -> Tensor:
        return nn.functional.linear(nn.functional.linear(x, self.down), self.up)

    def named(self) -> dict[str, Tensor]:
        alpha = torch.tensor(float(self.down.shape[0]))
        return {"lora_up.weight": self.up, "lora_down.weight": self.down, "alpha": alpha}


class HostAdapter(Adapter):
    """One of the host's own, by the class that its trainer has for it, which makes a weight of a
    weight: so the training sees what the host's loaders make of the file."""

    def __init__(self, layer: nn.Linear, kind: str, rank: int, generator: torch.Generator):
        super().__init__()
        # The host's classes draw from torch's own stream: here that is the training's.
        stream = torch.default_generator
        before = stream.get_state()
        try:
            stream.set_state(generator.get_state())
            network = _host_network(layer, kind, rank, torch.device("cpu"))
            generator.set_state(stream.get_state())
        finally:
            stream.set_state(before)
        # One by one: Module.to cannot move what has a shape only (memory_need.py).
        for name, parameter in list(network.named_parameters()):
            moved = parameter.detach().to(layer.weight.device)
            setattr(network, name, nn.Parameter(moved, requires_grad=name != _NO_WEIGHT))
        self.network = network

    @property
    def learned(self) -> list[nn.Parameter]:
        return _learned_of(self.network)

    def change(self, layer: nn.Module, x: Tensor) -> Tensor:
        weight: Any = layer.weight
        # In half precision so little of a change would be lost beside the weight.
        with torch.autocast(x.device.type, enabled=False):
            weight = layer.numbers() if isinstance(layer, Float8Linear) else weight.float()
            change = self.network(weight) - weight
        return nn.functional.linear(x, change.to(x.dtype))

    def named(self) -> dict[str, Tensor]:
        return dict(self.network.named_parameters())


def new_adapter(kind: str, layer: nn.Linear, rank: int, generator: torch.Generator) -> Adapter:
    """An adapter that acts on a layer. kind: of ADAPTERS. rank: of LoRA and LoHa; about the side of
    OFT's blocks, and of the smaller of LoKr's two matrices."""
    adapter: Adapter
    if kind == ADAPTERS[0]:
        adapter = LoraLinear(layer, rank, generator)
    else:
        adapter = HostAdapter(layer, kind, rank, generator)
    return adapter.attached(layer)


def adapter_size(kind: str, layer: nn.Linear, rank: int) -> int:
    """How many numbers are learned on a layer."""
    if kind == ADAPTERS[0]:
        return rank * (layer.in_features + layer.out_features)
    network = _host_network(layer, kind, rank, torch.device("meta"))
    return sum(parameter.numel() for parameter in _learned_of(network))


def check_adapter(kind: str) -> None:
    """ValueError for a kind that there is not, or that this host cannot train."""
    if kind not in ADAPTERS:
        raise ValueError(f"adapter is '{kind}': choose one of {', '.join(ADAPTERS)}")
    if kind != ADAPTERS[0] and _host_class(kind) is None:
        raise ValueError(
            f"this ComfyUI has no {kind} that can be trained: update it, or set adapter to LoRA"
        )


def _host_class(kind: str) -> Any:
    """The host's class of an adapter; None where it has none that is trained."""
    try:
        from comfy import weight_adapter
    except ImportError:
        return None
    adapter = getattr(weight_adapter, "adapter_maps", {}).get(kind)
    return adapter if hasattr(adapter, "create_train") else None


def _host_network(layer: nn.Linear, kind: str, rank: int, device: torch.device) -> nn.Module:
    weight = torch.empty(layer.weight.shape, device=device)
    network: nn.Module = _host_class(kind).create_train(weight, rank, _ALPHA.get(kind, 1.0))
    return network


def _learned_of(network: nn.Module) -> list[nn.Parameter]:
    """The host keeps a number among the parameters of its classes that is none."""
    return [each for name, each in network.named_parameters() if name != _NO_WEIGHT]


def as_lora_model(adapters: Mapping[str, Adapter]) -> dict[str, Tensor]:
    """The host's LORA_MODEL: '<layer>.lora_up.weight' and what else the adapters have, by the
    host's names of the layers."""
    return {
        f"{name}.{end}": tensor.detach().cpu().clone()
        for name, adapter in adapters.items()
        for end, tensor in adapter.named().items()
    }


@torch.no_grad()
def fill(
    network: nn.Module, weights: Iterable[tuple[str, Tensor]], takes_others: bool = False
) -> None:
    """Copies weights into a network by name, one at a time: there is no second copy of all of them.
    takes_others: whether weights that it has not are left out, such as come with quantised ones.
    RuntimeError when the host has given its class others."""
    own = network.state_dict()
    rounding = {
        f"{name}.weight": layer
        for name, layer in network.named_modules()
        if isinstance(layer, Float8Linear)
    }
    missing, unknown = set(own), set()
    for name, value in weights:
        if name not in own:
            unknown.add(name)
            continue
        if name in rounding:
            rounding[name].take(value)
        else:
            own[name].copy_(value)
        missing.discard(name)
    if missing or (unknown and not takes_others):
        raise RuntimeError(
            f"{type(network).__name__} has other weights than its model"
            f" ({', '.join(sorted(missing | unknown)[:3])}): please report it"
        )
