"""The reference pass: the UNet on the references at the sigma of the step, with what the chosen
layers see handed to a collector.

It runs before the main call, once a sigma, with the references' own prompts and the conditional
branch only; all images of the batch share what it finds. MagicFace feeds it re-noised images;
anything that can say what a reference looks like at a sigma will do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from ...magic.blocks import Block
from .attention import plain_attention, token_grid
from .references import ReferenceImage, alike, batched_conditioning

Collect = Callable[[int, Block, int, tuple[int, int], Tensor, Tensor, Tensor], None]
"""(reference, block, depth, token grid, q, k, v), the last three N C."""
LayerKey = tuple[Block, int]
"""Block and depth: a transformer block."""
_TAKEN = ("input_", "output_")
"""Patches of these kinds act in a reference pass too, such as FreeU's."""


class LatentSource(Protocol):
    """Where the references' latents of a step come from."""

    def at(self, reference: int, latent: Tensor, sigma: Tensor, model_sampling: Any) -> Tensor:
        """The reference (clean, in the model's latent space, 1 C h w) as it looks at `sigma`."""
        ...


class Renoised:
    """The clean latent and seeded noise: one noise for the whole run, so that a step can be
    repeated, or fresh noise in every step."""

    def __init__(self, seed: int, per_step: bool):
        self._seed, self._per_step = seed, per_step
        self._generators: dict[int, torch.Generator] = {}
        self._fixed: dict[int, Tensor] = {}

    def at(self, reference: int, latent: Tensor, sigma: Tensor, model_sampling: Any) -> Tensor:
        if reference not in self._generators:
            self._generators[reference] = torch.Generator("cpu").manual_seed(
                (self._seed + reference) % 2**64
            )
        if self._per_step or reference not in self._fixed:
            noise = torch.randn(latent.shape, generator=self._generators[reference])
            self._fixed[reference] = noise.to(latent)
        return model_sampling.noise_scaling(
            sigma.reshape(-1, *[1] * (latent.ndim - 1)), self._fixed[reference], latent, False
        )


def features_key(guider: Any, sigma: float, model_options: dict[str, Any]) -> tuple[Any, ...]:
    """All that the features of a step depend on, beside the references: weights and patches, what
    sigma means, other nodes' parts."""
    patcher = guider.model_patcher
    # A bypassed LoRA is injected, and changes no weights.
    injected = (part for name in sorted(patcher.injections) for part in patcher.injections[name])
    return (
        sigma,
        patcher.patches_uuid,
        patcher.get_model_object("model_sampling"),
        *injected,
        *_foreign_parts(model_options),
    )


def _foreign_parts(model_options: dict[str, Any]) -> tuple[Any, ...]:
    """What other nodes have put into a reference pass."""
    import comfy.patcher_extension as extension

    transformer_options = model_options.get("transformer_options", {})
    wrappers = transformer_options.get("wrappers", {}).get(extension.WrappersMP.APPLY_MODEL, {})
    patches = transformer_options.get("patches", {})
    lists = [
        *wrappers.values(),
        *(patches[name] for name in sorted(patches) if name.startswith(_TAKEN)),
    ]
    return (
        model_options.get("model_function_wrapper"),
        *(part for parts in lists for part in parts),
    )


class ReferencePass:
    """Reference passes of one sampling run."""

    def __init__(
        self, references: Sequence[ReferenceImage], source: LatentSource, blocks: Sequence[Block]
    ):
        self._references, self._source, self._blocks = references, source, blocks
        self._groups: list[list[int]] = []
        self._clean: list[Tensor] = []
        self._conds: list[list[dict[str, Any]]] = []

    def run(
        self, model: Any, sigma: Tensor, model_options: dict[str, Any], collect: Collect
    ) -> None:
        """One pass. model: the loaded BaseModel; sigma: the step's, shape B; model_options: the
        main call's."""
        import comfy.samplers

        if not self._conds:
            self._prepare(model, sigma.device)
        for group, conds in zip(self._groups, self._conds, strict=True):
            one = sigma[:1]
            x = torch.cat(
                [self._source.at(i, self._clean[i], one, model.model_sampling) for i in group]
            )
            options = self._options(model_options, group, collect)
            comfy.samplers.calc_cond_batch(model, [conds], x, one.expand(len(group)), options)

    def _prepare(self, model: Any, device: torch.device) -> None:
        import comfy.sampler_helpers
        import comfy.samplers

        self._clean = [
            model.process_latent_in(reference.latent.to(device, torch.float32))
            for reference in self._references
        ]
        self._groups = [
            part
            for group in alike(self._references)
            for part in self._fitting(model, group, device)
        ]
        for group in self._groups:
            latent = torch.cat([self._clean[i] for i in group])
            conds = {
                "positive": comfy.sampler_helpers.convert_cond(
                    batched_conditioning([self._references[i] for i in group])
                )
            }
            self._conds.append(
                comfy.samplers.process_conds(
                    model, latent, conds, device, latent_image=latent, seed=0
                )["positive"]
            )

    def _fitting(self, model: Any, group: list[int], device: torch.device) -> list[list[int]]:
        """The group, cut into batches that fit into the memory that is left: the host has made room
        for the picture only."""
        import comfy.model_management as management

        size, free = len(group), management.get_free_memory(device)
        # The host's own margin.
        while (
            size > 1
            and 1.5 * model.memory_required([size, *self._clean[group[0]].shape[1:]]) > free
        ):
            size = -(-size // 2)
        return [group[i : i + size] for i in range(0, len(group), size)]

    def _options(
        self, model_options: dict[str, Any], group: list[int], collect: Collect
    ) -> dict[str, Any]:
        """The main call's options without what is meant for the picture that is being made: other
        attention patches, caches, guidance."""
        import comfy.patcher_extension as extension

        kept = dict(model_options.get("transformer_options", {}))
        apply_model = extension.WrappersMP.APPLY_MODEL
        kept["wrappers"] = {apply_model: kept.get("wrappers", {}).get(apply_model, {})}
        kept["patches"] = {
            name: patches
            for name, patches in kept.get("patches", {}).items()
            if name.startswith(_TAKEN)
        }

        def capture(q: Tensor, k: Tensor, v: Tensor, extra_options: dict[str, Any]) -> Tensor:
            grid, block = token_grid(q, extra_options), Block(*extra_options["block"])
            for row, reference in enumerate(group):
                collect(
                    reference,
                    block,
                    extra_options.get("block_index", 0),
                    grid,
                    q[row],
                    k[row],
                    v[row],
                )
            return plain_attention(q, k, v, extra_options)

        kept["patches_replace"] = {"attn1": {tuple(block): capture for block in self._blocks}}
        options: dict[str, Any] = {"transformer_options": kept}
        if "model_function_wrapper" in model_options:
            options["model_function_wrapper"] = model_options["model_function_wrapper"]
        return options
