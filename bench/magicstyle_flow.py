"""MagicStyle on the transformer toy, a flow model. `python -m bench.magicstyle_flow`

How close an inverted picture comes back, by method and steps; then what the settings of MagicStyle
Apply do, where the styles' keys lie among them. Pictures and figures as in
`bench.magicstyle_effect`, at 256 px. The toy is not shipped yet: --checkpoint says where it is.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from . import toy
from .command_line import bench_parser, command_of, parse_with_quick
from .magicstyle_effect import LOOKS, gram_distance, structure
from .report import Report
from .sheets import contact_sheet

# ruff: isort: split
import torch
from torch import Tensor

from magicportrait.demo import transformer_checkpoint
from magicportrait.demo.portraits import render
from magicportrait.host.inversion.run import Inversion, Recipe, invert, resample, resample_with
from magicportrait.host.sampling.backbone import backbone_of
from magicportrait.host.sampling.feature_store import FeatureStore
from magicportrait.host.sampling.range import SamplingRange
from magicportrait.host.systems.magicstyle import MagicStylePatch, Style
from magicportrait.magic.feature_fusion import PRESETS, Fusion, Preset
from magicportrait.magic.inversion import psnr
from magicportrait.magic.positions import Placement

SCHEDULE = "simple"
STEPS = 20
RECIPES = {
    "euler (ddim)": Recipe("ddim", 0, 0.0, 1.0),
    "warm": Recipe("warm", 0, 0.0, 1.0),
    "fixed-point, 1 iteration": Recipe("fixed-point", 1, 0.0, 1.0),
    "fixed-point, 2 iterations": Recipe("fixed-point", 2, 0.0, 1.0),
    "o-belm": Recipe("o-belm", 0, 0.0, 1.0),
}


@dataclass(frozen=True)
class Setting:
    """A row of the ablation. preset: how, and when; layers: where; placement: of the style's
    keys."""

    preset: Preset = PRESETS["balanced"]
    layers: str = "fine"
    placement: Placement = "attenuated"


def fused(
    alpha: float = 0.8,
    beta: float = 0.2,
    keys: str = "content+style",
    scale: float = 0.25,
    adain: float = 1.0,
    end: float = 0.6,
    start: float = 0.0,
    temperature: float = 1.0,
) -> Preset:
    """'balanced', but for what is given."""
    fusion = Fusion(alpha, beta, keys, scale, temperature)  # type: ignore[arg-type]
    return Preset(fusion, adain, start, end)


ROWS: dict[str, Setting] = {
    "none (AdaIN 0, no fusion)": Setting(fused(1, 0, "content", adain=0.0, end=0.0)),
    "AdaIN 1, no fusion": Setting(fused(1, 0, "content", end=0.0)),
    "content only, AdaIN 0": Setting(fused(1, 0, "content", adain=0.0)),
    "balanced": Setting(),
    "balanced, same": Setting(placement="same"),
    "balanced, aside": Setting(placement="aside"),
    "balanced, index": Setting(placement="index"),
    "balanced, all layers": Setting(layers="all"),
    "balanced, double blocks": Setting(layers="double"),
    "balanced, last third": Setting(layers="late"),
    "gentle": Setting(PRESETS["gentle"]),
    "strong": Setting(PRESETS["strong"]),
    "strong, same": Setting(PRESETS["strong"], placement="same"),
    "balanced, to 80 %": Setting(fused(end=0.8)),
    "balanced, to 100 %": Setting(fused(end=1.0)),
    "balanced, AdaIN 0": Setting(fused(adain=0.0)),
    "balanced, scale 1": Setting(fused(scale=1.0)),
    "style keys, .8/.2": Setting(fused(keys="style")),
    "style keys, .8/.2, from 30 %": Setting(fused(keys="style", start=0.3, end=1.0)),
    "style, .75/0 and own, temperature 1.5 (StyleID's rule)": Setting(
        fused(0.75, 0.0, "style", adain=1.0, end=1.0, temperature=1.5)
    ),
}


@dataclass(frozen=True)
class Pair:
    """content, style: inversions; content_image: what the autoencoder alone makes of the content,
    style_image: 1 H W 3; features: kept from the first row that needs them, by layers."""

    content: Inversion
    style: Inversion
    content_image: Tensor
    style_image: Tensor
    features: dict[str, FeatureStore]


class FlowToy(toy.Toy):
    """The transformer toy."""

    def sigmas(self, steps: int) -> Tensor:
        """Falling from 1 to 0."""
        import comfy.samplers

        sampling = self.model.get_model_object("model_sampling")
        return comfy.samplers.calculate_sigmas(sampling, SCHEDULE, steps)

    def inverted(self, image: Tensor, recipe: Recipe, steps: int) -> Inversion:
        latent = self.vae.encode(image)
        sigmas = self.sigmas(steps)
        return invert(self.model, latent, self.empty_conds(), sigmas, recipe, None, ("", ""))


def held_out_picture(place: int, look: str) -> Tensor:
    """1 H W 3 at the toy's size."""
    portrait = toy.held_out(place + 1)[place]
    side = transformer_checkpoint.IMAGE_SIDE
    return toy.picture(render(replace(portrait, style=look), side))  # type: ignore[arg-type]


def round_trips(checkpoint: FlowToy, report: Report, count: int, steps: tuple[int, ...]) -> None:
    """The table of methods."""
    images = torch.cat([held_out_picture(i, "cartoon") for i in range(count)])
    latent, conds = checkpoint.vae.encode(images), checkpoint.empty_conds()
    alone = checkpoint.decode(latent)
    report.begin_table(
        "steps", "method", "dB of the latent", "dB of the picture", "calls a step", "noise"
    )
    for number in steps:
        for name, recipe in RECIPES.items():
            inversion = checkpoint.inverted(images, recipe, number)
            again = resample(checkpoint.model, inversion, conds, 1.0, None)
            report.add_row(
                f"{number}",
                name,
                f"{psnr(again, latent, float(latent.max() - latent.min())):.1f}",
                f"{psnr(checkpoint.decode(again), alone, 1.0):.1f}",
                f"{inversion.model_calls / number:.1f}",
                f"{float(inversion.latents[0].std()):.2f}",
            )


def prepare(checkpoint: FlowToy, count: int) -> list[Pair]:
    recipe, pairs = Recipe("fixed-point", 2, 1e-4, 1.0), []
    for i in range(count):
        content = held_out_picture(i, "cartoon")
        style = held_out_picture(count + i, LOOKS[i % len(LOOKS)])
        inversions = [checkpoint.inverted(image, recipe, STEPS) for image in (content, style)]
        alone = checkpoint.decode(checkpoint.vae.encode(content))
        pairs.append(Pair(inversions[0], inversions[1], alone, style, {}))
    return pairs


def draw(checkpoint: FlowToy, pair: Pair, setting: Setting) -> Tensor:
    """1 H W 3."""
    model, preset = checkpoint.model, setting.preset
    backbone = backbone_of(model)
    patch = MagicStylePatch(
        content=pair.content,
        styles=(Style(pair.style, 1.0),),
        fusion=preset.fusion,
        backbone=backbone,
        blocks=backbone.parse_layers(setting.layers),
        range=SamplingRange(preset.start, preset.end),
        fuses_negative=False,
        adain=preset.adain,
        kept=pair.features.setdefault(setting.layers, FeatureStore()),
        placement=setting.placement,
    )
    start = patch.start_samples(model)
    conds = checkpoint.empty_conds()
    return checkpoint.decode(
        resample_with(patch.add_to(model), pair.content, start, conds, 1.0, None)
    )


@torch.inference_mode()
def main() -> None:
    parser = bench_parser(__doc__)
    parser.add_argument("--checkpoint", type=Path, default=transformer_checkpoint.PATH)
    parser.add_argument("--portraits", type=int, default=4, help="how many are inverted")
    parser.add_argument("--pairs", type=int, default=6, help="how many are drawn")
    parser.add_argument("--steps", type=int, nargs="*", default=[8, 20, 50], help="of inversions")
    parser.add_argument("--only", default="", help="only rows whose name has this in it")
    parser.add_argument("--figure", type=Path, help="also write a grid of pictures there")
    args = parse_with_quick(parser, portraits=1, pairs=1, steps=[4], only="balanced, same")
    checkpoint = FlowToy(*transformer_checkpoint.load(args.checkpoint))
    report = Report(
        "magicstyle_flow",
        "MagicStyle on the transformer toy",
        f"`{command_of('bench.magicstyle_flow')}`",
    )
    round_trips(checkpoint, report, args.portraits, tuple(args.steps))
    report.write("", f"MagicStyle, {STEPS} steps:", "")
    report.begin_table("setting", "style", "structure", "dB to the content")
    pairs = prepare(checkpoint, args.pairs)
    pictures = {}
    for name, setting in ROWS.items():
        if args.only not in name:
            continue
        drawn = [draw(checkpoint, pair, setting) for pair in pairs]
        scores = [
            (
                gram_distance(picture, pair.style_image)
                / gram_distance(pair.content_image, pair.style_image),
                structure(picture, pair.content_image),
                psnr(picture, pair.content_image, 1.0),
            )
            for picture, pair in zip(drawn, pairs, strict=True)
        ]
        style, kept, decibels = torch.tensor(scores).mean(0).tolist()
        report.add_row(name, f"{style:.2f}", f"{kept:.2f}", f"{decibels:.1f}")
        pictures[name] = [picture[0] for picture in drawn]
    report.finish(kept=not args.quick and not args.only)
    if args.figure:
        given = [[pair.content_image[0] for pair in pairs], [pair.style_image[0] for pair in pairs]]
        contact_sheet([*given, *pictures.values()], args.figure)


if __name__ == "__main__":
    main()
