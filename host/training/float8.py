"""Linear layers whose frozen weight is kept in fp8: a byte a number, cast each time that it is
used."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FLOAT8 = torch.float8_e4m3fn
_LARGEST = 448.0
"""That it has."""


class Float8Linear(nn.Linear):
    """In front of the host's class.

    scale: a power of two by which the kept numbers are multiplied, so that a matrix fills the range
    of fp8, and what was in fp8 before is not rounded again. compute: what it computes in.
    """

    compute: torch.dtype
    scale: float = 1.0

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__(in_features, out_features, bias, device, FLOAT8)
        if bias:
            self.bias = nn.Parameter(torch.empty(out_features, device=device, dtype=dtype))

    def widen(self) -> None:
        """Keeps its weight in what it computes in. To be called before it has one."""
        weight = torch.empty_like(self.weight, dtype=self.compute)
        self.weight = nn.Parameter(weight, requires_grad=False)

    @torch.no_grad()
    def take(self, weight: Tensor) -> None:
        """Rounds a weight."""
        if self.weight.dtype == FLOAT8:
            most = weight.abs().max().item()
            # None for a weight of zeros, or one of no numbers, which the training says.
            if 0 < most < math.inf:
                self.scale = 2.0 ** math.ceil(math.log2(most / _LARGEST))
        self.weight.copy_(weight / self.scale)

    def numbers(self) -> Tensor:
        """The weight, fp32."""
        return self.weight.float() * self.scale

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor
        if self.weight.dtype != FLOAT8:
            out = super().forward(x)
            return out
        # As rows: the host adds in place to what comes out, which a view from inside of a Function
        # does not allow.
        rows = x.to(self.compute).reshape(-1, self.in_features)
        out = _Product.apply(rows, self.weight, self.bias, self.scale)  # type: ignore[no-untyped-call]
        out = out.reshape(*x.shape[:-1], self.out_features)
        return out


class _Product(torch.autograd.Function):
    """The product of rows, N in, with the cast weight, which is made anew for their gradient
    instead of kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, scale: float) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.scale = scale
        return F.linear(x, _cast(weight, x.dtype, scale), None if bias is None else bias.to(x))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        [gradient], [weight] = gradients, ctx.saved_tensors
        return gradient @ _cast(weight, gradient.dtype, ctx.scale), None, None, None


def _cast(weight: Tensor, dtype: torch.dtype, scale: float) -> Tensor:
    return weight.to(dtype) if scale == 1 else weight.to(dtype).mul_(scale)
