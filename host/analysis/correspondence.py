"""Watching, during a MagicFace run, where in the references a place of the picture looks.

A watched MODEL is the same MODEL with a `CorrespondenceWatch` in its MagicFace patch. After
sampling nothing is held but a small map for each reference, and an `Exploration` if it was asked
for.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...magic.boxes import Point
from ...magic.correspondence import as_picture, cells_at_points, cells_in_mask, reference_shares
from ...magic.reference_attention import ReferenceTokens, RegionTokens
from ..sampling.references import Reference, joined_places
from ..sampling.run_record import RunRecord
from .exploration import Exploration, ExplorationRun

_PIXELS_A_CELL = 8


@dataclass(frozen=True, eq=False)
class Correspondence:
    """One run. maps: for each reference B h w at its latent's size, relative; shares: B R, the part
    of the attention that each reference got, 0..1; concepts: for each reference the index of its
    concept; exploration: the same for other places, None if not asked for.
    """

    maps: tuple[Tensor, ...]
    shares: Tensor
    concepts: tuple[int, ...]
    exploration: Exploration | None = None


class CorrespondenceRecord(RunRecord[Correspondence]):
    """The correspondences of the last sampling runs."""

    what = "correspondence"
    # One that is explored takes up to 32 MB.
    runs_kept = 8


@dataclass(frozen=True, eq=False)
class CorrespondenceWatch:
    """Which queries are watched, and when. points: pixels of the picture; mask: H W, used instead
    when given; start, end: sigmas; explores: whether places all over the picture are watched too,
    each by itself."""

    record: CorrespondenceRecord
    points: tuple[Point, ...]
    mask: Tensor | None
    start: float
    end: float
    explores: bool = False

    def covers(self, sigma: float) -> bool:
        return self.end <= sigma <= self.start

    def check(self, latent_size: tuple[int, int]) -> None:
        """ValueError when a point is outside the picture."""
        height, width = (side * _PIXELS_A_CELL for side in latent_size)
        for x, y in self.points if self.mask is None else ():
            if not (0 <= x < width and 0 <= y < height):
                raise ValueError(
                    f"point {x:g},{y:g} is outside the picture, which is {width}x{height}"
                )

    def cells(self, latent_size: tuple[int, int], grid: tuple[int, int]) -> Tensor:
        if self.mask is not None:
            return cells_in_mask(self.mask, grid)
        height, width = (side * _PIXELS_A_CELL for side in latent_size)
        return cells_at_points(self.points, (height, width), grid)


class CorrespondenceRun:
    """What one sampling run has shown so far: sums over layers and steps.

    latent: shape of what is sampled, B C h w; downscales: those of the watched layers.
    """

    def __init__(
        self,
        watch: CorrespondenceWatch,
        references: Sequence[Reference],
        latent: tuple[int, ...],
        steps: int,
        downscales: set[int],
    ):
        self._latent_size = (latent[-2], latent[-1])
        watch.check(self._latent_size)
        self.watch, self._references = watch, references
        self._exploring = (
            ExplorationRun(references, latent, steps, downscales) if watch.explores else None
        )
        self._maps: dict[tuple[int, int], Tensor] = {}
        self._shares: dict[tuple[int, int], Tensor] = {}
        self._seen = 0
        self._images = 0

    def see(
        self,
        q: Tensor,
        k: Tensor,
        bank: Sequence[ReferenceTokens],
        regions: Sequence[RegionTokens] | None,
        grid: tuple[int, int],
        downscale: int,
        heads: int,
        step: int,
    ) -> None:
        """One layer. q, k: B N C; bank: the tokens of each concept; regions: which concept each
        token sees (RBA), None for all (RSA)."""
        if self._exploring:
            self._exploring.see(q, k, bank, regions, grid, downscale, heads, step)
        cells = self.watch.cells(self._latent_size, grid).to(q.device)
        self._images, self._seen = q.shape[0], self._seen + 1
        everything = tuple(range(len(bank)))
        groups = (
            [(image, everything, cells) for image in range(q.shape[0])]
            if regions is None
            else [
                (r.image, (r.concept,), cells[torch.isin(cells, r.index.to(q.device))])
                for r in regions
                if r.concept is not None
            ]
        )
        for image, concepts, queries in groups:
            if len(queries):
                found = reference_shares(
                    q[image, queries], k[image], [bank[concept] for concept in concepts], heads
                )
                for concept, shares in zip(concepts, found, strict=True):
                    self._add(image, concept, shares / len(cells), downscale)

    def _add(self, image: int, concept: int, shares: Tensor, downscale: int) -> None:
        start = 0
        for i, index, grid in joined_places(self._references, concept, downscale):
            own, start = shares[start : start + len(index)], start + len(index)
            height, width = self._references[i].latent.shape[-2:]
            picture = as_picture(own, index, grid, (height, width))
            key = (i, image)
            self._maps[key] = self._maps[key] + picture if key in self._maps else picture
            self._shares[key] = self._shares[key] + own.sum() if key in self._shares else own.sum()

    def result(self) -> Correspondence | None:
        """None when nothing was watched."""
        if not self._seen:
            return None
        maps = []
        for i, reference in enumerate(self._references):
            empty = torch.zeros(reference.latent.shape[-2:])
            maps.append(
                torch.stack(
                    [self._maps.get((i, image), empty).cpu() for image in range(self._images)]
                )
                / self._seen
            )
        shares = [
            [float(self._shares.get((i, image), 0.0)) / self._seen for i in range(len(maps))]
            for image in range(self._images)
        ]
        explored = self._exploring.result() if self._exploring else None
        return Correspondence(
            tuple(maps),
            torch.tensor(shares),
            tuple(reference.concept for reference in self._references),
            explored,
        )


def watched(
    model: Any,
    points: tuple[Point, ...],
    mask: Tensor | None,
    start: float,
    end: float,
    explores: bool,
) -> tuple[Any, CorrespondenceRecord]:
    """A clone of a MagicFace MODEL that watches, and its record. start, end: parts of sampling,
    0..1; explores: as in the watch.

    ValueError for any other MODEL.
    """
    import comfy.patcher_extension as extension

    from ..systems.magicface import MagicFacePatch

    clone = model.clone()
    for wrappers in clone.wrappers.get(extension.WrappersMP.OUTER_SAMPLE, {}).values():
        for i, wrapper in enumerate(wrappers):
            patch = getattr(wrapper, "__self__", None)
            if isinstance(patch, MagicFacePatch) and patch.references:
                sampling = model.get_model_object("model_sampling")
                record = CorrespondenceRecord(patch.prompt.phrases)
                sigmas = (float(sampling.percent_to_sigma(percent)) for percent in (start, end))
                watching = dataclasses.replace(
                    patch,
                    correspondence=CorrespondenceWatch(record, points, mask, *sigmas, explores),
                )
                wrappers[i] = watching.outer_sample
                return clone, record
    raise ValueError(
        "this MODEL does not look at references: connect the MODEL output of MagicFace Apply"
    )
