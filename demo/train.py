"""Trains the toys from nothing: `python -m demo.train all`, then `python -m demo.train large
transformer`. Every stage checkpoints and resumes by itself.

The UNet toy (`all` runs its stages in this order):

    render       the training set (20,000 portraits, 5 minutes on two cores)
    autoencoder  encoder and decoder together (25 minutes on one core)
    encode       the training set as latents
    diffusion    UNet and text encoder (as long as you have; figures in MODEL_CARD.md)
    decoder      the decoder alone, on the frozen encoder
    export       writes demo/checkpoint/magic_toy.safetensors
    restore      the other way round: a starting point from the shipped weights

The transformer toy, on the shipped autoencoder:

    large               its training set: portraits at 256 px, and a quarter as many scenes of two
                        people (20,000 and 5,000 take 20 minutes on two cores)
    transformer         transformer and text encoder (as long as you have)
    transformer-sheet   samples of its averaged weights, to look at
    transformer-quality their binding and layout on held-out pictures (64 of each kind, or --count)
    transformer-export  writes demo/checkpoint/magic_toy_transformer.safetensors
    transformer-restore the other way round: a starting point from the shipped weights

Its edit variant, which takes garments from reference portraits in its sequence:

    transformer-edit        a low-rank change of the shipped weights, on the large set and reference
                            portraits that it renders first
    transformer-edit-export writes demo/checkpoint/magic_toy_transformer_edit.safetensors

Everything lies in demo/training/ (not committed) and is small enough to copy to a GPU machine and
go on there. Of the transformer, transformer_average.safetensors is enough to train on.
"""

from __future__ import annotations

import argparse
import functools
import os
from collections.abc import Callable
from dataclasses import replace

import torch
from torch.multiprocessing.spawn import spawn

from devkit.comfyui import use_host

from . import train_edit, train_transformer, train_unet
from .dataset import encode_large_set, render_training_set
from .training_run import FOLDER, Run

UNET_STAGES = ("render", "autoencoder", "encode", "diffusion", "decoder", "export")
OTHER_STAGES = (
    "restore",
    "large",
    "transformer",
    "transformer-sheet",
    "transformer-quality",
    "transformer-export",
    "transformer-restore",
    "transformer-edit",
    "transformer-edit-export",
)
TRAININGS: dict[str, Callable[[Run], None]] = {
    "autoencoder": train_unet.train_autoencoder,
    "diffusion": train_unet.train_diffusion,
    "decoder": functools.partial(train_unet.train_autoencoder, decoder_only=True),
    "transformer": train_transformer.train_transformer,
    train_edit.NAME: train_edit.train_edit,
}
DEFAULT_STEPS = {
    "autoencoder": 3000,
    "diffusion": 8000,
    "decoder": 2000,
    "transformer": 6000,
    "transformer-edit": 4000,
}
DEFAULT_BATCH = {
    "autoencoder": 6,
    "diffusion": 16,
    "decoder": 6,
    "transformer": 24,
    "transformer-edit": 8,
}


def worker(rank: int, stage: str, run: Run) -> None:
    """One of several processes that share every batch: on a CPU this scales where more threads do
    not."""
    torch.set_num_threads(1)
    use_host()
    torch.distributed.init_process_group(
        "gloo", f"file://{FOLDER / 'rendezvous'}", rank=rank, world_size=run.workers
    )
    TRAININGS[stage](replace(run, rank=rank))


def train(stage: str, run: Run) -> None:
    """Runs one of TRAININGS, in this process or in several."""
    if run.workers == 1:
        TRAININGS[stage](run)
        return
    (FOLDER / "rendezvous").unlink(missing_ok=True)
    spawn(worker, (stage, run), run.workers)


def run_stage(stage: str, args: argparse.Namespace) -> None:
    """Runs a stage as the command line asks for it."""
    device, processes = torch.device(args.device), os.cpu_count() or 1
    if stage == "render":
        render_training_set(FOLDER, args.count, processes)
    elif stage == "encode":
        train_unet.encode_training_set(device)
    elif stage == "export":
        train_unet.export()
    elif stage == "restore":
        train_unet.restore()
    elif stage == "large":
        encode_large_set(FOLDER, "scenes", args.count // 4, processes)
        encode_large_set(FOLDER, "portraits", args.count, processes)
    elif stage == "transformer-sheet":
        train_transformer.draw_sheet(device)
    elif stage == "transformer-quality":
        train_transformer.measure(device, min(args.count, 64))
    elif stage == "transformer-export":
        train_transformer.export()
    elif stage == "transformer-restore":
        train_transformer.restore()
    elif stage == "transformer-edit-export":
        train_edit.export()
    else:
        run = Run(
            device,
            args.steps or DEFAULT_STEPS[stage],
            args.batch or DEFAULT_BATCH[stage],
            args.minutes,
            workers=args.workers,
            peak=args.peak,
            half=args.half,
        )
        train(stage, run)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "stages", nargs="+", metavar="stage", choices=("all", *UNET_STAGES, *OTHER_STAGES)
    )
    parser.add_argument("--count", type=int, default=20_000, help="portraits in the training set")
    parser.add_argument(
        "--steps", type=int, help="steps of this stage (its learning rate schedule follows)"
    )
    parser.add_argument("--batch", type=int, help="batch size of this stage")
    parser.add_argument(
        "--minutes", type=float, default=0, help="stop at a checkpoint after this long"
    )
    parser.add_argument(
        "--workers", type=int, default=1, help="processes that share each batch (CPU only)"
    )
    parser.add_argument(
        "--peak",
        type=float,
        default=1.0,
        help="factor on the learning rates: .5 to train on from `restore`",
    )
    parser.add_argument(
        "--half", action="store_true", help="UNet or transformer compute in bfloat16 (autocast)"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    torch.set_num_threads(1)
    use_host()
    for stage in args.stages:
        for each in UNET_STAGES if stage == "all" else (stage,):
            run_stage(each, args)


if __name__ == "__main__":
    main()
