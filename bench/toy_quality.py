"""How good is the toy checkpoint? `python -m bench.toy_quality`

Autoencoder: PSNR on held-out portraits. Binding: does each part look more like itself in the asked
colour than in any other (demo/asked_colours.py). Localisation: intersection over union of each
phrase's region in the layout with the exact mask, on the layout's grid, on re-noised held-out
portraits, beside the mean mask of the data set.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from . import toy
from .command_line import bench_parser, parse_with_quick
from .report import Report
from .sheets import contact_sheet

# ruff: isort: split
import torch
import torch.nn.functional as F
from torch import Tensor

from magicportrait.demo.asked_colours import asked_colours, draw, right_colours
from magicportrait.demo.portraits import (
    PARTS,
    STYLES,
    Portrait,
    caption,
    caption_phrases,
    render,
    sample_portrait,
)

AUTOMATIC_CA_SCALE = 0.6
"""What MagicFace Apply takes for several concepts."""
LAYOUT_PARTS = ("hat", "scarf", "shirt", "hair", "glasses")
"""Parts whose place in the layout is measured."""
MEANS_OF = 256
"""Portraits behind the mean masks."""


def phrases_of(portrait: Portrait) -> dict[str, str]:
    """The words of the caption that name each part."""
    return {part: words for words, part in reversed(caption_phrases(portrait)) if part}


def autoencoder_psnr(checkpoint: toy.Toy, count: int = 64) -> dict[str, float]:
    portraits = toy.held_out(count)
    images = torch.cat([toy.picture(render(portrait)) for portrait in portraits])
    reconstructions = checkpoint.decode(checkpoint.vae.encode(images))
    psnr = -10 * (images - reconstructions).square().mean((1, 2, 3)).log10()
    by_style: dict[str, float] = {
        style: psnr[[i for i, p in enumerate(portraits) if p.style == style]].mean().item()
        for style in STYLES
    }
    return {"all": psnr.mean().item(), **by_style}


def binding(checkpoint: toy.Toy, count: int = 64) -> dict[str, float]:
    """Share of captions whose hat, shirt and background have the colour that the caption says,
    where the layout has them."""
    right: dict[str, list[bool]] = {}
    for index, portrait in enumerate(toy.held_out(count, lambda p: p.hat is not None)):
        phrases = phrases_of(portrait)
        model, positive, record = checkpoint.watch(
            caption(portrait), list(phrases.values()), AUTOMATIC_CA_SCALE
        )
        samples = checkpoint.sample(model, positive, checkpoint.noise([index]), steps=20)
        image, regions = checkpoint.decode(samples)[0], toy.regions(record, samples, list(phrases))
        regions["background"] = ~toy.foreground(record, samples)
        owners = torch.full(image.shape[:2], -1)
        for part, region in regions.items():
            owners[region[0]] = PARTS.index(part)
        _add(right, portrait, image, owners)
    return {part: sum(values) / len(values) for part, values in right.items()}


def binding_as_drawn(count: int = 64) -> dict[str, float]:
    """What `binding` gives to the portraits as they were drawn, with the exact masks."""
    right: dict[str, list[bool]] = {}
    for portrait in toy.held_out(count, lambda p: p.hat is not None):
        image, masks = draw(portrait, toy.SIDE)
        _add(right, portrait, image, masks.argmax(0))
    return {part: sum(values) / len(values) for part, values in right.items()}


def _add(right: dict[str, list[bool]], portrait: Portrait, image: Tensor, owners: Tensor) -> None:
    asked = asked_colours(portrait, toy.SIDE)
    for each, is_right in zip(asked, right_colours(image, owners, asked), strict=True):
        right.setdefault(PARTS[each.part], []).append(is_right)


def intersection_over_union(region: Tensor, truth: Tensor) -> float:
    return float((region & truth).sum() / (region | truth).sum().clamp(min=1))


def on_grid(mask: Tensor, side: int) -> Tensor:
    """A mask's coverage of the cells of a grid. H W -> side side."""
    return F.adaptive_avg_pool2d(mask[None, None].float(), side)[0, 0]


def mean_masks() -> dict[str, Tensor]:
    """Where each part is in the mean of the portraits that have it: H W in 0..1."""
    masks: dict[str, list[Tensor]] = {part: [] for part in LAYOUT_PARTS}
    for seed in range(MEANS_OF):
        portrait = sample_portrait(seed)
        rendering = render(portrait)
        for part in LAYOUT_PARTS:
            if _has(portrait, part):
                masks[part].append(torch.from_numpy(rendering.masks[part]))
    return {part: torch.stack(several).mean(0) for part, several in masks.items()}


def localisation(
    checkpoint: toy.Toy, count: int = 48, percent: float = 0.7, ca_scale: float = AUTOMATIC_CA_SCALE
) -> dict[str, tuple[float, float]]:
    """For each word (layout, baseline): IoU with the exact mask on the layout's own grid, on
    portraits re-noised to `percent` of the schedule, with the ca_scale that MagicFace Apply takes
    for several concepts. The baseline: the data set's mean mask at half maximum.
    """
    means = mean_masks()
    scores: dict[str, list[tuple[float, float]]] = {word: [] for word in LAYOUT_PARTS}
    sampling = checkpoint.model.get_model_object("model_sampling")
    sigma = float(sampling.percent_to_sigma(percent))
    for index, portrait in enumerate(toy.held_out(count)):
        portrait = replace(portrait, glasses="glasses" if portrait.glasses else None)
        rendering = render(portrait)
        phrases = phrases_of(portrait)
        model, positive, record = checkpoint.watch(
            caption(portrait), list(phrases.values()), ca_scale
        )
        latent = checkpoint.vae.encode(toy.picture(rendering))
        samples = checkpoint.denoise(model, positive, latent, sigma, index)
        owners = toy.owners(record, samples)[0]
        for i, part in enumerate(phrases):
            if part not in scores or rendering.masks[part].sum() < 32:
                continue
            coverage, mean = (
                on_grid(torch.from_numpy(rendering.masks[part]), owners.shape[0]),
                on_grid(means[part], owners.shape[0]),
            )
            # Thin parts, such as glasses, fill no cell by half.
            truth = coverage > min(0.5, 0.5 * float(coverage.max()))
            scores[part].append(
                (
                    intersection_over_union(owners == i, truth),
                    intersection_over_union(mean >= 0.5 * mean.max(), truth),
                )
            )
    overlaps = {}
    for word, values in scores.items():
        if values:
            layout, baseline = torch.tensor(values).mean(0).tolist()
            overlaps[word] = (layout, baseline)
    return overlaps


def _has(portrait: Portrait, part: str) -> bool:
    return part in ("shirt", "hair", "background") or getattr(portrait, part) is not None


def sample_sheet(checkpoint: toy.Toy, path: Path, count: int = 32) -> None:
    portraits = toy.held_out(count)
    images: list[Tensor] = []
    for start in range(0, count, 8):
        for i, portrait in enumerate(portraits[start : start + 8]):
            positive = checkpoint.encode_text(caption(portrait))
            images.append(
                checkpoint.decode(
                    checkpoint.sample(
                        checkpoint.model, positive, checkpoint.noise([start + i]), steps=20
                    )
                )[0]
            )
    contact_sheet([images[i : i + 8] for i in range(0, count, 8)], path)


@torch.inference_mode()
def main() -> None:
    parser = bench_parser(__doc__)
    parser.add_argument("--captions", type=int, default=64, help="for the binding")
    parser.add_argument(
        "--portraits", type=int, default=48, help="for the localisation, a third more for the PSNR"
    )
    parser.add_argument("--samples", type=Path, help="also write a sheet of samples there")
    args = parse_with_quick(parser, captions=2, portraits=6)
    checkpoint, pictures = toy.Toy.load(), args.portraits * 4 // 3
    psnr = autoencoder_psnr(checkpoint, pictures)
    right, ceiling = binding(checkpoint, args.captions), binding_as_drawn(args.captions)
    overlaps = localisation(checkpoint, args.portraits)
    mean = [sum(pair[i] for pair in overlaps.values()) / len(overlaps) for i in (0, 1)]
    report = Report("toy_quality", "Quality of the toy checkpoint", "`python -m bench.toy_quality`")
    report.write(
        f"Autoencoder, {pictures} held-out portraits: PSNR {psnr['all']:.1f} dB ("
        + ", ".join(f"{style} {psnr[style]:.1f}" for style in STYLES)
        + ")",
        "",
        f"Binding, {args.captions} captions: "
        + ", ".join(f"{part} {share:.0%}" for part, share in right.items())
        + "; of pictures as they were drawn "
        + ", ".join(f"{part} {share:.0%}" for part, share in ceiling.items()),
        "",
    )
    report.begin_table(f"IoU, {args.portraits} held-out portraits", *overlaps, "mean")
    for i, name in enumerate(("layout", "mean mask of the data set")):
        cells = [pair[i] for pair in overlaps.values()]
        report.add_row(name, *(f"{cell:.2f}" for cell in (*cells, mean[i])))
    report.finish(kept=not args.quick)
    print(json.dumps({"psnr": psnr, "binding": right, "localisation": overlaps}))
    if args.samples:
        sample_sheet(checkpoint, args.samples)


if __name__ == "__main__":
    main()
