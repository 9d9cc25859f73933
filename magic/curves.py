"""A strength that changes over sampling."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from .typed import ascii_marks, number_in

_MOST_POINTS = 64


@dataclass(frozen=True)
class Curve:
    """points: shares of sampling (0..1, rising) and the strength at each; between them it goes
    straight, before the first and after the last it stays. is_of_strength: whether what stands
    there is to be multiplied with the strength of the node, which `of` does."""

    points: tuple[tuple[float, float], ...]
    is_of_strength: bool = False

    def of(self, strength: float) -> Curve:
        """The curve in strengths, where the node has this one."""
        if not self.is_of_strength:
            return self
        return Curve(tuple((share, part * strength) for share, part in self.points))

    def at(self, share: float) -> float:
        """The strength at a share of sampling."""
        first, last = self.points[0], self.points[-1]
        if share <= first[0]:
            return first[1]
        for (start, before), (end, after) in zip(self.points, self.points[1:], strict=False):
            if share < end:
                return before + (after - before) * (share - start) / (end - start)
        return last[1]


NAMED: Mapping[str, Curve] = {
    name: Curve(points, is_of_strength=True)
    for name, points in {
        "rise": ((0.0, 0.0), (1.0, 1.0)),
        "fall": ((0.0, 1.0), (1.0, 0.0)),
        "early": ((0.3, 1.0), (0.5, 0.0)),
        "late": ((0.5, 0.0), (0.7, 1.0)),
        "bell": ((0.0, 0.0), (0.5, 1.0), (1.0, 0.0)),
    }.items()
}
"""Curves by the names that users write, as parts of a node's strength."""


def parse_curve(text: str, low: float, high: float) -> Curve | None:
    """A curve from '0: 1, 0.5: 0.4' or a name; None for an empty text. low, high: between which
    strengths may be. ValueError, with what is wrong, for anything else."""
    text = ascii_marks(text)
    if not text.strip():
        return None
    if (named := NAMED.get(text.strip().casefold())) is not None:
        return named
    points: list[tuple[float, float]] = []
    for part in re.split(r"[,;\n]", text):
        if not part.strip():
            continue
        share, colon, strength = part.partition(":")
        try:
            point = (number_in(share), number_in(strength))
        except ValueError:
            point = (math.nan, math.nan)
        if not colon or not (0 <= point[0] <= 1 and low <= point[1] <= high):
            raise ValueError(
                f"strength_curve: '{part.strip():.40}' is no point of a curve: write shares of"
                f" sampling (0 to 1) and strengths ({low:g} to {high:g}), such as '0: 1, 0.5: 0.4',"
                f" or one of {', '.join(NAMED)}"
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
