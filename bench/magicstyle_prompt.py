"""MagicStyle where a prompt leads, on a toy: `python -m bench.magicstyle_prompt`, or with
`--model transformer`.

New pictures of two prompts in the look of held-out pictures. Style: distance of the Gram matrices
to those of the style picture (`bench.magicstyle_effect`), divided by the plain picture's; words:
correlation of edges with the plain picture of the same seed; copied: how much nearer the edges came
to those of the style picture.

Edits: held-out cartoons are inverted under their captions, and drawn again with another colour of
shirt, at CFG 4. Left: colour distance of the shirt to the colour asked for, divided by the
original's (0: done, 1: untouched); elsewhere: dB outside of the shirt to what the autoencoder alone
gives; structure: correlation of edges with the original. What is kept is all but the shirt: by its
exact mask, or by the phrase, where the layout of the inversion finds it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from . import toy
from .command_line import bench_parser, command_of, parse_with_quick
from .magicstyle_effect import LOOKS, gram_distance, structure
from .report import Report
from .sheets import contact_sheet

# ruff: isort: split
import comfy.sample
import torch
from torch import Tensor

from magicportrait.demo.portraits import (
    GARMENT_COLOURS,
    Portrait,
    caption,
    caption_phrases,
    render,
)
from magicportrait.demo.portraits import Style as Look
from magicportrait.host.inversion.run import Inversion, Recipe, invert, resample_with
from magicportrait.host.layout.masks import layout_masks
from magicportrait.host.sampling.backbone import backbone_of
from magicportrait.host.sampling.range import SamplingRange
from magicportrait.host.systems.new_style import NewStylePatch, StylePicture
from magicportrait.host.systems.prompt_edit import Hold, PromptEditPatch
from magicportrait.magic.inversion import psnr

STEPS, CFG = 20, 4.0
PROMPTS = (
    "a smiling woman with light skin and red hair wearing a top hat, blue background",
    "a man with dark skin and black hair wearing a green scarf and a shirt, yellow background",
)
FAITHFUL = Recipe("fixed-point", 2, 1e-4, 1.0)
LOOK: Look = "cartoon"
PART = "shirt"

NEW: dict[str, dict[str, Any] | None] = {
    # name in the table: inputs of MagicStyle New Picture; None for the style's name in the prompt
    "the style's name in the prompt": None,
    "colour 0": {"colour": 0.0},
    "colour 0, of its inversion": {"colour": 0.0, "is_inverted": True},
    "strength 0": {"strength": 0.0},
    "strength 1": {"strength": 1.0},
    "strength 2": {"strength": 2.0},
    "(default)": {},
    "colour 1": {"colour": 1.0},
    "colour 1 alone": {"strength": -100.0, "colour": 1.0},
    "all layers": {"layers": "all"},
    "from 20 %": {"start": 0.2},
}
NEW_ON_TRANSFORMER: dict[str, dict[str, Any] | None] = {
    "later half": {"layers": "decoder"},
    "positions same": {"placement": "same"},
    "positions aside": {"placement": "aside"},
}
EDITS: dict[str, dict[str, Any]] = {
    # name in the table: inputs of MagicStyle Edit, or the host's denoise
    "the same noise, nothing held": {"until": 0.0},
    "until .5": {"until": 0.5},
    "until .8 (default)": {},
    "until 1": {"until": 1.0},
    "structure and look, until .5": {"until": 0.5, "hold": "structure and look"},
    "structure and look, until .8": {"hold": "structure and look"},
    "until .8, decoder": {"layers": "decoder"},
    "until .8, half": {"share": 0.5},
    "until .8, all but the shirt kept": {"keeps": "mask"},
    "until .8, all but the phrase kept": {"keeps": "phrase"},
    "nothing held, all but the shirt kept": {"until": 0.0, "keeps": "mask"},
    "nothing held, all but the phrase kept": {"until": 0.0, "keeps": "phrase"},
    "img2img, denoise .5": {"denoise": 0.5},
    "img2img, denoise .7": {"denoise": 0.7},
    "img2img, denoise .9": {"denoise": 0.9},
}


@dataclass(frozen=True)
class StyleCase:
    """A style picture (1 H W 3) and its name; latent: of it, as the VAE gives it; inversion: under
    the empty prompt."""

    name: str
    image: Tensor
    latent: Tensor
    inversion: Inversion


def inversion_of(
    world: toy.Toy, latent: Tensor, conds: dict[str, list[Any]], model: Any = None
) -> Inversion:
    model = world.model if model is None else model
    return invert(model, latent, conds, world.sigmas(STEPS), FAITHFUL, None, ("", ""))


def style_cases(world: toy.Toy, count: int) -> list[StyleCase]:
    out = []
    for place, portrait in enumerate(toy.held_out(5 + count)[5:]):
        look = LOOKS[place % len(LOOKS)]
        image = toy.picture(render(replace(portrait, style=look), world.side))
        latent = world.vae.encode(image)
        out.append(StyleCase(look, image, latent, inversion_of(world, latent, world.empty_conds())))
    return out


def new_picture(
    world: toy.Toy,
    prompt: str,
    style: StyleCase,
    strength: float | None = None,
    colour: float = 0.5,
    layers: str = "usual",
    start: float = 0.0,
    end: float = 1.0,
    placement: Any = "attenuated",
    is_inverted: bool = False,
) -> Tensor:
    """1 H W 3."""
    backbone = backbone_of(world.model)
    inversion = style.inversion if is_inverted else None
    picture = StylePicture(style.latent, world.encode_text(""), inversion=inversion)
    patch = NewStylePatch(
        pictures=(picture,),
        strength=backbone.habits.style_strengths["normal"] if strength is None else strength,
        colour=colour,
        backbone=backbone,
        blocks=backbone.parse_layers(backbone.habits.style_layers if layers == "usual" else layers),
        range=SamplingRange(start, end),
        placement=placement,
    )
    return sample_picture(world, patch.add_to(world.model), prompt)


def sample_picture(world: toy.Toy, model: Any, prompt: str) -> Tensor:
    """1 H W 3, of one seed."""
    return world.decode(
        world.sample(model, world.encode_text(prompt), world.noise([1]), STEPS, CFG)
    )


def new_pictures(
    world: toy.Toy, report: Report, rows: Mapping[str, dict[str, Any] | None], count: int
) -> list[list[Tensor]]:
    """The first table, and its pictures row by row: plain ones and styles first."""
    styles = style_cases(world, count)
    plain = {prompt: sample_picture(world, world.model, prompt) for prompt in PROMPTS}
    pairs = [(prompt, style) for prompt in PROMPTS for style in styles]
    sheet = [[plain[prompt][0] for prompt, _ in pairs], [style.image[0] for _, style in pairs]]
    report.begin_table("setting", "style", "words", "copied")
    for name, options in rows.items():
        scores, pictures = [], []
        for prompt, style in pairs:
            if options is None:
                picture = sample_picture(world, world.model, f"{prompt}, {style.name} style")
            else:
                picture = new_picture(world, prompt, style, **options)
            before = plain[prompt]
            scores.append(
                (
                    gram_distance(picture, style.image) / gram_distance(before, style.image),
                    structure(picture, before),
                    structure(picture, style.image) - structure(before, style.image),
                )
            )
            pictures.append(picture[0])
        near, words, copying = torch.tensor(scores).mean(0).tolist()
        report.add_row(name, f"{near:.2f}", f"{words:.2f}", f"{copying:+.2f}")
        sheet.append(pictures)
    return sheet


@dataclass(frozen=True)
class EditCase:
    """A picture to edit (as the autoencoder gives it, 1 H W 3), its latent and inversion; mask: of
    its shirt, H W; place: where the inversion's layout has it, H W; words: that ask for another
    shirt; colour: of that, 3."""

    image: Tensor
    latent: Tensor
    inversion: Inversion
    mask: Tensor
    place: Tensor
    words: str
    colour: Tensor


def edit_cases(world: toy.Toy, count: int) -> list[EditCase]:
    def has_plain_shirt(portrait: Portrait) -> bool:
        return portrait.shirt.pattern == "plain" and portrait.shirt.colour in ("red", "blue")

    out = []
    for one in toy.held_out(count, has_plain_shirt):
        portrait = replace(one, style=LOOK)
        dye = "green" if portrait.shirt.colour == "red" else "yellow"
        other = replace(portrait, shirt=replace(portrait.shirt, colour=dye))
        assert dye in GARMENT_COLOURS
        was, truth = render(portrait, world.side), render(other, world.side)
        latent, mask = world.vae.encode(toy.picture(was)), toy.part_mask(was, PART)[0]
        [phrase] = [words for words, part in caption_phrases(portrait) if part == PART]
        model, positive, layout = world.watch(caption(portrait), [phrase], 0.6)
        conds = {**world.empty_conds(), "positive": positive}
        colour = toy.mean_colour(toy.picture(truth)[0], mask)
        image = world.decode(latent)
        inversion = inversion_of(world, latent, conds, model)
        run = layout.run_of(inversion.latents[-1])
        size = (world.side, world.side)
        place = layout_masks(run.steps[max(run.steps)], 1, size).phrases[0][0]
        out.append(EditCase(image, latent, inversion, mask, place, caption(other), colour))
    return out


def edit_picture(
    world: toy.Toy,
    case: EditCase,
    until: float = 0.8,
    hold: Hold = "structure",
    layers: str = "all",
    share: float = 1.0,
    keeps: str = "",
    denoise: float | None = None,
) -> Tensor:
    """1 H W 3."""
    words = world.encode_text(case.words)
    if denoise is not None:
        return img2img(world, case, words, denoise)
    backbone = backbone_of(world.model)
    changing = {"mask": case.mask, "phrase": case.place}.get(keeps)
    patch = PromptEditPatch(
        content=case.inversion,
        structure=share if until else 0.0,
        hold=hold,
        backbone=backbone,
        blocks=backbone.parse_layers(layers),
        range=SamplingRange(0.0, until),
        keep=None if changing is None else 1 - changing[None].float(),
    )
    conds = {**world.empty_conds(), "positive": words}
    model, start = patch.add_to(world.model), patch.start_samples(world.model)
    return world.decode(resample_with(model, case.inversion, start, conds, CFG, None))


def img2img(world: toy.Toy, case: EditCase, words: Any, denoise: float) -> Tensor:
    """The host's own way."""
    samples = comfy.sample.sample(
        world.model,
        world.noise([1]),
        STEPS,
        CFG,
        "euler",
        world.scheduler,
        words,
        world.encode_text(""),
        case.latent,
        denoise=denoise,
        disable_pbar=True,
        seed=1,
    )
    return world.decode(samples)


def edit_scores(picture: Tensor, case: EditCase) -> tuple[float, float, float]:
    """(left, elsewhere, structure)."""
    colours = (toy.mean_colour(image[0], case.mask) for image in (picture, case.image))
    left, before = (float((colour - case.colour).norm()) for colour in colours)
    outside = case.mask < 0.01
    elsewhere = psnr(picture[0][outside], case.image[0][outside], 1.0)
    return left / before, elsewhere, structure(picture, case.image)


def overlap(place: Tensor, mask: Tensor) -> float:
    """IoU of two masks, H W bool."""
    return float((place & mask).sum() / (place | mask).sum())


def edits(world: toy.Toy, report: Report, count: int, names: Sequence[str]) -> list[list[Tensor]]:
    """The second table, and its pictures row by row: the originals first."""
    pictures = edit_cases(world, count)
    overlaps = [overlap(case.place > 0, case.mask > 0.5) for case in pictures]
    mean = sum(overlaps) / len(overlaps)
    report.write(f"The shirt in the layout of the inversion against its mask: IoU {mean:.2f}.", "")
    sheet = [[case.image[0] for case in pictures]]
    report.begin_table("setting", "left", "elsewhere", "structure")
    for name in names:
        out = [edit_picture(world, case, **EDITS[name]) for case in pictures]
        scores = [edit_scores(*pair) for pair in zip(out, pictures, strict=True)]
        left, elsewhere, likeness = torch.tensor(scores).mean(0).tolist()
        report.add_row(name, f"{left:.2f}", f"{elsewhere:.1f} dB", f"{likeness:.2f}")
        sheet.append([picture[0] for picture in out])
    return sheet


@torch.inference_mode()
def main() -> None:
    parser = bench_parser(__doc__)
    parser.add_argument("--model", choices=["unet", "transformer"], default="unet")
    parser.add_argument("--styles", type=int, default=2, help="style pictures; 0 for no such table")
    parser.add_argument("--edits", type=int, default=4, help="pictures to edit; 0 for no table")
    parser.add_argument("--only", default="", help="only rows whose name has this in it")
    parser.add_argument("--figure", type=Path, help="also write both tables' pictures, in a folder")
    args = parse_with_quick(parser, styles=1, edits=1, only="default)")
    is_unet = args.model == "unet"
    world = toy.Toy.load() if is_unet else toy.Toy.load_transformer()
    report = Report(
        "magicstyle_prompt" if is_unet else "magicstyle_prompt_transformer",
        f"MagicStyle where a prompt leads, on the {'toy' if is_unet else 'transformer toy'}",
        f"`{command_of('bench.magicstyle_prompt')}`: {STEPS} steps, CFG {CFG:g}",
    )
    sheets = {}
    if args.styles:
        rows = NEW if is_unet else {**NEW, **NEW_ON_TRANSFORMER}
        rows = {name: options for name, options in rows.items() if args.only in name}
        sheets["new_pictures"] = new_pictures(world, report, rows, args.styles)
        report.write("", "Edits:", "")
    if args.edits:
        names = [name for name in EDITS if args.only in name]
        sheets["edits"] = edits(world, report, args.edits, names)
    report.finish(kept=not args.quick and not args.only and bool(args.styles and args.edits))
    for name, sheet in sheets.items():
        if args.figure:
            contact_sheet(sheet, args.figure / f"{name}_{args.model}.png")


if __name__ == "__main__":
    main()
