"""Small results of the last sampling runs, on the CPU, for nodes after the sampler: they find a run
by the latent that it made."""

from __future__ import annotations

import hashlib
import logging
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Sequence
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


def _to_log(text: str) -> None:
    logging.warning("MagicPortrait: %s", text)


@dataclass(eq=False)
class RunRecord(ABC, Generic[_Result]):
    """Filled by sampling runs, read by nodes that get the sampled latent: by it the right run is
    found, and the right pictures of it.

    phrases: what was watched; pixels: of the picture along a side of a latent pixel.
    """

    what: ClassVar[str] = "record"
    capacity: ClassVar[int] = 64
    phrases: tuple[str, ...]
    pixels: int
    _runs: OrderedDict[_Key, _Result | None] = field(default_factory=OrderedDict)
    # What the first run began with: no later change of what a run has made.
    _unsampled: _Key = ()

    def picture_size(self, latent: Sequence[int]) -> tuple[int, int]:
        """Rows and columns in pixels of what a latent of this shape shows."""
        return latent[-2] * self.pixels, latent[-1] * self.pixels

    def store(self, latent: Tensor, run: _Result | None, start: Tensor) -> None:
        """latent: what the run has made, B C h w; run: what was seen of its B pictures, None for
        nothing; start: what it was made from."""
        key = _key_of(latent)
        if not self._runs:
            self._unsampled = _key_of(start)
        if run is None and self._runs.get(key) is not None:
            # A run without a step hands on what another has made.
            return
        self._runs[key] = run
        self._runs.move_to_end(key)
        while len(self._runs) > self.capacity:
            self._runs.popitem(last=False)

    def run_that_made(self, latent: Tensor) -> _Result | None:
        """What was seen by the run that made exactly this batch; None when there was none."""
        return self._runs.get(_key_of(latent))

    def run_of(self, latent: Tensor, say: Callable[[str], None] = _to_log) -> _Result:
        """What was seen of the pictures of `latent`, which may be a part of a run's, in any order;
        what was seen last if the latent was changed on the way, which `say` is told. ValueError
        when nothing was sampled or seen, or another number of pictures."""
        key = _key_of(latent)
        for pictures, run in reversed(self._runs.items()):
            if set(key) <= set(pictures):
                result = self._result_of(run)
                if pictures == key:
                    return result
                return self.pick(result, [pictures.index(picture) for picture in key])
        if all(run is None for run in self._runs.values()):
            blank = "" if latent.any() else ", not the blank one that it begins with"
            raise ValueError(
                f"the {self.what} is empty: the MODEL that came with it has not been sampled, or in"
                f" no step that is looked at. Connect the LATENT of a sampler that used it{blank}"
            )
        if not latent.any() or set(key) <= set(self._unsampled):
            raise ValueError(
                f"nothing was sampled with this {self.what} to make this latent: it is blank, or"
                " what a sampler began with (its denoise is 0, or it ran no step). Connect the"
                " LATENT of a sampler that has run"
            )
        pictures, run = next(reversed(self._runs.items()))
        result = self._result_of(run)
        if len(pictures) != len(key):
            raise ValueError(
                f"the latent holds {len(key)} pictures that are of none of the last runs, and the"
                f" last run made {len(pictures)}: connect the LATENT of the sampler, or pictures"
                " picked from it (LatentFromBatch), unchanged"
            )
        say(
            f"this latent is none that the sampler made: the {self.what} of its last run is shown,"
            " which is right if that run's latent was changed afterwards (enlarged, encoded anew)"
        )
        return result

    def _result_of(self, run: _Result | None) -> _Result:
        if run is None:
            raise ValueError(
                f"nothing was sampled with this {self.what} in the run that made this latent: its"
                " prompt, or its range, acts in no step of it that is looked at. Connect the"
                " LATENT of a run in which it does"
            )
        return run

    @abstractmethod
    def pick(self, run: _Result, pictures: Sequence[int]) -> _Result:
        """What was seen of some pictures of a run's batch."""
