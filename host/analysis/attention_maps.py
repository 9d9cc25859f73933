"""Watching, during any sampling run, how much each place of the picture looks at the words of some
phrases."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...magic.blocks import Block
from ..sampling.backbone import Backbone, LayerView, Watch
from ..sampling.options import ModelOptions
from ..sampling.patch import PatchRun, Predict, SamplingPatch, SamplingStart
from ..sampling.range import ALL_OF_SAMPLING, SamplingRange
from ..sampling.rows import SamplingRows, roles_of, rows_of_prompt, separate_copies
from ..sampling.run_record import RunRecord
from ..text.prompts import TaggedPrompt


@dataclass(frozen=True, eq=False)
class AttentionMaps:
    """One sampling run, or several that went on from each other.

    maps: B P h w, the share (0..1) of each place's attention to the prompt that goes to each
    phrase, averaged over heads, layers and steps; count: over how many maps of layers; last_sigma:
    where the run ended.
    """

    maps: Tensor
    count: int
    last_sigma: float = 0.0


class AttentionRecord(RunRecord[AttentionMaps]):
    """The maps of the last sampling runs."""

    what = "attention map"

    def pick(self, run: AttentionMaps, pictures: Sequence[int]) -> AttentionMaps:
        return dataclasses.replace(run, maps=run.maps[list(pictures)])


@dataclass(frozen=True, eq=False)
class AttentionMapPatch(SamplingPatch["AttentionMapRun"]):
    """What is watched. Pictures are those of the MODEL.

    prompt: with the phrases; record: where finished runs go; backbone: of the model; blocks: the
    watched layers; range: when.
    """

    prompt: TaggedPrompt
    record: AttentionRecord
    backbone: Backbone
    blocks: tuple[Block, ...]
    range: SamplingRange = ALL_OF_SAMPLING

    @property
    def key(self) -> str:
        # The record is this patch's alone; its prompt's tag may be another node's.
        return f"magic_attention_{id(self.record)}"

    def open_run(self, start: SamplingStart) -> AttentionMapRun:
        return AttentionMapRun(self, start)


class AttentionMapRun(PatchRun):
    """The sum of the maps of one sampling run."""

    def __init__(self, patch: AttentionMapPatch, start: SamplingStart):
        self._patch, self._guider = patch, start.guider
        self._last_sigma = start.sigmas[-1]
        self._start = start.latent
        before = patch.record.run_that_made(start.latent)
        self._before = before if before and start.goes_on_from(before.last_sigma) else None
        self._roles = roles_of(start.guider, patch.prompt.tag)
        self._range = patch.range.sigmas(start.model_sampling)
        layers = patch.backbone.layers
        finest = min(layer.downscale for layer in layers if layer.block in patch.blocks)
        self._size = tuple(-(-side // finest) for side in start.latent_size)
        self._rows: SamplingRows | None = None
        self._total: Tensor | None = None
        self._count = 0

    def predict(
        self,
        executor: Predict,
        x: Tensor,
        timestep: Tensor,
        model_options: ModelOptions,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        if not self._range.covers(float(timestep.flatten()[0])):
            return executor(x, timestep, model_options, *args, **kwargs)
        if self._rows is None:
            separate_copies(self._guider, self._patch.prompt.tag, self._roles)
            self._rows = rows_of_prompt(self._guider, self._patch.prompt.tag, self._roles)
        rows = self._rows
        self.expected += bool(rows.active(float(timestep.flatten()[0])))
        # Further passes at the same step (PAG, SAG, ...) show the same words again, under other
        # guidance.
        layers: set[Hashable] = set()

        def look(view: LayerView) -> None:
            if (view.cond, view.layer) not in layers:
                layers.add((view.cond, view.layer))
                self._add(view, rows.lengths[view.cond])

        watch = Watch(self._patch.blocks, rows.ours - rows.areas.keys(), x.shape[0], text=look)
        options = self._patch.backbone.with_watch(model_options, watch)
        return executor(x, timestep, options, *args, **kwargs)

    def finish(self, samples: Tensor) -> None:
        maps, count = self._total, self._count
        if self._before:
            total = self._before.maps.float() * self._before.count
            maps = total if maps is None else maps.cpu().float() + total
            count += self._before.count
        run = None
        if maps is not None:
            mean = (maps / count).to("cpu", torch.float16)
            run = AttentionMaps(mean, count, self._last_sigma)
        self._patch.record.store(samples, run, self._start)

    def release(self) -> None:
        self._total = self._rows = self._before = None
        del self._guider, self._start

    def _add(self, view: LayerView, length: int) -> None:
        shares = self._patch.backbone.text_attention(view, length)
        spans = self._patch.prompt.spans
        maps = torch.stack([shares[..., list(span)].sum(-1) for span in spans], dim=1)
        maps = F.interpolate(
            maps.view(*maps.shape[:2], *view.grid),
            size=self._size,
            mode="bilinear",
            align_corners=False,
        )
        self._total = maps if self._total is None else self._total + maps
        self._count += 1
        self.has_reached = True
