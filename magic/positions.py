"""Rotary positions: where the keys of a reference seem to lie to a picture's queries.

RoPE (RoFormer, arXiv 2104.09864) turns each pair of a head's channels by position times frequency,
so a key that has been turned can be moved: R(p' - p) R(p) k = R(p') k. Positions have an axis each:
0 is the index of the picture in a sequence, 1 its rows, 2 its columns; what comes behind (Flux.2
counts words there) is 0 for pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from .boxes import Box

INDEX, ROW, COLUMN = 0, 1, 2
"""The axes of a position."""
Pairing = Literal["interleaved", "halves"]
Placement = Literal["same", "aside", "index", "attenuated", "region"]
PLACEMENTS: tuple[Placement, ...] = get_args(Placement)
_SLOW = 0.2
"""Radians a token: pairs that turn faster tell single tokens apart, slower ones parts of a
picture."""


class RotaryAxis(NamedTuple):
    """One axis of a position. dim: how many channels of a head it turns, even; theta: the base of
    its frequencies theta^(-2i / dim)."""

    dim: int
    theta: float


@dataclass(frozen=True)
class Rotary:
    """How a model turns its queries and keys.

    axes: in the order of a head's pairs; their dims make up the head; pairing: whether a pair is
    two neighbours ('interleaved') or a channel of the head's first half and the same of its second
    ('halves').
    """

    axes: tuple[RotaryAxis, ...]
    pairing: Pairing = "interleaved"

    def __post_init__(self) -> None:
        if not self.axes or any(axis.dim < 2 or axis.dim % 2 for axis in self.axes):
            dims = ", ".join(str(axis.dim) for axis in self.axes) or "none"
            raise ValueError(f"rotary axes: dims must be even and at least 2, got {dims}")

    @classmethod
    def of(cls, dims: Sequence[int], theta: float, pairing: Pairing = "interleaved") -> Rotary:
        """All axes of one theta."""
        return cls(tuple(RotaryAxis(int(dim), float(theta)) for dim in dims), pairing)

    @property
    def head(self) -> int:
        """Channels of a head."""
        return sum(axis.dim for axis in self.axes)

    @property
    def frequencies(self) -> Tensor:
        """Radians a step, a row for each axis and a column for each pair of a head: A D/2, float64,
        0 where a pair is another axis's."""
        rows, start = torch.zeros(len(self.axes), self.head // 2, dtype=torch.float64), 0
        for row, axis in zip(rows, self.axes, strict=True):
            exponents = torch.arange(0, axis.dim, 2, dtype=torch.float64) / axis.dim
            row[start : start + axis.dim // 2] = axis.theta**-exponents
            start += axis.dim // 2
        return rows

    def angles(self, positions: Tensor) -> Tensor:
        """By how much each pair of a head is turned: positions N A -> N D/2, float64, radians."""
        return positions.to("cpu", torch.float64) @ self.frequencies


class Turn(NamedTuple):
    """By what pairs are turned: cos and sin of their angles, ... N D/2, float32."""

    cos: Tensor
    sin: Tensor

    @classmethod
    def by(cls, angles: Tensor, device: torch.device | None = None) -> Turn:
        """angles: ... N D/2, radians; device: where keys are turned."""
        # Sines of large angles lose their digits in float32.
        exact = angles.double()
        return cls(*(part.to(device, torch.float32) for part in (exact.cos(), exact.sin())))


def turned(x: Tensor, turn: Turn | Tensor, pairing: Pairing, heads: int = 1) -> Tensor:
    """Turns the pairs of all heads. x: ... N C with C = heads * D; turn: N D/2 (or any shape that
    broadcasts with ... N D/2), or the angles -> ... N C in x's dtype, computed in float32."""
    turn = Turn.by(turn, x.device) if isinstance(turn, Tensor) else turn
    split = x.float().unflatten(-1, (heads, -1))  # ... N H D
    cos, sin = turn.cos.unsqueeze(-2), turn.sin.unsqueeze(-2)  # ... N 1 D/2
    if pairing == "halves":
        a, b = split.chunk(2, dim=-1)
        pairs = torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)
    else:
        a, b = split[..., 0::2], split[..., 1::2]
        pairs = torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2)
    return pairs.flatten(-2).to(x.dtype)


@dataclass(frozen=True)
class Coordinates:
    """Where the tokens of one picture lie.

    grid: its rows and columns of tokens; index: its coordinate on axis 0 (Z-Image and Lumina2: the
    padded length of the text plus one); is_centred: rows and columns count from its middle (Qwen),
    else from its top left corner.
    """

    grid: tuple[int, int]
    index: float = 0.0
    is_centred: bool = False

    @property
    def origin(self) -> tuple[int, int]:
        """The row and the column of its first token."""
        rows, columns = self.grid
        return (-(rows // 2), -(columns // 2)) if self.is_centred else (0, 0)

    def positions(self, axes: int) -> Tensor:
        """Of all its tokens, row by row: N A, float64."""
        rows, columns = self.grid
        out = torch.zeros(rows, columns, axes, dtype=torch.float64)
        out[..., INDEX] = self.index
        out[..., ROW] = torch.arange(rows)[:, None] + self.origin[0]
        out[..., COLUMN] = torch.arange(columns) + self.origin[1]
        return out.flatten(0, 1)


@dataclass(frozen=True)
class ReferencePlace:
    """Where a reference's keys are to lie.

    placement: 'same', at its own rows and columns; 'aside', to the right of the picture and of the
    references before it, where nothing overlaps; 'index', at its own rows and columns of another
    picture of the sequence, as edit models are trained; 'attenuated', at its own rows and columns,
    but told by slow pairs only (Untwisting RoPE, arXiv 2602.05013); 'region', so that the box of
    its mask lies on the box of the concept's region (both `box_of_most`). All of them move it to
    the picture's own index first, which depends on the length of the text in some models.
    columns_before: of tokens, of the references that already lie aside; number: how many references
    come before it; index_step: how far apart a model has the pictures of a sequence (Flux.2: 10);
    mask_box: in tokens of the reference; region_box: in tokens of the picture; without one of the
    two 'region' is 'same'.
    """

    placement: Placement = "same"
    columns_before: int = 0
    number: int = 0
    index_step: float = 1.0
    mask_box: Box | None = None
    region_box: Box | None = None

    def positions(self, reference: Coordinates, picture: Coordinates, axes: int) -> Tensor:
        """Of all the reference's tokens, once they are moved: N A, float64."""
        out = reference.positions(axes)
        out[:, INDEX] = picture.index
        if self.placement == "index":
            out[:, INDEX] += (1 + self.number) * self.index_step
        elif self.placement == "aside":
            first = picture.origin[1] + picture.grid[1] + self.columns_before
            out[:, COLUMN] += first - reference.origin[1]
        elif self.placement == "region" and self.mask_box and self.region_box:
            mask, region = self.mask_box, self.region_box
            sides = (
                (ROW, mask.y, mask.height, region.y, region.height),
                (COLUMN, mask.x, mask.width, region.x, region.width),
            )
            for axis, start, length, to, to_length in sides:
                # A token's box reaches half a token around it.
                side = axis - ROW
                share = (out[:, axis] - reference.origin[side] + 0.5 - start) / length
                out[:, axis] = to + share * to_length - 0.5 + picture.origin[side]
        return out

    def angles(self, rotary: Rotary, reference: Coordinates, picture: Coordinates) -> Tensor:
        """By how much the reference's keys, already turned by the model, must be turned to lie
        there: N D/2, float64, radians. For `turned`."""
        axes = len(rotary.axes)
        was, now = reference.positions(axes), self.positions(reference, picture, axes)
        if self.placement != "attenuated":
            return rotary.angles(now - was)
        # Fast pairs turn as slowly as the fastest of the slow ones.
        place = [ROW, COLUMN]
        attenuated = rotary.frequencies.clamp(max=_SLOW)[place]
        index = [axis for axis in range(axes) if axis not in place]
        return (
            now[:, place] @ attenuated
            + now[:, index] @ rotary.frequencies[index]
            - rotary.angles(was)
        )
