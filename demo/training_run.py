"""How every stage of the training runs: optimizers, rates, checkpoints, processes that share a
batch. Everything lies in demo/training/ (not committed).
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .muon import Muon, split_parameters

FOLDER = Path(__file__).parent / "training"


@dataclass(frozen=True)
class Run:
    """How a stage is run: on what, for how long, and which of `workers` processes this is (they
    share every batch)."""

    device: torch.device
    steps: int
    batch: int
    minutes: float = 0
    rank: int = 0
    workers: int = 1
    peak: float = 1.0
    """Factor on the learning rates."""
    half: bool = False
    """Whether UNet or transformer compute in bfloat16 (autocast): on what is fast at it."""

    @property
    def share(self) -> slice:
        """Which of a batch's entries are this process's."""
        return slice(self.rank, self.batch, self.workers)


def cosine_rate(
    step: int, steps: int, peak: float, warmup: int = 100, floor: float = 0.01
) -> float:
    """Rises to `peak` in `warmup` steps and falls along a cosine to `floor` of it at `steps`."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * (
        floor
        + (1 - floor)
        * 0.5
        * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, steps - warmup))))
    )


def build_optimizers(model: nn.Module) -> dict[str, torch.optim.Optimizer]:
    """'muon' for the matrices of a model, 'adam' for the rest."""
    matrices, others = split_parameters(model)
    return {
        "muon": Muon(matrices),
        "adam": torch.optim.AdamW(others, betas=(0.9, 0.99), weight_decay=0),
    }


def descend(
    model: nn.Module,
    optimizers: dict[str, torch.optim.Optimizer],
    loss: Tensor,
    rates: dict[str, float],
    run: Run,
) -> None:
    """One step of every optimizer, with the learning rate of the same name, on the mean gradient of
    all processes."""
    for optimizer in optimizers.values():
        optimizer.zero_grad(set_to_none=True)
    loss.backward()
    if run.workers > 1:
        average_gradients(model)
    for name, optimizer in optimizers.items():
        for group in optimizer.param_groups:
            group["lr"] = rates[name]
        optimizer.step()


def average_gradients(model: nn.Module) -> None:
    """Replaces each process's gradients by their mean over all processes."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients])
    torch.distributed.all_reduce(flat)
    flat /= torch.distributed.get_world_size()
    for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


def save_atomically(state: dict[str, Any], path: Path) -> None:
    """Writes a checkpoint beside its place first: a killed run leaves the last whole one."""
    torch.save(state, path.with_suffix(".tmp"))
    os.replace(path.with_suffix(".tmp"), path)


def run_steps(
    name: str,
    run: Run,
    state: dict[str, nn.Module | torch.optim.Optimizer],
    step_once: Callable[[int], float],
    start: int = 0,
    after_save: Callable[[int], None] = lambda step: None,
) -> None:
    """Calls `step_once(step)` -> loss from the checkpoint's step on, or from `start` without one,
    saving every two minutes and at the end (then `after_save(step)`). Stops early, at a checkpoint,
    when the run's minutes are over. What it prints is added to `name`.log too.
    """
    path = FOLDER / f"{name}.pt"

    def report(line: str) -> None:
        print(line, flush=True)
        with path.with_suffix(".log").open("a", encoding="utf-8") as log:
            log.write(line + "\n")

    if path.exists():
        saved = torch.load(path, map_location="cpu", weights_only=True)
        start = saved["step"]
        for key, part in state.items():
            part.load_state_dict(saved[key])
        if run.rank == 0:
            report(f"{name}: resuming at step {start}")
    began = saved_at = time.time()
    mean_loss = 0.0
    for step in range(start, run.steps):
        # A resumed run sees other batches than the first one did at step 0, and the same ones each
        # time it is resumed.
        torch.manual_seed(step)
        loss = step_once(step)
        mean_loss = loss if step == start else 0.98 * mean_loss + 0.02 * loss
        if run.rank > 0:
            continue
        now = time.time()
        out_of_time = bool(run.minutes) and now - began > run.minutes * 60
        if step % 20 == 0:
            report(
                f"{name} {step}/{run.steps} loss {mean_loss:.5f}"
                f" {(now - began) / (step - start + 1):.3f} s/step"
            )
        if now - saved_at > 120 or step == run.steps - 1 or out_of_time:
            saved_at = now
            save_atomically(
                {"step": step + 1, **{key: part.state_dict() for key, part in state.items()}}, path
            )
            after_save(step + 1)
        if out_of_time:
            break
