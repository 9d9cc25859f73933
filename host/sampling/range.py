"""When something acts: a share of sampling for the user, noise levels for the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class SigmaRange:
    """The noise levels from `start` down to `end`, both included."""

    start: float
    end: float

    def covers(self, sigma: float) -> bool:
        return self.end <= sigma <= self.start


@dataclass(frozen=True)
class SamplingRange:
    """A part of sampling. start, end: shares, 0 is the first noise level and 1 the last.

    What they mean in sigmas is the model's matter, which other nodes may change after us: it is
    asked when a sampling run begins.
    """

    start: float = 0.0
    end: float = 1.0

    def sigmas(self, model_sampling: Any) -> SigmaRange:
        """model_sampling: the host's, of the model that is sampled."""
        return SigmaRange(sigma_at(model_sampling, self.start), sigma_at(model_sampling, self.end))


ALL_OF_SAMPLING = SamplingRange()


def sigma_at(model_sampling: Any, share: float) -> float:
    """The noise level at a share (0..1) of sampling."""
    return float(model_sampling.percent_to_sigma(share))
