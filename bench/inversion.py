"""How close an inverted picture comes when it is sampled again: `python -m bench.inversion`

Held-out portraits on the toy checkpoint, empty prompt, CFG 1. The VAE alone already changes a
picture; no inverter can do better.
"""

from __future__ import annotations

from . import toy
from .command_line import bench_parser, parse_with_quick
from .report import Report

# ruff: isort: split
import torch

from magicportrait.demo.portraits import render
from magicportrait.host.inversion.run import Recipe, invert, resample
from magicportrait.magic.inversion import psnr

RECIPES = {
    "euler": Recipe("euler", 0, 0.0, 1.0),
    "fixed-point, 2 iterations (default)": Recipe("fixed-point", 2, 1e-4, 1.0),
    "fixed-point, 5 iterations": Recipe("fixed-point", 5, 1e-4, 1.0),
    "o-belm": Recipe("o-belm", 0, 0.0, 1.0),
    "fireflow": Recipe("fireflow", 0, 0.0, 1.0),
}


@torch.inference_mode()
def main() -> None:
    parser = bench_parser(__doc__)
    parser.add_argument("--portraits", type=int, default=8, help="how many")
    parser.add_argument("--only", default="", help="only methods whose name has this in it")
    args = parse_with_quick(parser, portraits=1)
    checkpoint = toy.Toy.load()
    images = torch.cat([toy.picture(render(portrait)) for portrait in toy.held_out(args.portraits)])
    latent = checkpoint.vae.encode(images)
    alone = checkpoint.vae.decode(latent)
    conds = checkpoint.empty_conds()
    report = Report(
        "inversion",
        "Inversion on the toy checkpoint",
        f"`python -m bench.inversion --portraits {args.portraits}`",
    )
    report.write(
        f"The VAE alone: {psnr(alone, images, 1.0):.1f} dB to the image.",
        "Noise: deviation of the inverted latent over sigma, 1 is real noise.",
        "",
    )
    report.begin_table(
        "steps",
        "method",
        "dB to what the VAE alone gives",
        "dB to the image",
        "model calls",
        "noise",
    )
    for steps in (10, 20, 50):
        sigmas = checkpoint.sigmas(steps)
        for name, recipe in RECIPES.items():
            if args.only not in name:
                continue
            inversion = invert(checkpoint.model, latent, conds, sigmas, recipe, None, ("", ""))
            again = checkpoint.vae.decode(resample(checkpoint.model, inversion, conds, 1.0, None))
            noise = float(inversion.latents[0].std() / sigmas[0])
            report.add_row(
                f"{steps}",
                name,
                f"{psnr(again, alone, 1.0):.1f}",
                f"{psnr(again, images, 1.0):.1f}",
                f"{inversion.model_calls}",
                f"{noise:.2f}",
            )
    report.finish(kept=not args.quick and not args.only)


if __name__ == "__main__":
    main()
