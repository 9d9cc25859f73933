"""Models in the user's own folders: what is there, and where a file belongs that is not. Nothing is
ever downloaded.

Only what a folder's list holds can be opened: no parent folders, no absolute paths.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from ...magic.messages import shown

_REASON = 200
"""Letters of a library's own words that a message has at most."""
TENSORS = (".safetensors", ".pth", ".pt")


@dataclass(frozen=True)
class ModelFolder:
    """Where models of one kind lie.

    name: the host's for the kind, as in extra_model_paths.yaml. suffixes: of single files, in small
    letters; none where models are whole folders (transformers' format, with config.json). content:
    what is looked for, and source: where people get it, for messages. places: folders inside
    ComfyUI's models folder; none for a kind that the host, or who asks, has registered already.
    follows_links: whether files may be links to elsewhere, as in the host's own folders; else only
    what lies in the folder itself counts.
    """

    name: str
    suffixes: tuple[str, ...]
    content: str
    source: str
    places: tuple[str, ...] = ()
    follows_links: bool = False


SAMS = ModelFolder(
    "sams",
    TENSORS,
    "a SAM checkpoint such as sam_vit_b_01ec64.pth",
    "https://github.com/facebookresearch/segment-anything#model-checkpoints",
    places=("sams",),
)
DETECTORS = ModelFolder(
    "grounding-dino",
    (),
    "a Grounding DINO folder with config.json and model.safetensors, such as grounding-dino-tiny",
    "https://huggingface.co/IDEA-Research/grounding-dino-tiny",
    places=("grounding-dino",),
)
FACE_DETECTORS = ModelFolder(
    "face_detection",
    (".onnx",),
    "a YuNet file such as face_detection_yunet_2023mar.onnx",
    "https://github.com/opencv/opencv_zoo/tree/main/models/face_detection_yunet",
    places=("face_detection",),
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
    "the table in docs/measuring.md of this pack's folder",
    places=("metrics",),
)
IDENTITIES = ModelFolder(
    "face_identity",
    (".safetensors", ".onnx"),
    "ArcFace or AdaFace weights such as w600k_r50",
    "https://github.com/deepinsight/insightface/tree/master/model_zoo",
    # Where other packs keep them.
    places=("face_identity", "insightface"),
    follows_links=True,
)


class UnreadableModel(ValueError):
    """A file or folder of the user's models is damaged, or holds something else."""


@contextlib.contextmanager
def reading(path: Path, what: str) -> Iterator[None]:
    """UnreadableModel, with the name and what was expected, for whatever a library says of a file
    or folder that it cannot use. The reason of a ValueError, which is said to people, is kept;
    torch's words are not: they advise an unsafe way to read the file."""
    try:
        yield
    except ValueError as error:
        raise _unreadable(path, what, str(error)) from error
    except Exception as error:
        raise _unreadable(path, what, getattr(error, "strerror", None) or "") from error


def _unreadable(path: Path, what: str, reason: str = "") -> UnreadableModel:
    first = next(iter(reason.strip().splitlines()), "")[:_REASON]
    because = f" ({first})" if first else ""
    return UnreadableModel(
        f"{path.name} cannot be read as {what}{because}: fetch it again, or take another"
    )


def roots(folder: ModelFolder) -> list[Path]:
    """All places of the kind, those of extra_model_paths.yaml included."""
    import folder_paths

    for place in folder.places:
        folder_paths.add_model_folder_path(
            folder.name, os.path.join(folder_paths.models_dir, place)
        )
    paths, _ = folder_paths.folder_names_and_paths.get(folder.name, ((), ()))
    return [Path(path) for path in paths]


def names(folder: ModelFolder) -> list[str]:
    """The single files that are there."""
    return sorted(_files(folder))


def model_directories(folder: ModelFolder) -> dict[str, str]:
    """The transformers folders that are there, and the model_type of each one's config.json."""
    return {name: _model_type(path / "config.json") for name, path in _directories(folder).items()}


def path_of(folder: ModelFolder, name: str) -> Path:
    """The path of a listed file or transformers folder. ValueError names the folder and where to
    get such a model."""
    path = _file(folder, name) or _directories(folder).get(name)
    if path is None:
        raise ValueError(missing_message(folder, name))
    return path


def file_state(path: Path) -> str:
    """Another text whenever a file is another one; empty where it is not there."""
    try:
        status = path.stat()
    except OSError:
        return ""
    return f"{status.st_mtime_ns} {status.st_size}"


def listed_file(kind: str, name: str, names: Collection[str]) -> Path | None:
    """The path of a file of one of the host's kinds of models; None for a name that is not among
    those listed."""
    import folder_paths

    path = folder_paths.get_full_path(kind, name) if name in names else None
    return None if path is None else Path(path)


def listed_state(path_of: Callable[[str], Path], name: str) -> str:
    """Another text whenever a listed file is another one; empty where it is not there. path_of:
    gives a listed file's path, ValueError for any other name."""
    try:
        return file_state(path_of(name))
    except ValueError:
        return ""


def state_of(folder: ModelFolder, name: str) -> str:
    """Another text whenever a listed single file is another one; empty where it is not there."""
    path = _file(folder, name)
    return "" if path is None else file_state(path)


def missing_message(folder: ModelFolder, name: str = "") -> str:
    """What to say when a model is not there."""
    what = f"'{shown(name)}' is not among the models in" if name else "nothing in"
    places = " or ".join(map(str, roots(folder)))
    place = folder.name if name else f"models/{folder.name}"
    return f"{what} {place}: put {folder.content} into {places} (from {folder.source})"


def read_tensors(path: Path) -> dict[str, Any]:
    """A file of tensors on the CPU. Pickles are read for tensors only: whatever else is in one is
    refused. UnreadableModel when it is none."""
    import comfy.utils

    try:
        state = comfy.utils.load_torch_file(str(path), safe_load=True)
    except Exception as error:
        raise _unreadable(path, "a file of tensors") from error
    if not isinstance(state, dict):
        raise UnreadableModel(
            f"{path.name} holds a {type(state).__name__}, a table of tensors was expected"
        )
    return state


def read_network(network_class: Any, path: Path, what: str, **options: Any) -> Any:
    """A network of one of transformers' classes from a folder, fp32. UnreadableModel also for a
    file of something else: transformers makes up the weights that are missing."""
    with reading(path, what):
        network, info = network_class.from_pretrained(
            path,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            **options,
        )
        # Some are missing in good files too, such as a pooling layer that nobody uses.
        if 2 * len(info["missing_keys"]) > len(network.state_dict()):
            raise ValueError(f"it lacks weights such as {min(info['missing_keys'])}")
        return network.float()


def _files(folder: ModelFolder) -> set[str]:
    """The names of all single files."""
    if not folder.suffixes:
        return set()
    return {name for root in roots(folder) for name in _walk(root, folder)}


def _file(folder: ModelFolder, name: str) -> Path | None:
    """The single file that `_files` calls so, without a look at the others; None for any other
    name."""
    relative = PurePath(name)
    is_plain = relative.parts and not relative.is_absolute() and ".." not in relative.parts
    if not is_plain or name != _name(relative, folder):
        return None
    if relative.suffix.lower() not in folder.suffixes:
        return None
    # A name may be too long, or no name at all.
    with contextlib.suppress(OSError, ValueError):
        for root in roots(folder):
            path = root / relative
            below = path.parents[: len(relative.parts) - 1]
            is_walked = folder.follows_links or not any(parent.is_symlink() for parent in below)
            is_part = (path.parent / "config.json").is_file()
            if is_walked and not is_part and _may_open(path, root, folder):
                return path
    return None


def _name(relative: PurePath, folder: ModelFolder) -> str:
    """Where links are followed, names are the host's, which are the system's."""
    return str(relative) if folder.follows_links else relative.as_posix()


def _directories(folder: ModelFolder) -> dict[str, Path]:
    directories: dict[str, Path] = {}
    for root in roots(folder):
        for config in sorted(root.glob("*/config.json")):
            if _may_open(config, root, folder):
                directories.setdefault(config.parent.name, config.parent)
    return directories


def _walk(root: Path, folder: ModelFolder) -> Iterator[str]:
    """The names of the files below a root that may be opened, but for those of a transformers
    folder."""
    for directory, _, files in os.walk(root, followlinks=folder.follows_links):
        if "config.json" in files:
            continue
        place = Path(directory).relative_to(root)
        above = "" if place == Path() else _name(place / "-", folder)[:-1]
        with os.scandir(directory) as entries:
            for entry in entries:
                if os.path.splitext(entry.name)[1].lower() not in folder.suffixes:
                    continue
                # What is no link lies where it stands: only links are looked up.
                if entry.is_file(follow_symlinks=False) or (
                    entry.is_symlink() and _may_open(Path(entry.path), root, folder)
                ):
                    yield above + entry.name


def _may_open(path: Path, root: Path, folder: ModelFolder) -> bool:
    return path.is_file() and (
        folder.follows_links or path.resolve().is_relative_to(root.resolve())
    )


def _model_type(config: Path) -> str:
    try:
        return str(json.loads(config.read_text(encoding="utf-8")).get("model_type", ""))
    except (OSError, ValueError, AttributeError):
        return ""
