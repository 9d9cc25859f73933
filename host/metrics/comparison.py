"""What is measured, and with which networks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ...magic.boxes import Box

AUTO, OFF = "auto", "off"
AT_ONCE = 8
"""Pictures that go through a network together."""


class Missing(Exception):
    """A metric that cannot be measured: what is missing and what to do."""


@dataclass(frozen=True, eq=False)
class Comparison:
    """Pictures, and what they are measured against.

    images: B H W 3 in 0..1; references: M h w 3 in 0..1, or None; prompts: one for all, one for
    each picture, or none; boxes, reference_boxes: for each picture its faces, None to take pictures
    whole; identity: an Identity, or anything with its `embed` and `embed_face`, or None;
    clip_vision: the host's CLIP_VISION, used instead of a folder, or None; clip, dino, aesthetic,
    lpips: names in models/metrics, 'auto' or 'off'; others: other pictures of the references'
    person, N h w 3, or None; other_boxes: as boxes.
    """

    images: Tensor
    references: Tensor | None = None
    prompts: tuple[str, ...] = ()
    boxes: tuple[tuple[Box, ...], ...] | None = None
    reference_boxes: tuple[tuple[Box, ...], ...] | None = None
    identity: Any = None
    clip_vision: Any = None
    clip: str = AUTO
    dino: str = AUTO
    aesthetic: str = AUTO
    lpips: str = AUTO
    others: Tensor | None = None
    other_boxes: tuple[tuple[Box, ...], ...] | None = None

    def needed_references(self) -> Tensor:
        """Missing when there are none."""
        if self.references is None:
            raise Missing("no reference pictures: connect some")
        return self.references


def chosen_file(choice: str, names: Sequence[str], what: str, example: str) -> str:
    """The single file of models/metrics to use. choice: a name, 'auto' or 'off'; names: those that
    are there. Missing says what to put where."""
    if choice == OFF:
        raise Missing("switched off")
    if choice == AUTO and names:
        return names[0]
    if choice in names:
        return choice
    raise Missing(f"no {what} in models/metrics: put {example} there")
