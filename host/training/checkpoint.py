"""The state of a training as a file, and which training a file belongs to."""

from __future__ import annotations

import hashlib
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...magic.capture_sets import StyleSet, Subject
from ..faces.identity import Identity
from .networks import Networks
from .settings import CaptureSettings


def training_fingerprint(
    networks: Networks,
    vae: Any,
    subject: Subject,
    style: StyleSet,
    identity: Identity | None,
    settings: CaptureSettings,
    side: int,
) -> str:
    """Says whether a checkpoint belongs to this very training. To be taken before the first
    step."""
    digest = hashlib.sha256()
    described: list[Any] = [asdict(settings), side, identity.name if identity else ""]
    described += [
        (part.placeholder, part.class_word, part.templates, [p.name for p in part.pictures])
        for part in (subject, style)
    ]
    digest.update(repr(described).encode())
    # Of pictures and VAE, not of latents: a GPU may encode the last bit otherwise in each run.
    tensors = [
        tensor
        for picture in (*subject.pictures, *style.pictures)
        for tensor in (picture.image, picture.mask)
    ]
    tensors += [
        *vae.get_sd().values(),
        *networks.unet.unet.state_dict().values(),
        *(
            tensor
            for encoder in networks.text.encoders.values()
            for tensor in encoder.model.state_dict().values()
        ),
    ]
    tensors += networks.text.rows
    digest.update(repr([_sums(tensor.detach()) for tensor in tensors]).encode())
    return digest.hexdigest()[:16]


def _sums(tensor: Tensor) -> tuple[tuple[int, ...], float, float]:
    exact = tensor.double()
    return tuple(tensor.shape), exact.sum().item(), exact.abs().sum().item()


def write_checkpoint(state: dict[str, Any], path: Path) -> None:
    """A crash while writing leaves the previous file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, path.with_suffix(".tmp"))
    os.replace(path.with_suffix(".tmp"), path)


def read_checkpoint(path: Path, fingerprint: str) -> dict[str, Any]:
    """ValueError when the checkpoint cannot be read or is another training's."""
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(
            f"checkpoint {path} cannot be read ({error}): remove it to start anew"
        ) from error
    if state["fingerprint"] != fingerprint:
        raise ValueError(
            f"checkpoint {path.name} belongs to a training with other pictures, settings or"
            " models: remove it to start anew"
        )
    return state
