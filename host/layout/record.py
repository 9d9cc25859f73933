"""What MAGIC_LAYOUT carries: the layouts of the last sampling runs, small and on the CPU, for nodes
that come after the sampler."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

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


LayoutSteps = Mapping[int, LayoutStep]
"""Step number -> layout."""


@dataclass(frozen=True, eq=False)
class LayoutOfRun:
    """One sampling run, or several that went on from each other.

    steps: what was measured, by the number of the step; total: steps that were run; last_sigma:
    where the run ended; latest: the last layout of each prompt of ours, in their order, for a run
    that goes on from there.
    """

    steps: LayoutSteps
    total: int = 0
    last_sigma: float = 0.0
    latest: Sequence[SemanticLayout | None] = field(default=())


@dataclass(eq=False)
class LayoutRecord(RunRecord[LayoutOfRun]):
    """The layouts of the last sampling runs."""

    what = "layout"

    def pick(self, run: LayoutOfRun, pictures: Sequence[int]) -> LayoutOfRun:
        rows = list(pictures)
        return LayoutOfRun(
            {
                number: LayoutStep(
                    step.concepts[rows], step.foreground[rows], step.phrase_maps[rows]
                )
                for number, step in run.steps.items()
            },
            run.total,
        )


def layout_step(layout: SemanticLayout, concepts: Tensor) -> LayoutStep:
    """concepts: B H W, which may differ from the layout's own where the user painted regions."""
    return LayoutStep(
        concepts.to("cpu", torch.int16).numpy(),
        layout.foreground.cpu().numpy(),
        layout.phrase_maps.to("cpu", torch.float16).numpy(),
    )
