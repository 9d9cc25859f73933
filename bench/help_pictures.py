"""Draws the pictures of the help pages, js/docs/*.jpg, on the toy checkpoint: `python -m bench.help_pictures`"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

from . import toy

# ruff: isort: split
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from magicportrait.demo import portraits
from magicportrait.host.inversion import resample_with
from magicportrait.nodes.inversion import MagicStyleInvert
from magicportrait.nodes.layout import MagicLayoutMasks
from magicportrait.nodes.magicstyle import MagicStyleSampler
from magicportrait.nodes.portrait_crop import MagicPortraitCrop, MagicPortraitPaste

from .magicface_effect import CONCEPTS, PROMPT, magic_pictures, plain_pictures, reference_sets

SIDE = 160
GAP = 6
FOLDER = toy.ROOT / "js" / "docs"


def save(name: str, images: Sequence[Tensor]) -> None:
    """images: H W 3 each, which come to one height in a row."""
    tiles = [Image.fromarray((image.clamp(0, 1) * 255).round().byte().numpy()) for image in images]
    tiles = [tile.resize((round(tile.width * SIDE / tile.height), SIDE), Image.Resampling.LANCZOS) for tile in tiles]
    sheet = Image.new("RGB", (sum(tile.width + GAP for tile in tiles) - GAP, SIDE), "white")
    left = 0
    for tile in tiles:
        sheet.paste(tile, (left, 0))
        left += tile.width + GAP
    FOLDER.mkdir(parents=True, exist_ok=True)
    sheet.save(FOLDER / f"{name}.jpg", quality=88)
    print(f"wrote js/docs/{name}.jpg")


def gray(mask: Tensor) -> Tensor:
    return mask.float()[..., None].expand(-1, -1, 3)


def concept(checkpoint: toy.Toy) -> list[Tensor]:
    drawn = portraits.render(reference_sets()[0]["hat"], 256)
    image, mask = torch.from_numpy(drawn.image), torch.from_numpy(drawn.masks["hat"])
    return [image, gray(mask), image * (0.25 + 0.75 * gray(mask))]


def magicface(checkpoint: toy.Toy) -> list[Tensor]:
    chosen, noise = reference_sets()[0], checkpoint.noise([0, 1])
    references = [torch.from_numpy(portraits.render(chosen[part], checkpoint_side()).image) for part in CONCEPTS]
    plain, magic = plain_pictures(checkpoint, noise), magic_pictures(checkpoint, noise, chosen, 2.5)
    return [*references, *plain.images, *magic.images]


def checkpoint_side() -> int:
    return toy.checkpoint.IMAGE_SIDE


def layout(checkpoint: toy.Toy) -> list[Tensor]:
    model, positive, record = checkpoint.watch(PROMPT, ["green hat", "white scarf", "blue shirt"])
    samples = checkpoint.sample(model, positive, checkpoint.noise([0, 1]))
    images = checkpoint.decode(samples)
    masks, _, overlay, _ = MagicLayoutMasks.execute(record, {"samples": samples}, -1, images).args
    return [images[1], overlay[1, : checkpoint_side()], *(gray(mask[1]) for mask in masks)]


def inversion(checkpoint: toy.Toy) -> list[Tensor]:
    portrait = toy.held_out(1, lambda portrait: portrait.style == "cartoon")[0]
    image = toy.picture(portraits.render(portrait, checkpoint_side()))
    options = {"steps": 30, "scheduler": "ddim_uniform", "method": "fixed-point", "cfg": 1.0, "iterations": 2, "tolerance": 1e-4}
    found, noise, *_, positive, _ = MagicStyleInvert.execute(
        checkpoint.model, **options, measure=False, cache_mb=0, image=image, vae=checkpoint.vae, clip=checkpoint.clip
    ).args
    again = resample_with(checkpoint.model, found, noise["samples"], {"positive": positive, "negative": positive}, 1.0, None)
    values = noise["samples"][0, :3].movedim(0, -1)
    shown = (values - values.min()) / (values.max() - values.min())
    shown = F.interpolate(shown.movedim(-1, 0)[None], size=(checkpoint_side(),) * 2, mode="nearest")[0].movedim(0, -1)
    return [image[0], shown, checkpoint.decode(again)[0]]


def style(checkpoint: toy.Toy) -> list[Tensor]:
    content = toy.held_out(1, lambda portrait: portrait.style == "cartoon")[0]
    pictures = [toy.picture(portraits.render(content, checkpoint_side()))]
    for name in ("sketch", "neon"):
        look = toy.picture(portraits.render(toy.held_out(1, lambda portrait, name=name: portrait.style == name)[0], checkpoint_side()))
        [sampled] = MagicStyleSampler.execute(
            checkpoint.model, checkpoint.vae, pictures[0], look, "balanced", 30, "ddim_uniform", "decoder", 0, checkpoint.clip
        ).args
        pictures += [look, checkpoint.decode(sampled["samples"])]
    return [picture[0] for picture in pictures]


def crop(checkpoint: toy.Toy) -> list[Tensor]:
    drawn = portraits.render(toy.held_out(1)[0], 256)
    image, mask = toy.picture(drawn), torch.from_numpy(drawn.masks["face"])[None]
    cut, cut_mask, place = MagicPortraitCrop.execute(image, mask, 0.3, 128, True).args
    changed = torch.lerp(cut, 1 - cut.flip(-1), gray(cut_mask[0]))
    [pasted] = MagicPortraitPaste.execute(image, changed, place, 0.1).args
    return [image[0], cut[0], changed[0], pasted[0]]


def toy_checkpoint(checkpoint: toy.Toy) -> list[Tensor]:
    prompt = "a smiling woman with red hair wearing a blue striped top hat, glasses and a green scarf, pink background, {} style"
    pictures = []
    for i, name in enumerate(portraits.STYLES):
        positive = checkpoint.encode_text(prompt.format(name))
        pictures.append(checkpoint.decode(checkpoint.sample(checkpoint.model, positive, checkpoint.noise([i])))[0])
    return pictures


def toy_portrait(checkpoint: toy.Toy) -> list[Tensor]:
    drawn = portraits.render(toy.held_out(1, lambda portrait: portrait.hat is not None and portrait.scarf is not None)[0], 256)
    return [torch.from_numpy(drawn.image), *(gray(torch.from_numpy(drawn.masks[part])) for part in ("hat", "face", "scarf"))]


PICTURES: dict[str, Callable[[toy.Toy], list[Tensor]]] = {
    function.__name__: function for function in (concept, magicface, layout, inversion, style, crop, toy_checkpoint, toy_portrait)
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=list(PICTURES), help="default: all")
    checkpoint = toy.Toy.load()
    for name in parser.parse_args().names:
        with torch.inference_mode():
            save(name, PICTURES[name](checkpoint))


if __name__ == "__main__":
    main()
