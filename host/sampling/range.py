"""When something acts: a share of sampling for the user, noise levels for the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...magic.curves import Curve
from ...magic.reference_passes import BandStarts, NoiseBands, Prediction


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


class StrengthOverSampling:
    """How strongly something acts at the noise levels of one run: 0 outside of its range, and
    inside by its curve, or `strength` without one."""

    def __init__(
        self, span: SamplingRange, curve: Curve | None, strength: float, model_sampling: Any
    ):
        self._span, self._curve, self._strength = span.sigmas(model_sampling), curve, strength
        self._model_sampling = model_sampling

    def at(self, sigma: float) -> float:
        if not self._span.covers(sigma):
            return 0.0
        if self._curve is None:
            return self._strength
        return self._curve.at(share_of_sampling(self._model_sampling, sigma))


def sigma_at(model_sampling: Any, share: float) -> float:
    """The noise level at a share (0..1) of sampling."""
    return float(model_sampling.percent_to_sigma(share))


def share_of_sampling(model_sampling: Any, sigma: float) -> float:
    """The share of sampling (0..1) that is over at a noise level."""
    low, high = 0.0, 1.0
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if sigma_at(model_sampling, middle) > sigma else (low, middle)
    return (low + high) / 2


def prediction_of(model_sampling: Any) -> Prediction:
    """What a model predicts, by the host's object that says what its sigmas mean."""
    import comfy.model_sampling

    return "flow" if isinstance(model_sampling, comfy.model_sampling.CONST) else "noise"


def noise_bands(starts: BandStarts | None, model_sampling: Any) -> NoiseBands | None:
    """The bands of a run, whose model says what shares of sampling are in sigmas; None without."""
    if starts is None:
        return None
    shares = starts[prediction_of(model_sampling)]
    return NoiseBands(tuple(sigma_at(model_sampling, share) for share in shares))
