"""Adapters that change what a layer's own weight does: what they add needs weight or layer.

How the host merges them is the measure (`calculate_weight` of its adapters); here the weight stays
as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..models.lora_patches import DORA, glora_order

Product = Callable[[Tensor], Tensor]
"""What a layer's weight makes of an input, without its bias."""
_NEAR = 1e-3
"""Of the largest weight: how far it may be from what the factors make of it."""


@dataclass(eq=False)
class Rescale:
    """DoRA: the layer's weight and what an adapter adds to it, times a factor for each row or
    column. factor: those; side: 0 for rows (what comes out), 1 for columns (what goes in);
    strength: how much of the difference to the weight is taken."""

    factor: Tensor
    side: int
    strength: float

    def added(self, adapter: Any, x: Tensor, plain: Tensor, product: Product) -> Tensor:
        """What is added to a layer's output. adapter: the host's, of strength 1; x: the layer's
        input; plain: what its weight makes of that, without the bias."""
        factor = self.factor.to(x)
        if adapter.is_conv:
            factor = factor.view(-1, *[1] * (x.ndim - 2))
        if self.side == 0:
            added: Tensor = (factor - 1) * plain + factor * adapter.h(x, plain)
        else:
            added = product((factor - 1) * x) + adapter.h(factor * x, plain)
        return self.strength * added


def rescale_of(adapter: Any, key: Any, weight: Tensor, strength: float) -> Rescale | None:
    """What DoRA's scales in an adapter of the host's do to a layer's weight; None for what is no
    factor for each row or column. weight: fp32, as the model has it."""
    at = DORA[adapter.name]
    scales = adapter.weights[at]
    without = tuple(None if i == at else own for i, own in enumerate(adapter.weights))
    plain, whole = (
        each.calculate_weight(weight.clone(), key, 1.0, 1.0, None, lambda change: change)
        for each in (type(adapter)(adapter.loaded_keys, without), adapter)
    )
    # As the host tells rows and columns apart.
    side = 0 if scales.shape[0] == weight.shape[0] else 1
    rows, others = (each.transpose(0, side).flatten(1) for each in (plain, whole))
    factor = (rows * others).sum(1) / (rows * rows).sum(1).clamp(min=torch.finfo(rows.dtype).tiny)
    is_near = (rows * factor[:, None] - others).abs().max() <= _NEAR * others.abs().max()
    return Rescale(factor, side, strength) if bool(is_near) else None


class Glora:
    """GLoRA: a product of its own, and one that is added to what goes into the layer.

    module: the layer; weights: of both, first the one that goes into the layer, what comes first
    and what is made of that; scale: what all of it is multiplied with.
    """

    name = "glora"

    def __init__(self, module: nn.Module, weights: tuple[Tensor, ...], scale: float):
        self._module, self._scale = module, scale
        self.weights = weights
        self.is_conv = isinstance(module, nn.modules.conv._ConvNd)

    @classmethod
    def read(
        cls, module: nn.Module, adapter: Any, shape: torch.Size, strength: float
    ) -> Glora | None:
        """Of an adapter of the host's, in either of the forms that it knows; None for others, and
        for one with DoRA's scales. shape: of the layer's weight."""
        *_, alpha, scales = adapter.weights
        order = glora_order(adapter, tuple(shape))
        if scales is not None or order is None:
            return None
        weights, is_old = order
        # In the older form each cell of a kernel is changed by all others: no input does that.
        has_cells = shape[1:].numel() != shape[1]
        if (is_old and has_cells) or getattr(module, "groups", 1) > 1:
            return None
        return cls(
            module,
            weights,
            strength * (1.0 if alpha is None else float(alpha) / weights[0].shape[0]),
        )

    def added(self, x: Tensor, product: Product) -> Tensor:
        """What is added to the layer's output of an input x."""
        first, second, third, fourth = (each.to(x) for each in self.weights)
        if not self.is_conv:
            inner = F.linear(F.linear(x, first), second)
            own = F.linear(F.linear(x, third), fourth)
            return self._scale * (product(inner) + own)
        module: Any = self._module
        convolve = (F.conv1d, F.conv2d, F.conv3d)[x.ndim - 3]
        ones = [1] * (x.ndim - 2)
        first, second, fourth = (each.view(*each.shape, *ones) for each in (first, second, fourth))
        third = third.view(-1, x.shape[1], *module.kernel_size)
        inner = convolve(convolve(x, first), second)
        own = convolve(x, third, None, module.stride, module.padding, module.dilation)
        return self._scale * (product(inner) + convolve(own, fourth))
