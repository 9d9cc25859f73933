"""The reference pass: the model on the references at the sigma of the step, with what the chosen
layers see handed to a collector.

It runs before the main call, once a sigma, with the references' own prompts and the conditional
branch only; all images of the batch share what it finds. MagicFace feeds it re-noised images;
anything that can say what a reference looks like at a sigma will do.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from ...magic.blocks import Block
from .adapters import is_own_injection
from .backbone import Backbone, LayerView
from .options import ModelOptions
from .references import ReferenceImage, alike, batched_conditioning

if TYPE_CHECKING:
    from comfy.model_base import BaseModel

Collect = Callable[[int, LayerView, int], None]
"""(reference, what a layer saw of a batch of references, the reference's row in it)."""


class LatentSource(Protocol):
    """Where the references' latents of a step come from."""

    def at(self, reference: int, latent: Tensor, sigma: Tensor, model_sampling: Any) -> Tensor:
        """The reference (clean, in the model's latent space, 1 C h w) as it looks at `sigma`."""
        ...


class SeededNoise:
    """The clean latent and seeded noise: one noise for the whole run, or another one at each noise
    level, the same whenever that level comes."""

    def __init__(self, seed: int, per_step: bool):
        self._seed, self._per_step = seed, per_step
        self._noise: dict[int, Tensor] = {}

    def _draw(self, reference: int, sigma: float, like: Tensor) -> Tensor:
        seed = (self._seed + reference) % 2**64
        if self._per_step:
            digest = hashlib.blake2b(f"{seed} {sigma:.6g}".encode(), digest_size=8).digest()
            seed = int.from_bytes(digest, "big")
        generator = torch.Generator("cpu").manual_seed(seed)
        return torch.randn(like.shape, generator=generator).to(like)

    def at(self, reference: int, latent: Tensor, sigma: Tensor, model_sampling: Any) -> Tensor:
        if self._per_step or reference not in self._noise:
            self._noise[reference] = self._draw(reference, float(sigma.flatten()[0]), latent)
        noisy: Tensor = model_sampling.noise_scaling(
            sigma.reshape(-1, *[1] * (latent.ndim - 1)), self._noise[reference], latent, False
        )
        return noisy


def features_key(
    guider: Any, backbone: Backbone, sigma: float, options: ModelOptions, hooks: Any
) -> tuple[Any, ...]:
    """All that the features of a step depend on, beside the references: the noise level, which
    comes first, weights and patches, what sigma means, other nodes' parts, and the hooks of our
    prompt."""
    patcher = guider.model_patcher
    changes = () if hooks is None else hooks.hooks
    # A bypassed LoRA is injected, and changes no weights. Those of concepts are off here.
    injections = (
        part
        for name in sorted(patcher.injections)
        for part in patcher.injections[name]
        if not is_own_injection(part)
    )
    return (
        sigma,
        patcher.patches_uuid,
        patcher.get_model_object("model_sampling"),
        *injections,
        *changes,
        # Keyframes give a hook another strength as sampling goes on.
        *(sigma for hook in changes if not hook.hook_keyframe.is_empty()),
        *backbone.reference_parts(options),
    )


class ReferencePass:
    """Reference passes of one sampling run."""

    def __init__(
        self,
        references: Sequence[ReferenceImage],
        source: LatentSource,
        backbone: Backbone,
        blocks: Collection[Block],
    ):
        self._references, self._source = references, source
        self._backbone, self._blocks = backbone, blocks
        self._groups: list[list[int]] = []
        self._clean: list[Tensor] = []
        self._conds: list[list[dict[str, Any]]] = []

    def run(
        self,
        model: BaseModel,
        sigma: Tensor,
        model_options: ModelOptions,
        collect: Collect,
        hooks: Any = None,
        is_bare: bool = False,
    ) -> None:
        """One pass. model: the loaded one; sigma: the step's, shape B; model_options: the main
        call's; hooks: what the picture's prompt changes of the weights (the host's HookGroup);
        is_bare: past what other nodes put around the model."""
        import comfy.samplers

        if not self._conds:
            self._prepare(model, sigma.device)
        for group, conds in zip(self._groups, self._conds, strict=True):
            one = sigma[:1]
            x = torch.cat(
                [self._source.at(i, self._clean[i], one, model.model_sampling) for i in group]
            )
            options = self._options(model_options, group, collect, is_bare)
            if hooks is not None:
                conds = [{**cond, "hooks": hooks} for cond in conds]
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
            conditioning = batched_conditioning([self._references[i] for i in group])
            conds = {"positive": comfy.sampler_helpers.convert_cond(conditioning)}
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
        shape = self._clean[group[0]].shape[1:]
        # The host's own margin.
        while size > 1 and 1.5 * model.memory_required([size, *shape]) > free:
            size = -(-size // 2)
        return [group[i : i + size] for i in range(0, len(group), size)]

    def _options(
        self, model_options: ModelOptions, group: list[int], collect: Collect, is_bare: bool
    ) -> ModelOptions:
        def look(view: LayerView) -> None:
            for row, reference in enumerate(group):
                collect(reference, view, row)

        return self._backbone.reference_options(model_options, self._blocks, look, is_bare)
