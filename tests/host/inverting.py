"""One way to invert a latent and to sample it again, for all tests of this folder."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor

from magicportrait.nodes.declare import defaults_of
from magicportrait.nodes.inversion import MagicStyleInvert
from magicportrait.tests.host.models import call_node
from magicportrait.tests.host.sampling import encode, parts


def latent(batch: int = 1, size: tuple[int, int] = (8, 8), seed: int = 0) -> Tensor:
    """Clean latents as a VAE gives them, the same one at the same place whatever the batch."""
    return torch.cat(
        [
            torch.randn(1, 4, *size, generator=torch.Generator().manual_seed(seed + i)) * 4
            for i in range(batch)
        ]
    )


def invert(
    model: Any, samples: Tensor | None = None, shape: str = "sd15", **options: Any
) -> tuple[Any, ...]:
    """Outputs of MagicStyleInvert: MAGIC_INVERSION, LATENT, SIGMAS, SAMPLER, CONDITIONING,
    report."""
    picture = {"samples": latent() if samples is None else samples}
    inputs = {
        **defaults_of(MagicStyleInvert),
        "steps": 3,
        "clip": parts(shape)[1],
        "latent": picture,
        **options,
    }
    return MagicStyleInvert.execute(model=model, **inputs).args[:6]


def sample(
    model: Any,
    noise: dict[str, Any],
    sigmas: Tensor,
    sampler: Any,
    positive: Any,
    cfg: float = 1.0,
    negative: Any = None,
) -> Tensor:
    """Core's SamplerCustom without added noise."""
    node = importlib.import_module("comfy_extras.nodes_custom_sampler").SamplerCustom
    inputs = {
        "add_noise": False,
        "noise_seed": 0,
        "cfg": cfg,
        "positive": positive,
        "negative": negative or encode("blurry"),
    }
    out: Tensor = call_node(
        node, model=model, sampler=sampler, sigmas=sigmas, latent_image=noise, **inputs
    )[0]["samples"]
    return out


def sample_again(model: Any, outputs: tuple[Any, ...], **options: Any) -> Tensor:
    """What an inversion's outputs give when they are wired to SamplerCustom."""
    _, noise, sigmas, sampler, positive, _ = outputs
    return sample(model, noise, sigmas, sampler, positive, **options)
