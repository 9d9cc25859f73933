"""What MagicFace does, in numbers, on a toy: `python -m bench.magicface_effect`, or with
`--model transformer`.

Four sets of references, eight pictures each, 25 steps, CFG 4. Error: colour distance of the part to
its reference, divided by that of the plain picture (0: the reference's colour, 1: as if there were
no reference). Elsewhere: how much the colours of the other parts (hair, face, background) change.
Patterns: the share of patterned references whose pattern the part has too (three concepts). The
prompt asks for other colours than the references have, so what is measured comes from the
references alone; with `--prompt neutral` it names none, as people write. Texts: the references'
regions read the neutral prompt in place of the one that contradicts, by Layout Conditioning.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import toy
from .command_line import bench_parser, command_of, parse_with_quick
from .report import Report
from .sheets import contact_sheet
from .toy_patterns import pattern_of
from .toy_references import (
    BYSTANDERS,
    CONCEPTS,
    NEUTRAL_PROMPT,
    PROMPT,
    Pictures,
    magic_pictures,
    plain_pictures,
    reference_sets,
    worded_pictures,
)

# ruff: isort: split
import numpy as np
import torch

from magicportrait.demo.portraits import Portrait, render
from magicportrait.nodes.magicface_concept import DEFAULT_STRENGTH

Setting = tuple[str, float, dict[str, Any]]
"""Name in the table, strength of the references, inputs of MagicFace Apply and the strength of the
regions' texts."""
UNET: list[Setting] = [
    ("default", DEFAULT_STRENGTH, {}),
    ("RSA only", DEFAULT_STRENGTH, {"inject_at": 1.0}),
    ("RSA only, strength 3.5", 3.5, {"inject_at": 1.0}),
    ("RSA only, strength 4", 4.0, {"inject_at": 1.0}),
    ("RSA only, strength 5", 5.0, {"inject_at": 1.0}),
    ("inject_at 0", DEFAULT_STRENGTH, {"inject_at": 0.0}),
    ("inject_at .42 (the paper's)", DEFAULT_STRENGTH, {"inject_at": 0.42}),
    ("without semantic CFG", DEFAULT_STRENGTH, {"semantic_cfg": False}),
    ("strength 0", 0.0, {}),
    ("strength 2", 2.0, {}),
    ("strength 4", 4.0, {}),
    ("strength 4, inject_at 0", 4.0, {"inject_at": 0.0}),
    ("layers decoder", DEFAULT_STRENGTH, {"layers": "decoder"}),
    ("layers all", DEFAULT_STRENGTH, {"layers": "all"}),
    ("texts, strength 0.75", DEFAULT_STRENGTH, {"text_strength": 0.75}),
    (
        "texts, strength 0.75, inject_at 0",
        DEFAULT_STRENGTH,
        {"text_strength": 0.75, "inject_at": 0.0},
    ),
    (
        "texts, strength 0.5, inject_at 0",
        DEFAULT_STRENGTH,
        {"text_strength": 0.5, "inject_at": 0.0},
    ),
]
NEUTRAL = (
    "default",
    "RSA only",
    "RSA only, strength 4",
    "inject_at 0",
    "strength 4",
    "strength 4, inject_at 0",
)
"""The UNet's settings that are measured with a neutral prompt."""
WORDED = "no references, the prompt names what they show"
TRANSFORMER: list[Setting] = [
    (name, strength, {"inject_at": 0.0, **options})
    for name, strength, options in (
        ("default", 1.0, {}),
        ("RSA only, strength 0", 0.0, {"inject_at": 1.0}),
        ("RSA only", 1.0, {"inject_at": 1.0}),
        ("RSA only, strength 2", 2.0, {"inject_at": 1.0}),
        ("positions same", 1.0, {"positions": "same"}),
        ("positions index", 1.0, {"positions": "index"}),
        ("positions aside", 1.0, {"positions": "aside"}),
        ("positions attenuated", 1.0, {"positions": "attenuated"}),
        ("layers all", 1.0, {"layers": "all"}),
        ("double blocks", 1.0, {"layers": "d0-1"}),
        ("single blocks", 1.0, {"layers": "s0-5"}),
        ("strength 0", 0.0, {}),
        ("strength .5", 0.5, {}),
        ("strength 2", 2.0, {}),
        ("strength 2, positions same", 2.0, {"positions": "same"}),
        ("strength 3, inject_at .2 (a UNet's)", 3.0, {"inject_at": 0.2}),
        ("inject_at .2", 1.0, {"inject_at": 0.2}),
        ("without semantic CFG", 1.0, {"semantic_cfg": False}),
    )
]


def score(
    plain: Pictures, magic: Pictures, references: Mapping[str, Portrait]
) -> tuple[float, float]:
    """(remaining error, change elsewhere) over a batch. What the plain picture has nowhere cannot
    change."""
    before, after, elsewhere = [], [], []
    for part, portrait in references.items():
        rendering = render(portrait)
        colour = toy.mean_colour(toy.picture(rendering)[0], toy.part_mask(rendering, part)[0])
        for i in range(len(plain.images)):
            before.append(
                (toy.mean_colour(plain.images[i], plain.regions[part][i]) - colour).norm()
            )
            after.append((toy.mean_colour(magic.images[i], magic.regions[part][i]) - colour).norm())
    for phrase in [*BYSTANDERS, *(part for part in CONCEPTS if part not in references)]:
        for i in range(len(plain.images)):
            region = plain.regions[phrase][i]
            if not region.any():
                continue
            elsewhere.append(
                (
                    toy.mean_colour(plain.images[i], region)
                    - toy.mean_colour(magic.images[i], region)
                ).norm()
            )
    error = torch.stack(after).mean() / torch.stack(before).mean()
    return error.item(), torch.stack(elsewhere).mean().item()


def right_patterns(pictures: Pictures, references: Mapping[str, Portrait]) -> float:
    """The share of parts whose cloth has the pattern of its reference, of those that have one."""
    right = [
        pattern_of(image, region) == garment.pattern
        for part, portrait in references.items()
        if (garment := getattr(portrait, part)).pattern != "plain"
        for image, region in zip(pictures.images, pictures.regions[part], strict=True)
    ]
    return sum(right) / len(right) if right else float("nan")


def mean_patterns(shares: list[float]) -> float:
    """Over the sets that have patterned cloth."""
    return statistics.fmean(share for share in shares if share == share)


def less_spill(rows: Mapping[str, list[float]]) -> list[str]:
    """The paper's ablation: what regions spare, at the error that RSA alone reaches with another
    strength (linear between the rows). rows: the table's numbers by the names of the settings."""
    alone = [cells for name, cells in rows.items() if name.startswith("RSA only")]
    if "default" not in rows or len(alone) < 2:
        return []
    words = []
    for concepts, column in (("one concept", 0), ("three concepts", 2)):
        error, spill = rows["default"][column : column + 2]
        # np.interp takes rising errors.
        errors, spills = zip(
            *sorted((cells[column], cells[column + 1]) for cells in alone), strict=True
        )
        if not errors[0] <= error <= errors[-1]:
            words.append(
                f"{concepts}: RSA alone does not come to {error:.2f}, its best is {errors[0]:.2f}"
            )
            continue
        same = float(np.interp(error, errors, spills))
        words.append(f"{concepts}: {spill:.3f} against {same:.3f}, {1 - spill / same:.0%} less")
    return [
        "Change elsewhere of the default against RSA alone at the same error (strengths between):"
        f" {'; '.join(words)}."
    ]


def write_figure(
    checkpoint: toy.Toy,
    sets: list[dict[str, Portrait]],
    path: Path,
    strength: float,
    options: dict[str, Any],
) -> None:
    noise = checkpoint.noise(range(3))
    plain = plain_pictures(checkpoint, noise)
    rows = []
    for references in sets:
        magic = magic_pictures(checkpoint, noise, references, strength, **options)
        rows.append(
            [
                *(
                    toy.picture(render(portrait, checkpoint.side))[0]
                    for portrait in references.values()
                ),
                *plain.images,
                *magic.images,
            ]
        )
    contact_sheet(rows, path)


@torch.inference_mode()
def main() -> None:
    parser = bench_parser(__doc__)
    parser.add_argument("--model", choices=("unet", "transformer"), default="unet")
    parser.add_argument(
        "--prompt",
        choices=("other colours", "neutral"),
        default="other colours",
        help="what the prompt says of what the references show",
    )
    parser.add_argument("--only", nargs="*", help="only these settings, by name; nothing is kept")
    parser.add_argument("--seeds", type=int, default=8, help="pictures for each set of references")
    parser.add_argument("--sets", type=int, default=4, help="only the first so many sets")
    parser.add_argument(
        "--figure",
        type=Path,
        help="only write the figure: references, plain pictures, the same with MagicFace (the first"
        " setting, or the first of --only)",
    )
    args = parse_with_quick(parser, seeds=1, only=["default"])
    sets = reference_sets()[: args.sets]
    if args.model == "unet":
        checkpoint, settings, suffix = toy.Toy.load(), UNET, ""
    else:
        checkpoint, settings, suffix = toy.Toy.load_transformer(), TRANSFORMER, "_transformer"
    prompt, is_neutral = PROMPT, args.prompt == "neutral"
    if is_neutral:
        prompt, suffix = NEUTRAL_PROMPT, f"{suffix}_neutral"
        settings = [setting for setting in settings if setting[0] in NEUTRAL]
        settings.append((WORDED, 0.0, {}))
    if args.only:
        settings = [setting for setting in settings if setting[0] in args.only]
    if args.figure:
        write_figure(checkpoint, sets, args.figure, *settings[0][1:])
        return
    noise = checkpoint.noise(range(args.seeds))
    plain = plain_pictures(checkpoint, noise, prompt=prompt)
    report = Report(
        f"magicface_effect{suffix}",
        f"MagicFace on the {args.model} toy",
        f"`{command_of('bench.magicface_effect')}`, {len(sets)} reference sets x {args.seeds}"
        f" seeds: {prompt}",
    )
    report.begin_table(
        "", "1 concept: error", "elsewhere", "3 concepts: error", "elsewhere", "patterns"
    )
    share = mean_patterns([right_patterns(plain, references) for references in sets])
    report.add_row("without references", "1", "0", "1", "0", f"{share:.2f}")
    rows: dict[str, list[float]] = {}
    for name, strength, options in settings:
        rows[name] = []
        for parts in (("hat",), CONCEPTS):
            scores, patterns = [], []
            for portraits in sets:
                references = {part: portraits[part] for part in parts}
                magic = (
                    worded_pictures(checkpoint, noise, references)
                    if name == WORDED
                    else magic_pictures(
                        checkpoint, noise, references, strength, prompt=prompt, **options
                    )
                )
                scores.append(score(plain, magic, references))
                patterns.append(right_patterns(magic, references))
            rows[name] += [sum(values) / len(values) for values in zip(*scores, strict=True)]
        share = mean_patterns(patterns)
        report.add_row(name, *(f"{cell:.3f}" for cell in rows[name]), f"{share:.2f}")
    report.write("", *less_spill(rows))
    report.finish(kept=not args.quick and not args.only and len(sets) == 4)


if __name__ == "__main__":
    main()
