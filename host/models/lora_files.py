"""LoRAs of the user's loras folder, safetensors files only."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ...magic.messages import shown
from .folders import listed_file, listed_state
from .lora_patches import check_finite
from .safe_files import tensor_bytes, write_numbered

_SUFFIX = ".safetensors"
SETTINGS = "magicapture"
"""Key under which a training of ours tells of itself, in a JSON table."""


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


def check_saving(name: str) -> None:
    """UnwritableFile when no LoRA of a name can be written: before hours of training, not after."""
    # As long as the real one: a disk limits whole names.
    suffix = ".test".ljust(len(_SUFFIX), "_")
    for path in write_numbered(_output_folder(), name, {suffix: b""}):
        path.unlink(missing_ok=True)


def save_lora(name: str, weights: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Path:
    """Writes a new file with a number behind its name into output/loras, where the host's loaders
    look too. UnwritableFile when that cannot be."""
    # Names of files may be bytes that are no text.
    header = {key: text.encode(errors="replace").decode() for key, text in metadata.items()}
    content = tensor_bytes(weights, header)
    [path] = write_numbered(_output_folder(), name, {_SUFFIX: content})
    return path


def _output_folder() -> Path:
    import folder_paths

    return Path(folder_paths.get_output_directory()) / "loras"


def lora_account(name: str) -> str:
    """What a listed file says of itself, in a sentence: what to write in prompts, and what it was
    made for. Empty where it says nothing, or cannot be read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(lora_path(name), framework="pt", device="cpu") as file:
            metadata: dict[str, str] = file.metadata() or {}
    except (SafetensorError, OSError):
        return ""
    ours = _table(metadata.get(SETTINGS, ""))
    base, versions = _table(ours.get("base_model")), _table(ours.get("versions"))
    model = base.get("file") or metadata.get("ss_sd_model_name")
    family = base.get("family") or metadata.get("ss_base_model_version")
    family = family or metadata.get("modelspec.architecture", "").removesuffix("/lora")
    words = metadata.get("modelspec.trigger_phrase")
    parts = {
        "write": words,
        "made for": " ".join(str(part) for part in (family, model) if part),
        "steps": metadata.get("ss_steps"),
        "rank": metadata.get("ss_network_dim"),
        "date": metadata.get("modelspec.date", "")[:10],
        "by MagicPortrait": versions.get("magicportrait"),
    }
    account = "; ".join(f"{what} {shown(str(text))}" for what, text in parts.items() if text)
    # Of other files a number of steps alone explains nothing.
    return account if words or ours or family else ""


def _table(content: Any) -> dict[str, Any]:
    """A JSON table, empty for anything else: the file may be anybody's."""
    if isinstance(content, str):
        try:
            content = json.loads(content)
        except (ValueError, RecursionError):
            return {}
    return content if isinstance(content, dict) else {}
