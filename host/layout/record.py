"""What MAGIC_LAYOUT carries: the layouts of the last sampling runs, small and on the CPU, for nodes
that come after the sampler."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...magic.layout import SemanticLayout
from ..sampling.run_record import RunRecord


@dataclass(frozen=True)
class LayoutStep:
    """One step. concepts: B H W int16, index of the phrase that owns each place, -1 for none;
    foreground: B H W bool; phrase_maps: B P H W float16, each phrase's attention relative to its
    mean."""

    concepts: np.ndarray
    foreground: np.ndarray
    phrase_maps: np.ndarray


Run = dict[int, LayoutStep]
"""Step number -> layout."""


@dataclass(eq=False)
class LayoutRecord(RunRecord[Run]):
    """The layouts of the last sampling runs."""

    what = "layout"


def layout_step(layout: SemanticLayout, concepts: Tensor) -> LayoutStep:
    """concepts: B H W, which may differ from the layout's own where the user painted regions."""
    return LayoutStep(
        concepts.to("cpu", torch.int16).numpy(),
        layout.foreground.cpu().numpy(),
        layout.phrase_maps.to("cpu", torch.float16).numpy(),
    )
