"""MagicFace in a sampling run: references at every step, RSA then RBA in the chosen layers, the
layout, and semantic guidance.

`MagicFacePatch` is what a patched MODEL carries: immutable, and no more than one OUTER_SAMPLE
wrapper. Everything that changes lives in a `_MagicFaceRun`, which exists from the start of a
sampling run to its end.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...magic.blocks import AttentionBlock, Block
from ...magic.concepts import visible_tokens
from ...magic.guidance import guide_by_region
from ...magic.layout import SemanticLayout, area_cells
from ...magic.reference_attention import (
    ReferenceTokens,
    RegionTokens,
    group_tokens,
    place_concepts,
    reference_attention,
    region_attention,
)
from ..analysis.correspondence import CorrespondenceRun, CorrespondenceWatch
from ..layout.record import LayoutRecord, Run, layout_step
from ..layout.tracker import LayoutTracker
from ..page.live_layout import LayoutView, LiveLayout
from ..sampling.attention import (
    AttentionPatch,
    attend_chunks,
    biased_attention,
    token_grid,
    wrap_attention,
)
from ..sampling.feature_store import FeatureStore
from ..sampling.reference_pass import LayerKey, ReferencePass, Renoised, features_key
from ..sampling.references import Reference
from ..sampling.rows import SamplingRows, chunk_slices, holders_of, identify_rows
from ..text.prompts import TaggedPrompt

FeatureBank = dict[LayerKey, list[ReferenceTokens]]
"""For every layer (block, depth) the visible tokens of each concept."""


@dataclass(frozen=True)
class SigmaRange:
    """start and end: between them references act; RSA above `inject`, RBA below. All sigmas, start
    >= end; without inject < start there is no RSA, without inject > end no RBA."""

    start: float
    inject: float
    end: float


@dataclass(frozen=True)
class Span:
    """The same as shares of sampling (0..1): what they mean in sigmas is the model's matter, which
    other nodes may change after us."""

    start: float
    inject: float
    end: float

    def of(self, model_sampling: Any) -> SigmaRange:
        return SigmaRange(
            *(
                float(model_sampling.percent_to_sigma(share))
                for share in (self.start, self.inject, self.end)
            )
        )


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
    span: Span = Span(0.0, 0.0, 1.0)
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
        patched.add_wrapper_with_key(
            extension.WrappersMP.OUTER_SAMPLE, f"magicface_{self.prompt.tag}", self.outer_sample
        )
        return patched

    def outer_sample(
        self,
        executor: Any,
        noise: Tensor,
        latent_image: Tensor,
        sampler: Any,
        sigmas: Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        """The wrapper around a whole sampling run."""
        import comfy.patcher_extension as extension

        guider = executor.class_obj
        run = _MagicFaceRun(self, guider, sigmas)
        try:
            if self.correspondence:
                downscales = {
                    layer.downscale for layer in self.available if layer.block in self.blocks
                }
                run.watching = CorrespondenceRun(
                    self.correspondence,
                    self.references,
                    tuple(noise.shape),
                    len(sigmas) - 1,
                    downscales,
                )
            transformer_options = guider.model_options.setdefault("transformer_options", {})
            extension.add_wrapper_with_key(
                extension.WrappersMP.PREDICT_NOISE,
                "magicface",
                run.predict_noise,
                transformer_options,
            )
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
        self._range = patch.span.of(guider.model_patcher.get_model_object("model_sampling"))
        self._sigmas = [float(sigma) for sigma in sigmas]
        self._rows: SamplingRows | None = None
        self._tracker = LayoutTracker(patch.available, patch.prompt.spans, patch.ca_scale)
        self._references = ReferencePass(
            patch.references, Renoised(patch.noise_seed, patch.noise_per_step), patch.blocks
        )
        self._visible: dict[tuple[int, tuple[int, int]], tuple[Tensor, Tensor]] = {}
        self._bank: tuple[float, FeatureBank] | None = None
        self.watching: CorrespondenceRun | None = None
        self._live: LiveLayout | None = (
            patch.view.open(len(self._sigmas) - 1) if patch.view else None
        )
        self.steps: Run = {}

    def close(self) -> None:
        """Lets go of every tensor, also when the run was cancelled."""
        if self._patch.kept:
            self._patch.kept.end_run()
        self._guider = self._references = self._tracker = self._bank = self._rows = (
            self.watching
        ) = None
        self._visible = {}
        if self._live:
            self._live.close(self.steps)

    def predict_noise(
        self,
        executor: Any,
        x: Tensor,
        timestep: Tensor,
        model_options: dict[str, Any],
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        """The wrapper around a model call: conditional, unconditional and whatever guidance
        adds."""
        sigma = float(timestep.flatten()[0])
        acting = bool(self._patch.references) and self._range.end <= sigma <= self._range.start
        measuring = self._is_measured(sigma)
        if not acting and not measuring:
            return executor(x, timestep, model_options, *args, **kwargs)
        if self._rows is None:
            self._rows = identify_rows(self._guider, self._patch.prompt.tag, self._holders)
        options = model_options
        if acting:
            call = self._call(sigma, self._features(sigma, timestep, model_options), x.shape)
            options = wrap_attention(options, "attn1", self._patch.blocks, call.around)
        if measuring:
            options = self._tracker.begin(self._rows, options, x.shape)
            guide = functools.partial(self._after_cfg, sigma)
            options = {
                **options,
                "sampler_post_cfg_function": [guide, *options.get("sampler_post_cfg_function", [])],
            }
        prediction = executor(x, timestep, options, *args, **kwargs)
        if measuring:
            self._end_measurement(sigma)
        return prediction

    def _call(self, sigma: float, bank: FeatureBank, shape: Sequence[int]) -> _ModelCall:
        assert self._rows is not None
        layouts = {cond_id: self._tracker.layout_of(cond_id) for cond_id in self._rows.ours}
        watching = self.watching if self.watching and self.watching.watch.covers(sigma) else None
        by_region = sigma < self._range.inject
        return _ModelCall(
            self._patch, self._rows, layouts, bank, shape, by_region, self._step_of(sigma), watching
        )

    @property
    def _guides(self) -> bool:
        """At CFG 1, which a node may set for some steps only, there is nothing to guide."""
        return self._patch.semantic_cfg and not math.isclose(getattr(self._guider, "cfg", 0.0), 1.0)

    def _step_of(self, sigma: float) -> int:
        """The step that a model call at `sigma` belongs to."""
        passed = sum(1 for level in self._sigmas[:-1] if level >= sigma * (1 - 1e-5))
        return max(0, passed - 1)

    def _is_measured(self, sigma: float) -> bool:
        """RBA needs the layout of the call before it, guidance that of its own call, and the user
        the last one."""
        if self._guides or not self._patch.references:
            return True
        step = self._step_of(sigma)
        following = self._sigmas[min(step + 1, len(self._sigmas) - 1)]
        return following < self._range.inject or step >= len(self._sigmas) - 2

    def _after_cfg(self, sigma: float, args: dict[str, Any]) -> Tensor:
        self._end_measurement(sigma)
        layout, cond = self._tracker.whole, args["cond_denoised"]
        # Without an unconditional prediction the host gives zeros in its place.
        guides = (
            self._guides
            and args["uncond"] is not None
            and not math.isclose(args["cond_scale"], 1.0)
        )
        if not guides or layout is None or layout.regions.shape[0] != cond.shape[0]:
            return args["denoised"]
        return guide_by_region(
            args["denoised"], cond, args["uncond_denoised"], args["cond_scale"], layout
        )

    def _end_measurement(self, sigma: float) -> None:
        if not self._tracker.finish():
            return
        layout = self._tracker.picture
        if layout is not None:
            batch, *grid = layout.regions.shape
            concepts = place_concepts(
                layout.concepts(self._patch.prompt.spans),
                self._patch.targets,
                batch,
                (grid[0], grid[1]),
            )
            step = self._step_of(sigma)
            self.steps[step] = layout_step(layout, concepts)
            if self._live:
                self._live.show(step, self.steps[step])

    def _features(
        self, sigma: float, timestep: Tensor, model_options: dict[str, Any]
    ) -> FeatureBank:
        if self._bank is not None and self._bank[0] == sigma and not self._patch.noise_per_step:
            return self._bank[1]
        # Room for those of this step.
        self._bank = None
        store, key = self._patch.kept, features_key(self._guider, sigma, model_options)
        bank = store.get(key, timestep.device) if store else None
        if bank is None:
            bank = self._run_references(timestep, model_options)
            if store:
                store.keep(key, bank)
        self._bank = (sigma, bank)
        return bank

    def _run_references(self, timestep: Tensor, model_options: dict[str, Any]) -> FeatureBank:
        found: dict[LayerKey, dict[int, list[ReferenceTokens]]] = {}

        def collect(
            reference: int,
            block: Block,
            depth: int,
            grid: tuple[int, int],
            q: Tensor,
            k: Tensor,
            v: Tensor,
        ) -> None:
            source = self._patch.references[reference]
            index, log_coverage = self._visible_tokens(reference, grid, k.device)
            tokens = ReferenceTokens(k[index], v[index], log_coverage + source.strength)
            found.setdefault((block, depth), {}).setdefault(source.concept, []).append(tokens)

        self._references.run(self._guider.inner_model, timestep, model_options, collect)
        return {
            layer: [
                _joined(by_concept[concept]) for concept in range(len(self._patch.prompt.phrases))
            ]
            for layer, by_concept in found.items()
        }

    def _visible_tokens(
        self, reference: int, grid: tuple[int, int], device: torch.device
    ) -> tuple[Tensor, Tensor]:
        if (reference, grid) not in self._visible:
            index, log_coverage = visible_tokens(self._patch.references[reference].mask, grid)
            self._visible[reference, grid] = index.to(device), log_coverage.to(device)
        return self._visible[reference, grid]


class _ModelCall:
    """Reference attention in one model call.

    layouts: by the id of each of our conds, as the call before has left them (finishing this call's
    measurement replaces them in mid-call); by_region: RBA instead of RSA; watching: what looks on,
    if anything.
    """

    def __init__(
        self,
        patch: MagicFacePatch,
        rows: SamplingRows,
        layouts: Mapping[Any, SemanticLayout | None],
        bank: FeatureBank,
        shape: Sequence[int],
        by_region: bool,
        step: int,
        watching: CorrespondenceRun | None,
    ):
        self._patch, self._rows, self._layouts, self._bank = patch, rows, layouts, bank
        self._batch, self._size = shape[0], tuple(shape[-2:])
        self._by_region, self._step, self._watching = by_region, step, watching
        self._downscales = {layer.block: layer.downscale for layer in patch.available}
        self._regions: dict[tuple[Any, tuple[int, int]], list[RegionTokens]] = {}

    def around(self, block: Block, previous: AttentionPatch) -> AttentionPatch:
        return functools.partial(self._attend, block, previous)

    def _attend(
        self,
        block: Block,
        previous: AttentionPatch,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        extra_options: dict[str, Any],
    ) -> Tensor:
        chunks = chunk_slices(extra_options, q.shape[0], self._batch)
        mine = [(cond_id, rows) for cond_id, rows in chunks if cond_id in self._rows.ours]
        if not mine:
            return previous(q, k, v, extra_options)
        grid = token_grid(q, extra_options)
        references = self._bank[block, extra_options.get("block_index", 0)]

        def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
            return biased_attention(q, k, v, bias, extra_options)

        out = torch.empty_like(q)
        attend_chunks(
            out, q, k, v, extra_options, [chunk for chunk in chunks if chunk not in mine], previous
        )
        for cond_id, rows in mine:
            regions = self._regions_of(cond_id, grid, tuple(extra_options["original_shape"][-2:]))
            if regions is None:
                out[rows] = reference_attention(q[rows], k[rows], v[rows], references, attend)
            else:
                out[rows] = region_attention(q[rows], k[rows], v[rows], references, regions, attend)
            if self._watching and cond_id not in self._rows.areas:
                downscale, heads = self._downscales[block], extra_options["n_heads"]
                self._watching.see(
                    q[rows], k[rows], references, regions, grid, downscale, heads, self._step
                )
        return out

    def _regions_of(
        self, cond_id: Any, grid: tuple[int, int], seen: tuple[int, ...]
    ) -> list[RegionTokens] | None:
        """Whose each token is in a chunk that shows `seen` latent pixels; None as long as that is
        not to matter, or not known."""
        area = self._rows.areas.get(cond_id)
        if area is None and seen != self._size:
            raise ValueError(
                f"the model runs on {seen[1] * 8}x{seen[0] * 8} of"
                f" {self._size[1] * 8}x{self._size[0] * 8} pixels: another node cuts the picture"
                " into tiles (Tiled Diffusion, MultiDiffusion), and MagicFace needs all of it at"
                " once. Remove it"
            )
        if not self._by_region:
            return None
        layout, targets = self._layouts[cond_id], self._patch.targets
        if layout is not None and layout.regions.shape[0] != self._batch:
            layout = None
        if layout is None and any(target is None for target in targets):
            return None
        if (cond_id, grid) not in self._regions:
            if area is not None:
                targets = tuple(
                    t if t is None else t[(..., *area_cells(area, t.shape[1:], self._size))]
                    for t in targets
                )
            found = None if layout is None else layout.concepts(self._patch.prompt.spans)
            self._regions[cond_id, grid] = group_tokens(
                place_concepts(found, targets, self._batch, grid)
            )
        return self._regions[cond_id, grid]


def _joined(tokens: Sequence[ReferenceTokens]) -> ReferenceTokens:
    """The tokens of all references of a concept."""
    if len(tokens) == 1:
        return tokens[0]
    return ReferenceTokens(
        torch.cat([t.k for t in tokens]),
        torch.cat([t.v for t in tokens]),
        torch.cat([t.bias for t in tokens]),
    )
