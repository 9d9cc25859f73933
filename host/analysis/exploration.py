"""Where in the references every place of a picture looked, by layer group and step: recorded in a
sampling run, asked for afterwards.

Places are sampled on a coarse grid and maps reduced to another one, so that nothing of the size of
an attention matrix is ever made.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...magic.correspondence import (
    as_coarse_maps,
    cells_at_centres,
    coarse_size,
    quantised,
    query_shares,
)
from ..sampling.observers import ReferenceView
from ..sampling.references import Reference, places_of_concept
from .queries import queries_by_concepts

MOST_PLACES = 16
"""On the longer side of a picture."""
MOST_CELLS = 16
"""On the longer side of a reference."""
MOST_BYTES = 32 * 1024**2
"""Of a run's exploration. When it does not fit, every second, third... step is recorded; in the
last resort only the first pictures."""
_BYTES_A_MAP = 8
"""Of a map's peak and share."""


@dataclass(frozen=True, eq=False)
class StepMaps:
    """What one layer group did in one step. levels: for each reference B S h w uint8, 255 at its
    place's peak; peaks, shares: B S R, the highest value of each map, and the part of the attention
    that the reference got, 0..1."""

    levels: tuple[Tensor, ...]
    peaks: Tensor
    shares: Tensor


@dataclass(frozen=True)
class LookedAt:
    """One answer. place: x, y, width and height of the cell that was asked for, 0..1; shares: for
    each reference, 0..1; maps: for each reference h w, on one scale."""

    place: tuple[float, float, float, float]
    shares: tuple[float, ...]
    maps: tuple[Tensor, ...]


@dataclass(frozen=True, eq=False)
class Exploration:
    """One run. key: an unguessable name; total: steps of the run; pictures: how many of its batch
    are recorded; grids: for each layer group, finest first, rows and columns of the places; maps:
    by group and step."""

    total: int
    pictures: int
    grids: dict[str, tuple[int, int]]
    maps: dict[tuple[str, int], StepMaps]
    key: str = field(default_factory=secrets.token_urlsafe)

    @property
    def steps(self) -> list[int]:
        """Those that are recorded, from 0."""
        return sorted({step for _, step in self.maps})

    @property
    def bytes(self) -> int:
        tensors = [
            tensor
            for maps in self.maps.values()
            for tensor in (*maps.levels, maps.peaks, maps.shares)
        ]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def pick(self, pictures: Sequence[int]) -> Exploration:
        """Those of some of the pictures, as far as they are recorded."""
        rows = [picture for picture in pictures if picture < self.pictures]
        maps = {
            place: StepMaps(
                tuple(levels[rows] for levels in step.levels), step.peaks[rows], step.shares[rows]
            )
            for place, step in self.maps.items()
        }
        return Exploration(self.total, len(rows), self.grids, maps)

    def most_looking(self) -> tuple[float, float]:
        """The place of the first picture that looked at references most, in the finest layers of
        the last step: x, y in 0..1."""
        group, (rows, columns) = next(iter(self.grids.items()))
        row, column = divmod(
            int(self.maps[group, self.steps[-1]].shares[0].sum(-1).argmax()), columns
        )
        return (column + 0.5) / columns, (row + 0.5) / rows

    def look(self, picture: int, x: float, y: float, step: int, group: str) -> LookedAt:
        """Where the place x, y (0..1) of a picture looked. ValueError for what was not recorded."""
        if group not in self.grids:
            raise ValueError(
                f"there is no layer group '{group}': known are {', '.join(self.grids)}"
            )
        if (group, step) not in self.maps:
            raise ValueError(
                f"step {step} was not recorded: known are {', '.join(map(str, self.steps))}"
            )
        if not 0 <= picture < self.pictures:
            raise ValueError(f"there is no picture {picture}: known are 0 to {self.pictures - 1}")
        if not (0 <= x <= 1 and 0 <= y <= 1):
            raise ValueError(f"the place {x:g},{y:g} is outside the picture: give both in 0 to 1")
        rows, columns = self.grids[group]
        row, column = min(int(y * rows), rows - 1), min(int(x * columns), columns - 1)
        step_maps, place = self.maps[group, step], row * columns + column
        maps = [
            levels[picture, place].float() * peak / 255
            for levels, peak in zip(
                step_maps.levels, step_maps.peaks[picture, place].tolist(), strict=True
            )
        ]
        shares = tuple(step_maps.shares[picture, place].tolist())
        return LookedAt((column / columns, row / rows, 1 / columns, 1 / rows), shares, tuple(maps))


@dataclass(eq=False)
class _Sums:
    """What a layer group has shown in the step that runs. maps: for each reference B S h w; shares:
    B S R."""

    maps: list[Tensor]
    shares: Tensor
    layers: int = 0


class ExplorationRun:
    """What one sampling run has shown so far. latent: shape of what is sampled, B C h w;
    downscales: those of the watched layers."""

    def __init__(
        self,
        references: Sequence[Reference],
        latent: tuple[int, ...],
        steps: int,
        downscales: set[int],
    ):
        self._references, self._total = references, steps
        self._tokens = {
            scale: (-(-latent[-2] // scale), -(-latent[-1] // scale))
            for scale in sorted(downscales)
        }
        self._grids = {
            scale: coarse_size(tokens, MOST_PLACES) for scale, tokens in self._tokens.items()
        }
        self._places = {
            (scale, concept): places_of_concept(references, concept, scale)
            for scale in downscales
            for concept in {reference.concept for reference in references}
        }
        self._sizes = {
            (scale, i): coarse_size(grid, MOST_CELLS)
            for (scale, _), places in self._places.items()
            for i, _, grid in places
        }
        each = sum(
            self._grids[scale][0] * self._grids[scale][1] * (height * width + _BYTES_A_MAP)
            for (scale, _), (height, width) in self._sizes.items()
        )
        # Counted from the last step, which is the one that is looked at first.
        every = -(-steps * latent[0] * each // MOST_BYTES)
        self._pictures = min(latent[0], MOST_BYTES // each)
        self._steps = frozenset(range(steps - 1, -1, -max(1, every)) if self._pictures else ())
        self._step: int | None = None
        self._sums: dict[int, _Sums] = {}
        self._maps: dict[tuple[str, int], StepMaps] = {}

    def see(self, view: ReferenceView) -> None:
        """One layer of one model call."""
        if view.step not in self._steps:
            return
        if view.step != self._step:
            self._finish_step()
            self._step = view.step
        scale = view.downscale
        cells = cells_at_centres(self._grids[scale], view.grid).to(view.q.device)
        if scale not in self._sums:
            self._sums[scale] = self._empty(scale, view.q.device)
        sums = self._sums[scale]
        sums.layers += 1
        for image, concepts, places in queries_by_concepts(view, cells):
            if image < self._pictures:
                queries = view.q[image, cells[places]]
                bank = [view.bank[concept].of(image) for concept in concepts]
                each = query_shares(queries, view.k[image], bank, view.heads)
                for concept, shares in zip(concepts, each, strict=True):
                    self._add(sums, image, places, concept, shares, scale)

    def _empty(self, downscale: int, device: torch.device) -> _Sums:
        rows, columns = self._grids[downscale]
        shape = (self._pictures, rows * columns)
        maps = [
            torch.zeros(*shape, *self._sizes[downscale, i], device=device)
            for i in range(len(self._references))
        ]
        return _Sums(maps, torch.zeros(*shape, len(self._references), device=device))

    def _add(
        self, sums: _Sums, image: int, places: Tensor, concept: int, shares: Tensor, downscale: int
    ) -> None:
        start = 0
        for i, index, grid in self._places[downscale, concept]:
            own, start = shares[:, start : start + len(index)], start + len(index)
            sums.maps[i][image, places] += as_coarse_maps(
                own, index, grid, self._sizes[downscale, i]
            )
            sums.shares[image, places, i] += own.sum(1)

    def _finish_step(self) -> None:
        for downscale, sums in self._sums.items():
            levels, peaks = zip(*(quantised(maps / sums.layers) for maps in sums.maps), strict=True)
            maps = StepMaps(
                tuple(each.cpu() for each in levels),
                torch.stack(peaks, -1).cpu(),
                (sums.shares / sums.layers).cpu(),
            )
            assert self._step is not None
            self._maps[self._name(downscale), self._step] = maps
        self._sums = {}

    def _name(self, downscale: int) -> str:
        rows, columns = self._tokens[downscale]
        return f"{columns}x{rows}"

    def result(self) -> Exploration | None:
        """None when nothing was recorded."""
        self._finish_step()
        if not self._maps:
            return None
        groups = {group for group, _ in self._maps}
        grids = {
            self._name(scale): grid
            for scale, grid in self._grids.items()
            if self._name(scale) in groups
        }
        return Exploration(self._total, self._pictures, grids, self._maps)
