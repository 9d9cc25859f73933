"""Watching, during any sampling run, how much each place of the picture looks at the words of some
phrases."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...magic.blocks import AttentionBlock, Block
from ...magic.layout import head_mean_attention
from ..layout.tracker import fold_repeats
from ..sampling.attention import AttentionPatch, token_grid, wrap_attention
from ..sampling.rows import SamplingRows, chunk_slices, holders_of, identify_rows
from ..sampling.run_record import RunRecord
from ..text.prompts import TaggedPrompt


class AttentionRecord(RunRecord[Tensor]):
    """The maps of the last sampling runs: B P h w, the share (0..1) of each place's cross-attention
    that goes to each phrase, averaged over heads, layers and steps."""

    what = "attention map"


@dataclass(frozen=True, eq=False)
class AttentionMapPatch:
    """blocks: the watched layers; start, end: the watched sigmas, start >= end."""

    prompt: TaggedPrompt
    record: AttentionRecord
    blocks: tuple[AttentionBlock, ...]
    start: float
    end: float

    def add_to(self, model: Any) -> Any:
        """A clone of MODEL with this patch. Its pictures are those of the MODEL."""
        import comfy.patcher_extension as extension

        patched = model.clone()
        patched.add_wrapper_with_key(
            extension.WrappersMP.OUTER_SAMPLE,
            f"magic_attention_{id(self.record)}",
            self.outer_sample,
        )
        return patched

    def outer_sample(self, executor: Any, noise: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The wrapper around a whole sampling run."""
        import comfy.patcher_extension as extension

        guider = executor.class_obj
        run = _AttentionMapRun(self, guider, (noise.shape[-2], noise.shape[-1]))
        transformer_options = guider.model_options.setdefault("transformer_options", {})
        extension.add_wrapper_with_key(
            extension.WrappersMP.PREDICT_NOISE,
            "magic_attention",
            run.predict_noise,
            transformer_options,
        )
        try:
            samples = executor(noise, *args, **kwargs)
            if run.total is not None:
                self.record.store(samples, (run.total / run.count).to("cpu", torch.float16))
            return samples
        finally:
            run.total = run.rows = None


class _AttentionMapRun:
    def __init__(self, patch: AttentionMapPatch, guider: Any, latent_size: tuple[int, int]):
        self._patch, self._guider = patch, guider
        self._holders = holders_of(guider, patch.prompt.tag)
        finest = min(layer.downscale for layer in patch.blocks)
        self._size = tuple(-(-side // finest) for side in latent_size)
        self._batch = 0
        self.rows: SamplingRows | None = None
        self.total: Tensor | None = None
        self.count = 0

    def predict_noise(
        self,
        executor: Any,
        x: Tensor,
        timestep: Tensor,
        model_options: dict[str, Any],
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        if not self._patch.end <= float(timestep.flatten()[0]) <= self._patch.start:
            return executor(x, timestep, model_options, *args, **kwargs)
        if self.rows is None:
            self.rows = identify_rows(self._guider, self._patch.prompt.tag, self._holders)
        self._batch = x.shape[0]
        # Further passes at the same step (PAG, SAG, ...) show the same words again, under other
        # guidance.
        seen: set[Any] = set()
        blocks = [layer.block for layer in self._patch.blocks]
        options = wrap_attention(
            model_options,
            "attn2",
            blocks,
            lambda block, previous: self._observe(block, previous, seen),
        )
        return executor(x, timestep, options, *args, **kwargs)

    def _observe(self, block: Block, previous: AttentionPatch, seen: set[Any]) -> AttentionPatch:
        def patch(q: Tensor, k: Tensor, v: Tensor, extra_options: dict[str, Any]) -> Tensor:
            assert self.rows is not None
            for cond_id, part in chunk_slices(extra_options, q.shape[0], self._batch):
                place = (cond_id, block, extra_options.get("block_index", 0))
                if (
                    cond_id in self.rows.ours
                    and cond_id not in self.rows.areas
                    and place not in seen
                ):
                    seen.add(place)
                    shares = fold_repeats(
                        head_mean_attention(q[part], k[part], extra_options["n_heads"]),
                        self.rows.lengths[cond_id],
                    )
                    self._add(shares, token_grid(q, extra_options))
            return previous(q, k, v, extra_options)

        return patch

    def _add(self, shares: Tensor, grid: tuple[int, int]) -> None:
        maps = torch.stack(
            [shares[..., list(span)].sum(-1) for span in self._patch.prompt.spans], dim=1
        )
        maps = F.interpolate(
            maps.view(*maps.shape[:2], *grid), size=self._size, mode="bilinear", align_corners=False
        )
        self.total = maps if self.total is None else self.total + maps
        self.count += 1
