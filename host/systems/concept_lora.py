"""LoRAs of concepts in a sampling run: each acts where its phrase is in the picture, by the layout
of the step before, by the region that the user painted, or by both."""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from ...magic.concept_regions import share_at
from ...magic.concepts import Concept, ConceptLora
from ..layout.patch import LayoutPatch
from ..layout.tracker import LayoutTracker
from ..sampling.adapters import Adapters, Injection, LayerAdapter, adapters_of
from ..sampling.backbone import (
    CallSize,
    LayerTokens,
    TextsOfConds,
    text_places,
    text_tokens,
)
from ..sampling.options import ModelOptions
from ..sampling.patch import SamplingStart
from ..sampling.range import SamplingRange, StrengthOverSampling
from ..sampling.rows import SamplingRows
from .regions import areas_of_conds, regions_of_concepts, share_in_area

_FEW_TOKENS = 2
"""A layer that sees no more than so many has no place in the picture: the time, the pooled text."""


@dataclass(frozen=True, eq=False)
class LoraOfConcept:
    """A LoRA on a model's layers. concept: index of the concept that it belongs to."""

    concept: int
    lora: ConceptLora
    adapters: Adapters


def loras_of(model: Any, concepts: Sequence[Concept]) -> tuple[LoraOfConcept, ...]:
    """The LoRAs of all concepts on a MODEL. ValueError when one is for another kind of model, or
    the host cannot let it act in places."""
    return tuple(
        # What a curve says is multiplied with in each call.
        LoraOfConcept(
            index,
            lora,
            adapters_of(
                model, lora.name, lora.weights, 1.0 if lora.curve is not None else lora.strength
            ),
        )
        for index, concept in enumerate(concepts)
        for lora in concept.loras
    )


@dataclass(eq=False)
class _Call:
    """A call of the network.

    size: what it runs on; conds: the ids of the prompts whose rows it has; batch: pictures;
    shares: for each concept where it is, B H W, None for nowhere; strengths: of each LoRA at this
    noise level, relative to that of its adapters; texts: of regions, whose tokens stand behind the
    prompt's; weights: what has been worked out for layers.
    """

    size: CallSize
    conds: Sequence[Any]
    batch: int
    shares: Sequence[Tensor | None]
    strengths: Mapping[LoraOfConcept, float]
    texts: TextsOfConds
    weights: dict[tuple[Any, ...], Tensor | None] = field(default_factory=dict)


class ConceptLoraRun:
    """The LoRAs of one sampling run."""

    def __init__(
        self, loras: Sequence[LoraOfConcept], layout: LayoutPatch, start: SamplingStart, key: str
    ):
        self._loras, self._layout, self._guider = loras, layout, start.guider
        self._latent_size = start.latent_size
        # Relative to that of its adapters.
        self._strengths = {
            lora: StrengthOverSampling(
                SamplingRange(lora.lora.start, lora.lora.end),
                lora.lora.curve,
                1.0,
                start.model_sampling,
            )
            for lora in loras
        }
        self._inside = {lora.concept for lora in loras if lora.lora.is_inside_target}
        self._rows = SamplingRows()
        self._areas: Mapping[Any, tuple[int, ...]] | None = None
        self._call: _Call | None = None
        self._unplaced: set[str] = set()
        by_module: dict[nn.Module, list[tuple[LoraOfConcept, LayerAdapter]]] = {}
        for lora in loras:
            for layer in lora.adapters.layers:
                by_module.setdefault(layer.module, []).append((lora, layer))
        acts = {
            module: functools.partial(self._add, entries) for module, entries in by_module.items()
        }
        self._layers = tuple(layer for lora in loras for layer in lora.adapters.layers)
        self._key, self._is_moved = key, False
        # The last thing: a run that cannot begin must leave nothing.
        self._injection = Injection(start.guider.model_patcher, key, acts)

    def __deepcopy__(self, memo: dict[int, Any]) -> ConceptLoraRun:
        return self

    def acting(
        self,
        rows: SamplingRows,
        tracker: LayoutTracker,
        options: ModelOptions,
        x: Tensor,
        sigma: float,
        texts: TextsOfConds,
    ) -> ModelOptions:
        """Options of a model call in which the LoRAs act, by the layout as the call before has left
        it; the same ones when that is nowhere, or none acts at this noise level. texts: of regions,
        whose tokens stand behind the prompt's in this call."""
        strengths = {lora: strength.at(sigma) for lora, strength in self._strengths.items()}
        shares = regions_of_concepts(self._layout, tracker, self._inside, x)
        if not any(strengths[lora] and shares[lora.concept] is not None for lora in self._loras):
            return options
        self._rows = rows
        if self._areas is None:
            self._areas = areas_of_conds(self._guider)
        if not self._is_moved:
            for layer in self._layers:
                layer.to(x.device)
            self._is_moved = True
        self._injection.ensure()
        return self._around_network(options, x.shape[0], shares, strengths, texts)

    def _around_network(
        self,
        options: ModelOptions,
        batch: int,
        shares: Sequence[Tensor | None],
        strengths: Mapping[LoraOfConcept, float],
        texts: TextsOfConds,
    ) -> ModelOptions:
        import comfy.patcher_extension as extension

        def around(
            executor: Any,
            x: Tensor,
            t: Tensor,
            c_concat: Tensor | None = None,
            c_crossattn: Tensor | None = None,
            control: Any = None,
            transformer_options: Mapping[str, Any] | None = None,
            **kwargs: Any,
        ) -> Tensor:
            inner = transformer_options or {}
            size = CallSize.of(x, c_crossattn, kwargs)
            if texts:
                size = replace(size, context=size.context + text_tokens(texts))
            before = self._call
            self._call = _Call(size, inner.get("uuids") or (), batch, shares, strengths, texts)
            try:
                result: Tensor = executor(
                    x, t, c_concat, c_crossattn, control, transformer_options, **kwargs
                )
            finally:
                self._call = before
            return result

        inner = dict(options.get("transformer_options", {}))
        wrappers = {kind: dict(keys) for kind, keys in inner.get("wrappers", {}).items()}
        wrappers.setdefault(extension.WrappersMP.APPLY_MODEL, {})[self._key] = [around]
        inner["wrappers"] = wrappers
        return {**options, "transformer_options": inner}

    def finish(self) -> None:
        """The run has made its picture."""
        if self._unplaced:
            logging.warning(
                "MagicFace Concept LoRA: in %d layers (such as %s) it is not known where the tokens"
                " are, because another node merges or cuts them: the LoRAs were off there",
                len(self._unplaced),
                min(self._unplaced),
            )

    def close(self) -> None:
        """The model is as before."""
        self._injection.remove()
        offload = self._guider.model_patcher.offload_device
        for layer in self._layers:
            layer.to(offload)
        self._call = None

    def _add(
        self,
        entries: Sequence[tuple[LoraOfConcept, LayerAdapter]],
        module: nn.Module,
        x: Tensor,
        output: Tensor,
    ) -> Tensor | None:
        """An `Added`: the layer's output with what the LoRAs add to it in their places."""
        call = self._call
        if call is None:
            return None
        result = None
        for lora, layer in entries:
            weight = self._weight(call, lora, layer, x, output)
            if weight is None:
                continue
            change = layer.added(x, output) * (weight * call.strengths[lora]).to(output)
            result = output.clone() if result is None else result
            if layer.part is not None and layer.part[0] == 0:
                _, start, length = layer.part
                result[..., start : start + length] += change
            else:
                result += change
        return result

    def _weight(
        self, call: _Call, lora: LoraOfConcept, layer: LayerAdapter, x: Tensor, output: Tensor
    ) -> Tensor | None:
        """How much of what an adapter adds is taken at each place: to be multiplied with it; None
        for nothing."""
        share = call.shares[lora.concept]
        if share is None or not call.strengths[lora]:
            return None
        is_conv = bool(layer.adapter.is_conv)
        # Some layers have a picture's time, of one, rows and columns apart.
        tokens = 1 if is_conv or x.ndim < 3 else math.prod(x.shape[1:-1])
        rows = len(call.conds) * call.batch
        # A mixture of experts has each of its layers see tokens of all rows, picked out.
        is_picked = not is_conv and x.ndim == 2 and x.shape[0] > rows
        if not is_conv and tokens <= _FEW_TOKENS and not is_picked:
            return share.new_ones(()) if lora.lora.is_global else None
        is_known = rows == x.shape[0] and (output.ndim >= 4 if is_conv else x.ndim in (3, 5))
        if is_conv:
            key: tuple[Any, ...] = (lora.concept, *output.shape[-2:])
            where = LayerTokens((0, 0), (0, 0), (output.shape[-2], output.shape[-1]))
        else:
            layer_tokens = self._layout.backbone.tokens_of(layer.layer, tokens, call.size)
            is_known = is_known and layer_tokens is not None
            where = layer_tokens or LayerTokens((0, 0), (0, 0), (0, 0))
            key = (lora.concept, lora.lora.text, where, tokens)
        if not is_known:
            self._unplaced.add(layer.layer)
            return None
        if key not in call.weights:
            weights = (
                self._of_cells(call, share, where.grid)
                if is_conv
                else self._of_tokens(call, lora, share, where, tokens)
            )
            call.weights[key] = weights if bool(weights.any()) else None
        weight = call.weights[key]
        if weight is None:
            return None
        if not is_conv:
            return weight.reshape(*weight.shape[:1], *x.shape[1:-1], 1)
        # Latents with a time, of one, have it before rows and columns.
        return weight.reshape(weight.shape[0], *[1] * (output.ndim - 3), *weight.shape[1:])

    def _of_cells(self, call: _Call, share: Tensor, grid: tuple[int, int]) -> Tensor:
        """Of a picture's cells in all rows: R rows columns."""
        areas = self._areas or {}
        parts = []
        for cond in call.conds:
            own = share_in_area(share, areas.get(cond), self._latent_size)
            parts.append(share_at(own, grid))
        return torch.cat(parts)

    def _of_tokens(
        self, call: _Call, lora: LoraOfConcept, share: Tensor, where: LayerTokens, tokens: int
    ) -> Tensor:
        """Of a layer's tokens in all rows: R N."""
        weight = share.new_zeros(len(call.conds) * call.batch, tokens)
        first, end = where.image
        if end > first:
            weight[:, first:end] = self._of_cells(call, share, where.grid).flatten(1)
        first, end = where.text
        if end > first and lora.lora.text != "none":
            # Where a concept is nowhere in a picture, its words are as ever.
            is_there = share.flatten(1).any(1).to(share)
            last = end - (text_tokens(call.texts) if call.texts else 0)
            for i, cond in enumerate(call.conds):
                rows = slice(i * call.batch, (i + 1) * call.batch)
                if lora.lora.text == "all":
                    weight[rows, first:last] = is_there[:, None]
                elif cond in self._rows.ours:
                    span = self._layout.prompt.spans[lora.concept]
                    length = self._rows.lengths[cond]
                    places = self._layout.backbone.places_in_text(span, length, last - first)
                    weight[rows, [first + place for place in places]] = is_there[:, None]
                own = call.texts.get(cond, ())
                for text, place in zip(own, text_places(own, last), strict=True):
                    if text.concept == lora.concept:
                        weight[rows, place] = is_there[:, None]
        return weight
