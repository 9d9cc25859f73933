"""Small random models in the host's own classes: everything but the weights is as in SD1.5, SD2.1
(v) and SDXL."""

from __future__ import annotations

from typing import Any

import torch

from magicportrait.demo import checkpoint
from magicportrait.demo.autoencoder import Autoencoder
from magicportrait.demo.networks import TEXT_CONFIG, TextEncoder

CONTEXT = TEXT_CONFIG["hidden_size"]
POOLED = 64
"""Width of the second of SDXL's small text encoders, whose output is pooled."""
_COMMON = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 32,
    "context_dim": CONTEXT,
    "use_spatial_transformer": True,
    "use_temporal_attention": False,
    "legacy": False,
}
_SD15 = {
    **_COMMON,
    "channel_mult": [1, 2, 4, 4],
    "num_res_blocks": [2, 2, 2, 2],
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_output": [1] * 9 + [0] * 3,
    "transformer_depth_middle": 1,
    "num_heads": 4,
    "use_linear_in_transformer": False,
    "adm_in_channels": None,
}
_SDXL = {
    **_COMMON,
    "channel_mult": [1, 2, 4],
    "num_res_blocks": [2, 2, 2],
    "transformer_depth": [0, 0, 2, 2, 3, 3],
    "transformer_depth_output": [0, 0, 0, 2, 2, 2, 3, 3, 3],
    "transformer_depth_middle": 3,
    "num_head_channels": 16,
    "use_linear_in_transformer": True,
    "adm_in_channels": CONTEXT + 6 * 256,
    "num_classes": "sequential",
}


def random_model(
    shape: str = "sd15", dtype: torch.dtype = torch.float32, seed: int = 0, pooled: int = CONTEXT
) -> Any:
    """MODEL of a shape: 'sd15', 'sd21v' (v prediction) or 'sdxl'. pooled: width of SDXL's pooled
    text."""
    import comfy.model_base
    import comfy.model_patcher
    import comfy.supported_models

    base = comfy.supported_models.SDXL if shape == "sdxl" else comfy.supported_models.SD15

    class Config(base):
        unet_config: dict[str, Any] = {}
        unet_extra_config: dict[str, Any] = {}

        def model_type(self, state_dict: Any, prefix: str = "") -> Any:
            return (
                comfy.model_base.ModelType.V_PREDICTION
                if shape == "sd21v"
                else comfy.model_base.ModelType.EPS
            )

    config = Config({**_SDXL, "adm_in_channels": pooled + 6 * 256} if shape == "sdxl" else _SD15)
    config.set_inference_dtype(dtype, None)
    model = config.get_model({}, device="cpu")
    generator = torch.Generator().manual_seed(seed)
    state = model.diffusion_model.state_dict()
    for name, tensor in state.items():
        fan_in = max(1, tensor[0].numel()) if tensor.ndim > 1 else 1
        noise = torch.randn(tensor.shape, generator=generator)
        if tensor.ndim > 1:
            # Attention sharp enough for a wrong mask or row to show, the rest tame enough for
            # rounding not to.
            gain = 2.0 if name.endswith(("to_q.weight", "to_k.weight")) else 0.5
            state[name] = (noise * gain * fan_in**-0.5).to(tensor)
        else:
            state[name] = (noise * 0.1 + (1.0 if name.endswith("weight") else 0.0)).to(tensor)
    model.diffusion_model.load_state_dict(state)
    model.eval()
    patcher = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)
    return patcher(model, load_device=torch.device("cpu"), offload_device=torch.device("cpu"))


def random_clip(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    encoder = TextEncoder([])
    state = dict(encoder.state_dict())
    # Every word its own vector: the short vocabulary of the toy world would make all words alike.
    state["token_embedding.weight"] = torch.randn(49409, CONTEXT) * 0.5
    state["token_ids"] = torch.arange(49408)
    return checkpoint.build_clip(state)


def random_text_encoders(shape: str, seed: int = 0) -> Any:
    """CLIP of a shape, 'sd15', 'sd21v' or 'sdxl', with small random text encoders: hidden layer,
    norms and pooling are the shape's own."""
    import comfy.sd
    import comfy.sd1_clip
    import comfy.sdxl_clip
    import comfy.supported_models_base
    import comfy.text_encoders.sd2_clip as sd2_clip

    tokenizer, encoder = {
        "sd15": (comfy.sd1_clip.SD1Tokenizer, comfy.sd1_clip.SD1ClipModel),
        "sd21v": (sd2_clip.SD2Tokenizer, sd2_clip.SD2ClipModel),
        "sdxl": (comfy.sdxl_clip.SDXLTokenizer, comfy.sdxl_clip.SDXLClipModel),
    }[shape]
    # SDXL puts its two encoders side by side.
    widths = (
        {"clip_l": CONTEXT - POOLED, "clip_g": POOLED}
        if shape == "sdxl"
        else {"clip_l": CONTEXT, "clip_h": CONTEXT}
    )
    options: dict[str, Any] = {"dtype": torch.float32}
    for name, width in widths.items():
        small = {
            "num_hidden_layers": 3,
            "hidden_size": width,
            "num_attention_heads": 2,
            "intermediate_size": 2 * width,
        }
        options[f"{name}_model_config"] = {
            **small,
            "hidden_act": "quick_gelu" if name == "clip_l" else "gelu",
        }
    clip = comfy.sd.CLIP(
        comfy.supported_models_base.ClipTarget(tokenizer, encoder), model_options=options
    )
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in clip.cond_stage_model.named_parameters():
        is_norm = parameter.ndim == 1 and name.endswith("weight")
        noise = torch.randn(parameter.shape, generator=generator) * (
            0.5 if "embedding" in name else 0.1
        )
        parameter.data.copy_(noise + (1.0 if is_norm else 0.0))
    return clip


def random_vae(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return checkpoint.build_vae(Autoencoder().state_dict())


def lora_file(model: Any, block: str, size: float) -> dict[str, torch.Tensor]:
    """What a LoRA file holds that changes one layer of a block."""
    name = f"diffusion_model.{block}.transformer_blocks.0.attn1.to_v"
    rows, columns = model.model.state_dict()[f"{name}.weight"].shape
    return {
        f"{name}.lora_up.weight": torch.ones(rows, 1),
        f"{name}.lora_down.weight": torch.full((1, columns), size),
    }


def with_control(
    model: Any, positive: list[Any], negative: list[Any], side: int = 128
) -> tuple[list[Any], list[Any]]:
    """Both conditionings under a ControlNet with random weights, for pictures of a side."""
    import comfy.cldm.cldm
    import comfy.controlnet
    import comfy.ops

    import nodes

    config = dict(model.model.model_config.unet_config)
    for name in (
        "out_channels",
        "transformer_depth_output",
        "dtype",
        "use_temporal_attention",
        "legacy",
    ):
        config.pop(name, None)
    torch.manual_seed(0)
    network = comfy.cldm.cldm.ControlNet(
        **config, hint_channels=3, dtype=torch.float32, operations=comfy.ops.disable_weight_init
    )
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    control = comfy.controlnet.ControlNet(network, load_device=torch.device("cpu"))
    found = nodes.ControlNetApplyAdvanced().apply_controlnet(
        positive, negative, control, torch.rand(1, side, side, 3), 1.0, 0.0, 1.0
    )
    return found[0], found[1]


def call_node(node: Any, **inputs: Any) -> tuple[Any, ...]:
    """Runs a node class as the host does, old style or new, and returns its outputs."""
    output = (
        node.execute(**inputs)
        if hasattr(node, "define_schema")
        else getattr(node(), node.FUNCTION)(**inputs)
    )
    return getattr(output, "args", output)


def structure_of(value: Any) -> Any:
    """A model's options with the identity of everything in them."""
    if isinstance(value, dict):
        return {key: structure_of(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [structure_of(item) for item in value]
    return id(value) if callable(value) else repr(value)


def state_of(model: Any) -> tuple[Any, ...]:
    """All that a patch could leave behind in a MODEL."""
    weights = [
        (name, tensor.double().sum().item()) for name, tensor in model.model.state_dict().items()
    ]
    options = (
        structure_of(part) for part in (model.model_options, model.wrappers, model.callbacks)
    )
    return (*options, list(model.object_patches), weights)
