"""What inversion and stylisation cost: `python -m bench.magicstyle` (`--fp16` on a GPU)

An SD1.5-sized UNet with random weights at 512 px, CFG 1, one content and one style. Times are
ratios to the plain CFG 1 step, which every process measures first; memory is the peak of the
process (or of the GPU), weights included. What an image leaves behind is compared with the features
that StyleID keeps for one: its README says more than 3 GB.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from . import random_sd15
from .command_line import bench_parser, command_of, parse_with_quick
from .report import Report
from .step_cost import (
    QUICK,
    Cost,
    Scale,
    StepClock,
    add_scale,
    device_name,
    figures_alone,
    noise_latent,
    peak_bytes,
    print_figures,
    sampling_sigmas,
    seconds_of_steps,
)

# ruff: isort: split
import torch
from torch import Tensor

from magicportrait.host.inversion.files import write_inversion
from magicportrait.host.inversion.run import METHODS, Inversion, Recipe, invert
from magicportrait.host.sampling.backbone import backbone_of
from magicportrait.host.sampling.feature_store import FeatureStore
from magicportrait.host.sampling.range import ALL_OF_SAMPLING
from magicportrait.host.systems.magicstyle import MagicStylePatch, Style
from magicportrait.magic.feature_fusion import PRESETS

ROWS = {
    "euler": "inversion, euler",
    "fixed-point": "inversion, fixed-point (2 iterations)",
    "o-belm": "inversion, o-belm",
    "live": "MagicStyle, features recomputed",
    "kept": "MagicStyle, features kept",
}
"""What is measured beside the plain step: methods of inversion, then sampling."""


def random_inversion(sigmas: Tensor, latent: int) -> Inversion:
    latents = torch.randn(len(sigmas), 1, 4, latent, latent) * (1 + sigmas.view(-1, 1, 1, 1, 1))
    return Inversion(sigmas, latents, random_sd15.conditioning(1), "euler", "", "", 0, 0.0)


@torch.inference_mode()
def measure(mode: str, scale: Scale) -> Cost:
    """mode: one of ROWS, or 'plain'."""
    model, latent = random_sd15.unet(scale.dtype, scale.channels), scale.latent
    sigmas = sampling_sigmas(model, "ddim_uniform", scale.steps)
    positive = random_sd15.conditioning(1)

    def seconds_of(model: Any, start: Tensor) -> float:
        negative = random_sd15.conditioning(2)
        return statistics.median(seconds_of_steps(model, positive, negative, sigmas, start, 1.0))

    # In the same process: how fast a machine is changes with what else it does.
    start = noise_latent(model, sigmas[0], latent)
    plain = seconds_of(model, start)
    for method in METHODS:
        if mode == method:
            clock, conds = StepClock(), {"positive": positive, "negative": positive}
            noise, recipe = torch.randn(1, 4, latent, latent), Recipe(method, 2, 0.0, 1.0)
            invert(model, noise, conds, sigmas, recipe, clock, ("", ""))
            return Cost(statistics.median(clock.steps), plain, peak_bytes())
    if mode != "plain":
        content, style = random_inversion(sigmas, latent), random_inversion(sigmas, latent)
        store = FeatureStore() if mode == "kept" else None
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
            store=store,
        )
        model, start = patch.add_to(model), patch.start_samples(model)
        if store:
            seconds_of(model, start)
    return Cost(seconds_of(model, start), plain, peak_bytes())


def stored_bytes(steps: int) -> int:
    """What one inverted picture of 512 px leaves on disk."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "inversion.safetensors"
        write_inversion(path, random_inversion(torch.linspace(14, 0, steps + 1), 64))
        return path.stat().st_size


def main() -> None:
    parser = bench_parser(__doc__)
    add_scale(parser, steps=5)
    parser.add_argument("--one", choices=("plain", *ROWS), help=argparse.SUPPRESS)
    args = parse_with_quick(parser, **QUICK)
    if args.one:
        print_figures(*measure(args.one, Scale.of(args)))
        return

    def measure_alone(mode: str) -> Cost:
        return Cost(*figures_alone("bench.magicstyle", *sys.argv[1:], "--one", mode))

    plain = measure_alone("plain")
    report = Report(
        "magicstyle",
        "Cost of inversion and MagicStyle",
        f"`{command_of('bench.magicstyle')}` on {device_name()}: plain CFG 1 step"
        f" {plain.plain:.2f} s",
    )
    report.begin_table("", "time of a step", "peak memory")
    for mode, name in ROWS.items():
        cost = measure_alone(mode)
        report.add_row(name, f"{cost.ratio:.2f} x", f"{cost.memory / plain.memory:.2f} x")
    report.write(
        "",
        f"On disk an image takes {stored_bytes(50) / 1e6:.1f} MB at 50 steps (StyleID: more"
        " than 3 GB).",
    )
    report.finish(kept=not args.quick)


if __name__ == "__main__":
    main()
