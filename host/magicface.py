"""MagicFace in a sampling run: references at every step, RSA then RBA in the chosen layers, the layout, and semantic guidance.

`MagicFacePatch` is what a patched MODEL carries: immutable, and no more than one OUTER_SAMPLE wrapper. Everything that changes lives in a
`_MagicFaceRun`, which exists from the start of a sampling run to its end.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..magic.blocks import AttentionBlock, Block
from ..magic.concepts import visible_tokens
from ..magic.guidance import guide_by_region
from ..magic.layout import SemanticLayout
from ..magic.reference_attention import ReferenceTokens, RegionTokens, group_tokens, place_concepts, reference_attention, region_attention
from .attention import AttentionPatch, attend_chunks, biased_attention, token_grid, wrap_attention
from .correspondence import CorrespondenceRun, CorrespondenceWatch
from .feature_store import Bank, FeatureStore
from .layout_record import LayoutRecord, Run, layout_step
from .layout_tracker import LayoutTracker
from .live_layout import LayoutView, LiveLayout
from .prompts import TaggedPrompt
from .reference_pass import ReferencePass, Renoised, foreign_parts
from .references import Reference
from .sampling_rows import SamplingRows, chunk_slices, holders_of, identify_rows

LayerKey = tuple[Block, int]
FeatureBank = dict[LayerKey, list[ReferenceTokens]]
"""For every layer (block, depth) the visible tokens of each concept."""


@dataclass(frozen=True)
class SigmaRange:
    """start and end: between them references act; RSA above `inject`, RBA below. All sigmas, start > inject > end."""

    start: float
    inject: float
    end: float


@dataclass(frozen=True, eq=False)
class MagicFacePatch:
    """Everything a run needs. Without references it only measures the layout."""

    prompt: TaggedPrompt
    record: LayoutRecord
    available: tuple[AttentionBlock, ...]
    ca_scale: float
    references: tuple[Reference, ...] = ()
    targets: tuple[Tensor | None, ...] = ()
    blocks: tuple[Block, ...] = ()
    sigmas: SigmaRange = SigmaRange(0.0, 0.0, 0.0)
    semantic_cfg: bool = False
    noise_seed: int = 0
    noise_per_step: bool = False
    kept: FeatureStore | None = None
    correspondence: CorrespondenceWatch | None = None
    view: LayoutView | None = None

    def add_to(self, model: Any) -> Any:
        """A clone of MODEL with this patch."""
        import comfy.patcher_extension as extension

        patched = model.clone()
        patched.add_wrapper_with_key(extension.WrappersMP.OUTER_SAMPLE, f"magicface_{self.prompt.tag}", self.outer_sample)
        return patched

    def outer_sample(
        self, executor: Any, noise: Tensor, latent_image: Tensor, sampler: Any, sigmas: Tensor, *args: Any, **kwargs: Any
    ) -> Tensor:
        """The wrapper around a whole sampling run."""
        import comfy.patcher_extension as extension

        guider = executor.class_obj
        run = _MagicFaceRun(self, guider, sigmas)
        if self.correspondence:
            downscales = {layer.downscale for layer in self.available if layer.block in self.blocks}
            run.watching = CorrespondenceRun(self.correspondence, self.references, tuple(noise.shape), len(sigmas) - 1, downscales)
        transformer_options = guider.model_options.setdefault("transformer_options", {})
        extension.add_wrapper_with_key(extension.WrappersMP.PREDICT_NOISE, "magicface", run.predict_noise, transformer_options)
        try:
            samples = executor(noise, latent_image, sampler, sigmas, *args, **kwargs)
            if run.steps:
                self.record.store(samples, run.steps)
            if self.correspondence and run.watching and (seen := run.watching.result()):
                self.correspondence.record.store(samples, seen)
            return samples
        finally:
            run.close()


class _MagicFaceRun:
    def __init__(self, patch: MagicFacePatch, guider: Any, sigmas: Tensor):
        self._patch, self._guider = patch, guider
        self._holders = holders_of(guider, patch.prompt.tag)
        # At CFG 1 there is nothing to guide.
        self._guides = patch.semantic_cfg and not math.isclose(getattr(guider, "cfg", 0.0), 1.0)
        self._sigmas = [float(sigma) for sigma in sigmas]
        self._rows: SamplingRows | None = None
        self._tracker = LayoutTracker(patch.available, patch.prompt.spans, patch.prompt.length, patch.ca_scale)
        self._references = ReferencePass(patch.references, Renoised(patch.noise_seed, patch.noise_per_step), patch.blocks)
        self._visible: dict[tuple[int, tuple[int, int]], tuple[Tensor, Tensor]] = {}
        self._bank: tuple[float, FeatureBank] | None = None
        self.watching: CorrespondenceRun | None = None
        self._live: LiveLayout | None = patch.view.open(len(self._sigmas) - 1) if patch.view else None
        self.steps: Run = {}

    def close(self) -> None:
        """Lets go of every tensor, also when the run was cancelled."""
        self._guider = self._references = self._tracker = self._bank = self._rows = self.watching = None
        self._visible = {}
        if self._live:
            self._live.close(self.steps)

    def predict_noise(self, executor: Any, x: Tensor, timestep: Tensor, model_options: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        """The wrapper around a model call: conditional, unconditional and whatever guidance adds."""
        sigma = float(timestep.flatten()[0])
        acting = bool(self._patch.references) and self._patch.sigmas.end <= sigma <= self._patch.sigmas.start
        measuring = self._is_measured(sigma)
        if not acting and not measuring:
            return executor(x, timestep, model_options, *args, **kwargs)
        if self._rows is None:
            self._rows = identify_rows(self._guider, self._patch.prompt.tag, self._holders)
        options = model_options
        if acting:
            rule = self._rule(sigma, self._features(sigma, timestep, model_options))
            options = wrap_attention(options, "attn1", self._patch.blocks, rule)
        if measuring:
            options = self._tracker.begin(self._rows, options, (x.shape[-2], x.shape[-1]))
            guide = functools.partial(self._after_cfg, sigma)
            options = {**options, "sampler_post_cfg_function": [guide, *options.get("sampler_post_cfg_function", [])]}
        prediction = executor(x, timestep, options, *args, **kwargs)
        if measuring:
            self._end_measurement(sigma)
        return prediction

    def _step_of(self, sigma: float) -> int:
        """The step that a model call at `sigma` belongs to."""
        passed = sum(1 for level in self._sigmas[:-1] if level >= sigma * (1 - 1e-5))
        return max(0, passed - 1)

    def _is_measured(self, sigma: float) -> bool:
        """RBA needs the layout of the call before it, guidance that of its own call, and the user the last one."""
        if self._guides or not self._patch.references:
            return True
        step = self._step_of(sigma)
        following = self._sigmas[min(step + 1, len(self._sigmas) - 1)]
        return following < self._patch.sigmas.inject or step >= len(self._sigmas) - 2

    def _after_cfg(self, sigma: float, args: dict[str, Any]) -> Tensor:
        self._end_measurement(sigma)
        layout, cond = self._tracker.whole, args["cond_denoised"]
        if not self._guides or layout is None or layout.regions.shape[0] != cond.shape[0]:
            return args["denoised"]
        return guide_by_region(args["denoised"], cond, args["uncond_denoised"], args["cond_scale"], layout)

    def _end_measurement(self, sigma: float) -> None:
        self._tracker.finish()
        layout = self._tracker.whole or self._tracker.layout_of(None)
        if layout is not None:
            concepts = self._placed(layout, layout.regions.shape[0], tuple(layout.regions.shape[-2:]))
            step = self._step_of(sigma)
            self.steps[step] = layout_step(layout, concepts)
            if self._live:
                self._live.show(step, self.steps[step])

    def _placed(self, layout: SemanticLayout | None, batch: int, grid: tuple[int, ...]) -> Tensor:
        found = None if layout is None else layout.concepts(self._patch.prompt.spans)
        return place_concepts(found, self._patch.targets, batch, (grid[0], grid[1]))

    def _features(self, sigma: float, timestep: Tensor, model_options: dict[str, Any]) -> FeatureBank:
        if self._bank is not None and self._bank[0] == sigma and not self._patch.noise_per_step:
            return self._bank[1]
        store, key = self._patch.kept, (sigma, self._guider.model_patcher.patches_uuid, *foreign_parts(model_options))
        stored = None if store is None else store.get(key)
        if stored is None:
            bank = self._run_references(timestep, model_options)
            if store is not None:
                store.keep(key, _flat(bank))
        else:
            bank = _nested(stored)
        self._bank = (sigma, bank)
        return bank

    def _run_references(self, timestep: Tensor, model_options: dict[str, Any]) -> FeatureBank:
        found: dict[LayerKey, dict[int, list[ReferenceTokens]]] = {}

        def collect(reference: int, block: Block, depth: int, grid: tuple[int, int], q: Tensor, k: Tensor, v: Tensor) -> None:
            source = self._patch.references[reference]
            index, log_coverage = self._visible_tokens(reference, grid, k.device)
            tokens = ReferenceTokens(k[index], v[index], log_coverage + source.strength)
            found.setdefault((block, depth), {}).setdefault(source.concept, []).append(tokens)

        self._references.run(self._guider.inner_model, timestep, model_options, collect)
        return {
            layer: [_joined(by_concept[concept]) for concept in range(len(self._patch.prompt.phrases))]
            for layer, by_concept in found.items()
        }

    def _visible_tokens(self, reference: int, grid: tuple[int, int], device: torch.device) -> tuple[Tensor, Tensor]:
        if (reference, grid) not in self._visible:
            index, log_coverage = visible_tokens(self._patch.references[reference].mask, grid)
            self._visible[reference, grid] = index.to(device), log_coverage.to(device)
        return self._visible[reference, grid]

    def _rule(self, sigma: float, bank: FeatureBank) -> Callable[[Block, AttentionPatch], AttentionPatch]:
        """The attention patch of this model call, for every block."""
        by_region, step = sigma < self._patch.sigmas.inject, self._step_of(sigma)
        assert self._rows is not None
        ours, partial, tracker = self._rows.ours, self._rows.partial, self._tracker
        downscales = {layer.block: layer.downscale for layer in self._patch.available}
        groups: dict[tuple[Any, tuple[int, int]], list[RegionTokens]] = {}
        # The layouts of the call before this one: finishing this call's measurement replaces them in mid-call.
        layouts = {cond_id: tracker.layout_of(cond_id) for cond_id in ours}

        watching = self.watching if self.watching and self.watching.watch.covers(sigma) else None

        def regions_of(cond_id: Any, batch: int, grid: tuple[int, int]) -> list[RegionTokens]:
            if (cond_id, grid) not in groups:
                groups[cond_id, grid] = group_tokens(self._placed(layouts[cond_id], batch, grid))
            return groups[cond_id, grid]

        def has_regions(cond_id: Any, batch: int) -> bool:
            layout = layouts[cond_id]
            measured = layout is not None and layout.regions.shape[0] == batch
            return measured or all(target is not None for target in self._patch.targets)

        def make(block: Block, previous: AttentionPatch) -> AttentionPatch:
            def patch(q: Tensor, k: Tensor, v: Tensor, extra_options: dict[str, Any]) -> Tensor:
                chunks = chunk_slices(extra_options, q.shape[0])
                mine = [(cond_id, rows) for cond_id, rows in chunks if cond_id in ours]
                if not mine:
                    return previous(q, k, v, extra_options)
                grid = token_grid(q, extra_options)
                references = bank[block, extra_options.get("block_index", 0)]

                def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
                    return biased_attention(q, k, v, bias, extra_options)

                out = torch.empty_like(q)
                others = [(cond_id, rows) for cond_id, rows in chunks if cond_id not in ours]
                if others:
                    handled = attend_chunks(q, k, v, extra_options, others, previous)
                    for part, (_, rows) in zip(handled.chunk(len(others)), others, strict=True):
                        out[rows] = part
                for cond_id, rows in mine:
                    batch = rows.stop - rows.start
                    regions = regions_of(cond_id, batch, grid) if by_region and has_regions(cond_id, batch) else None
                    if regions is not None:
                        out[rows] = region_attention(q[rows], k[rows], v[rows], references, regions, attend)
                    else:
                        out[rows] = reference_attention(q[rows], k[rows], v[rows], references, attend)
                    if watching and cond_id not in partial:
                        watching.see(q[rows], k[rows], references, regions, grid, downscales[block], extra_options["n_heads"], step)
                return out

            return patch

        return make


def _flat(bank: FeatureBank) -> Bank:
    return {
        (layer, concept, name): getattr(tokens, name)
        for layer, concepts in bank.items()
        for concept, tokens in enumerate(concepts)
        for name in ("k", "v", "bias")
    }


def _nested(flat: Bank) -> FeatureBank:
    parts: dict[LayerKey, dict[int, dict[str, Tensor]]] = {}
    for (layer, concept, name), tensor in flat.items():  # type: ignore[misc]
        parts.setdefault(layer, {}).setdefault(concept, {})[name] = tensor
    return {layer: [ReferenceTokens(**concepts[i]) for i in range(len(concepts))] for layer, concepts in parts.items()}


def _joined(tokens: Sequence[ReferenceTokens]) -> ReferenceTokens:
    """The tokens of all references of a concept."""
    if len(tokens) == 1:
        return tokens[0]
    return ReferenceTokens(torch.cat([t.k for t in tokens]), torch.cat([t.v for t in tokens]), torch.cat([t.bias for t in tokens]))
