"""Measures the semantic layout while a model runs: attention maps of our rows, reduced layer by
layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ...magic import layout as maths
from ...magic.blocks import AttentionBlock, Block
from ...magic.layout import SemanticLayout
from ..sampling.attention import AttentionPatch, token_grid, wrap_attention
from ..sampling.rows import SamplingRows, chunk_slices

CHUNK_TOKENS = 77


@dataclass
class _Mean:
    """A running mean of maps over layers."""

    total: Tensor | None = None
    count: int = 0

    def add(self, maps: Tensor) -> None:
        self.total = maps if self.total is None else self.total + maps
        self.count += 1

    @property
    def value(self) -> Tensor | None:
        return None if self.total is None else self.total / self.count


@dataclass
class _Measurement:
    """What one model call has shown so far, by the id of the cond."""

    self_attention: dict[Any, Tensor] = field(default_factory=dict)
    tokens: dict[Any, _Mean] = field(default_factory=dict)
    foreground: dict[Any, _Mean] = field(default_factory=dict)
    seen: set[tuple[Any, ...]] = field(default_factory=set)


class LayoutTracker:
    """The layouts of one sampling run. `latest` holds, by the id of the cond, what the last
    measured model call showed."""

    def __init__(
        self, available: Sequence[AttentionBlock], spans: Sequence[Sequence[int]], ca_scale: float
    ):
        self._available = {layer.block: layer for layer in available}
        self._spans, self._ca_scale = spans, ca_scale
        self._rows, self._batch = SamplingRows(), 0
        self._latent_size: tuple[int, ...] = ()
        self._open: _Measurement | None = None
        self.latest: dict[Any, SemanticLayout] = {}

    def layout_of(self, cond_id: Any) -> SemanticLayout | None:
        """The last layout of a cond; of any other of ours when it has none yet (its time range may
        just have begun)."""
        return self.latest.get(cond_id) or next(iter(self.latest.values()), None)

    @property
    def whole(self) -> SemanticLayout | None:
        """The last layout that covers the whole picture."""
        return next(
            (layout for cond_id, layout in self.latest.items() if cond_id not in self._rows.areas),
            None,
        )

    @property
    def picture(self) -> SemanticLayout | None:
        """What there is to show: the whole, or else the parts that our prompt is limited to, each
        in its place."""
        if self.whole is not None or not self.latest:
            return self.whole
        return maths.joined(
            [(layout, self._rows.areas[cond_id]) for cond_id, layout in self.latest.items()],
            self._latent_size,
        )

    def begin(
        self, rows: SamplingRows, model_options: dict[str, Any], shape: Sequence[int]
    ) -> dict[str, Any]:
        """Starts measuring a model call on latents of `shape`: model options in which the attention
        layers report to this tracker."""
        self._rows, self._batch, self._open = rows, shape[0], _Measurement()
        self._latent_size = tuple(shape[-2:])
        levels = maths.layout_downscales(
            [layer.downscale for layer in self._available.values()], math.prod(self._latent_size)
        )
        blocks = [block for block, layer in self._available.items() if layer.downscale in levels]
        self._size = tuple(-(-side // levels[0]) for side in self._latent_size)
        model_options = wrap_attention(
            model_options,
            "attn1",
            blocks,
            lambda block, previous: self._observe(block, previous, self._on_self),
        )
        return wrap_attention(
            model_options,
            "attn2",
            blocks,
            lambda block, previous: self._observe(block, previous, self._on_cross),
        )

    def finish(self) -> bool:
        """Ends the measurement of a model call: further passes at the same step (PAG, SAG, ...) are
        not measured. False: it had ended."""
        measured, self._open = self._open, None
        if measured is None:
            return False
        if not measured.tokens:
            return True
        areas, latest = self._rows.areas, {}
        negatives = {
            areas.get(i): measured.foreground[i].value
            for i in self._rows.negative
            if i in measured.foreground
        }
        for cond_id, mean in measured.tokens.items():
            own, negative, maps = (
                measured.foreground[cond_id].value,
                negatives.get(areas.get(cond_id)),
                mean.value,
            )
            assert own is not None and maps is not None
            foreground = own if negative is None else negative
            latest[cond_id] = maths.semantic_layout(maps, foreground, self._spans, self._ca_scale)
        self.latest = latest
        return True

    def _observe(self, block: Block, previous: AttentionPatch, report: Any) -> AttentionPatch:
        depth = self._available[block].depth

        def patch(q: Tensor, k: Tensor, v: Tensor, extra_options: dict[str, Any]) -> Tensor:
            # The deepest transformer block speaks for its UNet block: SDXL has up to ten in one.
            if self._open is not None and extra_options.get("block_index", 0) == depth - 1:
                report(self._open, block, q, k, extra_options)
            return previous(q, k, v, extra_options)

        return patch

    def _watched(
        self, measurement: _Measurement, block: Block, extra_options: dict[str, Any], rows: int
    ) -> list[tuple[Any, slice]]:
        known = self._rows.ours | self._rows.negative
        chunks = chunk_slices(extra_options, rows, self._batch)
        return [
            (i, part) for i, part in chunks if i in known and (i, block) not in measurement.seen
        ]

    def _on_self(
        self,
        measurement: _Measurement,
        block: Block,
        q: Tensor,
        k: Tensor,
        extra_options: dict[str, Any],
    ) -> None:
        token_grid(q, extra_options)
        for cond_id, rows in self._watched(measurement, block, extra_options, q.shape[0]):
            measurement.self_attention[cond_id] = maths.head_mean_attention(
                q[rows], k[rows], extra_options["n_heads"]
            )

    def _on_cross(
        self,
        measurement: _Measurement,
        block: Block,
        q: Tensor,
        k: Tensor,
        extra_options: dict[str, Any],
    ) -> None:
        grid = token_grid(q, extra_options)
        for cond_id, rows in self._watched(measurement, block, extra_options, q.shape[0]):
            measurement.seen.add((cond_id, block))
            within = measurement.self_attention.pop(cond_id)
            cross = maths.head_mean_attention(q[rows], k[rows], extra_options["n_heads"])
            if cond_id in self._rows.ours:
                cross = fold_repeats(cross, self._rows.lengths[cond_id])
            starts = range(0, cross.shape[-1], CHUNK_TOKENS)
            if cond_id in self._rows.ours:
                propagated = maths.propagate(within, cross)
                measurement.tokens.setdefault(cond_id, _Mean()).add(
                    maths.token_maps(propagated, grid, self._size)
                )
                columns = maths.foreground_columns(propagated, starts)
            else:
                columns = maths.propagate(within, maths.foreground_columns(cross, starts))
            measurement.foreground.setdefault(cond_id, _Mean()).add(
                maths.token_maps(columns, grid, self._size)
            )


def fold_repeats(cross_attention: Tensor, length: int) -> Tensor:
    """Undoes what the host does to prompts of different lengths in one batch: it repeats the
    shorter one until both are as long."""
    tokens = cross_attention.shape[-1]
    if tokens == length or tokens % length:
        return cross_attention
    return torch.stack(cross_attention.split(length, dim=-1)).sum(0)
