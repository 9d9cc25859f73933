"""What MagicStyle does to a picture, and which of its settings do it. `python -m
bench.magicstyle_effect`

Held-out cartoons are drawn in the look of held-out sketches, neons and pastels of other people.
Style: distance of the Gram matrices of [RGB, |Sobel|, 1] at three scales to those of the style
picture, divided by the content's own distance (1: untouched, 0: the same statistics). Structure:
correlation of the luminance gradient's magnitude with the content's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from . import toy
from .command_line import bench_parser, parse_with_quick
from .report import Report
from .sheets import labelled_sheet

# ruff: isort: split
import torch
import torch.nn.functional as F
from torch import Tensor

from magicportrait.demo.portraits import Style as Look
from magicportrait.demo.portraits import render
from magicportrait.host.inversion.run import Inversion, Recipe, invert, resample_with
from magicportrait.host.sampling.backbone import backbone_of
from magicportrait.host.sampling.feature_store import FeatureStore
from magicportrait.host.sampling.range import SamplingRange
from magicportrait.host.systems.magicstyle import MagicStylePatch, Style
from magicportrait.magic.feature_fusion import PRESETS, Fusion, Preset
from magicportrait.magic.inversion import psnr
from magicportrait.magic.reference_passes import BandStarts

STEPS = 25
LOOKS: tuple[Look, ...] = ("sketch", "neon", "pastel")
"""Of the style pictures, in turn."""
SHOWN = 6
"""Pairs in the figure."""


def preset_sheet(rows: Sequence[Sequence[Tensor]], path: Path) -> None:
    """rows: portraits, styles, and what each preset makes of them."""
    captions = ["portrait", "style", "gentle", "balanced", "strong"]
    labelled_sheet([row[:SHOWN] for row in rows], path, captions)


def in_all_steps(fusion: Fusion, adain: float = 0.0, start: float = 0.0) -> Preset:
    return Preset(fusion, adain, start, 1.0)


def both(alpha: float, beta: float, scale: float = 0.0, adain: float = 0.0) -> Preset:
    """Keys and values of the content and of the style together."""
    return in_all_steps(Fusion(alpha, beta, "content+style", scale), adain)


ROWS: dict[str, tuple[Preset, str]] = {
    # name in the table: how, and in which layers
    "content only, 1/0": (in_all_steps(Fusion(1, 0, "content")), "decoder"),
    "content only, 1/0, AdaIN 1": (in_all_steps(Fusion(1, 0, "content"), 1), "decoder"),
    "content + style, 1/0": (both(1, 0), "decoder"),
    "content + style, .8/.2": (both(0.8, 0.2), "decoder"),
    "content + style, .5/.5": (both(0.5, 0.5), "decoder"),
    "content + style, .2/.8": (both(0.2, 0.8), "decoder"),
    "content + style, .8/.2, scale 2": (both(0.8, 0.2, 2), "decoder"),
    "style, 1/0": (in_all_steps(Fusion(1, 0, "style")), "decoder"),
    "style, .8/.2": (in_all_steps(Fusion(0.8, 0.2, "style")), "decoder"),
    "style, .75/0 and own, temperature 1.5 (StyleID's rule)": (
        in_all_steps(Fusion(0.75, 0, "style", temperature=1.5)),
        "decoder",
    ),
    "blend, .5/.5": (in_all_steps(Fusion(0.5, 0.5, "blend")), "decoder"),
    "blend, .2/.8": (in_all_steps(Fusion(0.2, 0.8, "blend")), "decoder"),
    "blend, .5/.5, AdaIN .5": (in_all_steps(Fusion(0.5, 0.5, "blend"), 0.5), "decoder"),
    "blend, .5/.5, AdaIN 1": (in_all_steps(Fusion(0.5, 0.5, "blend"), 1), "decoder"),
    "content + style, 1/0, scale 1, AdaIN 1": (both(1, 0, 1, 1), "decoder"),
    "content + style, .8/.2, AdaIN 1": (both(0.8, 0.2, 0, 1), "decoder"),
    "content + style, .8/.2, scale 1, AdaIN .5": (both(0.8, 0.2, 1, 0.5), "decoder"),
    "content + style, .8/.2, scale 1, AdaIN 1": (both(0.8, 0.2, 1, 1), "decoder"),
    "the same, two finest levels": (both(0.8, 0.2, 1, 1), "fine"),
    "the same, all layers": (both(0.8, 0.2, 1, 1), "all"),
    "the same, to 80 % of sampling": (replace(both(0.8, 0.2, 1, 1), end=0.8), "decoder"),
    "the same, to 60 %": (replace(both(0.8, 0.2, 1, 1), end=0.6), "decoder"),
    "content + style, 1/0, scale 2, AdaIN 1": (both(1, 0, 2, 1), "decoder"),
    "style, .8/.2, AdaIN 1": (in_all_steps(Fusion(0.8, 0.2, "style"), 1), "decoder"),
    "style, .8/.2, AdaIN 1, from 30 %": (
        in_all_steps(Fusion(0.8, 0.2, "style"), 1, 0.3),
        "decoder",
    ),
    "content + style, .8/.2, AdaIN .5, to 80 % (gentle)": (PRESETS["gentle"], "decoder"),
    "content + style, .8/.2, scale .25, AdaIN 1, to 60 % (balanced)": (
        PRESETS["balanced"],
        "decoder",
    ),
    "content + style, .8/.2, scale 2, AdaIN 1, to 80 % (strong)": (PRESETS["strong"], "decoder"),
}


@dataclass(frozen=True)
class Pair:
    """A content and a style.

    content, style: their inversions over the same sigmas; content_image, style_image: 1 H W 3;
    features: of both, kept from the first row that needs them.
    """

    content: Inversion
    style: Inversion
    content_image: Tensor
    style_image: Tensor
    features: FeatureStore


def sobel(image: Tensor) -> Tensor:
    """Gradient magnitude of each channel. B C H W."""
    kernel = torch.tensor([[1.0, 0.0, -1.0], [2.0, 0.0, -2.0], [1.0, 0.0, -1.0]]) / 4
    kernels = torch.stack([kernel, kernel.T])[:, None]
    flat = F.pad(image.flatten(0, 1)[:, None], (1, 1, 1, 1), mode="replicate")
    return F.conv2d(flat, kernels).square().sum(1).sqrt().view_as(image)


def gram_distance(image: Tensor, other: Tensor) -> float:
    """Distance of the Gram matrices of [RGB, |Sobel|, 1] at scales 1, 2 and 4. B H W 3."""

    def grams(picture: Tensor) -> Tensor:
        x, matrices = picture.movedim(-1, 1), []
        for _ in range(3):
            features = torch.cat([x, sobel(x), torch.ones_like(x[:, :1])], dim=1).flatten(2)
            matrices.append(features @ features.transpose(1, 2) / features.shape[-1])
            x = F.avg_pool2d(x, 2)
        return torch.stack(matrices, dim=1)

    return float((grams(image) - grams(other)).norm())


def structure(image: Tensor, other: Tensor) -> float:
    """Correlation of the luminance gradient's magnitude. B H W 3."""
    x, y = (sobel(picture.mean(-1)[:, None]).flatten() for picture in (image, other))
    return torch.corrcoef(torch.stack([x, y]))[0, 1].item()


def prepare(checkpoint: toy.Toy, count: int) -> list[Pair]:
    portraits = toy.held_out(2 * count)
    conds, sigmas = checkpoint.empty_conds(), checkpoint.sigmas(STEPS)

    def inversion_of(image: Tensor) -> Inversion:
        latent = checkpoint.vae.encode(image)
        return invert(
            checkpoint.model,
            latent,
            conds,
            sigmas,
            Recipe("fixed-point", 2, 0.0, 1.0),
            None,
            ("", ""),
        )

    pairs = []
    for i in range(count):
        content = toy.picture(render(replace(portraits[i], style="cartoon")))
        style = toy.picture(render(replace(portraits[count + i], style=LOOKS[i % 3])))
        pairs.append(
            Pair(inversion_of(content), inversion_of(style), content, style, FeatureStore())
        )
    return pairs


def reconstruction(checkpoint: toy.Toy, pair: Pair) -> Tensor:
    """The content as the autoencoder alone gives it: 1 H W 3."""
    return checkpoint.decode(checkpoint.model.model.process_latent_out(pair.content.latents[-1]))


def draw(
    checkpoint: toy.Toy,
    pair: Pair,
    preset: Preset,
    layers: str,
    styles: Sequence[Style] | None = None,
    bands: BandStarts | None = None,
) -> Tensor:
    """1 H W 3. bands: as of MagicStylePatch."""
    model = checkpoint.model
    backbone = backbone_of(model)
    # Features of another set of layers, or of other styles, are not those that are kept.
    store = pair.features if layers == "decoder" and styles is None else None
    patch = MagicStylePatch(
        content=pair.content,
        styles=tuple(styles) if styles else (Style(pair.style, 1.0),),
        fusion=preset.fusion,
        backbone=backbone,
        blocks=backbone.parse_layers(layers),
        range=SamplingRange(preset.start, preset.end),
        fuses_negative=False,
        adain=preset.adain,
        store=store,
        bands=bands,
    )
    noise = patch.start_samples(model)
    samples = resample_with(
        patch.add_to(model), pair.content, noise, checkpoint.empty_conds(), 1.0, None
    )
    return checkpoint.decode(samples)


def measure(
    checkpoint: toy.Toy,
    pairs: Sequence[Pair],
    preset: Preset,
    layers: str,
    bands: BandStarts | None = None,
) -> tuple[float, float, float, list[Tensor]]:
    """(style, structure, PSNR to the content's reconstruction, pictures). bands: as for `draw`."""
    scores, pictures = [], []
    for pair in pairs:
        picture = draw(checkpoint, pair, preset, layers, None, bands)
        content = reconstruction(checkpoint, pair)
        left = gram_distance(picture, pair.style_image) / gram_distance(content, pair.style_image)
        scores.append((left, structure(picture, content), psnr(picture, content, 1.0)))
        pictures.append(picture[0])
    style, likeness, decibels = torch.tensor(scores).mean(0).tolist()
    return style, likeness, decibels, pictures


def two_styles(checkpoint: toy.Toy, pairs: Sequence[Pair]) -> tuple[float, float]:
    """Two styles, one on each half, as in the workflow: distance of each half to its own style and
    to the other, as shares of the content's distance. A preset that ends early would let the model
    mix the halves again."""
    own: list[float] = []
    other: list[float] = []
    for first, second in zip(pairs[0::2], pairs[1::2], strict=False):
        side = first.content_image.shape[1]
        left = torch.zeros(side, side)
        left[:, : side // 2] = 1
        styles = [Style(first.style, 1.0, left), Style(second.style, 1.0, 1 - left)]
        picture = draw(checkpoint, first, ROWS["style, .8/.2, AdaIN 1"][0], "decoder", styles)
        content = reconstruction(checkpoint, first)
        for half, mine, foreign in (
            (slice(0, side // 2), first, second),
            (slice(side // 2, side), second, first),
        ):
            for pair, distances in ((mine, own), (foreign, other)):
                image = pair.style_image
                distances.append(
                    gram_distance(picture[:, :, half], image)
                    / gram_distance(content[:, :, half], image)
                )
    return sum(own) / len(own), sum(other) / len(other)


@torch.inference_mode()
def main() -> None:
    parser = bench_parser(__doc__)
    parser.add_argument("--pairs", type=int, default=32, help="how many")
    parser.add_argument("--only", help="only rows whose name has this in it; no table is written")
    parser.add_argument("--figure", type=Path, help="also write a grid of pictures there")
    # The preset 'balanced', and no other row.
    args = parse_with_quick(parser, pairs=2, only="(balanced)")
    checkpoint = toy.Toy.load()
    pairs = prepare(checkpoint, args.pairs)
    report = Report(
        "magicstyle_effect",
        "MagicStyle on the toy checkpoint",
        f"`python -m bench.magicstyle_effect --pairs {args.pairs}`",
    )
    report.begin_table("keys and values, alpha/beta", "style", "structure", "dB to the content")
    pictures: dict[str, list[Tensor]] = {}
    for name, (preset, layers) in ROWS.items():
        if args.only and args.only not in name:
            continue
        style, likeness, decibels, pictures[name] = measure(checkpoint, pairs, preset, layers)
        report.add_row(name, f"{style:.2f}", f"{likeness:.2f}", f"{decibels:.1f}")
    if args.figure:
        sheet = [[pair.content_image[0] for pair in pairs], [pair.style_image[0] for pair in pairs]]
        names = [name for name in pictures if name.endswith(("(gentle)", "(balanced)", "(strong)"))]
        preset_sheet([*sheet, *(pictures[name] for name in names)], args.figure)
    if args.only and not args.quick:
        return
    report.write("", "The paper's sweep (content + style, scale 1, AdaIN 1):", "")
    report.begin_table("alpha/beta", "style", "structure")
    for beta in (0.0, 0.2, 0.4, 0.6, 0.8):
        style, likeness, _, _ = measure(checkpoint, pairs, both(1 - beta, beta, 1, 1), "decoder")
        report.add_row(f"{1 - beta:.1f}/{beta:.1f}", f"{style:.3f}", f"{likeness:.3f}")
    own, other = two_styles(checkpoint, pairs)
    report.write(
        "",
        "Two styles, half the picture each (style, .8/.2, AdaIN 1): distance to its own"
        f" {own:.2f}, to the other half's {other:.2f}.",
    )
    report.finish(kept=not args.quick)


if __name__ == "__main__":
    main()
