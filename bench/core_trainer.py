"""The host's own LoRA trainer, TrainLoraNode, which MagiCapture is compared with."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any

from . import in_process  # noqa: F401 (before what follows)

# ruff: isort: split
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy_extras.nodes_train import TrainLoraNode
from torch import Tensor, nn


def train_core_lora(
    model: Any,
    latents: Tensor,
    positive: list[Any],
    *,
    steps: int,
    batch: int,
    rank: int,
    rate: float,
    precision: str,
) -> dict[str, Tensor]:
    """The LORA_MODEL of AdamW over plain denoising.

    latents: B 4 h w; positive: a CONDITIONING for each, or one for all; precision: 'fp32' or
    'bf16', of the training, the LoRA itself is fp32.
    """
    options = {
        "batch_size": batch,
        "grad_accumulation_steps": 1,
        "steps": steps,
        "learning_rate": rate,
        "rank": rank,
        "optimizer": "AdamW",
        "loss_function": "MSE",
        "seed": 0,
        "training_dtype": precision,
        "lora_dtype": "fp32",
        "quantized_backward": False,
        "algorithm": "LoRA",
        "gradient_checkpointing": False,
        "checkpoint_depth": 1,
        "offloading": False,
        "existing_lora": "[None]",
        "bucket_mode": False,
        "bypass_mode": False,
    }
    # Hosts differ in which of these they have.
    names = inspect.signature(TrainLoraNode.execute).parameters
    is_unet = isinstance(model.model.diffusion_model, UNetModel)
    with contextlib.nullcontext() if is_unet else _norms_of_copies():
        lora: dict[str, Tensor] = TrainLoraNode.execute(
            model=[model],
            latents=[{"samples": latents}],
            positive=positive,
            **{name: [value] for name, value in options.items() if name in names},
        ).args[0]
    return lora


@contextlib.contextmanager
def _norms_of_copies() -> Iterator[None]:
    """Norms see copies, in whatever network: the host's transformers add to what these keep for
    their gradients, and its trainer loads a network of its own."""

    def copy_input(module: nn.Module, args: tuple[Any, ...]) -> Any:
        return (args[0].clone(), *args[1:]) if isinstance(module, nn.LayerNorm) else None

    handle = nn.modules.module.register_module_forward_pre_hook(copy_input)
    try:
        yield
    finally:
        handle.remove()
