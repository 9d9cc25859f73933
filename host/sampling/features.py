"""The features of the step that runs: seen in a reference pass now or at a noise level near by, or
kept from an earlier run."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, Generic, Protocol, TypeVar

from torch import Tensor

from ...magic.blocks import Block
from ...magic.reference_passes import NoiseBands, is_served
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

    guider: the host's; backbone: of the model; blocks: that are looked at; references: the passes
    of this run; store: what is kept between runs, if anything; gatherer: a new one for each pass;
    bands: of noise levels that share a pass, None for one at each level.
    passes: how many there were; hits: how many were not needed because of the store; calls: of the
    model.
    """

    def __init__(
        self,
        guider: Any,
        backbone: Backbone,
        blocks: Collection[Block],
        references: ReferencePass,
        store: FeatureStore | None,
        gatherer: Callable[[], Gatherer[Entry]],
        bands: NoiseBands | None = None,
    ):
        self._guider, self._backbone, self._references = guider, backbone, references
        self._store, self._gatherer, self._bands = store, gatherer, bands
        self.passes = self.hits = self.calls = 0
        self._layers = {
            (layer.block, place)
            for layer in backbone.layers
            if layer.block in blocks
            for place in range(layer.depth)
        }
        self._last: tuple[tuple[Any, ...], FeatureBank[Entry]] | None = None

    def at(
        self, sigma: float, timestep: Tensor, model_options: ModelOptions, hooks: Any = None
    ) -> FeatureBank[Entry]:
        """The features of a model call. timestep: its sigma for each picture, B; model_options: its
        own, with what other nodes have set; hooks: as for `ReferencePass.run`."""
        self.calls += 1
        key = features_key(self._guider, self._backbone, sigma, model_options, hooks)
        if self._last is not None and self._serves(self._last[0], key):
            return self._last[1]
        # Room for those of this step.
        self._last = None
        bank = self._from_store(key, timestep)
        if bank is None:
            bank = self._fresh(timestep, model_options, hooks)
            self.passes += 1
            if self._store:
                self._store.keep(key, bank)
        else:
            self.hits += 1
        self._last = (key, bank)
        return bank

    def _serves(self, pass_key: tuple[Any, ...], key: tuple[Any, ...]) -> bool:
        """Whether features with one key do for a model call with another: of a noise level near by,
        and of all else the same."""
        return pass_key[1:] == key[1:] and is_served(pass_key[0], key[0], self._bands)

    def summary(self) -> str:
        """A sentence for the log: how often the references were looked at."""
        note = f", {self.hits} kept from an earlier run" if self.hits else ""
        return f"{self.passes} reference passes for {self.calls} model calls{note}"

    def _fresh(
        self, timestep: Tensor, model_options: ModelOptions, hooks: Any
    ) -> FeatureBank[Entry]:
        """What a reference pass shows. Past what other nodes put around the model if they leave
        out layers, as step caches do."""
        for is_bare in (False, True):
            gatherer = self._gatherer()
            self._references.run(
                self._guider.inner_model, timestep, model_options, gatherer.take, hooks, is_bare
            )
            bank = gatherer.bank()
            if self._layers <= bank.keys():
                return bank
        missing = ", ".join(sorted({str(block) for block, _ in self._layers - bank.keys()}))
        raise ValueError(
            f"another node kept the references from layers {missing}: remove nodes that cache"
            " steps or skip layers, or leave these layers out"
        )

    def _from_store(self, key: tuple[Any, ...], like: Tensor) -> FeatureBank[Entry] | None:
        # The store does not know what kind of entries it holds.
        entry: Any = self._store.get(key, like.device) if self._store else None
        bank: FeatureBank[Entry] | None = entry
        return bank

    def close(self) -> None:
        """The run is over: what was kept before and is not used any more may go."""
        self._last = None
        if self._store:
            self._store.end_run()
