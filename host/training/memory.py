"""The memory that a training runs in, and torch's mode that it needs."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def memory_freed() -> Iterator[None]:
    """Other models leave the GPU before; after, an exception included, what nothing holds any more
    is given back."""
    import comfy.model_management as management

    management.unload_all_models()
    try:
        yield
    finally:
        # A UNet that is checkpointed block by block refers to itself.
        gc.collect()
        management.soft_empty_cache()


@contextlib.contextmanager
def training_mode() -> Iterator[None]:
    """Gradients, although the host runs nodes under inference_mode, and through the layers that it
    computes with kernels of its own at other times."""
    import comfy.model_management as management

    # Hosts that train on their own have this.
    before = getattr(management, "in_training", None)
    if before is not None:
        management.in_training = True
    try:
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        if before is not None:
            management.in_training = before
