"""LoRAs of the user's loras folder, safetensors files only."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from ...magic.messages import shown
from .folders import listed_file, listed_state

_SUFFIX = ".safetensors"


def list_loras() -> list[str]:
    """The files that are there."""
    import folder_paths

    return [name for name in folder_paths.get_filename_list("loras") if name.endswith(_SUFFIX)]


def lora_path(name: str) -> Path:
    """The path of a listed file. ValueError for any other name."""
    path = listed_file("loras", name, list_loras())
    if path is None:
        raise ValueError(
            f"LoRA '{shown(name)}' is not among the safetensors files of ComfyUI's loras folder"
            " (models/loras): put it there, or choose another"
        )
    return path


def lora_state(name: str) -> str:
    """Another text whenever a listed file is another one; empty where it is not there."""
    return listed_state(lora_path, name)


def load_lora(name: str) -> dict[str, Tensor]:
    """The tensors of a listed file. ValueError when it is no safetensors file, or has numbers that
    are none."""
    from safetensors import SafetensorError, safe_open

    path = lora_path(name)
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"LoRA '{name}' cannot be read as a safetensors file: fetch it again"
        ) from error
    check_finite(name, weights)
    return weights


def check_finite(name: str, weights: dict[str, Tensor]) -> None:
    """ValueError for a LoRA with numbers that are none. name: for the message."""
    for key, tensor in weights.items():
        if tensor.is_floating_point() and not bool(tensor.float().isfinite().all()):
            raise ValueError(
                f"LoRA '{name}' has numbers that are none (NaN or infinite) in {key}: its training"
                " has failed. Take another"
            )
