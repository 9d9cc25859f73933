"""Small results of the last sampling runs, on the CPU, for nodes after the sampler: they find a run
by the latent that it made."""

from __future__ import annotations

import hashlib
import logging
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Generic, TypeVar

import torch
from torch import Tensor

_Result = TypeVar("_Result")
_Key = tuple[str, ...]
"""A hash for each picture of a latent."""


def _key_of(latent: Tensor) -> _Key:
    # Some hosts hand latents on in half precision.
    data = latent.detach().to("cpu", torch.float16).contiguous()
    return tuple(
        hashlib.blake2b(picture.numpy().tobytes(), digest_size=16).hexdigest() for picture in data
    )


@dataclass(eq=False)
class RunRecord(ABC, Generic[_Result]):
    """Filled by sampling runs, read by nodes that get the sampled latent: by it the right run is
    found, and the right pictures of it.

    phrases: what was watched; pixels: of the picture along a side of a latent pixel.
    """

    what: ClassVar[str] = "record"
    runs_kept: ClassVar[int] = 64
    phrases: tuple[str, ...]
    pixels: int
    _runs: OrderedDict[_Key, _Result] = field(default_factory=OrderedDict)

    def picture_size(self, latent: Sequence[int]) -> tuple[int, int]:
        """Rows and columns in pixels of what a latent of this shape shows."""
        return latent[-2] * self.pixels, latent[-1] * self.pixels

    def store(self, latent: Tensor, run: _Result) -> None:
        """latent: what the run has made, B C h w; run: what was seen of its B pictures."""
        self._runs[_key_of(latent)] = run
        while len(self._runs) > self.runs_kept:
            self._runs.popitem(last=False)

    def run_that_made(self, latent: Tensor) -> _Result | None:
        """The run that made exactly this batch; None when there was none."""
        return self._runs.get(_key_of(latent))

    def run_of(self, latent: Tensor) -> _Result:
        """What was seen of the pictures of `latent`, which may be a part of a run's, in any order;
        what was seen last if the latent was changed on the way. ValueError when nothing was
        sampled, or another number of pictures."""
        if not self._runs:
            raise ValueError(
                f"the {self.what} is empty: the MODEL that came with it has not been sampled."
                " Connect the LATENT of a sampler that used it"
            )
        key = _key_of(latent)
        for pictures, run in reversed(self._runs.items()):
            if pictures == key:
                return run
            if set(key) <= set(pictures):
                return self.pick(run, [pictures.index(picture) for picture in key])
        pictures, run = next(reversed(self._runs.items()))
        if len(pictures) != len(key):
            raise ValueError(
                f"the latent holds {len(key)} pictures that are of none of the last runs, and the"
                f" last run made {len(pictures)}: connect the LATENT of the sampler, or pictures"
                " picked from it (LatentFromBatch), unchanged"
            )
        if len(self._runs) > 1:
            logging.warning(
                "MagicPortrait: the latent is of none of the last %d runs: the %s of the last is"
                " shown",
                len(self._runs),
                self.what,
            )
        return run

    @abstractmethod
    def pick(self, run: _Result, pictures: Sequence[int]) -> _Result:
        """What was seen of some pictures of a run's batch."""
