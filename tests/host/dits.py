"""Small random transformers in the host's own classes, shrunk before they are built: at their own
size they are gigabytes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import cache, partial
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

WIDTH = 96
"""Of the conditioning."""
LLAMA_TOKENS = 7
_FLUX = {
    "in_channels": 16,
    "out_channels": 16,
    "context_in_dim": WIDTH,
    "vec_in_dim": WIDTH,
    "hidden_size": 64,
    "mlp_ratio": 2.0,
    "num_heads": 2,
    "depth": 2,
    "depth_single_blocks": 2,
    "axes_dim": [8, 12, 12],
    "theta": 10000,
    "patch_size": 2,
    "qkv_bias": True,
    "guidance_embed": True,
    "txt_ids_dims": [],
}
_LUMINA = {
    "image_model": "lumina2",
    "patch_size": 2,
    "in_channels": 16,
    "cap_feat_dim": WIDTH,
    "n_layers": 3,
    "qk_norm": True,
}
_SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "flux": ("Flux", {**_FLUX, "image_model": "flux"}),
    "flux2": (
        "Flux2",
        {
            **_FLUX,
            "image_model": "flux2",
            "axes_dim": [8, 8, 8, 8],
            "vec_in_dim": None,
            "in_channels": 128,
            "out_channels": 128,
            "patch_size": 1,
            "qkv_bias": False,
            "txt_ids_dims": [3],
            "global_modulation": True,
            "mlp_silu_act": True,
            "ops_bias": False,
            "theta": 2000,
            "default_ref_method": "index",
            "ref_index_scale": 10.0,
        },
    ),
    "qwen": (
        "QwenImage",
        {
            "image_model": "qwen_image",
            "in_channels": 64,
            "num_layers": 3,
            "attention_head_dim": 32,
            "num_attention_heads": 2,
            "joint_attention_dim": WIDTH,
            "axes_dims_rope": (8, 12, 12),
        },
    ),
    "zimage": (
        "ZImage",
        {
            **_LUMINA,
            "dim": 256,
            "n_refiner_layers": 1,
            "n_heads": 8,
            "n_kv_heads": 8,
            "axes_dims": [8, 12, 12],
            "axes_lens": [1536, 512, 512],
            "rope_theta": 256.0,
            "ffn_dim_multiplier": 2.0,
            "multiple_of": 32,
            "z_image_modulation": True,
            "time_scale": 1000.0,
            "pad_tokens_multiple": 32,
        },
    ),
    "lumina2": (
        "Lumina2",
        {
            **_LUMINA,
            "dim": 96,
            "n_refiner_layers": 1,
            "n_heads": 4,
            "n_kv_heads": 2,
            "axes_dims": [8, 8, 8],
            "axes_lens": [300, 512, 512],
            "rope_theta": 10000.0,
            "ffn_dim_multiplier": 2.0,
            "multiple_of": 32,
        },
    ),
    # Which of its blocks pass over parts of the text is fixed: it has no fewer.
    "chroma": (
        "Chroma",
        {
            **{k: v for k, v in _FLUX.items() if k != "guidance_embed"},
            "image_model": "chroma",
            "in_channels": 64,
            "out_channels": 64,
            "vec_in_dim": None,
            "depth": 19,
            "depth_single_blocks": 38,
            "in_dim": 64,
            "out_dim": 64,
            "hidden_dim": 64,
            "n_layers": 2,
        },
    ),
    "sd3": (
        "SD3",
        {
            "in_channels": 16,
            "out_channels": 16,
            "patch_size": 2,
            "depth": 2,
            "num_blocks": 3,
            "input_size": None,
            "adm_in_channels": WIDTH,
            "qk_norm": "rms",
            "num_patches": 32 * 32,
            "pos_embed_max_size": 32,
            "context_embedder_config": {
                "target": "torch.nn.Linear",
                "params": {"in_features": WIDTH, "out_features": 128},
            },
            # As in SD3.5 medium: a second attention of the picture by itself.
            "x_block_self_attn_layers": [0, 1],
        },
    ),
    "krea2": (
        "Krea2",
        {
            "image_model": "krea2",
            "features": 128,
            "channels": 16,
            "patch": 2,
            "layers": 3,
            "heads": 4,
            "kvheads": 2,
            "txtlayers": 2,
            "txtdim": WIDTH // 2,
            "txtheads": 2,
            "txtkvheads": 2,
        },
    ),
    "hidream": (
        "HiDream",
        {
            "image_model": "hidream",
            "patch_size": 2,
            "in_channels": 16,
            "out_channels": 16,
            "num_layers": 2,
            "num_single_layers": 2,
            "attention_head_dim": 32,
            "num_attention_heads": 2,
            "caption_channels": [WIDTH, WIDTH],
            "text_emb_dim": WIDTH,
            "num_routed_experts": 2,
            "num_activated_experts": 1,
            "axes_dims_rope": (8, 12, 12),
            "max_resolution": [32, 32],
            "llama_layers": [0, 1, 2, 2],
        },
    ),
    "anima": (
        "Anima",
        {
            "image_model": "anima",
            "max_img_h": 240,
            "max_img_w": 240,
            "max_frames": 128,
            "in_channels": 16,
            "out_channels": 16,
            "patch_spatial": 2,
            "patch_temporal": 1,
            "model_channels": 96,
            "concat_padding_mask": True,
            "crossattn_emb_channels": WIDTH,
            "pos_emb_cls": "rope3d",
            "pos_emb_learnable": True,
            "pos_emb_interpolation": "crop",
            "min_fps": 1,
            "max_fps": 30,
            "use_adaln_lora": True,
            "adaln_lora_dim": 16,
            "num_blocks": 3,
            "num_heads": 3,
            "extra_per_block_abs_pos_emb": False,
            "rope_h_extrapolation_ratio": 4.0,
            "rope_w_extrapolation_ratio": 4.0,
            "rope_t_extrapolation_ratio": 1.0,
        },
    ),
}
FAMILIES = tuple(_SHAPES)
# With tokens of a vision encoder for each picture that it is given.
_SHAPES["zimage_omni"] = ("ZImage", {**_SHAPES["zimage"][1], "siglip_feat_dim": WIDTH})
EDIT_FAMILIES = ("flux", "flux2", "qwen", "krea2", "zimage", "zimage_omni")
_SHAPES |= {
    "ernie": (
        "ErnieImage",
        {
            "image_model": "ernie",
            "hidden_size": 96,
            "num_attention_heads": 3,
            "num_layers": 3,
            "ffn_hidden_size": 192,
            "text_in_dim": WIDTH,
            "rope_axes_dim": (8, 12, 12),
        },
    ),
}
"""Of this one the pack knows no record."""


def known_here(family: str, shape: Mapping[str, Any]) -> dict[str, Any]:
    """What of a shape this host's class knows."""
    import comfy.ldm.chroma.model
    import comfy.ldm.flux.model

    classes = {
        "flux": comfy.ldm.flux.model.FluxParams,
        "chroma": comfy.ldm.chroma.model.ChromaParams,
    }
    if family not in classes:
        return dict(shape)
    names = {"image_model", *(field.name for field in dataclasses.fields(classes[family]))}
    return {name: value for name, value in shape.items() if name in names}


def _small_adapter(family: str) -> Any:
    """Anima's class has no size of what makes its context: at its own that is 100 million
    parameters."""
    if family != "anima":
        return nullcontext()
    import comfy.ldm.anima.model as anima

    sides = {"source_dim": WIDTH, "target_dim": WIDTH, "model_dim": WIDTH}
    small = partial(anima.LLMAdapter, **sides, num_layers=1, num_heads=3)
    return mock.patch.object(anima, "LLMAdapter", small)


@cache
def random_transformer(family: str, dtype: torch.dtype = torch.float32) -> Any:
    """MODEL of a family. Skips the test on hosts that are older than it."""
    import comfy.model_patcher
    import comfy.supported_models

    base, shape = _SHAPES[family]
    parent = getattr(comfy.supported_models, base, None)
    if parent is None:
        pytest.skip(f"this host has no {base}")
    if family == "lumina2" and not hasattr(comfy.supported_models, "ZImage"):
        pytest.skip("this host's Lumina2 lays its tokens out in another way")
    shape = known_here(family, shape)
    parts = {"unet_config": {}, "unet_extra_config": {}}
    config = type(f"Small{base}", (parent,), parts)(dict(shape))
    config.set_inference_dtype(dtype, None)
    with _small_adapter(family):
        model = config.get_model({}, device=torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    for name, weight in model.diffusion_model.named_parameters():
        noise = torch.randn(weight.shape, generator=generator)
        if weight.ndim > 1:
            weight.data.copy_(noise * weight[0].numel() ** -0.5)
        else:
            is_norm = "norm" in name or name.endswith("scale")
            weight.data.copy_(noise * 0.1 + (1.5 if is_norm else 0.0))
    for name, buffer in model.diffusion_model.named_buffers():
        # SD3's places are left as memory was.
        if name == "pos_embed" or (buffer.is_floating_point() and not buffer.isfinite().all()):
            buffer.zero_()
    model.eval()
    patcher = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)
    return patcher(model, load_device=torch.device("cpu"), offload_device=torch.device("cpu"))


def latent_shape(family: str, batch: int = 1, size: tuple[int, int] = (16, 16)) -> tuple[int, ...]:
    """B C h w, or B C 1 h w for those whose latents have a time. size: for tokens of two latent
    pixels."""
    if family == "flux2":
        return (batch, 128, size[0] // 2, size[1] // 2)
    has_time = family in ("qwen", "krea2", "anima")
    return (batch, 16, 1, *size) if has_time else (batch, 16, *size)


def heads_apart(args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Tensor, ...]:
    """q, k and v of a call of the host's attention, B H N D, however the class hands them over."""
    if kwargs.get("skip_reshape"):
        return tuple(args[:3])
    heads = args[3] if len(args) > 3 else kwargs["heads"]
    split = (x if x.ndim == 4 else x.unflatten(-1, (heads, -1)) for x in args[:3])
    return tuple(x.transpose(1, 2) for x in split)


def conditioning(tokens: int, seed: int) -> list[Any]:
    """A prompt of so many tokens."""
    generator = torch.Generator().manual_seed(seed)
    context = torch.randn(1, tokens, WIDTH, generator=generator)
    pooled = torch.randn(1, WIDTH, generator=generator)
    # Three layers of another text encoder, which HiDream reads beside it.
    llama = torch.randn(1, 3, LLAMA_TOKENS, WIDTH, generator=generator)
    return [[context, {"pooled_output": pooled, "conditioning_llama3": llama}]]


def sample(
    model: Any,
    shape: Sequence[int],
    positive: list[Any],
    negative: list[Any],
    cfg: float = 3.0,
    sigmas: Sequence[float] = (0.9, 0.4, 0.0),
    noise: Tensor | None = None,
) -> Tensor:
    """Pictures of a few Euler steps."""
    import comfy.samplers

    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, negative)
    guider.set_cfg(cfg)
    if noise is None:
        noise = torch.randn(*shape, generator=torch.Generator().manual_seed(3))
    return guider.sample(
        noise,
        torch.zeros(*shape),
        comfy.samplers.sampler_object("euler"),
        torch.tensor(sigmas),
        disable_pbar=True,
        seed=1,
    )


def is_old_host() -> bool:
    """Whether attention calls do not say how many tokens the pictures of a prompt have."""
    import inspect

    import comfy.ldm.flux.model

    return "reference_image_num_tokens" not in inspect.getsource(comfy.ldm.flux.model)
