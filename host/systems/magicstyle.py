"""MagicStyle in a sampling run: content and style follow their inversions beside the picture, whose
attention takes from both.

`MagicStylePatch` is what a patched MODEL carries: immutable, one OUTER_SAMPLE wrapper. What changes
lives in a `_MagicStyleRun`.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...magic.blocks import Block
from ...magic.feature_fusion import (
    Area,
    Features,
    Fusion,
    adapt_statistics,
    areas_of,
    feature_fusion_attention,
    style_shares,
)
from ..inversion.run import Inversion
from ..sampling.attention import (
    AttentionPatch,
    attend_chunks,
    biased_attention,
    token_grid,
    wrap_attention,
)
from ..sampling.feature_store import FeatureStore
from ..sampling.reference_pass import LayerKey, ReferencePass, features_key
from ..sampling.rows import chunk_slices, rows_of

FeatureBank = dict[LayerKey, list[Features]]
"""For every layer (block, depth) what it saw in each picture: the contents first, then the
styles."""


@dataclass(frozen=True, eq=False)
class Style:
    """A style and where it acts. weight: 0..1; mask: H W in 0..1 over the content's picture, None
    for everywhere."""

    inversion: Inversion
    weight: float
    mask: Tensor | None = None


@dataclass(frozen=True, eq=False)
class InvertedPicture:
    """One picture of an inversion, as the reference pass takes it. latent: 1 C h w, of which only
    the shape matters there."""

    inversion: Inversion
    row: int

    @property
    def latent(self) -> Tensor:
        return self.inversion.latents[-1, self.row : self.row + 1]

    @property
    def conditioning(self) -> list[Any]:
        return self.inversion.conditioning


class Trajectories:
    """A `LatentSource`: each picture as it was at that sigma on its way to noise."""

    def __init__(self, pictures: Sequence[InvertedPicture]):
        self._pictures = pictures

    def at(self, reference: int, latent: Tensor, sigma: Tensor, model_sampling: Any) -> Tensor:
        picture = self._pictures[reference]
        return picture.inversion.at(float(sigma))[picture.row : picture.row + 1].to(latent)


@dataclass(frozen=True, eq=False)
class MagicStylePatch:
    """Everything a run needs. start and end: sigmas between which features are fused, start >
    end."""

    content: Inversion
    styles: tuple[Style, ...]
    fusion: Fusion
    blocks: tuple[Block, ...]
    start: float
    end: float
    fuses_negative: bool
    kept: FeatureStore | None = None

    def add_to(self, model: Any) -> Any:
        """A clone of MODEL with this patch."""
        import comfy.patcher_extension as extension

        patched = model.clone()
        patched.add_wrapper_with_key(
            extension.WrappersMP.OUTER_SAMPLE, f"magicstyle_{uuid.uuid4().hex}", self.outer_sample
        )
        return patched

    def shares(self, size: tuple[int, int]) -> Tensor:
        return style_shares(
            [style.weight for style in self.styles], [style.mask for style in self.styles], size
        )

    def start_latent(self, amount: float) -> Tensor:
        """Where sampling starts: the content's noise with the styles' statistics (`amount` 0..1),
        in the model's latent space."""
        first = self.content.latents[0]
        styles = [style.inversion.latents[0] for style in self.styles]
        return adapt_statistics(
            first, styles, self.shares((first.shape[-2], first.shape[-1])), amount
        )

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

        self._check(noise.shape, sigmas.tolist())
        guider = executor.class_obj
        run = _MagicStyleRun(self, guider)
        transformer_options = guider.model_options.setdefault("transformer_options", {})
        extension.add_wrapper_with_key(
            extension.WrappersMP.PREDICT_NOISE, "magicstyle", run.predict_noise, transformer_options
        )
        try:
            return executor(noise, latent_image, sampler, sigmas, *args, **kwargs)
        finally:
            run.close()

    def _check(self, shape: Sequence[int], sigmas: Sequence[float]) -> None:
        self.content.check_sigmas(sigmas, "the content")
        expected = self.content.latents.shape[1:]
        if tuple(shape[1:]) != tuple(expected[1:]):
            raise ValueError(
                f"the content was inverted at {expected[-1] * 8}x{expected[-2] * 8}, the sampler"
                f" runs at {shape[-1] * 8}x{shape[-2] * 8}: connect the LATENT output of MagicStyle"
                " Apply to the sampler"
            )
        if expected[0] not in (1, shape[0]):
            raise ValueError(
                f"the content holds {expected[0]} pictures, the sampler runs {shape[0]}: use a"
                " batch of the same size"
            )


class _MagicStyleRun:
    def __init__(self, patch: MagicStylePatch, guider: Any):
        self._patch, self._guider = patch, guider
        pictures = [InvertedPicture(patch.content, row) for row in range(patch.content.batch)]
        pictures += [InvertedPicture(style.inversion, 0) for style in patch.styles]
        self._pass = ReferencePass(pictures, Trajectories(pictures), patch.blocks)
        self._ours: frozenset[Any] | None = None
        self._areas: dict[tuple[int, int], list[Area]] = {}
        self._bank: tuple[float, FeatureBank] | None = None

    def close(self) -> None:
        """Lets go of every tensor, also when the run was cancelled."""
        if self._patch.kept:
            self._patch.kept.end_run()
        self._guider = self._pass = self._bank = None
        self._areas = {}

    def predict_noise(
        self,
        executor: Any,
        x: Tensor,
        timestep: Tensor,
        model_options: dict[str, Any],
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        """The wrapper around a model call."""
        sigma = float(timestep.flatten()[0])
        if not self._patch.end <= sigma <= self._patch.start:
            return executor(x, timestep, model_options, *args, **kwargs)
        if self._ours is None:
            negative = [name for name in self._guider.conds if "negative" in name]
            self._ours = rows_of(
                self._guider,
                [
                    name
                    for name in self._guider.conds
                    if self._patch.fuses_negative or name not in negative
                ],
            )
        rule = self._rule(self._ours, self._features(sigma, timestep, model_options), x.shape[0])
        return executor(
            x,
            timestep,
            wrap_attention(model_options, "attn1", self._patch.blocks, rule),
            *args,
            **kwargs,
        )

    def _features(
        self, sigma: float, timestep: Tensor, model_options: dict[str, Any]
    ) -> FeatureBank:
        if self._bank is not None and self._bank[0] == sigma:
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
        found: dict[LayerKey, dict[int, Features]] = {}

        def collect(
            picture: int,
            block: Block,
            depth: int,
            grid: tuple[int, int],
            q: Tensor,
            k: Tensor,
            v: Tensor,
        ) -> None:
            found.setdefault((block, depth), {})[picture] = Features(
                q[None], k[None], v[None], grid
            )

        self._pass.run(self._guider.inner_model, timestep, model_options, collect)
        return {layer: [seen[picture] for picture in sorted(seen)] for layer, seen in found.items()}

    def _areas_of(self, grid: tuple[int, int], device: torch.device) -> list[Area]:
        if grid not in self._areas:
            areas = areas_of(self._patch.shares(grid))
            self._areas[grid] = [
                Area(a.style, None if a.index is None else a.index.to(device), a.share.to(device))
                for a in areas
            ]
        return self._areas[grid]

    def _rule(
        self, ours: frozenset[Any], bank: FeatureBank, batch: int
    ) -> Callable[[Block, AttentionPatch], AttentionPatch]:
        contents, fusion = self._patch.content.batch, self._patch.fusion

        def make(block: Block, previous: AttentionPatch) -> AttentionPatch:
            def patch(q: Tensor, k: Tensor, v: Tensor, extra_options: dict[str, Any]) -> Tensor:
                chunks = chunk_slices(extra_options, q.shape[0], batch)
                mine = [(cond_id, rows) for cond_id, rows in chunks if cond_id in ours]
                if not mine:
                    return previous(q, k, v, extra_options)
                grid = token_grid(q, extra_options)
                seen = bank[block, extra_options.get("block_index", 0)]
                if grid != seen[0].grid:
                    raise ValueError(
                        f"layer {block}: the content has {seen[0].grid[1]}x{seen[0].grid[0]}"
                        f" tokens, this call {grid[1]}x{grid[0]}. MagicStyle needs the whole"
                        " picture at once: use ConditioningSetMask, not areas, and no node that"
                        " changes the size"
                    )
                areas = self._areas_of(grid, q.device)
                styles = [_cast(seen[contents + i], q) for i in range(len(seen) - contents)]

                def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
                    return biased_attention(q, k, v, bias, extra_options)

                out = torch.empty_like(q)
                others = [(cond_id, rows) for cond_id, rows in chunks if cond_id not in ours]
                attend_chunks(out, q, k, v, extra_options, others, previous)
                for _, rows in mine:
                    for image, row in enumerate(range(rows.start, rows.stop)):
                        one = slice(row, row + 1)
                        content = _cast(seen[image if contents > 1 else 0], q)
                        out[one] = feature_fusion_attention(
                            Features(q[one], k[one], v[one], grid),
                            content,
                            styles,
                            areas,
                            fusion,
                            attend,
                        )
                return out

            return patch

        return make


def _cast(features: Features, like: Tensor) -> Features:
    return Features(features.q.to(like), features.k.to(like), features.v.to(like), features.grid)
