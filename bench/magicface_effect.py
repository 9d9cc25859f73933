"""What MagicFace does, in numbers, on the toy checkpoint: `python -m bench.magicface_effect`

Four sets of references, eight pictures each, 25 steps, CFG 4. Error: colour distance of the part to
its reference, divided by that of the plain picture (0: the reference's colour, 1: as if there were
no reference). Elsewhere: how much the colours of the other parts (hair, face, background) change.
The prompt asks for other colours than the references have, so what is measured comes from the
references alone.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from . import toy

# ruff: isort: split
import numpy as np
import torch
from torch import Tensor

from magicportrait.demo.portraits import Garment, Portrait, Pose, render
from magicportrait.nodes.declare import defaults_of
from magicportrait.nodes.magicface import DEFAULT_STRENGTH, MagicFaceApply, MagicFaceConcept

PROMPT = (
    "a man with black hair wearing a green hat, a white scarf and a blue shirt, pink background,"
    " cartoon style"
)
CONCEPTS = ("hat", "scarf", "shirt")
PHRASES = {"hat": "green hat", "scarf": "white scarf", "shirt": "blue shirt"}
BYSTANDERS = ("black hair", "man", "pink background")
SKIN = (198, 140, 98)


def reference_sets() -> list[dict[str, Portrait]]:
    """Four sets of hat, scarf and shirt, each on a portrait of its own, none in a colour that the
    prompt names."""
    chosen = [
        (Garment("red", "plain", "top"), Garment("purple"), Garment("orange")),
        (
            Garment("orange", "plain", "sun"),
            Garment("red", "striped"),
            Garment("purple", "checkered"),
        ),
        (Garment("purple", "striped", "beanie"), Garment("yellow"), Garment("red", "dotted")),
        (Garment("yellow", "dotted", "sun"), Garment("orange"), Garment("pink", "striped")),
    ]
    sets = []
    for i, (hat, scarf, shirt) in enumerate(chosen):
        plain = Portrait(
            "woman" if i % 2 else "man",
            SKIN,
            "brown",
            "short",
            Garment("white"),
            "gray",
            pose=Pose(0.03 * (i - 1.5), 0.02, 1.05, 3 * i - 4),
        )
        sets.append(
            {
                "hat": replace(plain, hat=hat),
                "scarf": replace(plain, scarf=scarf),
                "shirt": replace(plain, shirt=shirt),
            }
        )
    return sets


@dataclass(frozen=True)
class Pictures:
    """images: B H W 3; regions: for each phrase B H W, bool."""

    images: Tensor
    regions: dict[str, Tensor]


def plain_pictures(checkpoint: toy.Toy, noise: Tensor) -> Pictures:
    phrases = [*PHRASES.values(), *BYSTANDERS]
    model, positive, record = checkpoint.watch(PROMPT, phrases)
    samples = checkpoint.sample(model, positive, noise)
    return Pictures(
        checkpoint.decode(samples), toy.regions(record, samples, [*CONCEPTS, *BYSTANDERS])
    )


def with_references(
    checkpoint: toy.Toy, references: dict[str, Portrait], strength: float, **options: Any
) -> tuple[Any, Any, Any]:
    """MODEL, conditioning and layout of MagicFace Apply."""
    chained: tuple[Any, ...] = ()
    for part, portrait in references.items():
        drawn = render(portrait)
        mask = torch.from_numpy(drawn.masks[part])[None]
        chained = MagicFaceConcept.execute(
            toy.picture(drawn),
            part,
            strength,
            mask,
            f"a {portrait.gender} wearing a {part}",
            None,
            chained,
        ).args[0]
    arguments = {**defaults_of(MagicFaceApply), **options, "prompt": PROMPT}
    applied: tuple[Any, Any, Any] = MagicFaceApply.execute(
        checkpoint.model, checkpoint.clip, checkpoint.vae, chained, **arguments
    ).args
    return applied


def magic_pictures(
    checkpoint: toy.Toy,
    noise: Tensor,
    references: dict[str, Portrait],
    strength: float,
    **options: Any,
) -> Pictures:
    model, positive, record = with_references(checkpoint, references, strength, **options)
    samples = checkpoint.sample(model, positive, noise)
    return Pictures(checkpoint.decode(samples), toy.regions(record, samples, list(references)))


def score(plain: Pictures, magic: Pictures, references: dict[str, Portrait]) -> tuple[float, float]:
    """(remaining error, change elsewhere) over a batch."""
    before, after, elsewhere = [], [], []
    for part, portrait in references.items():
        drawn = render(portrait)
        wanted = toy.mean_colour(toy.picture(drawn)[0], torch.from_numpy(drawn.masks[part]))
        for i in range(len(plain.images)):
            before.append(
                (toy.mean_colour(plain.images[i], plain.regions[part][i]) - wanted).norm()
            )
            after.append((toy.mean_colour(magic.images[i], magic.regions[part][i]) - wanted).norm())
    for phrase in [*BYSTANDERS, *(part for part in CONCEPTS if part not in references)]:
        for i in range(len(plain.images)):
            region = plain.regions[phrase][i]
            elsewhere.append(
                (
                    toy.mean_colour(plain.images[i], region)
                    - toy.mean_colour(magic.images[i], region)
                ).norm()
            )
    return (torch.stack(after).mean() / torch.stack(before).mean()).item(), torch.stack(
        elsewhere
    ).mean().item()


SETTINGS: list[tuple[str, float, dict[str, Any]]] = [
    ("default", DEFAULT_STRENGTH, {}),
    ("RSA only", DEFAULT_STRENGTH, {"inject_at": 1.0}),
    ("RSA only, strength 3.5", 3.5, {"inject_at": 1.0}),
    ("RSA only, strength 4", 4.0, {"inject_at": 1.0}),
    ("RSA only, strength 5", 5.0, {"inject_at": 1.0}),
    ("inject_at 0", DEFAULT_STRENGTH, {"inject_at": 0.0}),
    ("inject_at .4 (the paper's)", DEFAULT_STRENGTH, {"inject_at": 0.4}),
    ("without semantic CFG", DEFAULT_STRENGTH, {"semantic_cfg": False}),
    ("strength 0", 0.0, {}),
    ("strength 2", 2.0, {}),
    ("strength 4", 4.0, {}),
    ("strength 4, inject_at 0", 4.0, {"inject_at": 0.0}),
    ("layers decoder", DEFAULT_STRENGTH, {"layers": "decoder"}),
    ("layers all", DEFAULT_STRENGTH, {"layers": "all"}),
]


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="*", help="only these settings, by name")
    parser.add_argument("--seeds", type=int, default=8, help="pictures for each set of references")
    parser.add_argument(
        "--figure",
        type=Path,
        help="only write the figure: references, plain pictures, the same with MagicFace",
    )
    args = parser.parse_args()
    checkpoint, sets = toy.Toy.load(), reference_sets()
    if args.figure:
        write_figure(checkpoint, sets, args.figure)
        return
    noise = checkpoint.noise(range(args.seeds))
    plain = plain_pictures(checkpoint, noise)
    lines = [
        "# MagicFace on the toy checkpoint",
        "",
        f"`python -m bench.magicface_effect`, 4 reference sets x {args.seeds} seeds",
        "",
    ]
    lines += [
        "| | 1 concept: error | elsewhere | 3 concepts: error | elsewhere |",
        "| --- | --- | --- | --- | --- |",
    ]
    found: dict[str, list[float]] = {}
    for name, strength, options in SETTINGS:
        if args.only and name not in args.only:
            continue
        cells: list[float] = []
        for parts in (("hat",), CONCEPTS):
            scores = []
            for references in sets:
                chosen = {part: references[part] for part in parts}
                scores.append(
                    score(
                        plain,
                        magic_pictures(checkpoint, noise, chosen, strength, **options),
                        chosen,
                    )
                )
            cells += [sum(values) / len(values) for values in zip(*scores, strict=True)]
        found[name] = cells
        lines.append(f"| {name} | " + " | ".join(f"{cell:.3f}" for cell in cells) + " |")
        print(lines[-1], flush=True)
    lines += ["", *less_spill(found)]
    toy.write_report("magicface_effect", lines)


def less_spill(found: dict[str, list[float]]) -> list[str]:
    """The paper's ablation: what regions spare, at the error that RSA alone reaches with more
    strength (linear between the rows)."""
    alone = [cells for name, cells in found.items() if name.startswith("RSA only")]
    if "default" not in found or len(alone) < 2:
        return []
    words = []
    for concepts, column in (("one concept", 0), ("three concepts", 2)):
        error, spill = found["default"][column : column + 2]
        # np.interp wants rising errors.
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


def write_figure(checkpoint: toy.Toy, sets: list[dict[str, Portrait]], path: Path) -> None:
    noise = checkpoint.noise(range(3))
    plain = plain_pictures(checkpoint, noise)
    rows = []
    for references in sets:
        magic = magic_pictures(checkpoint, noise, references, DEFAULT_STRENGTH)
        rows.append(
            [
                *(toy.picture(render(portrait))[0] for portrait in references.values()),
                *plain.images,
                *magic.images,
            ]
        )
    toy.contact_sheet(rows, path)


if __name__ == "__main__":
    main()
