"""Inversions on disk: files of the user's, and a cache that remembers what was computed before,
also after a restart."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .run import Inversion

FOLDER_KIND = "magicportrait_inversions"
_MARK, _VERSION = "magicportrait inversion", "1"


class UnreadableInversion(ValueError):
    """A file is damaged, or is not an inversion."""


class UnstorableInversion(ValueError):
    """An inversion depends on something that a file cannot hold."""


def write_inversion(path: Path, inversion: Inversion) -> None:
    """Writes a file completely or not at all.

    UnstorableInversion when its conditioning carries more than tensors and plain values, OSError
    when the disk is full or read-only.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    tensors = {"sigmas": inversion.sigmas, "latents": inversion.latents}
    if inversion.resampled is not None:
        tensors["resampled"] = inversion.resampled
    header = {
        "conditioning": [
            _described(index, entry, tensors) for index, entry in enumerate(inversion.conditioning)
        ],
        **{
            name: getattr(inversion, name)
            for name in ("method", "model", "key", "model_calls", "seconds")
        },
    }
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    text = json.dumps(header, sort_keys=True)
    metadata = {
        "mark": _MARK,
        "version": _VERSION,
        "header": text,
        "checksum": _checksum(text, tensors),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")
    try:
        save_file(tensors, part, metadata)
        os.replace(part, path)
    except SafetensorError as error:
        raise OSError(f"{path.name} could not be written: {error}") from error
    finally:
        part.unlink(missing_ok=True)


def read_inversion(path: Path) -> Inversion:
    """UnreadableInversion, with the reason, for anything but a whole file that `write_inversion`
    wrote. FileNotFoundError for none."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        # In one go: safetensors' own reader opens a file twice, and another process may put a new
        # one in its place between.
        content = path.read_bytes()
        tensors = load(content)
        metadata = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")]).get(
            "__metadata__", {}
        )
    except FileNotFoundError:
        raise
    except (SafetensorError, OSError) as error:
        raise UnreadableInversion(
            f"{path.name} is damaged or no safetensors file: {error}"
        ) from error
    if metadata.get("mark") != _MARK or metadata.get("version") != _VERSION:
        raise UnreadableInversion(
            f"{path.name} is not an inversion of this version of MagicPortrait"
        )
    if metadata.get("checksum") != _checksum(metadata.get("header", ""), tensors):
        raise UnreadableInversion(f"{path.name} was changed after it was written")
    header = json.loads(metadata["header"])
    conditioning = [_restored(entry, tensors) for entry in header.pop("conditioning")]
    return Inversion(
        tensors["sigmas"],
        tensors["latents"],
        conditioning,
        **header,
        resampled=tensors.get("resampled"),
    )


def _checksum(header: str, tensors: dict[str, Tensor]) -> str:
    digest = hashlib.blake2b(header.encode(), digest_size=16)
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _described(index: int, entry: Any, tensors: dict[str, Tensor]) -> dict[str, Any]:
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


def _restored(entry: dict[str, Any], tensors: dict[str, Tensor]) -> list[Any]:
    name = f"conditioning.{entry['index']}"
    found = {
        key.removeprefix(f"{name}."): tensor
        for key, tensor in tensors.items()
        if key.startswith(f"{name}.")
    }
    return [tensors[name], {**entry["options"], **found}]


@dataclass(frozen=True)
class InversionCache:
    """A folder of inversions by key, least recently used out first. limit: bytes."""

    folder: Path
    limit: int

    def find(self, key: str) -> Inversion | None:
        path = self._path(key)
        try:
            inversion = read_inversion(path)
        except FileNotFoundError:
            return None
        except UnreadableInversion as error:
            logging.warning("MagicPortrait: an inversion in the cache is computed again: %s", error)
            return None
        if inversion.key != key:
            logging.warning(
                "MagicPortrait: an inversion in the cache is computed again: %s belongs to another"
                " picture",
                path.name,
            )
            return None
        # Another process may have thrown it out, another user may own it.
        with contextlib.suppress(OSError):
            os.utime(path)
        return inversion

    def keep(self, inversion: Inversion) -> None:
        """Stores what can be stored; a full or read-only disk costs no more than the cache."""
        try:
            write_inversion(self._path(inversion.key), inversion)
            self._trim()
        except UnstorableInversion as error:
            logging.info("MagicPortrait: an inversion is not remembered: %s", error)
        except OSError as error:
            logging.warning("MagicPortrait: an inversion could not be cached: %s", error)

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"

    def _trim(self) -> None:
        files = sorted(
            _present(self.folder.glob("*.safetensors")), key=lambda item: item[0].st_mtime_ns
        )
        total = sum(stat.st_size for stat, _ in files)
        # The newest stays, even when it alone is larger than the limit.
        for stat, path in files[:-1]:
            if total <= self.limit:
                break
            path.unlink(missing_ok=True)
            total -= stat.st_size
        for stat, part in _present(self.folder.glob("*.part")):
            if files and stat.st_mtime < files[-1][0].st_mtime - 3600:
                part.unlink(missing_ok=True)


def _present(paths: Iterable[Path]) -> Iterator[tuple[os.stat_result, Path]]:
    """Without those that another process removes in this moment."""
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            yield path.stat(), path


def cache_folder() -> Path:
    """Where the cache lies: beside the user's settings, out of reach of the web server where the
    host knows such a place."""
    import folder_paths

    if hasattr(folder_paths, "get_system_user_directory"):
        return Path(folder_paths.get_system_user_directory("magicportrait")) / "inversions"
    return Path(folder_paths.get_user_directory()) / "__magicportrait" / "inversions"


def register_folders() -> None:
    """Inversion files are found in models/inversions and in output/inversions, where Save puts
    them."""
    import folder_paths

    for parent in (folder_paths.models_dir, folder_paths.get_output_directory()):
        folder_paths.add_model_folder_path(FOLDER_KIND, os.path.join(parent, "inversions"))
    folder_paths.folder_names_and_paths[FOLDER_KIND][1].add(".safetensors")


def list_files() -> list[str]:
    import folder_paths

    if FOLDER_KIND not in folder_paths.folder_names_and_paths:
        register_folders()
    return list(folder_paths.get_filename_list(FOLDER_KIND))
