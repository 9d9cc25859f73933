"""What a MagiCapture step costs against the host's own trainer: `python -m bench.magicapture_step`
(`--bf16 --latent 64` on a GPU)

SD1.5-sized UNet, CLIP-L, VAE and an IResNet-50 with random weights; same rank, batch and latents,
no gradient checkpointing in either. A process for each figure. Memory is the peak of the process
(or of the GPU), weights included.

`--toy` takes the transformer toy instead, in processor seconds, with the memory that a training
takes beside the loaded model.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from typing import Any

from . import random_sd15, toy
from .command_line import bench_parser, command_of, parse_with_quick
from .core_trainer import train_core_lora
from .report import Report
from .step_cost import (
    QUICK,
    Scale,
    StepClock,
    add_scale,
    device_name,
    figures_alone,
    peak_bytes,
    print_figures,
)

# ruff: isort: split
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from magicportrait.host.faces.identity import Identity
from magicportrait.host.training.run import CaptureTraining
from magicportrait.host.training.settings import CaptureSettings
from magicportrait.magic.capture_sets import StyleSet, Subject, capture_pictures

TOY_LATENT = 32
"""Side of the transformer toy's latents."""
MODES = ("core TrainLoraNode", "textual inversion", "LoRA", "LoRA with identity loss")
RANK, PICTURES = 4, 2


def run_core(model: Any, positive: list[Any], scale: Scale, batch: int) -> None:
    train_core_lora(
        model,
        torch.randn(2 * PICTURES, 4, scale.latent, scale.latent),
        [positive],
        steps=scale.steps,
        batch=batch,
        rank=RANK,
        rate=1e-4,
        precision=scale.precision,
    )


def run_ours(
    mode: str, model: Any, clip: Any, vae: Any, identity: Identity | None, scale: Scale, batch: int
) -> None:
    latent, side = scale.latent, scale.latent * 8
    mask = torch.zeros(side, side)
    mask[latent : latent * 4, latent * 2 : latent * 5] = 1
    pictures = capture_pictures(
        [torch.rand(side, side, 3) for _ in range(PICTURES)], [mask], list("ab")
    )
    is_inversion = mode == "textual inversion"
    settings = CaptureSettings(
        inversion_steps=scale.steps if is_inversion else 0,
        lora_steps=0 if is_inversion else scale.steps,
        rank=RANK,
        batch=batch,
        versions=1,
        side=side,
        precision=scale.precision,
    )
    training = CaptureTraining(
        model,
        clip,
        vae,
        Subject(pictures, "<a>", "person", ("a photo of a {person}",)),
        StyleSet(pictures, "<b>", "person", ("a picture of a {person} in {style} style",)),
        identity,
        settings,
    )
    training.run(lambda step, loss: None)


@torch.inference_mode()
def measure(mode: str, scale: Scale, batch: int) -> tuple[float, int]:
    """Mean seconds a step, the first one left out, and bytes in use at the peak."""
    clock = StepClock()
    handle = register_optimizer_step_post_hook(clock)
    try:
        model = random_sd15.unet(scale.dtype, scale.channels)
        # The trainer of newer hosts makes its copy by loading the model again.
        model.cached_patcher_init = (
            lambda disable_dynamic=False: random_sd15.unet(scale.dtype, scale.channels),
            (),
        )
        if mode == MODES[0]:
            run_core(model, random_sd15.conditioning(1), scale, batch)
        else:
            identity = random_sd15.identity() if "identity" in mode else None
            parts = random_sd15.text_encoder(), random_sd15.autoencoder(), identity
            run_ours(mode, model, *parts, scale, batch)
    finally:
        handle.remove()
    return sum(clock.steps) / len(clock.steps), peak_bytes()


@torch.inference_mode()
def measure_toy(mode: str, scale: Scale, batch: int) -> tuple[float, int]:
    """The same of the transformer toy: processor seconds, and bytes beside the loaded model."""
    checkpoint = toy.Toy.load_transformer()
    clock = StepClock(time.process_time)
    handle = register_optimizer_step_post_hook(clock)
    before = peak_bytes()
    try:
        if mode == MODES[0]:
            positive = checkpoint.encode_text("a woman, cartoon style")
            run_core(checkpoint.model, positive, scale, batch)
        else:
            identity = toy.identity() if "identity" in mode else None
            run_ours(
                mode, checkpoint.model, checkpoint.clip, checkpoint.vae, identity, scale, batch
            )
    finally:
        handle.remove()
    return sum(clock.steps) / len(clock.steps), peak_bytes() - before


def main() -> None:
    parser = bench_parser(__doc__)
    add_scale(parser, steps=7, latent=32, half=torch.bfloat16)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--toy", action="store_true", help="the transformer toy, at its own size")
    parser.add_argument("--one", choices=MODES, help=argparse.SUPPRESS)
    args = parse_with_quick(parser, **QUICK)
    scale = Scale.of(args)
    if args.toy:
        scale = replace(scale, latent=TOY_LATENT)
    if args.one:
        measure_one = measure_toy if args.toy else measure
        print_figures(*measure_one(args.one, scale, args.batch))
        return
    device = device_name()
    if not torch.cuda.is_available():
        device += f", {torch.get_num_threads()} threads"
    report = Report(
        "magicapture_step_toy" if args.toy else "magicapture_step",
        "Cost of a MagiCapture step",
        f"`{command_of('bench.magicapture_step')}` on {device}, {scale.precision},"
        f" {scale.latent * 8} px, batch {args.batch}, rank {RANK}",
    )
    seconds_of = "processor seconds a step" if args.toy else "seconds a step"
    memory_of = "memory beside the model" if args.toy else "peak memory"
    report.begin_table("", seconds_of, "against core", memory_of, "against core")
    core: tuple[float, float] | None = None
    for mode in MODES:
        seconds, memory = figures_alone("bench.magicapture_step", *sys.argv[1:], "--one", mode)
        core = core or (seconds, memory)
        report.add_row(
            mode,
            f"{seconds:.2f}",
            f"{seconds / core[0]:.2f} x",
            f"{memory / 2**20:.0f} MiB" if args.toy else f"{memory / 2**30:.1f} GiB",
            f"{memory / core[1]:.2f} x",
        )
    report.finish(kept=not args.quick)


if __name__ == "__main__":
    main()
