"""What a MagiCapture step costs against the host's own trainer: `python -m bench.magicapture_step`
(`--bf16 --latent 64` on a GPU)

SD1.5-sized UNet, CLIP-L, VAE and an IResNet-50 with random weights; same rank, batch and latents,
no gradient checkpointing in either. A process for each figure. Memory is the peak of the process
(or of the GPU), weights included.
"""

from __future__ import annotations

import argparse
import inspect
import subprocess
import sys
import time
from typing import Any

from . import toy

# ruff: isort: split
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from magicportrait.host.faces.identity import Identity
from magicportrait.host.training.run import CaptureSettings, CaptureTraining
from magicportrait.magic.capture_sets import StyleSet, Subject, capture_pictures
from magicportrait.magic.iresnet import SIDE, IResNet

from .magicface_step import conditioning, peak_bytes, sd15_model

MODES = ("core TrainLoraNode", "textual inversion", "LoRA", "LoRA with identity loss")
RANK, PICTURES = 4, 2
_UNITS, _WIDTHS = (3, 4, 14, 3), (64, 128, 256, 512)
"""IResNet-50."""


def text_encoder() -> Any:
    import comfy.sd
    import comfy.sd1_clip
    import comfy.supported_models_base

    target = comfy.supported_models_base.ClipTarget(
        comfy.sd1_clip.SD1Tokenizer, comfy.sd1_clip.SD1ClipModel
    )
    clip = comfy.sd.CLIP(target, model_options={"dtype": torch.float32})
    _randomise(clip.cond_stage_model)
    return clip


def autoencoder() -> Any:
    import comfy.sd
    from comfy.ldm.models.autoencoder import AutoencoderKL

    config = {
        "double_z": True,
        "z_channels": 4,
        "resolution": 256,
        "in_channels": 3,
        "out_ch": 3,
        "ch": 128,
        "ch_mult": [1, 2, 4, 4],
        "num_res_blocks": 2,
        "attn_resolutions": [],
        "dropout": 0.0,
    }
    network = AutoencoderKL(ddconfig=config, embed_dim=4)
    _randomise(network)
    return comfy.sd.VAE(sd=network.state_dict())


def identity() -> Identity:
    shapes: dict[str, tuple[int, ...]] = {"conv1.weight": (_WIDTHS[0], 3, 3, 3)}
    into, index = _WIDTHS[0], 0
    for count, width in zip(_UNITS, _WIDTHS, strict=True):
        for i in range(count):
            shapes[f"units.{index}.conv1.weight"] = (width, into, 3, 3)
            if i == 0:
                shapes[f"units.{index}.downsample.0.weight"] = (width, into, 1, 1)
            into, index = width, index + 1
    shapes["fc.weight"] = (512, into * (SIDE // 16) ** 2)
    with torch.inference_mode(False):
        return Identity("random", IResNet(shapes, False).eval().requires_grad_(False), SIDE, 1.0)


def _randomise(module: torch.nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    for name, parameter in module.named_parameters():
        is_norm = parameter.ndim == 1 and name.endswith("weight")
        parameter.data.copy_(
            torch.ones_like(parameter)
            if is_norm
            else torch.randn(parameter.shape, generator=generator).mul_(0.02)
        )


def run_core(model: Any, latent: int, batch: int, steps: int, dtype: str) -> None:
    from comfy_extras.nodes_train import TrainLoraNode

    options = {
        "batch_size": batch,
        "grad_accumulation_steps": 1,
        "steps": steps,
        "learning_rate": 1e-4,
        "rank": RANK,
        "optimizer": "AdamW",
        "loss_function": "MSE",
        "seed": 0,
        "training_dtype": dtype,
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
    known = inspect.signature(TrainLoraNode.execute).parameters
    TrainLoraNode.execute(
        model=[model],
        latents=[{"samples": torch.randn(2 * PICTURES, 4, latent, latent)}],
        positive=[conditioning(1)],
        **{name: [value] for name, value in options.items() if name in known},
    )


def run_ours(mode: str, model: Any, latent: int, batch: int, steps: int, dtype: str) -> None:
    mask = torch.zeros(latent * 8, latent * 8)
    mask[latent : latent * 4, latent * 2 : latent * 5] = 1
    pictures = capture_pictures(
        [torch.rand(latent * 8, latent * 8, 3) for _ in range(PICTURES)], [mask], list("ab")
    )
    inversion = mode == "textual inversion"
    phases = {"inversion_steps": steps if inversion else 0, "lora_steps": 0 if inversion else steps}
    settings = CaptureSettings(
        **phases, rank=RANK, batch=batch, versions=1, side=latent * 8, precision=dtype
    )
    training = CaptureTraining(
        model,
        text_encoder(),
        autoencoder(),
        Subject(pictures, "<a>", "person", ("a photo of a {person}",)),
        StyleSet(pictures, "<b>", "person", ("a picture of a {person} in {style} style",)),
        identity() if "identity" in mode else None,
        settings,
    )
    training.run(lambda step, loss: None)


@torch.inference_mode()
def measure(mode: str, latent: int, batch: int, steps: int, dtype: str) -> tuple[float, int]:
    """Mean seconds a step, the first one left out, and bytes in use at the peak."""
    marks: list[float] = []

    def mark(*_: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        marks.append(time.perf_counter())

    handle = register_optimizer_step_post_hook(mark)
    try:
        model = sd15_model(torch.float32 if dtype == "fp32" else torch.bfloat16)
        # The trainer of newer hosts makes its copy by loading the model again.
        model.cached_patcher_init = (
            lambda disable_dynamic=False: sd15_model(
                torch.float32 if dtype == "fp32" else torch.bfloat16
            ),
            (),
        )
        if mode == MODES[0]:
            run_core(model, latent, batch, steps, dtype)
        else:
            run_ours(mode, model, latent, batch, steps, dtype)
    finally:
        handle.remove()
    return (marks[-1] - marks[0]) / (len(marks) - 1), peak_bytes()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bf16", action="store_true", help="half precision, for GPUs")
    parser.add_argument(
        "--latent",
        type=int,
        default=32,
        help="side of the latents: 32 is 256 px, SD1.5's own is 64",
    )
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument(
        "--steps",
        type=int,
        default=7,
        help="of each mode; two of three of ours have an identity loss",
    )
    parser.add_argument("--one", choices=MODES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    dtype = "bf16" if args.bf16 else "fp32"
    if args.one:
        print("RESULT", *measure(args.one, args.latent, args.batch, args.steps, dtype))
        return

    def alone(mode: str) -> tuple[float, int]:
        command = [sys.executable, "-m", "bench.magicapture_step", *sys.argv[1:], "--one", mode]
        found = (
            subprocess.run(command, capture_output=True, text=True, check=True, cwd=toy.ROOT)
            .stdout.rsplit("RESULT", 1)[1]
            .split()
        )
        return float(found[0]), int(float(found[1]))

    device = (
        torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"CPU, {torch.get_num_threads()} threads"
    )
    command = " ".join(["python -m bench.magicapture_step", *sys.argv[1:]])
    lines = [
        "# Cost of a MagiCapture step",
        "",
        f"`{command}` on {device}, {dtype}, {args.latent * 8} px, batch {args.batch}, rank {RANK}",
        "",
    ]
    lines += [
        "| | seconds a step | against core | peak memory | against core |",
        "| --- | --- | --- | --- | --- |",
    ]
    core: tuple[float, int] | None = None
    for mode in MODES:
        seconds, memory = alone(mode)
        core = core or (seconds, memory)
        lines.append(
            f"| {mode} | {seconds:.2f} | {seconds / core[0]:.2f} x | {memory / 2**30:.1f} GiB |"
            f" {memory / core[1]:.2f} x |"
        )
        print(lines[-1], flush=True)
    toy.write_report("magicapture_step", lines)


if __name__ == "__main__":
    main()
