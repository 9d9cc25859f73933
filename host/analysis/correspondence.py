"""Watching, during a MagicFace run, where in the references a place of the picture looks.

A watched MODEL is the same MODEL with a `CorrespondenceWatch` in its MagicFace patch. After
sampling nothing is held but a small map for each reference, and an `Exploration` if it was asked
for.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...magic.boxes import Point
from ...magic.correspondence import as_picture, cells_at_points, cells_in_mask, reference_shares
from ..sampling.observers import ObservedPatch, ReferenceView
from ..sampling.patch import SamplingStart, patches_of
from ..sampling.range import SamplingRange
from ..sampling.references import Reference, places_of_concept
from ..sampling.run_record import RunRecord
from .exploration import Exploration, ExplorationRun
from .queries import queries_by_concepts

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher


@dataclass(frozen=True, eq=False)
class Correspondence:
    """One run. maps: for each reference B h w at its latent's size, relative; shares: B R, the part
    of the attention that each reference got, 0..1; concepts: for each reference the index of its
    concept; exploration: the same for other places, None if not asked for; layers: how often one
    was seen; last_sigma: where the run ended.
    """

    maps: tuple[Tensor, ...]
    shares: Tensor
    concepts: tuple[int, ...]
    exploration: Exploration | None = None
    layers: int = 0
    last_sigma: float = 0.0


class CorrespondenceRecord(RunRecord[Correspondence]):
    """The correspondences of the last sampling runs."""

    what = "correspondence"
    # One that is explored takes up to 32 MB.
    capacity = 8

    def pick(self, run: Correspondence, pictures: Sequence[int]) -> Correspondence:
        rows = list(pictures)
        return dataclasses.replace(
            run,
            maps=tuple(maps[rows] for maps in run.maps),
            shares=run.shares[rows],
            exploration=run.exploration.pick(rows) if run.exploration else None,
        )


@dataclass(frozen=True, eq=False)
class CorrespondenceWatch:
    """Which queries are watched, and when: a `ReferenceObserver`.

    record: where finished runs go; points: pixels of the picture; mask: H W, used instead when
    given; range: when; explores: whether places all over the picture are watched too, each by
    itself.
    """

    record: CorrespondenceRecord
    points: tuple[Point, ...]
    mask: Tensor | None
    range: SamplingRange
    explores: bool = False

    def open(
        self,
        start: SamplingStart,
        references: Sequence[Reference],
        downscales: set[int],
        pixels: int,
    ) -> CorrespondenceRun:
        """ValueError when a point is outside the picture, or there are no references."""
        if not references:
            raise ValueError(
                "the concepts of this MODEL are LoRAs alone, so that there is no reference to look"
                " at: give one an image (MagicFace Concept), or leave Correspondence out"
            )
        height, width = (side * pixels for side in start.latent_size)
        for x, y in self.points if self.mask is None else ():
            if not (0 <= x < width and 0 <= y < height):
                raise ValueError(
                    f"point {x:g},{y:g} is outside the picture, which is {width}x{height}"
                )
        return CorrespondenceRun(self, start, references, downscales, (height, width))

    def cells(self, picture: tuple[int, int], grid: tuple[int, int]) -> Tensor:
        """The watched tokens of a grid over a picture of rows, columns."""
        if self.mask is not None:
            return cells_in_mask(self.mask, grid)
        return cells_at_points(self.points, picture, grid)


class CorrespondenceRun:
    """What one sampling run has shown so far: sums over layers and steps.

    downscales: those of the watched layers; picture: rows and columns in pixels.
    """

    def __init__(
        self,
        watch: CorrespondenceWatch,
        start: SamplingStart,
        references: Sequence[Reference],
        downscales: set[int],
        picture: tuple[int, int],
    ):
        self._watch, self._references, self._picture = watch, references, picture
        self._range = watch.range.sigmas(start.model_sampling)
        self._exploring = (
            ExplorationRun(references, start.shape, start.steps, downscales)
            if watch.explores
            else None
        )
        self._maps: dict[tuple[int, int], Tensor] = {}
        self._shares: dict[tuple[int, int], Tensor] = {}
        self._layers = 0
        self._images = 0
        self._last_sigma = start.sigmas[-1]
        self._start = start.latent
        before = watch.record.run_that_made(start.latent)
        self._before = before if before and start.goes_on_from(before.last_sigma) else None

    def see(self, view: ReferenceView) -> None:
        """One layer of one model call."""
        if not self._range.covers(view.sigma):
            return
        if self._exploring:
            self._exploring.see(view)
        cells = self._watch.cells(self._picture, view.grid).to(view.q.device)
        self._images, self._layers = view.q.shape[0], self._layers + 1
        for image, concepts, places in queries_by_concepts(view, cells):
            queries = view.q[image, cells[places]]
            bank = [view.bank[concept].of(image) for concept in concepts]
            sums = reference_shares(queries, view.k[image], bank, view.heads)
            for concept, shares in zip(concepts, sums, strict=True):
                self._add(image, concept, shares / len(cells), view.downscale)

    def _add(self, image: int, concept: int, shares: Tensor, downscale: int) -> None:
        start = 0
        for i, index, grid in places_of_concept(self._references, concept, downscale):
            own, start = shares[start : start + len(index)], start + len(index)
            height, width = self._references[i].latent.shape[-2:]
            picture = as_picture(own, index, grid, (height, width))
            key = (i, image)
            self._maps[key] = self._maps[key] + picture if key in self._maps else picture
            self._shares[key] = self._shares[key] + own.sum() if key in self._shares else own.sum()

    def finish(self, samples: Tensor) -> None:
        self._watch.record.store(samples, self.result(), self._start)

    def result(self) -> Correspondence | None:
        """None when nothing was watched."""
        if not self._layers:
            before = self._before
            return dataclasses.replace(before, last_sigma=self._last_sigma) if before else None
        maps = []
        for i, reference in enumerate(self._references):
            empty = torch.zeros(reference.latent.shape[-2:])
            each = [self._maps.get((i, image), empty).cpu() for image in range(self._images)]
            maps.append(torch.stack(each) / self._layers)
        shares = [
            [float(self._shares.get((i, image), 0.0)) / self._layers for i in range(len(maps))]
            for image in range(self._images)
        ]
        result = Correspondence(
            tuple(maps),
            torch.tensor(shares),
            tuple(reference.concept for reference in self._references),
            self._exploring.result() if self._exploring else None,
            self._layers,
            self._last_sigma,
        )
        return _join(self._before, result) if self._before else result


def _join(first: Correspondence, second: Correspondence) -> Correspondence:
    """Two runs as one: means over the layers of both. What is explored is the second's."""
    layers = first.layers + second.layers
    share = first.layers / layers
    return dataclasses.replace(
        second,
        maps=tuple(
            share * one + (1 - share) * other
            for one, other in zip(first.maps, second.maps, strict=True)
        ),
        shares=share * first.shares + (1 - share) * second.shares,
        layers=layers,
    )


def watched_model(
    model: ModelPatcher,
    points: tuple[Point, ...],
    mask: Tensor | None,
    range: SamplingRange,
    explores: bool,
) -> tuple[Any, CorrespondenceRecord]:
    """A clone of a MODEL with references that watches, and its record; all as in the watch.

    ValueError for any other MODEL.
    """
    clone = model.clone()
    for wrappers, place, patch in patches_of(clone):
        if isinstance(patch, ObservedPatch):
            record = CorrespondenceRecord(patch.phrases, patch.pixels)
            watch = CorrespondenceWatch(record, points, mask, range, explores)
            wrappers[place] = patch.with_observer(watch).outer_sample
            return clone, record
    raise ValueError(
        "this MODEL does not look at references: connect the MODEL output of MagicFace Apply"
    )
