"""What MAGIC_LAYOUT carries: the layouts of the last sampling runs, small and on the CPU, for nodes that come after the sampler."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ..magic.layout import SemanticLayout

_RUNS_KEPT = 4


@dataclass(frozen=True)
class LayoutStep:
    """One step. concepts: B H W int16, index of the phrase that owns each place, -1 for none; foreground: B H W bool;
    phrase_maps: B P H W float16, each phrase's attention relative to its mean."""

    concepts: np.ndarray
    foreground: np.ndarray
    phrase_maps: np.ndarray


Run = dict[int, LayoutStep]
"""Step number -> layout."""


def fingerprint(latent: Tensor) -> str:
    data = latent.detach().to("cpu", torch.float32).contiguous().numpy()
    return hashlib.blake2b(data.tobytes(), digest_size=16).hexdigest()


@dataclass(eq=False)
class LayoutRecord:
    """Filled by sampling runs, read by nodes that get the sampled latent: by it the right run is found."""

    phrases: tuple[str, ...]
    _runs: OrderedDict[str, Run] = field(default_factory=OrderedDict)

    def store(self, latent: Tensor, run: Run) -> None:
        self._runs[fingerprint(latent)] = run
        while len(self._runs) > _RUNS_KEPT:
            self._runs.popitem(last=False)

    def run_of(self, latent: Tensor) -> Run:
        """The run that made `latent`; the last one if the latent was changed on the way. ValueError when nothing was sampled."""
        if not self._runs:
            raise ValueError(
                "the layout is empty: the MODEL that came with it has not been sampled. Connect the LATENT of a sampler that used it"
            )
        return self._runs.get(fingerprint(latent)) or next(reversed(self._runs.values()))


def layout_step(layout: SemanticLayout, concepts: Tensor) -> LayoutStep:
    """concepts: B H W, which may differ from the layout's own where the user painted regions."""
    return LayoutStep(
        concepts.to("cpu", torch.int16).numpy(), layout.foreground.cpu().numpy(), layout.phrase_maps.to("cpu", torch.float16).numpy()
    )
