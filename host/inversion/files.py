"""An inversion as a file of its own, and where the user's files lie."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from ...magic.messages import shown
from ..models.folders import listed_file, listed_state
from ..models.safe_files import tensor_bytes, write_file, write_numbered
from .inputs import checked_sigmas
from .run import METHODS, Inversion, method_today

FOLDER_KIND = "magicportrait_inversions"
_MARK, _VERSION = "magicportrait inversion", "1"
_SUFFIX = ".safetensors"
_LONGEST_HEADER = 16 * 1024**2

_HEADER_FIELDS: dict[str, Callable[[Any], bool]] = {
    "method": lambda value: isinstance(value, str) and method_today(value) in METHODS,
    "model": lambda value: isinstance(value, str),
    "key": lambda value: isinstance(value, str),
    "model_calls": lambda value: type(value) is int and value >= 0,
    "seconds": lambda value: type(value) in (int, float) and 0 <= value < math.inf,
    "conditioning": lambda value: isinstance(value, list) and len(value) > 0,
}
"""What an inversion is beside its tensors, and what may stand in a file for it."""


class UnreadableInversion(ValueError):
    """A file is damaged, or is not an inversion."""


class UnstorableInversion(ValueError):
    """An inversion depends on something that a file cannot hold."""


def write_inversion(path: Path, inversion: Inversion) -> None:
    """Writes a file completely or not at all.

    UnstorableInversion when its conditioning carries more than tensors and plain values, OSError
    (`UnwritableFile`) when the disk is full or read-only.
    """
    write_file(path, _content(inversion))


def save_inversion(inversion: Inversion, name: str) -> str:
    """Writes a numbered file into output/inversions, and gives its name there. name: may lead into
    folders below. Errors as in `write_inversion`, and the host's own for names that lead out."""
    import folder_paths

    root = Path(folder_paths.get_output_directory()) / "inversions"
    # Against that folder, not all of output: the host refuses names that lead out of what it is
    # given.
    [path] = write_numbered(root, name, {_SUFFIX: _content(inversion)})
    return str(path.relative_to(root))


def _content(inversion: Inversion) -> bytes:
    tensors = {"sigmas": inversion.sigmas, "latents": inversion.latents}
    if inversion.resampled is not None:
        tensors["resampled"] = inversion.resampled
    header = {
        "conditioning": [
            _plain_entry(index, entry, tensors)
            for index, entry in enumerate(inversion.conditioning)
        ],
        **{name: getattr(inversion, name) for name in _HEADER_FIELDS if name != "conditioning"},
    }
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps(header, sort_keys=True)
    metadata = {
        "mark": _MARK,
        "version": _VERSION,
        "header": text,
        "checksum": _checksum(text, tensors),
    }
    return tensor_bytes(tensors, metadata)


def _plain_entry(index: int, entry: Any, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """A conditioning entry as plain values; its tensors go to `tensors`."""
    cond, options = entry
    tensors[f"conditioning.{index}"] = cond
    plain: dict[str, Any] = {}
    for name, value in options.items():
        if isinstance(value, Tensor):
            tensors[f"conditioning.{index}.{name}"] = value
        elif value is None or isinstance(value, (bool, int, float, str)):
            plain[name] = value
        else:
            raise UnstorableInversion(
                f"the conditioning has '{name}' ({type(value).__name__}) in it, which a file cannot"
                " hold"
            )
    return {"index": index, "options": plain}


def read_inversion(path: Path) -> Inversion:
    """UnreadableInversion, with the reason, for anything but a whole file that `write_inversion`
    wrote. FileNotFoundError for none."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        # Opened once: another process may put a new file in its place meanwhile.
        with open(path, "rb") as file:
            start, metadata = _read_start(file, path.name)
            # Only now what may be large.
            tensors = load(start + file.read())
    except FileNotFoundError:
        raise
    except UnreadableInversion:
        raise
    except OSError as error:
        raise UnreadableInversion(f"{path.name} cannot be read: {error.strerror}") from error
    # What safetensors reads, torch may not know.
    except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise UnreadableInversion(f"{path.name} is damaged or no safetensors file") from error
    if metadata.get("checksum") != _checksum(metadata["header"], tensors):
        raise UnreadableInversion(f"{path.name} was changed after it was written")
    # What follows only a file can break that somebody made to look like one.
    try:
        return _restore(metadata["header"], tensors)
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        raise UnreadableInversion(f"{path.name} is no inversion: {error}") from error


def _read_start(file: BinaryIO, name: str) -> tuple[bytes, dict[str, str]]:
    """The bytes of a safetensors file before its tensors, and the metadata in them.
    UnreadableInversion when it is no inversion, or not whole."""
    size = os.fstat(file.fileno()).st_size
    first = file.read(8)
    length = int.from_bytes(first, "little")
    if len(first) < 8 or length > min(size - 8, _LONGEST_HEADER):
        raise UnreadableInversion(
            f"{name} is damaged or no safetensors file: its header is not whole"
        )
    header = file.read(length)
    try:
        table = json.loads(header)
        metadata = table.pop("__metadata__", {})
        end = max((entry["data_offsets"][1] for entry in table.values()), default=0)
        is_inversion = metadata.get("mark") == _MARK and metadata.get("version") == _VERSION
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
        raise UnreadableInversion(
            f"{name} is damaged or no safetensors file: its header cannot be read"
        ) from error
    if not is_inversion or not isinstance(metadata.get("header"), str):
        raise UnreadableInversion(f"{name} is not an inversion of this version of MagicPortrait")
    if 8 + length + end != size:
        raise UnreadableInversion(
            f"{name} is damaged or no safetensors file: it has {size} bytes, {8 + length + end}"
            " are expected"
        )
    return first + header, metadata


def _checksum(header: str, tensors: dict[str, Tensor]) -> str:
    digest = hashlib.blake2b(header.encode(), digest_size=16)
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _restore(header: str, tensors: dict[str, Tensor]) -> Inversion:
    """ValueError when what is in a file does not fit together."""
    fields = json.loads(header)
    if fields.keys() != _HEADER_FIELDS.keys():
        raise ValueError(f"it says {sorted(fields)}, expected {sorted(_HEADER_FIELDS)}")
    for name, is_right in _HEADER_FIELDS.items():
        if not is_right(fields[name]):
            raise ValueError(f"its {name} cannot be {fields[name]!r:.40}")
    sigmas, latents, resampled = (tensors.get(name) for name in ("sigmas", "latents", "resampled"))
    if sigmas is None or latents is None:
        raise ValueError("it has no sigmas or no latents")
    checked_sigmas(sigmas)
    if latents.ndim not in (5, 6) or len(latents) != len(sigmas) or not latents.numel():
        raise ValueError(
            f"its latents have the shape {tuple(latents.shape)}, its {len(sigmas)} sigmas do not"
        )
    _check_finite("latents", latents)
    if resampled is not None and resampled.shape != latents.shape[1:]:
        raise ValueError(f"its latents sampled again have the shape {tuple(resampled.shape)}")
    conditioning = [_entry(entry, tensors) for entry in fields.pop("conditioning")]
    fields["method"] = method_today(fields["method"])
    return Inversion(sigmas, latents, conditioning, **fields, resampled=resampled)


def _entry(entry: dict[str, Any], tensors: dict[str, Tensor]) -> list[Any]:
    """A conditioning entry from its plain values and the tensors that belong to it."""
    name = f"conditioning.{entry['index']}"
    cond = tensors[name]
    if cond.ndim != 3:
        raise ValueError(f"its {name} has the shape {tuple(cond.shape)}")
    options = {
        key.removeprefix(f"{name}."): tensor
        for key, tensor in tensors.items()
        if key.startswith(f"{name}.")
    }
    for key, tensor in {"": cond, **options}.items():
        _check_finite(f"{name} {key}", tensor)
    for key, value in entry["options"].items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"its {name} {key} is {value}")
    return [cond, {**entry["options"], **options}]


def _check_finite(name: str, tensor: Tensor) -> None:
    if not tensor.isfinite().all():
        raise ValueError(f"its {name} are not finite")


def register_folders() -> None:
    """Inversion files are found in models/inversions and in output/inversions, where Save puts
    them."""
    import folder_paths

    for parent in (folder_paths.models_dir, folder_paths.get_output_directory()):
        folder_paths.add_model_folder_path(FOLDER_KIND, os.path.join(parent, "inversions"))
    folder_paths.folder_names_and_paths[FOLDER_KIND][1].add(_SUFFIX)


def list_files() -> list[str]:
    """The names of the user's files, as `path_of` takes them."""
    import folder_paths

    if FOLDER_KIND not in folder_paths.folder_names_and_paths:
        register_folders()
    return list(folder_paths.get_filename_list(FOLDER_KIND))


def path_of(name: str) -> Path:
    """The path of a listed file. ValueError for any other name."""
    path = listed_file(FOLDER_KIND, name, list_files())
    if path is None:
        raise ValueError(
            f"inversion file '{shown(name)}' is not there: save one with Save Inversion, or put it"
            " into models/inversions"
        )
    return path


def state_of(name: str) -> str:
    """Another text whenever a listed file is another one; empty when it is not there."""
    return listed_state(path_of, name)
