"""What inversion and stylisation cost: `python -m bench.magicstyle` (`--fp16` on a GPU)

An SD1.5-sized UNet with random weights at 512 px, CFG 1, one content and one style. Times are
ratios to the plain CFG 1 step, which every process measures first; memory is the peak of the
process (or of the GPU), weights included. What an image leaves behind is compared with the features
that StyleID keeps for one: its README says more than 3 GB.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from . import toy

# ruff: isort: split
import comfy.samplers
import torch
from torch import Tensor

from magicportrait.host.inversion.files import write_inversion
from magicportrait.host.inversion.run import Inversion, Recipe, invert
from magicportrait.host.sampling.backbone import backbone_of
from magicportrait.host.sampling.feature_store import FeatureStore
from magicportrait.host.sampling.range import ALL_OF_SAMPLING
from magicportrait.host.systems.magicstyle import MagicStylePatch, Style
from magicportrait.magic.feature_fusion import PRESETS

from .magicface_step import SIDE, StepClock, conditioning, peak_bytes, sample, sd15_model

MODES = ("plain", "ddim", "fixed-point", "o-belm", "live", "kept")


def random_inversion(sigmas: Tensor) -> Inversion:
    latents = torch.randn(len(sigmas), 1, 4, SIDE, SIDE) * (1 + sigmas.view(-1, 1, 1, 1, 1))
    return Inversion(sigmas, latents, conditioning(1), "ddim", "", "", 0, 0.0)


@torch.inference_mode()
def measure(mode: str, steps: int, dtype: torch.dtype) -> tuple[float, float, int]:
    """Seconds a step, those of a plain one, and bytes in use at the peak, weights included."""
    model = sd15_model(dtype)
    sigmas = comfy.samplers.calculate_sigmas(
        model.get_model_object("model_sampling"), "ddim_uniform", steps
    )
    positive = conditioning(1)
    # In the same process: how fast a machine is changes with what else it does.
    plain = sample(model, positive, sigmas, cfg=1.0)
    if mode in ("ddim", "fixed-point", "o-belm"):
        recipe = Recipe(mode, 2, 0.0, 1.0)  # type: ignore[arg-type]
        clock, conds = StepClock(), {"positive": positive, "negative": positive}
        invert(model, torch.randn(1, 4, SIDE, SIDE), conds, sigmas, recipe, clock, ("", ""))
        return statistics.median(clock.steps), plain, peak_bytes()
    if mode != "plain":
        content, style = random_inversion(sigmas), random_inversion(sigmas)
        kept = FeatureStore() if mode == "kept" else None
        backbone = backbone_of(model)
        patch = MagicStylePatch(
            content=content,
            styles=(Style(style, 1.0),),
            fusion=PRESETS["balanced"].fusion,
            backbone=backbone,
            blocks=backbone.parse_layers("decoder"),
            range=ALL_OF_SAMPLING,
            fuses_negative=False,
            adain=PRESETS["balanced"].adain,
            kept=kept,
        )
        model = patch.add_to(model)
        if kept:
            sample(model, positive, sigmas, cfg=1.0)
    return sample(model, positive, sigmas, cfg=1.0), plain, peak_bytes()


def stored_bytes(steps: int) -> int:
    """What one inverted picture leaves on disk."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "inversion.safetensors"
        write_inversion(path, random_inversion(torch.linspace(14, 0, steps + 1)))
        return path.stat().st_size


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--fp16", action="store_true", help="half precision, for GPUs")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--one", choices=MODES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(
            "RESULT", *measure(args.one, args.steps, torch.float16 if args.fp16 else torch.float32)
        )
        return

    def alone(mode: str) -> tuple[float, float, int]:
        """A process for each figure: a peak of memory cannot be taken back."""
        command = [
            sys.executable,
            "-m",
            "bench.magicstyle",
            "--steps",
            str(args.steps),
            "--one",
            mode,
            *(["--fp16"] if args.fp16 else []),
        ]
        found = (
            subprocess.run(command, capture_output=True, text=True, check=True, cwd=toy.ROOT)
            .stdout.rsplit("RESULT", 1)[1]
            .split()
        )
        return float(found[0]), float(found[1]), int(float(found[2]))

    _, plain, plain_memory = alone("plain")
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    lines = ["# Cost of inversion and MagicStyle", ""]
    lines += [
        (
            f"`python -m bench.magicstyle --steps {args.steps}` on {device}: plain CFG 1 step"
            f" {plain:.2f} s"
        ),
        "",
    ]
    lines += ["| | time of a step | peak memory |", "| --- | --- | --- |"]
    names = {
        "ddim": "inversion, ddim",
        "fixed-point": "inversion, fixed-point (2 iterations)",
        "o-belm": "inversion, o-belm",
        "live": "MagicStyle, features recomputed",
        "kept": "MagicStyle, features kept",
    }
    for mode, name in names.items():
        seconds, beside, memory = alone(mode)
        lines.append(f"| {name} | {seconds / beside:.2f} x | {memory / plain_memory:.2f} x |")
        print(lines[-1], flush=True)
    lines += [
        "",
        (
            f"On disk an image takes {stored_bytes(50) / 1e6:.1f} MB at 50 steps (StyleID: more"
            " than 3 GB)."
        ),
    ]
    toy.write_report("magicstyle", lines)


if __name__ == "__main__":
    main()
