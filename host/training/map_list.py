"""The attention maps of one call of a network, as its layers show them."""

from __future__ import annotations

import torch
from torch import Tensor


class MapList:
    """Takes maps, B heads K H W, until they are read.

    Blocks that are computed twice show theirs again for their gradient. Kept, these would keep all
    that was computed for them: of every block that is looked at the memory that computing twice is
    to save.
    """

    def __init__(self) -> None:
        self._maps: list[Tensor] | None = []

    def add(self, maps: Tensor) -> None:
        if self._maps is not None:
            self._maps.append(maps)

    def read(self) -> Tensor | None:
        """All of them, heads of layer after layer; None when there are none. Nothing is taken
        after it."""
        maps, self._maps = self._maps, None
        return torch.cat(maps, 1) if maps else None
