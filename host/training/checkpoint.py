"""The state of a training as a file, and which training a file belongs to."""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import re
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...magic.capture_sets import StyleSet, Subject
from ..models.safe_files import UnwritableFile, write_file
from .networks import Networks
from .settings import CaptureSettings

CHECKPOINTS_IN_FOLDER = 4
"""So many checkpoints of trainings that were given up stay in a folder, the newest."""
_NAME = re.compile(r"[0-9a-f]{16}\.pt")
_MOST_TESTED = 64 * 2**20
"""Bytes that are written to try a folder; for larger checkpoints the disk is asked for the rest."""


@dataclass(frozen=True, eq=False)
class TrainingState:
    """Everything that the rest of a training depends on.

    fingerprint: which training it is. step: steps done. phase: of the last of them. history, terms,
    seconds: see History. generator: of everything random. rows: the learned words of each text
    encoder. adapters: what is learned of each.
    optimizer, scaler: their own states. averages: of what its phase learns, where they are kept.
    """

    fingerprint: str
    step: int
    phase: int
    history: list[float]
    terms: dict[str, list[float]]
    seconds: list[float]
    generator: Tensor
    rows: list[Tensor]
    adapters: list[tuple[Tensor, ...]]
    optimizer: dict[str, Any]
    scaler: dict[str, Any]
    averages: list[Tensor]

    @property
    def learned(self) -> list[Tensor]:
        """Rows and adapters."""
        return [*self.rows, *(tensor for adapter in self.adapters for tensor in adapter)]


_KINDS: dict[str, type] = {
    "fingerprint": str,
    "step": int,
    "phase": int,
    "history": list,
    "terms": dict,
    "seconds": list,
    "generator": Tensor,
    "rows": list,
    "adapters": list,
    "optimizer": dict,
    "scaler": dict,
    "averages": list,
}


@dataclass(frozen=True)
class CheckpointFile:
    """Where a training keeps its state. What cannot be written is said in the log: a training is
    worth more than its checkpoint.

    path: the file. every: so many steps.
    """

    path: Path
    every: int

    def try_folder(self, size: int) -> None:
        """Warns when no checkpoint of `size` bytes can be written there."""
        probe = self.path.with_suffix(".test")
        try:
            write_file(probe, bytes(min(size, _MOST_TESTED)), is_lasting=False)
        except UnwritableFile as error:
            self._warn(str(error))
            return
        with contextlib.suppress(OSError):
            probe.unlink()
            if (free := shutil.disk_usage(self.path.parent).free) < size:
                self._warn(f"it takes {size >> 20} MB, and the disk has {free >> 20} MB left")

    def read(self, fingerprint: str) -> TrainingState | None:
        """None when there is none. ValueError when it cannot be read or is another training's."""
        return read_checkpoint(self.path, fingerprint) if self.path.exists() else None

    def write(self, state: TrainingState) -> bool:
        """Whether it could be written. A file that is there is replaced as a whole or not at
        all."""
        content = io.BytesIO()
        torch.save({field.name: getattr(state, field.name) for field in fields(state)}, content)
        try:
            write_file(self.path, content.getvalue())
        except UnwritableFile as error:
            self._warn(str(error))
            return False
        return True

    def leave(self, state: TrainingState) -> None:
        """Writes the state of a training that stops here, and removes the oldest of those that were
        given up before."""
        if not self.write(state):
            return
        logging.info(
            "MagiCapture: stopped after step %d, kept in %s: the same training started again goes"
            " on from there",
            state.step,
            self.path,
        )
        for path in _given_up(self.path)[CHECKPOINTS_IN_FOLDER - 1 :]:
            with contextlib.suppress(OSError):
                path.unlink()
                logging.info(
                    "MagiCapture: removed %s, older than the last %d", path, CHECKPOINTS_IN_FOLDER
                )

    def remove(self) -> None:
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)

    def _warn(self, reason: str) -> None:
        logging.warning(
            "MagiCapture: no checkpoint could be kept (%s). The training goes on, and tries again"
            " after %d steps",
            reason,
            self.every,
        )


def _given_up(path: Path) -> list[Path]:
    """The other checkpoints beside a file, the newest first."""
    others: list[tuple[float, Path]] = []
    with contextlib.suppress(OSError):
        for other in path.parent.iterdir():
            if other != path and _NAME.fullmatch(other.name):
                others.append((other.stat().st_mtime, other))
    return [other for _, other in sorted(others, reverse=True)]


def read_checkpoint(path: Path, fingerprint: str) -> TrainingState:
    """ValueError, with the file's name, when it cannot be read, is damaged, or is another
    training's."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # torch's own words are not for people: they advise an unsafe way to read the file.
        reason = "is no checkpoint of MagiCapture or is damaged"
        if isinstance(error, OSError) and error.strerror:
            reason = f"cannot be read ({error.strerror})"
        raise ValueError(f"checkpoint {path} {reason}: remove it to start anew") from error
    with name_damage(path):
        if not isinstance(content, dict):
            raise TypeError(f"it holds a {type(content).__name__}, a table was expected")
        if missing := [name for name in _KINDS if name not in content]:
            raise KeyError(f"it has no {', '.join(missing)}")
        for name, kind in _KINDS.items():
            if not isinstance(content[name], kind) or isinstance(content[name], bool):
                raise TypeError(
                    f"its {name} is a {type(content[name]).__name__}, a {kind.__name__} was"
                    " expected"
                )
    state = TrainingState(**{name: content[name] for name in _KINDS})
    if state.fingerprint != fingerprint:
        raise ValueError(
            f"checkpoint {path.name} belongs to a training with other pictures, settings or"
            " models: remove it to start anew"
        )
    return state


@contextlib.contextmanager
def name_damage(path: Path) -> Iterator[None]:
    """Whatever is wrong with what a checkpoint holds becomes a ValueError with the file's name."""
    try:
        yield
    except Exception as error:
        reason = (str(error.args[0]) if error.args else type(error).__name__).partition("\n")[0]
        raise ValueError(
            f"checkpoint {path} is damaged ({reason}): remove it to start anew"
        ) from error


def training_fingerprint(
    networks: Networks,
    vae: Any,
    subject: Subject,
    style: StyleSet | None,
    settings: CaptureSettings,
    side: int,
) -> str:
    """Says whether a checkpoint belongs to this very training: of every byte that it depends on. To
    be taken before the first step."""
    digest = hashlib.sha256()
    account: list[Any] = [asdict(settings), side]
    sets = [part for part in (*subject.all, style) if part is not None]
    account += [(part.placeholder, part.class_word, part.templates) for part in sets]
    account += [picture.caption for part in sets for picture in part.pictures]
    # Of pictures and VAE, not of latents: a GPU may encode the last bit otherwise in each run.
    tensors: dict[str, Tensor] = {}
    for part in sets:
        for number, picture in enumerate(part.pictures):
            name = f"{part.placeholder} {number} {picture.name}"
            tensors |= {f"{name} image": picture.image, f"{name} mask": picture.mask}
    for each in subject.all:
        account.append((len(each.class_pictures), each.class_weight))
        for number, picture in enumerate(each.class_pictures):
            tensors[f"{each.placeholder} {number} {picture.name} class"] = picture.image
    tensors |= {f"vae {name}": tensor for name, tensor in vae.get_sd().items()}
    weights = networks.denoiser.network.state_dict()
    tensors |= {f"denoiser {name}": tensor for name, tensor in weights.items()}
    tensors |= dict(networks.text.weights())
    if networks.faces:
        identity = networks.faces.identity
        account.append((identity.side, identity.margin))
        weights = identity.network.state_dict()
        tensors |= {f"identity {name}": tensor for name, tensor in weights.items()}
    digest.update(repr(account).encode())
    for name, tensor in tensors.items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(_bytes_of(tensor))
    return digest.hexdigest()[:16]


def _bytes_of(tensor: Tensor) -> memoryview:
    # What the host has loaded while it runs nodes can be looked at in this mode only.
    with torch.inference_mode():
        whole = tensor.detach().cpu().contiguous().reshape(-1)
        return whole.view(torch.uint8).numpy().data
