"""A strength that changes over sampling."""

from __future__ import annotations

import math
from dataclasses import dataclass

_MOST_POINTS = 64


@dataclass(frozen=True)
class Curve:
    """points: shares of sampling (0..1, rising) and the strength at each; between them it goes
    straight, before the first and after the last it stays."""

    points: tuple[tuple[float, float], ...]

    def at(self, share: float) -> float:
        """The strength at a share of sampling."""
        first, last = self.points[0], self.points[-1]
        if share <= first[0]:
            return first[1]
        for (start, before), (end, after) in zip(self.points, self.points[1:], strict=False):
            if share < end:
                return before + (after - before) * (share - start) / (end - start)
        return last[1]


def parse_curve(text: str, low: float, high: float) -> Curve | None:
    """A curve from '0: 1, 0.5: 0.4'; None for an empty text. low, high: between which strengths
    may be. ValueError, with what is wrong, for anything else."""
    if not text.strip():
        return None
    points: list[tuple[float, float]] = []
    for part in text.replace(";", ",").replace("\n", ",").split(","):
        if not part.strip():
            continue
        share, colon, strength = part.partition(":")
        try:
            point = (float(share), float(strength))
        except ValueError:
            point = (math.nan, math.nan)
        if not colon or not (0 <= point[0] <= 1 and low <= point[1] <= high):
            raise ValueError(
                f"strength_curve: '{part.strip():.40}' is no point of a curve: write shares of"
                f" sampling (0 to 1) and strengths ({low:g} to {high:g}), such as '0: 1, 0.5: 0.4'"
            )
        if points and point[0] <= points[-1][0]:
            raise ValueError(
                f"strength_curve: the share {point[0]:g} comes after {points[-1][0]:g}: write them"
                " in rising order, each once"
            )
        points.append(point)
    if not 1 <= len(points) <= _MOST_POINTS:
        raise ValueError(
            f"strength_curve has {len(points)} points, expected 1 to {_MOST_POINTS}, such as"
            " '0: 1, 0.5: 0.4'"
        )
    return Curve(tuple(points))
