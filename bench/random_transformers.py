"""Stacks of a few blocks of a published transformer's width, with random weights, for what does not
depend on the pictures: time and memory. All of the model's depth would not fit into most machines.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from . import in_process  # noqa: F401 (before what follows)

# ruff: isort: split
import comfy.model_management
import comfy.model_patcher
import comfy.supported_models
import torch


@dataclass(frozen=True)
class Width:
    """A family at its published width.

    base: the host's class; config: of its network, without the depth; stack: the depth that is
    built; depth: the published one, all kinds of blocks together; context, pooled: channels of a
    prompt's tokens and of its pooled text; tokens: of a prompt.
    """

    base: str
    config: Mapping[str, Any]
    stack: Mapping[str, int]
    depth: int
    context: int
    pooled: int
    tokens: int = 64

    @property
    def blocks(self) -> int:
        """How many blocks the stack has."""
        return sum(self.stack.values())


CHANNELS = 16
"""Of the latents of both."""
WIDTHS = {
    # One block of two kinds as in 19 and 38 of them.
    "flux": Width(
        "Flux",
        {
            "image_model": "flux",
            "in_channels": CHANNELS,
            "out_channels": CHANNELS,
            "vec_in_dim": 768,
            "context_in_dim": 4096,
            "hidden_size": 3072,
            "mlp_ratio": 4.0,
            "num_heads": 24,
            "axes_dim": [16, 56, 56],
            "theta": 10000,
            "patch_size": 2,
            "qkv_bias": True,
            "guidance_embed": True,
            "txt_ids_dims": [],
        },
        {"depth": 1, "depth_single_blocks": 2},
        57,
        4096,
        768,
    ),
    "z_image": Width(
        "ZImage",
        {
            "image_model": "lumina2",
            "patch_size": 2,
            "in_channels": CHANNELS,
            "qk_norm": True,
            "cap_feat_dim": 2560,
            "dim": 3840,
            "n_refiner_layers": 0,
            "n_heads": 30,
            "n_kv_heads": 30,
            "axes_dims": [32, 48, 48],
            "axes_lens": [1536, 512, 512],
            "rope_theta": 256.0,
            "ffn_dim_multiplier": 8 / 3,
            "multiple_of": 256,
            "z_image_modulation": True,
            "time_scale": 1000.0,
            "pad_tokens_multiple": 32,
        },
        {"n_layers": 3},
        30,
        2560,
        768,
    ),
}


def transformer(family: str, dtype: torch.dtype) -> Any:
    """A MODEL."""
    width = WIDTHS[family]
    parts: dict[str, Any] = {"unet_config": {}, "unet_extra_config": {}}
    parent: Any = getattr(comfy.supported_models, width.base)
    config = type("Stack", (parent,), parts)({**width.config, **width.stack})
    config.set_inference_dtype(dtype, None)
    model = config.get_model({}, device="cpu")
    generator = torch.Generator().manual_seed(0)
    for name, weight in model.diffusion_model.named_parameters():
        is_norm = weight.ndim == 1 and ("norm" in name or name.endswith("scale"))
        if is_norm:
            weight.data.fill_(1.0)
        else:
            weight.data.normal_(0.0, 0.02, generator=generator)
    patcher = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)
    return patcher(
        model.eval(),
        load_device=comfy.model_management.get_torch_device(),
        offload_device=torch.device("cpu"),
    )


def conditioning(family: str, seed: int, **options: Any) -> list[Any]:
    """A CONDITIONING of the family's shape, with what else it carries."""
    width = WIDTHS[family]
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(1, width.tokens, width.context, generator=generator)
    pooled = torch.randn(1, width.pooled, generator=generator)
    return [[tokens, {"pooled_output": pooled, "guidance": 3.5, **options}]]
