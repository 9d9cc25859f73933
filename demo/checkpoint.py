"""The toy checkpoint in the host's own classes, and how it is written.

One safetensors file: 'unet.*' and 'text.*' with the host's key names, 'text.token_embedding'
holding only the rows 'text.token_ids' (its row 0 stands for every other word), and 'autoencoder.*'
in the narrow form of `autoencoder.py`. Matrices and convolutions may be whole numbers with a scale
for each output.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .autoencoder import Autoencoder, as_taesd
from .networks import TEXT_CONFIG, UNET_CONFIG, VOCABULARY_SIZE

PATH = Path(__file__).parent / "checkpoint" / "magic_toy.safetensors"
IMAGE_SIDE = 128
HALF_OR_FULL = (torch.float16, torch.bfloat16, torch.float32)
"""What the toys can compute in; the host chooses by device."""
_SCALE = "/scale"
"""Behind the name of a matrix of bytes: the name of its rows' scales."""


def read_parts(path: Path = PATH) -> dict[str, dict[str, Tensor]]:
    """The file's tensors by part: 'unet' (or 'transformer'), 'text' and 'autoencoder'.
    FileNotFoundError says what to do when it is missing."""
    from safetensors.torch import load_file

    if not path.exists():
        raise FileNotFoundError(
            f"the toy checkpoint {path.name} is missing from {path.parent}: reinstall the pack, or"
            " train it (python -m demo.train --help)"
        )
    parts: dict[str, dict[str, Tensor]] = {}
    tensors = load_file(path)
    for key, tensor in tensors.items():
        if key.endswith(_SCALE):
            continue
        part, _, name = key.partition(".")
        if key + _SCALE in tensors:
            rows = tensor.flatten(1).float() * tensors[key + _SCALE][:, None]
            tensor = rows.view(tensor.shape).half()
        parts.setdefault(part, {})[name] = tensor
    return parts


def write_parts(
    parts: dict[str, dict[str, Tensor]],
    metadata: dict[str, str],
    path: Path = PATH,
    byte_parts: Collection[str] = (),
) -> None:
    """Writes the checkpoint in half precision (token ids stay whole numbers). byte_parts: the parts
    whose matrices and convolutions take a byte a weight."""
    from safetensors.torch import save_file

    path.parent.mkdir(exist_ok=True)
    tensors: dict[str, Tensor] = {}
    for part, state in parts.items():
        for name, tensor in state.items():
            key = f"{part}.{name}"
            if part in byte_parts and tensor.ndim >= 2:
                tensors[key], tensors[key + _SCALE] = _as_bytes(tensor)
            else:
                tensors[key] = tensor.half().contiguous() if tensor.is_floating_point() else tensor
    save_file(tensors, path, metadata)
    # safetensors writes files for their owner only; a pack is often installed by one user and run
    # by another.
    path.chmod(0o644)


def _as_bytes(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Whole numbers from -127 to 127, and what each row's are multiplied by. weight: R ..., a row
    an output."""
    rows = weight.flatten(1).float()
    scale = (rows.abs().amax(1) / 127).clamp(min=1e-12)
    numbers = (rows / scale[:, None]).round().clamp(-127, 127)
    return numbers.to(torch.int8).view(weight.shape), scale


def load(path: Path = PATH) -> tuple[Any, Any, Any]:
    """MODEL, CLIP and VAE, as a checkpoint loader returns them."""
    parts = read_parts(path)
    model = build_model(parts["unet"])
    # Newer hosts copy a model by loading it again: for training and for a second device.
    model.cached_patcher_init = (load_model, (path,))
    return model, build_clip(parts["text"]), build_vae(parts["autoencoder"])


def load_model(path: Path = PATH, disable_dynamic: bool = False) -> Any:
    """MODEL alone. disable_dynamic: in the host's plain patcher, as its loaders have it."""
    return build_model(read_parts(path)["unet"], disable_dynamic)


def build_model(state: dict[str, Tensor], disable_dynamic: bool = False) -> Any:
    """MODEL from the weights of the UNet."""
    import comfy.supported_models

    class ToyModel(comfy.supported_models.SD15):
        # SD15's own values would force its shape (8 heads) on the UNet.
        unet_config: dict[str, Any] = {}
        unet_extra_config: dict[str, Any] = {}
        native_side = IMAGE_SIDE

    config: Any = ToyModel
    return in_a_patcher(config(UNET_CONFIG), state, disable_dynamic)


def in_a_patcher(config: Any, state: dict[str, Tensor], disable_dynamic: bool) -> Any:
    """The model of a host's configuration, with its weights, as the host's own loaders would return
    it. state: names as in the host's diffusion model."""
    import comfy.model_management as management
    import comfy.model_patcher

    device, offload = management.get_torch_device(), management.unet_offload_device()
    dtype = management.unet_dtype(
        model_params=sum(t.numel() for t in state.values()), supported_dtypes=[*HALF_OR_FULL]
    )
    config.set_inference_dtype(dtype, management.unet_manual_cast(dtype, device))
    model = config.get_model(state, device=offload)
    model.load_model_weights({f"model.{name}": tensor for name, tensor in state.items()}, "model.")
    # 0.3.64 has one patcher class only.
    plain = comfy.model_patcher.ModelPatcher
    patcher = plain if disable_dynamic else getattr(comfy.model_patcher, "CoreModelPatcher", plain)
    return patcher(model, load_device=device, offload_device=offload)


def build_clip(state: dict[str, Tensor], tokens: int = 77) -> Any:
    """CLIP from the weights of the text encoder. tokens: to which length prompts are padded."""
    import comfy.sd
    import comfy.sd1_clip
    import comfy.supported_models_base
    import folder_paths

    rows, ids = state["token_embedding.weight"].float(), state["token_ids"]
    vocabulary = rows[:1].repeat(VOCABULARY_SIZE, 1)
    vocabulary[ids] = rows[1:]
    transformer = "clip_l.transformer."
    weights = {f"{transformer}text_model.embeddings.token_embedding.weight": vocabulary}
    weights[f"{transformer}text_model.embeddings.position_embedding.weight"] = state[
        "position_embedding"
    ][:tokens].float()
    weights[f"{transformer}text_projection.weight"] = torch.eye(TEXT_CONFIG["hidden_size"])
    for name, tensor in state.items():
        if name.startswith(("layers.", "final_layer_norm.")):
            name = f"encoder.{name}" if name.startswith("layers.") else name
            weights[f"{transformer}text_model.{name}"] = tensor.float()
    target = comfy.supported_models_base.ClipTarget(
        comfy.sd1_clip.SD1Tokenizer, comfy.sd1_clip.SD1ClipModel
    )
    config = {**TEXT_CONFIG, "max_position_embeddings": tokens}
    options = {"clip_l_model_config": config, "dtype": torch.float32}
    clip = comfy.sd.CLIP(
        target,
        embedding_directory=folder_paths.get_folder_paths("embeddings"),
        tokenizer_data={"clip_l_max_length": tokens},
        model_options=options,
    )
    missing, unexpected = clip.load_sd(weights, full_model=True)
    if unexpected or [name for name in missing if "logit_scale" not in name]:
        raise RuntimeError(
            f"the toy text encoder does not fit this ComfyUI: missing {missing}, unexpected"
            f" {unexpected}"
        )
    return clip


def build_vae(state: dict[str, Tensor]) -> Any:
    """VAE from the weights of the autoencoder."""
    import comfy.sd

    autoencoder = Autoencoder()
    autoencoder.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    return comfy.sd.VAE(sd=as_taesd(autoencoder))
