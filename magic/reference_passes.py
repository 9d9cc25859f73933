"""Which model calls of a sampling run look at the references anew.

A reference pass costs a row of the model for each reference. What the layers see in one changes
slowly with the noise level, so a pass can serve a band of noise levels instead of one. Bands are
shares of sampling, not numbers of steps: any number of steps, any scheduler and samplers that call
the model several times a step get passes at about the same noise levels, and a run that has fewer
steps than there are bands has a pass in each of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Prediction = Literal["noise", "flow"]
"""What a model predicts: the noise, or what makes up for it (v); or the velocity of a flow."""
BandStarts = Mapping[Prediction, tuple[float, ...]]
"""Where the second and each later band begins: shares of sampling (0..1), rising."""

_FINE = 0.04
"""Width of a band where the references count most: a step of 25."""

SPARSE: BandStarts = {
    # Of 25 steps every 8th, and the last 5: the last steps draw the details.
    "noise": (0.32, 0.64, 0.8, 0.84, 0.88, 0.92, 0.96),
    # Of 25 steps the first 9, then every 4th: a flow decides early what goes where.
    "flow": (*(round(_FINE * i, 2) for i in range(1, 9)), 0.48, 0.64, 0.8, 0.96),
}
"""By ablation on the toys, see bench/results/reference_passes.md."""

_TOLERANCE = 1e-4
"""A call at the start of a band belongs to it. Relative to sigma: above what rounding does, below
what a step of a thousand does."""


@dataclass(frozen=True)
class NoiseBands:
    """Bands of noise levels, each served by one reference pass.

    starts: the sigmas from which the second and each later band goes down, falling.
    """

    starts: tuple[float, ...]

    def band(self, sigma: float) -> int:
        """The number of the band that holds a noise level, 0 for the highest."""
        return sum(1 for start in self.starts if sigma <= start * (1 + _TOLERANCE))


def is_served(of_pass: float, sigma: float, bands: NoiseBands | None) -> bool:
    """Whether a pass at the noise level `of_pass` does for a model call at `sigma`. bands: None
    when each pass serves its own noise level only."""
    return of_pass == sigma if bands is None else bands.band(of_pass) == bands.band(sigma)


def pass_levels(sigmas: Sequence[float], bands: NoiseBands | None) -> list[float]:
    """At which of its noise levels a run has reference passes. sigmas: of its model calls, in their
    order; bands: as for `is_served`."""
    levels: list[float] = []
    for sigma in sigmas:
        if not levels or not is_served(levels[-1], sigma, bands):
            levels.append(sigma)
    return levels
