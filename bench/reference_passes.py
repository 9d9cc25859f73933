"""How many reference passes are needed: `python -m bench.reference_passes`

On the toy checkpoint, by steps and CFG: error and change elsewhere as in bench.magicface_effect,
with a pass in every step, in bands of noise levels (sparse), and in as many even bands. Then what a
step costs on an SD1.5-sized UNet with random weights, as a ratio to the plain step: a step with a
pass and one without are measured, and weighed as they come in 25 steps.

With --styles the same question of MagicStyle instead: style and structure as in
bench.magicstyle_effect, 25 steps.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

from . import random_sd15, toy
from .command_line import bench_parser, command_of, parse_with_quick
from .magicface_effect import score
from .magicface_step import CFG, with_references
from .magicstyle_effect import STEPS, measure, prepare
from .report import Report
from .step_cost import (
    QUICK,
    Scale,
    add_scale,
    device_name,
    noise_latent,
    sampling_sigmas,
    seconds_of_steps,
)
from .toy_references import (
    CONCEPTS,
    Pictures,
    apply_concepts,
    concepts_of,
    plain_pictures,
    reference_sets,
)

# ruff: isort: split
import torch
from torch import Tensor

from magicportrait.demo.portraits import Portrait
from magicportrait.host.sampling.patch import patches_of
from magicportrait.host.sampling.range import SamplingRange, noise_bands
from magicportrait.host.systems.magicface import MagicFacePatch
from magicportrait.magic.feature_fusion import PRESETS
from magicportrait.magic.reference_passes import SPARSE, BandStarts, NoiseBands, pass_levels

RUNS = [(25, 4.0), (50, 4.0), (8, 4.0), (25, 1.0), (50, 1.0)]
"""Steps and CFG."""
RULES: dict[str, BandStarts | None] = {
    "every step": None,
    "sparse": SPARSE,
    "even bands": {"noise": tuple(i / 8 for i in range(1, 8)), "flow": SPARSE["flow"]},
    "sparse, the last fifth in twice as many bands": {
        "noise": (0.32, 0.64, *(round(0.8 + 0.02 * i, 2) for i in range(10))),
        "flow": SPARSE["flow"],
    },
}
"""Names in the table, and where bands of noise levels begin."""


def magic_pictures(
    checkpoint: toy.Toy,
    noise: Tensor,
    references: Mapping[str, Portrait],
    bands: BandStarts | None,
    steps: int,
    cfg: float,
) -> Pictures:
    """With references, by MagicFace Apply with its defaults but for the passes."""
    model, positive, record = apply_concepts(checkpoint, concepts_of(references))
    [(_, _, patch)] = patches_of(model)
    assert isinstance(patch, MagicFacePatch)
    magic_model = dataclasses.replace(patch, bands=bands).add_to(checkpoint.model)
    samples = checkpoint.sample(magic_model, positive, noise, steps, cfg)
    regions = toy.regions(record, samples, list(references))
    return Pictures(checkpoint.decode(samples), regions)


def bands_of(starts: BandStarts | None, model: Any) -> NoiseBands | None:
    if starts is None:
        return None
    return noise_bands(starts, model.get_model_object("model_sampling"))


def report_effect(report: Report, sets: int, seeds: int, names: Sequence[str]) -> None:
    checkpoint = toy.Toy.load()
    noise = checkpoint.noise(range(seeds))
    columns = ("steps, CFG", "passes in", "how many")
    report.begin_table(*columns, "1 concept: error", "elsewhere", "3 concepts: error", "elsewhere")
    for steps, cfg in RUNS:
        plain = plain_pictures(checkpoint, noise, steps, cfg)
        sigmas = checkpoint.sigmas(steps).tolist()[:-1]
        for name in names:
            passes = pass_levels(sigmas, bands_of(RULES[name], checkpoint.model))
            cells = []
            for parts in (("hat",), CONCEPTS):
                scores = []
                for portraits in reference_sets()[:sets]:
                    references = {part: portraits[part] for part in parts}
                    magic = magic_pictures(checkpoint, noise, references, RULES[name], steps, cfg)
                    scores.append(score(plain, magic, references))
                cells += [sum(values) / len(values) for values in zip(*scores, strict=True)]
            setting = f"{steps}, {cfg:g}"
            report.add_row(setting, name, f"{len(passes)}", *(f"{cell:.3f}" for cell in cells))


def report_styles(report: Report, count: int) -> None:
    checkpoint = toy.Toy.load()
    pairs = prepare(checkpoint, count)
    report.begin_table("preset", "passes in", "how many", "style", "structure")
    sampling = checkpoint.model.get_model_object("model_sampling")
    for name, preset in PRESETS.items():
        acts = SamplingRange(preset.start, preset.end).sigmas(sampling)
        sigmas = [level for level in checkpoint.sigmas(STEPS).tolist()[:-1] if acts.covers(level)]
        for rule in ("every step", "sparse"):
            style, structure, *_ = measure(checkpoint, pairs, preset, "decoder", RULES[rule])
            passes = pass_levels(sigmas, bands_of(RULES[rule], checkpoint.model))
            report.add_row(name, rule, f"{len(passes)}", f"{style:.2f}", f"{structure:.2f}")


def report_cost(report: Report, counts: Sequence[int], scale: Scale) -> None:
    # Processor seconds do not count what others do on the machine. A GPU's time is not among them.
    now = time.perf_counter if torch.cuda.is_available() else time.process_time
    model = random_sd15.unet(scale.dtype, scale.channels)
    negative = random_sd15.conditioning(2)
    sigmas = sampling_sigmas(model, "normal", scale.steps)
    bands = bands_of(SPARSE, model)

    def seconds(magic_model: Any, positive: list[Any]) -> list[float]:
        start = noise_latent(model, sigmas[0], scale.latent)
        return seconds_of_steps(magic_model, positive, negative, sigmas, start, CFG, now)

    levels = sigmas.tolist()[:-1]
    own = set(pass_levels(levels, bands))
    of_25 = sampling_sigmas(model, "normal", 25).tolist()[:-1]
    share = len(pass_levels(of_25, bands)) / 25
    columns = ("every step", "a step without a pass", "sparse", f"(2 + {share:g} N) / 2")
    report.begin_table("references", *columns)
    for count in counts:
        plain = statistics.median(seconds(model, random_sd15.conditioning(1)))
        magic_model, positive = with_references(
            model, scale.latent, count, keep=False, is_sparse=True
        )
        # The first step is not measured.
        steps = list(zip(levels[1:], seconds(magic_model, positive), strict=True))
        live, without = (
            statistics.median(cost for level, cost in steps if (level in own) == has_pass) / plain
            for has_pass in (True, False)
        )
        ratios = (live, without, share * live + (1 - share) * without)
        report.add_row(
            f"{count}", *(f"{ratio:.2f} x" for ratio in ratios), f"{(2 + share * count) / 2:.2f}"
        )


@torch.inference_mode()
def main() -> None:
    parser = bench_parser(__doc__)
    parser.add_argument("--sets", type=int, default=3, help="of references, up to 4")
    parser.add_argument("--seeds", type=int, default=4, help="pictures for each set")
    parser.add_argument(
        "--only", nargs="*", default=list(RULES), help="only these rules, by name; nothing is kept"
    )
    parser.add_argument(
        "--references", type=int, nargs="*", default=[1, 2, 3], help="how many, a row for each"
    )
    parser.add_argument("--styles", action="store_true", help="of MagicStyle instead")
    parser.add_argument("--pairs", type=int, default=8, help="of content and style, for --styles")
    add_scale(parser, steps=6)
    quick = {"sets": 1, "seeds": 1, "only": ["sparse"], "references": [1], "pairs": 1}
    args = parse_with_quick(parser, **quick, **{**QUICK, "steps": 6})
    if args.styles:
        report = Report(
            "reference_passes_magicstyle",
            "Reference passes of MagicStyle",
            f"`{command_of('bench.reference_passes')}`: the toy checkpoint, {args.pairs} pairs,"
            f" {STEPS} steps",
        )
        report_styles(report, args.pairs)
        report.finish(kept=not args.quick)
        return
    scale = Scale.of(args)
    report = Report(
        "reference_passes",
        "Reference passes of MagicFace",
        f"`{command_of('bench.reference_passes')}` on {device_name()}: the toy checkpoint,"
        f" {args.sets} reference sets x {args.seeds} seeds, Euler, ddim_uniform",
    )
    report_effect(report, args.sets, args.seeds, args.only)
    report.write(
        "",
        f"What a step costs: ratios to the plain step of a UNet with {scale.channels} channels in"
        f" its first level (SD1.5: {random_sd15.CHANNELS}), {scale.latent * 8} px,"
        f" {scale.precision}, CFG; processor seconds on CPUs, which others may use as well.",
        "",
    )
    report_cost(report, args.references, scale)
    report.finish(kept=not args.quick and args.only == list(RULES))


if __name__ == "__main__":
    main()
