"""What a MagicFace step costs: `python -m bench.magicface_step` (`--fp16` on a GPU)

An SD1.5-sized UNet with random weights at 512 px, CFG, batch 1, and N references of which a mask
shows 40 %. Every figure is a ratio to the plain CFG step of the same run. Memory is the peak of the
process (or of the GPU), weights included.

`--family flux` and `z_image` take three blocks of the published width instead, without CFG, as
their distilled models are sampled. References take two thirds of the blocks there, as in all of the
model. The layout takes two of the three, but at most eight of a whole model: its cost is also given
for all of the depth. On a CPU it is the processor's time that is measured: others may be at work.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from . import random_sd15, random_transformers
from .command_line import bench_parser, command_of, parse_with_quick
from .report import Report
from .step_cost import (
    QUICK,
    Cost,
    Scale,
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

from magicportrait.host.layout.patch import LayoutPatch
from magicportrait.host.layout.record import LayoutRecord
from magicportrait.host.sampling.backbone import backbone_of
from magicportrait.host.sampling.feature_store import FeatureStore
from magicportrait.host.sampling.references import Reference
from magicportrait.host.systems.magicface import MagicFacePatch
from magicportrait.host.text.prompts import TAG, TaggedPrompt
from magicportrait.magic.reference_passes import SPARSE

CFG = 7.5
_LAYOUT_LAYERS = 8
"""Of a whole transformer."""


@dataclass(frozen=True)
class Kind:
    """What kind of model is measured. conditioning: (seed, options) -> CONDITIONING; channels: of
    its latents; strength: of references."""

    conditioning: Callable[..., list[Any]] = random_sd15.conditioning
    channels: int = 4
    strength: float = 2.5


UNET = Kind()


def with_references(
    model: Any,
    latent: int,
    references: int,
    keep: bool,
    is_sparse: bool = False,
    kind: Kind = UNET,
    layout_only: bool = False,
) -> tuple[Any, list[Any]]:
    """The model with a patch whose references are random latents of the side `latent`: no text
    encoder or VAE is needed. And the conditioning that belongs to it. layout_only: with what
    Semantic Layout puts on it instead."""
    positive = kind.conditioning(1, **{TAG: "bench"})
    mask = torch.zeros(latent, latent)
    mask[:, : round(0.4 * latent)] = 1
    backbone = backbone_of(model)
    prompt = TaggedPrompt(
        "",
        tuple(f"concept {i}" for i in range(references)),
        positive,
        "bench",
        tuple((2 + i,) for i in range(references)),
    )
    layout = LayoutPatch(
        prompt=prompt,
        backbone=backbone,
        ca_scale=0.6,
        record=LayoutRecord(prompt.phrases, backbone.pixels),
        targets=(None,) * references,
    )
    if layout_only:
        return layout.add_to(model), positive
    patch = MagicFacePatch(
        layout=layout,
        references=tuple(
            Reference(
                i,
                torch.randn(1, kind.channels, latent, latent),
                mask,
                kind.strength,
                kind.conditioning(10 + i),
            )
            for i in range(references)
        ),
        blocks=backbone.parse_layers("fine"),
        # As much in RSA as in RBA. The default, .2, has less of RSA, in which all queries see all
        # references.
        inject_at=0.5,
        semantic_cfg=True,
        store=FeatureStore() if keep else None,
        bands=SPARSE if is_sparse else None,
    )
    return patch.add_to(model), positive


@torch.inference_mode()
def measure(references: int, mode: str, scale: Scale) -> Cost:
    """mode: 'plain', 'live' or 'kept'."""
    model = random_sd15.unet(scale.dtype, scale.channels)
    sigmas = sampling_sigmas(model, "normal", scale.steps)
    plain_positive, negative = random_sd15.conditioning(1), random_sd15.conditioning(2)

    def seconds_of(model: Any, positive: list[Any]) -> float:
        start = noise_latent(model, sigmas[0], scale.latent)
        return statistics.median(seconds_of_steps(model, positive, negative, sigmas, start, CFG))

    magic, positive = model, plain_positive
    if mode != "plain":
        magic, positive = with_references(model, scale.latent, references, mode == "kept")
        if mode == "kept":
            seconds_of(magic, positive)
    gc.collect()
    plain = seconds_of(model, plain_positive)
    seconds = seconds_of(magic, positive) if mode != "plain" else plain
    return Cost(seconds, plain, peak_bytes())


def main() -> None:
    parser = bench_parser(__doc__)
    add_scale(parser, steps=6)
    parser.add_argument(
        "--references", type=int, nargs="*", default=[1, 2, 3], help="how many, a row for each"
    )
    parser.add_argument("--bf16", dest="dtype", action="store_const", const=torch.bfloat16)
    parser.add_argument("--family", choices=("unet", *random_transformers.WIDTHS), default="unet")
    parser.add_argument("--one", nargs=2, metavar=("N", "MODE"), help=argparse.SUPPRESS)
    args = parse_with_quick(parser, references=[1], **QUICK)
    scale = Scale.of(args)
    if args.one:
        references, mode = args.one
        print_figures(*measure(int(references), mode, scale))
        return

    def measure_alone(references: int, mode: str) -> Cost:
        count = f"{references}"
        return Cost(*figures_alone("bench.magicface_step", *sys.argv[1:], "--one", count, mode))

    if args.family != "unet":
        report_stack(args.family, scale, args.references, kept=not args.quick)
        return
    plain = measure_alone(0, "plain")
    report = Report(
        "magicface_step",
        "Cost of a MagicFace step",
        f"`{command_of('bench.magicface_step')}` on {device_name()}, {str(scale.dtype)[6:]}:"
        f" plain CFG step {plain.seconds:.2f} s",
    )
    report.begin_table(
        "references",
        "live",
        "(2+N)/2",
        "live / that",
        "kept",
        "peak memory, live",
        "and kept",
    )
    for n in args.references:
        live, from_store = measure_alone(n, "live"), measure_alone(n, "kept")
        report.add_row(
            f"{n}",
            f"{live.ratio:.2f} x",
            f"{(2 + n) / 2:.1f}",
            f"{live.ratio / ((2 + n) / 2):.2f}",
            f"{from_store.ratio:.2f} x",
            f"{live.memory / plain.memory:.2f} x",
            f"{from_store.memory / plain.memory:.2f} x",
        )
    report.finish(kept=not args.quick)


@torch.inference_mode()
def report_stack(family: str, scale: Scale, references: list[int], kept: bool) -> None:
    """The same of a stack of blocks, in one process: its parts take more and more memory, so that
    the peak of each is its own. The layout's cost is also given for all of the depth."""
    width = random_transformers.WIDTHS[family]
    kind = Kind(
        partial(random_transformers.conditioning, family), random_transformers.CHANNELS, 1.0
    )
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    model = random_transformers.transformer(family, scale.dtype)
    sigmas = sampling_sigmas(model, "simple", scale.steps)
    negative = kind.conditioning(2)

    def seconds_of(which: Any, positive: list[Any]) -> float:
        start = noise_latent(model, sigmas[0], scale.latent, kind.channels)
        return statistics.median(
            seconds_of_steps(which, positive, negative, sigmas, start, 1.0, clock)
        )

    def magic_model(count: int, **mode: Any) -> tuple[Any, list[Any]]:
        keep = bool(mode.pop("keep", False))
        return with_references(model, scale.latent, count, keep, kind=kind, **mode)

    plain = seconds_of(model, kind.conditioning(1))
    of_plain = peak_bytes()
    report = Report(
        f"magicface_step_{family}",
        f"Cost of a MagicFace step: {family}",
        f"`{command_of('bench.magicface_step')}` on {device_name()}, {str(scale.dtype)[6:]}: plain"
        f" step {plain:.2f} s",
    )
    layout = seconds_of(*magic_model(2, layout_only=True)) / plain
    beside = max(0, peak_bytes() - of_plain) / 2**20
    count = width.blocks - width.blocks // 3
    share = (_LAYOUT_LAYERS / width.depth) / (count / width.blocks)
    report.begin_table(
        *("references", "live", "whole depth", "1+N", "whole depth / that", "kept", "memory, live")
    )
    for n in references:
        live = seconds_of(*magic_model(n)) / plain
        memory = peak_bytes() / of_plain
        again = magic_model(n, keep=True)
        seconds_of(*again)
        from_store = seconds_of(*again) / plain
        # Of the layout less layers are looked at in a whole model, of all else as many.
        whole = live - (layout - 1) * (1 - share)
        report.add_row(
            f"{n}",
            f"{live:.2f} x",
            f"{whole:.2f} x",
            f"{1 + n}",
            f"{whole / (1 + n):.2f}",
            f"{from_store:.2f} x",
            f"{memory:.2f} x",
        )
    parts = ", ".join(f"{name} {number}" for name, number in width.stack.items())
    report.write(
        "",
        f"The layout alone, of two phrases: {layout:.2f} x, read from {count} of {width.blocks}"
        f" blocks; from {_LAYOUT_LAYERS} of {width.depth}, as in the whole model, that is"
        f" {1 + (layout - 1) * share:.2f} x. Its peak is {beside:.0f} MB above the plain step's.",
        f"The stack ({parts}) has the published width; {8 * scale.latent} px, a prompt of"
        f" {width.tokens} tokens, no CFG, masks show 40 %.",
    )
    report.finish(kept)


if __name__ == "__main__":
    main()
