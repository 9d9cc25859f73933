"""Optional models in the user's own folders: what is there, and where a file belongs that is not.
Nothing is ever downloaded.

Only what a folder's list holds can be opened: no parent folders, absolute paths, or links that lead
out of the models folder.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TENSORS = (".safetensors", ".pth", ".pt")


@dataclass(frozen=True)
class ModelFolder:
    """name: the folder inside ComfyUI's models folder; suffixes: of single files, none where models
    are whole folders (transformers' format, with config.json); content: what is looked for; source:
    where people get it."""

    name: str
    suffixes: tuple[str, ...]
    content: str
    source: str


SAMS = ModelFolder(
    "sams",
    TENSORS,
    "a SAM checkpoint such as sam_vit_b_01ec64.pth",
    "https://github.com/facebookresearch/segment-anything#model-checkpoints",
)
DETECTORS = ModelFolder(
    "grounding-dino",
    (),
    "a Grounding DINO folder with config.json and model.safetensors, such as grounding-dino-tiny",
    "https://huggingface.co/IDEA-Research/grounding-dino-tiny",
)
FACE_DETECTORS = ModelFolder(
    "face_detection",
    (".onnx",),
    "a YuNet file such as face_detection_yunet_2023mar.onnx",
    "https://github.com/opencv/opencv_zoo/tree/main/models/face_detection_yunet",
)
MEDIAPIPE = ModelFolder(
    "detection",
    (".safetensors",),
    "the MediaPipe face landmarker that ComfyUI's own face nodes use",
    "the templates of ComfyUI's face nodes",
)
METRICS = ModelFolder(
    "metrics",
    TENSORS,
    "networks for metrics: transformers folders of CLIP and DINO, an aesthetic head, AlexNet for"
    " LPIPS",
    "the table of metrics in this pack's README",
)


def register() -> None:
    """Makes the folders known to the host, so that extra_model_paths.yaml can name more places for
    them."""
    import folder_paths

    for folder in (SAMS, DETECTORS, FACE_DETECTORS, METRICS):
        folder_paths.add_model_folder_path(
            folder.name, str(Path(folder_paths.models_dir) / folder.name)
        )


def roots(folder: ModelFolder) -> list[Path]:
    import folder_paths

    register()
    return [
        Path(path) for path in folder_paths.folder_names_and_paths.get(folder.name, ((), ()))[0]
    ]


def names(folder: ModelFolder) -> list[str]:
    """The single files that are there."""
    return sorted(_found(folder))


def model_directories(folder: ModelFolder) -> dict[str, str]:
    """The transformers folders that are there, and the model_type of each one's config.json."""
    found: dict[str, str] = {}
    for root in roots(folder):
        for config in sorted(root.glob("*/config.json")):
            if _is_within(config, root):
                found.setdefault(config.parent.name, _model_type(config))
    return found


def path_of(folder: ModelFolder, name: str) -> Path:
    """The path of a listed file or transformers folder. ValueError names the folder and where to
    get such a model."""
    path = _found(folder).get(name) if folder.suffixes else None
    if path is None and name in model_directories(folder):
        path = next(
            root / name
            for root in roots(folder)
            if (root / name / "config.json").is_file() and _is_within(root / name, root)
        )
    if path is None:
        raise ValueError(missing(folder, name))
    return path


def missing(folder: ModelFolder, name: str = "") -> str:
    """What to say when a model is not there."""
    asked = (
        f"'{name}' is not among the models in {folder.name}: "
        if name
        else f"nothing in models/{folder.name}: "
    )
    places = " or ".join(str(root) for root in roots(folder))
    return f"{asked}put {folder.content} into {places} (from {folder.source})"


def read_tensors(path: Path) -> dict[str, Any]:
    """A file of tensors on the CPU. Pickles are read for tensors only: whatever else is in one is
    refused. ValueError when unreadable."""
    import comfy.utils

    try:
        state = comfy.utils.load_torch_file(str(path), safe_load=True)
    except Exception as error:
        raise ValueError(
            f"{path.name} cannot be read as a file of tensors ({error}): fetch it again"
        ) from error
    if not isinstance(state, dict):
        raise ValueError(
            f"{path.name} holds a {type(state).__name__}, a table of tensors was expected"
        )
    return state


def _found(folder: ModelFolder) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for root in roots(folder):
        for path in sorted(root.rglob("*")):
            inside_model = (path.parent / "config.json").is_file()
            if (
                path.suffix.lower() in folder.suffixes
                and path.is_file()
                and not inside_model
                and _is_within(path, root)
            ):
                found.setdefault(path.relative_to(root).as_posix(), path)
    return found


def _is_within(path: Path, root: Path) -> bool:
    return path.resolve().is_relative_to(root.resolve())


def _model_type(config: Path) -> str:
    try:
        return str(json.loads(config.read_text(encoding="utf-8")).get("model_type", ""))
    except (OSError, ValueError, AttributeError):
        return ""
