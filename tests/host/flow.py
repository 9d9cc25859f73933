"""Inversions and MagicStyle on small flow models, for the tests of both."""

from __future__ import annotations

import importlib
from functools import cache
from typing import Any

import torch
from torch import Tensor

from magicportrait.nodes.declare import defaults_of
from magicportrait.nodes.inversion import MagicStyleInvert
from magicportrait.nodes.magicstyle import MagicStyleApply, MagicStyleReference
from magicportrait.tests.host import dits
from magicportrait.tests.host.models import call_node

SIZE = (8, 6)
TOKENS = 5
LOW = (0.2, 0.16, 0.12, 0.08, 0.04, 0.0)
"""Noise levels at which the random models are as tame as trained ones."""


def latent(family: str, batch: int = 1, size: tuple[int, int] = SIZE, seed: int = 0) -> Tensor:
    """Clean latents as a VAE gives them, the same one at the same place whatever the batch."""
    pictures = [
        torch.randn(
            dits.latent_shape(family, 1, size), generator=torch.Generator().manual_seed(seed + i)
        )
        for i in range(batch)
    ]
    return torch.cat(pictures)


def invert(family: str, model: Any = None, **options: Any) -> tuple[Any, ...]:
    """All outputs of MagicStyleInvert: MAGIC_INVERSION, LATENT, SIGMAS, SAMPLER, CONDITIONING,
    report, NOISE. Over 3 steps from sigma 1 unless the options say otherwise."""
    inputs = {
        **defaults_of(MagicStyleInvert),
        "steps": 3,
        "scheduler": "simple",
        "method": "o-belm",
        "measure": False,
        "cache_mb": 0,
        "positive": dits.conditioning(TOKENS, 7),
        "latent": {"samples": latent(family)},
        **options,
    }
    return MagicStyleInvert.execute(model or dits.random_transformer(family), **inputs).args


@cache
def invert_picture(
    family: str,
    seed: int = 0,
    batch: int = 1,
    size: tuple[int, int] = SIZE,
    tokens: int = TOKENS,
    method: str = "o-belm",
    steps: int = 3,
) -> tuple[Any, ...]:
    """The same, computed once for all tests."""
    return invert(
        family,
        latent={"samples": latent(family, batch, size, seed)},
        positive=dits.conditioning(tokens, 7),
        method=method,
        steps=steps,
    )


def style(
    family: str, weight: float = 1.0, mask: Tensor | None = None, styles: Any = (), **options: Any
) -> Any:
    """MAGIC_STYLES with one more."""
    inversion = invert_picture(family, **{"seed": 50, **options})[0]
    return MagicStyleReference.execute(inversion, weight, mask, styles).args[0]


def apply(
    family: str, content: tuple[Any, ...] | None = None, styles: Any = None, **options: Any
) -> tuple[Any, dict[str, Any], Any]:
    """MODEL, LATENT and NOISE of MagicStyleApply, fused in every step unless the options say
    otherwise."""
    chosen = {
        **defaults_of(MagicStyleApply),
        "preset": "custom",
        "style_scale": 1.0,
        "end": 1.0,
        **options,
    }
    return MagicStyleApply.execute(
        dits.random_transformer(family),
        (content or invert_picture(family))[0],
        styles or style(family),
        **chosen,
    ).args


def custom_nodes() -> Any:
    """The host's module of custom samplers."""
    return importlib.import_module("comfy_extras.nodes_custom_sampler")


def euler() -> Any:
    """The host's SAMPLER."""
    import comfy.samplers

    return comfy.samplers.sampler_object("euler")


def sample(
    model: Any,
    start: dict[str, Any],
    outputs: tuple[Any, ...],
    sampler: Any = None,
    positive: Any = None,
    add_noise: bool = False,
    cfg: float = 1.0,
    sigmas: Tensor | None = None,
) -> Tensor:
    """SamplerCustom with an inversion's SIGMAS, SAMPLER and positive."""
    return call_node(
        custom_nodes().SamplerCustom,
        model=model,
        add_noise=add_noise,
        noise_seed=0,
        cfg=cfg,
        positive=positive or outputs[4],
        negative=outputs[4],
        sampler=sampler or outputs[3],
        sigmas=outputs[2] if sigmas is None else sigmas,
        latent_image=start,
    )[0]["samples"]


def sample_advanced(
    model: Any, noise: Any, start: dict[str, Any], outputs: tuple[Any, ...], sampler: Any = None
) -> Tensor:
    """SamplerCustomAdvanced with a NOISE."""
    import comfy.samplers

    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(outputs[4], outputs[4])
    guider.set_cfg(1.0)
    return call_node(
        custom_nodes().SamplerCustomAdvanced,
        noise=noise,
        guider=guider,
        sampler=sampler or outputs[3],
        sigmas=outputs[2],
        latent_image=start,
    )[0]["samples"]
