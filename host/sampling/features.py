"""The features of the step that runs: kept from an earlier run, or seen in a reference pass now."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

from torch import Tensor

from .backbone import Backbone, LayerKey, LayerView
from .feature_store import FeatureStore
from .options import ModelOptions
from .reference_pass import ReferencePass, features_key

Entry = TypeVar("Entry")
FeatureBank = dict[LayerKey, list[Entry]]
"""For every layer what it saw, picture by picture or concept by concept."""


class Gatherer(Protocol[Entry]):
    """Takes what a reference pass shows, and makes a bank of it."""

    def take(self, reference: int, view: LayerView, row: int) -> None:
        """A layer has seen a reference, in this row of the view."""
        ...

    def bank(self) -> FeatureBank[Entry]:
        """All that was taken."""
        ...


class StepFeatures(Generic[Entry]):
    """The features of one sampling run, step by step.

    guider: the host's; references: the passes of this run; store: what is kept between runs, if
    anything; gatherer: a new one for each pass; is_repeatable: whether a step that calls the model
    twice sees the same references twice.
    """

    def __init__(
        self,
        guider: Any,
        backbone: Backbone,
        references: ReferencePass,
        store: FeatureStore | None,
        gatherer: Callable[[], Gatherer[Entry]],
        is_repeatable: bool = True,
    ):
        self._guider, self._backbone, self._references = guider, backbone, references
        self._store, self._gatherer, self._is_repeatable = store, gatherer, is_repeatable
        self._last: tuple[float, FeatureBank[Entry]] | None = None

    def at(self, sigma: float, timestep: Tensor, model_options: ModelOptions) -> FeatureBank[Entry]:
        """The features of a model call. timestep: its sigma for each picture, B; model_options: its
        own, with what other nodes have set."""
        if self._last is not None and self._last[0] == sigma and self._is_repeatable:
            return self._last[1]
        # Room for those of this step.
        self._last = None
        key = features_key(self._guider, self._backbone, sigma, model_options)
        bank = self._kept(key, timestep)
        if bank is None:
            gatherer = self._gatherer()
            model = self._guider.inner_model
            self._references.run(model, timestep, model_options, gatherer.take)
            bank = gatherer.bank()
            if self._store:
                self._store.keep(key, bank)
        self._last = (sigma, bank)
        return bank

    def _kept(self, key: tuple[Any, ...], like: Tensor) -> FeatureBank[Entry] | None:
        # The store does not know what kind of entries it holds.
        kept: Any = self._store.get(key, like.device) if self._store else None
        bank: FeatureBank[Entry] | None = kept
        return bank

    def close(self) -> None:
        """The run is over: what was kept before and is not used any more may go."""
        self._last = None
        if self._store:
            self._store.end_run()
