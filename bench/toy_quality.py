"""How good is the toy checkpoint? `python -m bench.toy_quality`

Autoencoder: PSNR on held-out portraits. Binding: is the asked colour the nearest palette colour
where the part is drawn. Localisation: intersection over union of each phrase's region in the layout
with the exact mask, on the layout's grid, on re-noised held-out portraits, beside the mean mask of
the data set.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

from . import toy

# ruff: isort: split
import torch
import torch.nn.functional as F
from torch import Tensor

from magicportrait.demo.portraits import (
    BACKGROUND_COLOURS,
    GARMENT_COLOURS,
    STYLES,
    Portrait,
    caption,
    caption_phrases,
    render,
    sample_portrait,
    second_colour,
    tint,
)

AUTOMATIC_CA_SCALE = 0.6
"""What MagicFace Apply takes for several concepts."""
LOCATED = ("hat", "scarf", "shirt", "hair", "glasses")


def phrases_of(portrait: Portrait) -> dict[str, str]:
    """The words of the caption that name each part."""
    return {part: words for words, part in reversed(caption_phrases(portrait)) if part}


def autoencoder_psnr(checkpoint: toy.Toy, count: int = 64) -> dict[str, float]:
    portraits = toy.held_out(count)
    images = torch.cat([toy.picture(render(portrait)) for portrait in portraits])
    decoded = checkpoint.decode(checkpoint.vae.encode(images))
    psnr = -10 * (images - decoded).square().mean((1, 2, 3)).log10()
    by_style = {
        style: psnr[[i for i, p in enumerate(portraits) if p.style == style]].mean().item()
        for style in STYLES
    }
    return {"all": psnr.mean().item(), **by_style}


def nearest_colour(
    image: Tensor,
    region: Tensor,
    palette: dict[str, tuple[int, int, int]],
    without: tuple[int, int, int] | None,
) -> str:
    """The palette colour that most pixels of a region are nearest to; those nearest to `without` (a
    pattern's second) do not count."""
    names = list(palette)
    colours = torch.tensor([palette[name] for name in names] + ([without] if without else [])) / 255
    nearest = (image[region][:, None] - colours).square().sum(-1).argmin(1)
    counts = nearest.bincount(minlength=len(colours))[: len(names)]
    return names[int(counts.argmax())]


def binding(checkpoint: toy.Toy, count: int = 64, batch: int = 8) -> dict[str, float]:
    """Share of captions whose hat, shirt and background have the asked colour."""
    portraits = toy.held_out(count, lambda p: p.hat is not None)
    right: dict[str, list[bool]] = {"hat": [], "shirt": [], "background": []}
    for portrait_index, portrait in enumerate(portraits):
        named = phrases_of(portrait)
        model, positive, record = checkpoint.watch(
            caption(portrait), list(named.values()), AUTOMATIC_CA_SCALE
        )
        samples = checkpoint.sample(model, positive, checkpoint.noise([portrait_index]), steps=20)
        image, found = checkpoint.decode(samples)[0], toy.regions(record, samples, list(named))
        found["background"] = ~toy.foreground(record, samples)
        assert portrait.hat is not None
        asked = {
            "hat": portrait.hat.colour,
            "shirt": portrait.shirt.colour,
            "background": portrait.background,
        }
        for part, colour in asked.items():
            is_background = part == "background"
            source = BACKGROUND_COLOURS if is_background else GARMENT_COLOURS
            palette = {
                name: tint(value, portrait.style, background=is_background)
                for name, value in source.items()
            }
            garment = {"hat": portrait.hat, "shirt": portrait.shirt}.get(part)
            second = (
                tint(second_colour(colour), portrait.style)
                if garment and garment.pattern != "plain"
                else None
            )
            right[part].append(nearest_colour(image, found[part][0], palette, second) == colour)
    return {part: sum(values) / len(values) for part, values in right.items()}


def intersection_over_union(found: Tensor, truth: Tensor) -> float:
    return ((found & truth).sum() / (found | truth).sum().clamp(min=1)).item()


def on_grid(mask: Tensor, side: int) -> Tensor:
    """A mask's coverage of the cells of a grid. H W -> side side."""
    return F.adaptive_avg_pool2d(mask[None, None].float(), side)[0, 0]


def localisation(
    checkpoint: toy.Toy, count: int = 48, percent: float = 0.7, ca_scale: float = AUTOMATIC_CA_SCALE
) -> dict[str, tuple[float, float]]:
    """For each word (layout, baseline): IoU with the exact mask on the layout's own grid, on
    portraits re-noised to `percent` of the schedule, with the ca_scale that MagicFace Apply takes
    for several concepts. The baseline: the data set's mean mask at half maximum.
    """
    means = {
        part: (
            torch.stack(
                [
                    torch.from_numpy(render(sample_portrait(seed)).masks[part])
                    for seed in range(256)
                    if _has(sample_portrait(seed), part)
                ]
            ).mean(0)
        )
        for part in LOCATED
    }
    scores: dict[str, list[tuple[float, float]]] = {word: [] for word in LOCATED}
    sampling = checkpoint.model.get_model_object("model_sampling")
    sigma = float(sampling.percent_to_sigma(percent))
    for index, portrait in enumerate(toy.held_out(count)):
        portrait = replace(portrait, glasses="glasses" if portrait.glasses else None)
        drawn = render(portrait)
        named = phrases_of(portrait)
        model, positive, record = checkpoint.watch(
            caption(portrait), list(named.values()), ca_scale
        )
        latent = checkpoint.vae.encode(toy.picture(drawn))
        samples = _one_step(model, positive, checkpoint, latent, sigma, index)
        found = toy.owned_cells(record, samples)[0]
        for i, part in enumerate(named):
            if part not in scores or drawn.masks[part].sum() < 32:
                continue
            coverage, mean = (
                on_grid(torch.from_numpy(drawn.masks[part]), found.shape[0]),
                on_grid(means[part], found.shape[0]),
            )
            # Thin parts, such as glasses, fill no cell by half.
            truth = coverage > min(0.5, 0.5 * float(coverage.max()))
            scores[part].append(
                (
                    intersection_over_union(found == i, truth),
                    intersection_over_union(mean >= 0.5 * mean.max(), truth),
                )
            )
    return {
        word: tuple(torch.tensor(values).mean(0).tolist())
        for word, values in scores.items()
        if values
    }  # type: ignore[misc]


def _one_step(
    model: object, positive: object, checkpoint: toy.Toy, latent: Tensor, sigma: float, seed: int
) -> Tensor:
    """One model call on a latent that is noised to `sigma`."""
    import comfy.samplers

    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, checkpoint.encode_text(""))
    guider.set_cfg(4.0)
    sigmas = torch.tensor([sigma, 0.0])
    return guider.sample(
        checkpoint.noise([seed]),
        latent,
        comfy.samplers.sampler_object("euler"),
        sigmas,
        disable_pbar=True,
        seed=seed,
    )


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
    toy.contact_sheet([images[i : i + 8] for i in range(0, count, 8)], path)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--captions", type=int, default=64)
    parser.add_argument("--samples", type=Path, help="also write a sheet of samples there")
    args = parser.parse_args()
    checkpoint = toy.Toy.load()
    psnr = autoencoder_psnr(checkpoint)
    bound = binding(checkpoint, args.captions)
    located = localisation(checkpoint)
    mean = [sum(pair[i] for pair in located.values()) / len(located) for i in (0, 1)]
    lines = ["# Quality of the toy checkpoint", "", "`python -m bench.toy_quality`", ""]
    lines += [
        f"Autoencoder, 64 held-out portraits: PSNR {psnr['all']:.1f} dB ("
        + ", ".join(f"{style} {psnr[style]:.1f}" for style in STYLES)
        + ")",
        "",
    ]
    lines += [
        f"Binding, {args.captions} captions: "
        + ", ".join(f"{part} {share:.0%}" for part, share in bound.items()),
        "",
    ]
    lines += [
        "| IoU, 48 held-out portraits | " + " | ".join(located) + " | mean |",
        "| --- |" + " --- |" * (len(located) + 1),
    ]
    for i, name in enumerate(("layout", "mean mask of the data set")):
        lines.append(
            f"| {name} | "
            + " | ".join(f"{pair[i]:.2f}" for pair in located.values())
            + f" | {mean[i]:.2f} |"
        )
    toy.write_report("toy_quality", lines)
    print(json.dumps({"psnr": psnr, "binding": bound, "localisation": located}))
    if args.samples:
        sample_sheet(checkpoint, args.samples)


if __name__ == "__main__":
    main()
