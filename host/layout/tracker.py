"""Measures the semantic layout while a model runs: attention maps of our rows, reduced layer by
layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ...magic import layout as maths
from ...magic.layout import SemanticLayout
from ..sampling.backbone import Backbone, LayerView, Watch
from ..sampling.options import ModelOptions
from ..sampling.rows import SamplingRows
from ..text.prompts import TaggedPrompt


@dataclass
class _Mean:
    """A running mean of maps over layers. total: their sum; count: how many there were."""

    total: Tensor | None = None
    count: int = 0

    def add(self, maps: Tensor) -> None:
        self.total = maps if self.total is None else self.total + maps
        self.count += 1

    def over(self, layers: int) -> Tensor | None:
        """The mean; None when not so many layers were seen: a step cache has left some out, and
        what the others show is another picture."""
        return None if self.total is None or self.count < layers else self.total / self.count


@dataclass
class _Measurement:
    """What one model call has shown so far, by the id of the cond.

    self_attention: of the layer that runs; tokens: maps of all tokens of our prompts; foreground:
    of the negative prompts, maps of what marks the background and of the rest; layers: (cond,
    block) that were measured.
    """

    self_attention: dict[Any, Tensor] = field(default_factory=dict)
    tokens: dict[Any, _Mean] = field(default_factory=dict)
    foreground: dict[Any, _Mean] = field(default_factory=dict)
    layers: set[tuple[Any, ...]] = field(default_factory=set)


class LayoutTracker:
    """The layouts of one sampling run. `latest` holds, by the id of the cond, what the last
    measured model call showed.

    prompt: with its phrases; ca_scale: as for `semantic_layout`.
    """

    def __init__(self, backbone: Backbone, prompt: TaggedPrompt, ca_scale: float):
        self._backbone, self._ca_scale = backbone, ca_scale
        # What is no word (templates, padding) owns nothing.
        self._words, spans = prompt.words, prompt.spans
        if self._words is not None:
            column = {position: i for i, position in enumerate(self._words)}
            spans = tuple(tuple(column[position] for position in span) for span in spans)
        self._spans = spans
        self._layers = {layer.block: layer for layer in backbone.layers}
        self._rows = SamplingRows()
        self._latent_size = (0, 0)
        self._size = (0, 0)
        self._blocks = 0
        self._open: _Measurement | None = None
        self._foregrounds: dict[Any, Tensor] = {}
        self.latest: dict[Any, SemanticLayout] = {}

    def layout_of(self, cond: Any) -> SemanticLayout | None:
        """The last layout of a cond; of any other of ours when it has none yet (its time range may
        just have begun)."""
        return self.latest.get(cond) or next(iter(self.latest.values()), None)

    @property
    def whole(self) -> SemanticLayout | None:
        """The last layout that covers the whole picture."""
        return next(
            (layout for cond, layout in self.latest.items() if cond not in self._rows.areas), None
        )

    @property
    def picture(self) -> SemanticLayout | None:
        """What there is to show: the whole, or else the parts that our prompt is limited to, each
        in its place."""
        if self.whole is not None or not self.latest:
            return self.whole
        parts = [(layout, self._rows.areas[cond]) for cond, layout in self.latest.items()]
        return maths.joined(parts, self._latent_size)

    def begin(
        self, rows: SamplingRows, model_options: ModelOptions, shape: Sequence[int]
    ) -> ModelOptions:
        """Starts measuring a model call on latents of `shape`: model options in which the attention
        layers report to this tracker."""
        self._rows, self._open = rows, _Measurement()
        self._latent_size = (shape[-2], shape[-1])
        blocks = self._backbone.layout_blocks(self._latent_size)
        self._blocks = len(blocks)
        finest = self._layers[blocks[0]].downscale
        self._size = (-(-shape[-2] // finest), -(-shape[-1] // finest))
        # Where nothing marks the background, the negative prompt has nothing to tell.
        negative = rows.negative if self._backbone.background_columns(1) else frozenset()
        watch = Watch(
            blocks,
            rows.ours | negative,
            shape[0],
            image=self._look_at_image if self._backbone.spreads_words else None,
            text=self._look_at_text,
        )
        return self._backbone.with_watch(model_options, watch)

    def finish(self) -> bool:
        """Ends the measurement of a model call: further passes at the same step (PAG, SAG, ...) are
        not measured. False: it had ended, or showed nothing."""
        measurement, self._open = self._open, None
        if measurement is None:
            return False
        areas, latest = self._rows.areas, dict[Any, SemanticLayout]()
        for cond in self._rows.negative & measurement.foreground.keys():
            if (columns := measurement.foreground[cond].over(self._blocks)) is not None:
                self._foregrounds[areas.get(cond)] = maths.is_described(columns)
        for cond, mean in measurement.tokens.items():
            if (maps := mean.over(self._blocks)) is not None:
                # Guidance that pauses leaves us the last foreground; before it there is none.
                foreground = self._foregrounds.get(areas.get(cond))
                if foreground is None or foreground.shape[0] != maps.shape[0]:
                    foreground = maths.is_described_by_phrases(maps, self._spans)
                layout = maths.semantic_layout(maps, foreground, self._spans, self._ca_scale)
                latest[cond] = layout if self._words is None else layout.renamed(self._words)
        self.latest = latest or self.latest
        return bool(latest)

    def _measurement_of(self, view: LayerView) -> _Measurement | None:
        """Where a layer's maps go; None when it has been measured, or is not to be."""
        block, place = view.layer
        # The deepest transformer block speaks for its UNet block: SDXL has up to ten in one.
        if self._open is None or place != self._layers[block].depth - 1:
            return None
        return None if (view.cond, block) in self._open.layers else self._open

    def _look_at_image(self, view: LayerView) -> None:
        if (measurement := self._measurement_of(view)) is not None:
            measurement.self_attention[view.cond] = self._backbone.image_attention(view)

    def _look_at_text(self, view: LayerView) -> None:
        if (measurement := self._measurement_of(view)) is None:
            return
        measurement.layers.add((view.cond, view.layer[0]))
        within = measurement.self_attention.pop(view.cond, None)
        if within is None and self._backbone.spreads_words:
            raise ValueError(
                f"layer {view.layer[0]}: another node draws the picture's attention here without"
                " calling what stood there, so that the layout cannot be measured: remove that"
                " node, or this one"
            )

        def spread(columns: Tensor) -> Tensor:
            return columns if within is None else maths.propagate(within, columns)

        length = self._rows.lengths.get(view.cond, view.k.shape[1])
        cross = self._backbone.text_attention(view, length)
        if view.cond in self._rows.ours:
            if self._words is not None:
                cross = cross[..., list(self._words)]
            maps = maths.token_maps(spread(cross), view.grid, self._size)
            measurement.tokens.setdefault(view.cond, _Mean()).add(maps)
        else:
            background = self._backbone.background_columns(cross.shape[-1])
            columns = spread(maths.foreground_columns(cross, background))
            foreground = maths.token_maps(columns, view.grid, self._size)
            measurement.foreground.setdefault(view.cond, _Mean()).add(foreground)
