"""Measures what a step costs: seconds, bytes at the peak, in a process of its own for each
figure."""

from __future__ import annotations

import argparse
import itertools
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from devkit.pack import ROOT

from . import random_sd15

# ruff: isort: split
import comfy.samplers
import torch
from torch import Tensor

QUICK = {"latent": 16, "channels": 64, "steps": 3}
"""Values of the options of a Scale for --quick."""
_MARK = "RESULT"
_PRECISIONS = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}


class Cost(NamedTuple):
    """What a step of a sampling costs.

    seconds: of a step; plain: of a plain step in the same process, because machines drift; memory:
    bytes in use at the peak, weights included.
    """

    seconds: float
    plain: float
    memory: float

    @property
    def ratio(self) -> float:
        """To the plain step."""
        return self.seconds / self.plain


@dataclass(frozen=True)
class Scale:
    """How large a run is.

    latent: side of the latents, 64 is 512 px; channels: of the UNet's first level; steps: of the
    run, with the first, which is not measured; dtype: of the UNet.
    """

    latent: int
    channels: int
    steps: int
    dtype: torch.dtype

    @classmethod
    def of(cls, args: argparse.Namespace) -> Scale:
        """What the options of `add_scale` say."""
        return cls(args.latent, args.channels, args.steps, args.dtype)

    @property
    def precision(self) -> str:
        return _PRECISIONS[self.dtype]


def add_scale(
    parser: argparse.ArgumentParser,
    steps: int,
    latent: int = 64,
    half: torch.dtype = torch.float16,
) -> None:
    """The options of a Scale. steps, latent: defaults; half: what a GPU may use instead of fp32."""
    parser.add_argument(
        f"--{_PRECISIONS[half]}",
        dest="dtype",
        action="store_const",
        const=half,
        default=torch.float32,
        help="half precision, for GPUs",
    )
    parser.add_argument("--steps", type=int, default=steps, help="of each run")
    parser.add_argument(
        "--latent",
        type=int,
        default=latent,
        help="side of the latents: 64, SD1.5's own, is 512 px",
    )
    parser.add_argument(
        "--channels",
        type=int,
        default=random_sd15.CHANNELS,
        help="of the UNet's first level, fewer for a try",
    )


class StepClock:
    """A callback of samplers and trainers that looks at the clock. now: in seconds."""

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now
        self._marks: list[float] = []

    def __call__(self, *_: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self._marks.append(self._now())

    @property
    def steps(self) -> list[float]:
        """Seconds of every step but the first, in which a model is loaded and warms up."""
        return [after - before for before, after in itertools.pairwise(self._marks)]


def sampling_sigmas(model: Any, scheduler: str, steps: int) -> Tensor:
    """The sigmas of a schedule of the host's, the last one 0: steps + 1."""
    sampling = model.get_model_object("model_sampling")
    return comfy.samplers.calculate_sigmas(sampling, scheduler, steps)


def noise_latent(model: Any, sigma: Tensor, side: int, channels: int = 4) -> Tensor:
    """A LATENT's samples that are noise of the first sigma of a run: 1 C side side."""
    samples: Tensor = model.model.process_latent_out(torch.randn(1, channels, side, side) * sigma)
    return samples


def seconds_of_steps(
    model: Any,
    positive: list[Any],
    negative: list[Any],
    sigmas: Tensor,
    start: Tensor,
    cfg: float,
    now: Callable[[], float] = time.perf_counter,
) -> list[float]:
    """Of all steps of an Euler run but the first. start: a LATENT's samples, noise as they are;
    now: the clock."""
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, negative)
    guider.set_cfg(cfg)
    clock = StepClock(now)
    guider.sample(
        torch.zeros_like(start),
        start,
        comfy.samplers.sampler_object("euler"),
        sigmas,
        callback=clock,
        disable_pbar=True,
        seed=0,
    )
    return clock.steps


def peak_bytes() -> int:
    """Of the GPU, or else of this process, since it began."""
    return (
        torch.cuda.max_memory_allocated()
        if torch.cuda.is_available()
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    )


def device_name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"


def print_figures(*figures: float) -> None:
    """What `figures_alone` reads, at the end of the process that it started."""
    print(_MARK, *figures)


def figures_alone(module: str, *arguments: str) -> list[float]:
    """What `python -m MODULE ARGUMENTS` gives to `print_figures`.

    A process for each figure, because a peak of memory cannot be taken back. RuntimeError has what
    a process that failed wrote last.
    """
    process = subprocess.run(
        [sys.executable, "-m", module, *arguments], capture_output=True, text=True, cwd=ROOT
    )
    if process.returncode:
        raise RuntimeError(
            f"{module} {' '.join(arguments)} ended with {process.returncode}:\n"
            + process.stderr[-2000:]
        )
    return [float(figure) for figure in process.stdout.rsplit(_MARK, 1)[1].split()]
