"""Networks of SD1.5's size with random weights, for what does not depend on the pictures: time and
memory."""

from __future__ import annotations

from typing import Any

from . import in_process  # noqa: F401 (before what follows)

# ruff: isort: split
import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.sd1_clip
import comfy.supported_models
import comfy.supported_models_base
import torch
from comfy.ldm.models.autoencoder import AutoencoderKL

from magicportrait.host.faces.identity import Identity
from magicportrait.magic.iresnet import SIDE, IResNet

CHANNELS = 320
UNET = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": CHANNELS,
    "context_dim": 768,
    "channel_mult": [1, 2, 4, 4],
    "num_res_blocks": [2, 2, 2, 2],
    "transformer_depth": [1] * 6 + [0, 0],
    "transformer_depth_output": [1] * 9 + [0] * 3,
    "transformer_depth_middle": 1,
    "use_spatial_transformer": True,
    "use_temporal_attention": False,
    "legacy": False,
    "use_linear_in_transformer": False,
    "adm_in_channels": None,
}
AUTOENCODER = {
    "double_z": True,
    "z_channels": 4,
    "resolution": 256,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 128,
    "ch_mult": [1, 2, 4, 4],
    "num_res_blocks": 2,
    "attn_resolutions": [],
    "dropout": 0.0,
}
TEXT_ENCODER: dict[str, int] = {}
"""What differs from CLIP-L."""
_UNITS, _WIDTHS = (3, 4, 14, 3), (64, 128, 256, 512)
"""IResNet-50."""


def unet(dtype: torch.dtype, channels: int = CHANNELS) -> Any:
    """A MODEL. channels: of its first level; fewer make a smaller network of the same form."""
    config = comfy.supported_models.SD15({**UNET, "model_channels": channels})
    config.set_inference_dtype(dtype, None)
    model = config.get_model({}, device="cpu")
    _randomise(model.diffusion_model)
    patcher = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)
    return patcher(
        model.eval(),
        load_device=comfy.model_management.get_torch_device(),
        offload_device=torch.device("cpu"),
    )


def text_encoder() -> Any:
    """A CLIP with CLIP-L, fp32."""
    target = comfy.supported_models_base.ClipTarget(
        comfy.sd1_clip.SD1Tokenizer, comfy.sd1_clip.SD1ClipModel
    )
    options = {"dtype": torch.float32, "clip_l_model_config": TEXT_ENCODER}
    clip = comfy.sd.CLIP(target, model_options=options)
    _randomise(clip.cond_stage_model)
    return clip


def autoencoder() -> Any:
    """A VAE."""
    network = AutoencoderKL(ddconfig=AUTOENCODER, embed_dim=4)
    _randomise(network)
    return comfy.sd.VAE(sd=network.state_dict())


def identity() -> Identity:
    """An IResNet-50, as ArcFace's."""
    shapes: dict[str, tuple[int, ...]] = {"conv1.weight": (_WIDTHS[0], 3, 3, 3)}
    into, index = _WIDTHS[0], 0
    for count, width in zip(_UNITS, _WIDTHS, strict=True):
        for i in range(count):
            shapes[f"units.{index}.conv1.weight"] = (width, into, 3, 3)
            if i == 0:
                shapes[f"units.{index}.downsample.0.weight"] = (width, into, 1, 1)
            into, index = width, index + 1
    shapes["fc.weight"] = (512, into * (SIDE // 16) ** 2)
    with torch.inference_mode(False):
        return Identity("random", IResNet(shapes, False).eval().requires_grad_(False), SIDE, 1.0)


def conditioning(seed: int, **options: Any) -> list[Any]:
    """A CONDITIONING of CLIP-L's shape, with what else it carries."""
    tokens = torch.randn(1, 77, 768, generator=torch.Generator().manual_seed(seed))
    return [[tokens, options]]


def _randomise(module: torch.nn.Module) -> None:
    """Small weights, and norms of one, so that nothing overflows."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in module.named_parameters():
        is_norm = parameter.ndim == 1 and name.endswith("weight")
        parameter.data.copy_(
            torch.ones_like(parameter)
            if is_norm
            else torch.randn(parameter.shape, generator=generator).mul_(0.02)
        )
