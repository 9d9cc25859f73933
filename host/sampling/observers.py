"""Who wants to see what the picture looks at, while reference attention runs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from ...magic.reference_attention import ReferenceTokens, RegionTokens
from .patch import Run, SamplingPatch, SamplingStart
from .references import Reference


@dataclass(frozen=True, eq=False)
class ReferenceView:
    """What one attention layer saw of the references in one model call.

    step: of the run, from 0; sigma: of the call; downscale: side of the layer's tokens in latent
    pixels; grid: rows and columns of the tokens; heads: of the layer; q, k: B N C and B M C, of the
    picture; bank: the tokens of each concept; regions: which concept each token sees (RBA), None
    when all see all of them (RSA).
    """

    step: int
    sigma: float
    downscale: int
    grid: tuple[int, int]
    heads: int
    q: Tensor
    k: Tensor
    bank: Sequence[ReferenceTokens]
    regions: Sequence[RegionTokens] | None


class ReferenceRunObserver(Protocol):
    """Follows one sampling run."""

    def see(self, view: ReferenceView) -> None:
        """A layer has looked at the references, in rows that show the whole picture."""
        ...

    def finish(self, samples: Tensor) -> None:
        """The run has made `samples`. Not called when it was cancelled."""
        ...


class ReferenceObserver(Protocol):
    """Belongs to a patch. Opened at the start of each of its runs."""

    def open(
        self,
        start: SamplingStart,
        references: Sequence[Reference],
        downscales: set[int],
        pixels: int,
    ) -> ReferenceRunObserver:
        """A sampling run begins. downscales: of the layers that look at references; pixels: of the
        picture along a side of a latent pixel."""
        ...


class ObservedPatch(SamplingPatch[Run], ABC):
    """A patch whose runs look at references, and show what they look at."""

    @property
    @abstractmethod
    def phrases(self) -> tuple[str, ...]:
        """What the references are of, concept by concept."""

    @property
    @abstractmethod
    def pixels(self) -> int:
        """Pixels of the picture along a side of a latent pixel."""

    @abstractmethod
    def with_observer(self, observer: ReferenceObserver) -> SamplingPatch[Any]:
        """The same patch, with one more that looks on."""
