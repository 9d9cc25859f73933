"""Small results of the last sampling runs, on the CPU, for nodes after the sampler: they find a run
by the latent that it made."""

from __future__ import annotations

import hashlib
import logging
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Generic, TypeVar

import torch
from torch import Tensor

_Result = TypeVar("_Result")


def _digest(latent: Tensor) -> str:
    # Some hosts hand latents on in half precision.
    data = latent.detach().to("cpu", torch.float16).contiguous().numpy()
    return hashlib.blake2b(data.tobytes(), digest_size=16).hexdigest()


@dataclass(eq=False)
class RunRecord(Generic[_Result]):
    """Filled by sampling runs, read by nodes that get the sampled latent: by it the right run is
    found.

    phrases: what was watched; pixels: of the picture along a side of a latent pixel.
    """

    what: ClassVar[str] = "record"
    runs_kept: ClassVar[int] = 64
    phrases: tuple[str, ...]
    pixels: int
    _runs: OrderedDict[str, _Result] = field(default_factory=OrderedDict)

    def picture_size(self, latent: Sequence[int]) -> tuple[int, int]:
        """Rows and columns in pixels of what a latent of this shape shows."""
        return latent[-2] * self.pixels, latent[-1] * self.pixels

    def store(self, latent: Tensor, run: _Result) -> None:
        self._runs[_digest(latent)] = run
        while len(self._runs) > self.runs_kept:
            self._runs.popitem(last=False)

    def run_of(self, latent: Tensor) -> _Result:
        """The run that made `latent`; the last one if the latent was changed on the way. ValueError
        when nothing was sampled."""
        if not self._runs:
            raise ValueError(
                f"the {self.what} is empty: the MODEL that came with it has not been sampled."
                " Connect the LATENT of a sampler that used it"
            )
        run = self._runs.get(_digest(latent))
        if run is not None:
            return run
        if len(self._runs) > 1:
            logging.warning(
                "MagicPortrait: the latent is of none of the last %d runs: the %s of the last is"
                " shown",
                len(self._runs),
                self.what,
            )
        return next(reversed(self._runs.values()))
