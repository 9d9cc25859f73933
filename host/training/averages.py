"""The average of what a training learns, over its last steps (EMA)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor


class Averages:
    """Moving averages of parameters, which the training itself does not see.

    parameters: what is averaged. values: their averages. decay: how much of an average a step
    leaves, in 0..1; in the first steps less, so that the start is forgotten: (1 + n) / (10 + n)
    after n steps, as in the usual libraries.
    """

    def __init__(self, parameters: Sequence[Tensor], decay: float):
        self.parameters, self.decay = list(parameters), decay
        self.values = [parameter.detach().clone() for parameter in self.parameters]

    @torch.no_grad()
    def add(self, steps: int) -> None:
        """Takes up what the parameters are. steps: done before this one."""
        decay = min(self.decay, (1 + steps) / (10 + steps))
        for value, parameter in zip(self.values, self.parameters, strict=True):
            value.lerp_(parameter, 1 - decay)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """The parameters are their averages as long as this is open."""
        before = [parameter.detach().clone() for parameter in self.parameters]
        try:
            self._set(self.values)
            yield
        finally:
            self._set(before)

    @torch.no_grad()
    def _set(self, values: Sequence[Tensor]) -> None:
        for parameter, value in zip(self.parameters, values, strict=True):
            parameter.copy_(value)
