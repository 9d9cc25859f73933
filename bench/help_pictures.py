"""Draws the pictures of the help pages, js/docs/*.webp, on the toy checkpoint: `python -m
bench.help_pictures`"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from devkit.pack import ROOT

from . import toy
from .command_line import bench_parser
from .sheets import captioned_pictures
from .toy_references import (
    CONCEPTS,
    PLAIN_PROMPT,
    apply_concepts,
    concepts_of,
    reference_sets,
)

# ruff: isort: split
import comfy.sample
import torch
import torch.nn.functional as F
from torch import Tensor

from magicportrait.demo import portraits
from magicportrait.host.faces.restoration import SMALLEST_FACE, restore_face
from magicportrait.host.inversion.run import resample_with
from magicportrait.host.pictures.compare_grid import CompareGrid
from magicportrait.host.pictures.conversion import as_image
from magicportrait.host.pictures.mask_parts import boxes_of_parts
from magicportrait.host.training.pictures import masked_previews
from magicportrait.magic.capture_sets import capture_pictures
from magicportrait.nodes.analysis import (
    MagicAttentionHeatmap,
    MagicAttentionMap,
    MagicCorrespondence,
    MagicCorrespondenceMap,
)
from magicportrait.nodes.declare import defaults_of
from magicportrait.nodes.detail import MagicDetailPass
from magicportrait.nodes.inversion import MagicStyleInvert
from magicportrait.nodes.layout import MagicLayoutMasks, MagicSemanticLayout
from magicportrait.nodes.magicface_apply import MagicFaceApply
from magicportrait.nodes.magicface_concept import MagicFaceConcept
from magicportrait.nodes.magicstyle import MagicStyleSampler
from magicportrait.nodes.magicstyle_prompt import MagicStyleEdit, MagicStyleNewPicture
from magicportrait.nodes.masks import NO_MODEL, NO_SAM, MagicConceptMask, refined
from magicportrait.nodes.metrics import MagicCompareGrid
from magicportrait.nodes.portrait_crop import MagicPortraitCrop, MagicPortraitPaste
from magicportrait.nodes.restore import MagicPortraitRestore
from magicportrait.nodes.toy import MagicToyCapture, MagicToyPortrait

CELL = 160
"""Side of the pictures of a grid, in pixels."""
LARGE = 256
"""Side of pictures that show what no model has rendering, in pixels."""
FOLDER = ROOT / "js" / "docs"
DETAIL_PHRASES = (
    "woman",
    "red hair",
    "top hat",
    "white shirt",
    "man",
    "black hair",
    "scarf",
    "orange shirt",
)
DETAIL_PROMPT = (
    "a woman with pale skin, red hair, a top hat and a white shirt, a man with light skin, black"
    " hair, a scarf and an orange shirt, yellow background, cartoon style"
)
DETAIL_TEXT = (
    "a woman with pale skin and red hair wearing a top hat and a white shirt, yellow background,"
    " cartoon style\n"
    "a man with light skin and black hair wearing a scarf and an orange shirt, yellow background,"
    " cartoon style"
)
DETAIL_SEED = 6
PLAIN_REFERENCES = {"top hat": ("hat", 165), "scarf": ("scarf", 159), "shirt": ("shirt", 72)}
DETAIL_REFERENCES = {"top hat": ("hat", 165), "scarf": ("scarf", 159)}


def save(name: str, images: Sequence[Tensor]) -> None:
    """images: H W 3 each."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    captions = CAPTIONS.get(name)
    if captions:
        sheet = captioned_pictures(images, captions, columns=2 if len(images) == 4 else 3)
    else:
        # A grid has its own.
        [grid] = images
        sheet = as_image(grid)
    sheet.save(FOLDER / f"{name}.webp", quality=86, method=6)
    print(f"wrote js/docs/{name}.webp")


def gray(mask: Tensor) -> Tensor:
    """H W -> H W 3."""
    return mask.float()[..., None].expand(-1, -1, 3)


def concept(checkpoint: toy.Toy) -> list[Tensor]:
    rendering = portraits.render(reference_sets()[0]["hat"], LARGE)
    image, mask = toy.picture(rendering)[0], toy.part_mask(rendering, "hat")[0]
    return [image, gray(mask), image * (0.25 + 0.75 * gray(mask))]


def magicface(checkpoint: toy.Toy) -> list[Tensor]:
    grid = CompareGrid(
        [[*row] for row in three_rows(checkpoint)],
        ["references", "prompt alone", "with MagicFace"],
        cell=CELL,
        font=22,
    )
    return [grid.draw()[0]]


def three_rows(checkpoint: toy.Toy) -> tuple[Tensor, Tensor, Tensor]:
    """References, pictures of the prompt alone, and the same with MagicFace, as the template with
    three concepts has them: 3 H W 3 each."""
    sources, concepts = template_concepts(PLAIN_REFERENCES, checkpoint.side)
    noise = comfy.sample.prepare_noise(torch.zeros_like(checkpoint.noise([0, 1, 2])), 1)
    arguments = {**defaults_of(MagicFaceApply), "prompt": PLAIN_PROMPT}
    model, positive, _ = MagicFaceApply.execute(
        checkpoint.model, checkpoint.clip, checkpoint.vae, concepts, **arguments
    ).args
    plain = checkpoint.sample(checkpoint.model, checkpoint.encode_text(PLAIN_PROMPT), noise)
    magic = checkpoint.sample(model, positive, noise)
    return torch.stack(sources), checkpoint.decode(plain), checkpoint.decode(magic)


def template_concepts(
    references: Mapping[str, tuple[str, int]], side: int
) -> tuple[list[Tensor], tuple[Any, ...]]:
    """Toy Portraits, H W 3 each, and MAGIC_CONCEPTS of them, as templates have them. references:
    part and seed for each phrase."""
    pictures: list[Tensor] = []
    concepts: tuple[Any, ...] = ()
    for phrase, (part, seed) in references.items():
        portrait, mask, words = MagicToyPortrait.execute(seed, part, "cartoon", side).args
        pictures.append(portrait[0])
        [concepts] = MagicFaceConcept.execute(
            portrait, phrase, 3.0, mask, words, None, concepts, preset="normal"
        ).args
    return pictures, concepts


def layout(checkpoint: toy.Toy) -> list[Tensor]:
    model, positive, record = checkpoint.watch(PLAIN_PROMPT, [*CONCEPTS])
    samples = checkpoint.sample(model, positive, checkpoint.noise([0, 1]))
    images = checkpoint.decode(samples)
    masks, _, overlay, _ = MagicLayoutMasks.execute(record, {"samples": samples}, -1, images).args
    return [images[1], overlay[1, : toy.SIDE], *(gray(mask[1]) for mask in masks)]


def portrait_in(style: portraits.Style) -> Tensor:  # 1 H W 3
    """The first held-out portrait of a style."""
    [portrait] = toy.held_out(1, lambda portrait: portrait.style == style)
    return toy.picture(portraits.render(portrait))


def inversion(checkpoint: toy.Toy) -> list[Tensor]:
    image = portrait_in("cartoon")
    trajectory, noise, _, _, positive, *_ = MagicStyleInvert.execute(
        checkpoint.model,
        steps=30,
        scheduler="ddim_uniform",
        method="fixed-point",
        cfg=1.0,
        iterations=2,
        tolerance=1e-4,
        measure=False,
        cache_mb=0,
        image=image,
        vae=checkpoint.vae,
        clip=checkpoint.clip,
    ).args
    again = resample_with(
        checkpoint.model,
        trajectory,
        noise["samples"],
        {"positive": positive, "negative": positive},
        1.0,
        None,
    )
    values = noise["samples"][0, :3].movedim(0, -1)
    colours = (values - values.min()) / (values.max() - values.min())
    colours = F.interpolate(colours.movedim(-1, 0)[None], size=(toy.SIDE, toy.SIDE), mode="nearest")
    return [image[0], colours[0].movedim(0, -1), checkpoint.decode(again)[0]]


def style(checkpoint: toy.Toy) -> list[Tensor]:
    content = portrait_in("cartoon")
    pictures = [content]
    for look in (portrait_in("sketch"), portrait_in("neon")):
        sample = MagicStyleSampler.execute(
            checkpoint.model,
            checkpoint.vae,
            content,
            look,
            "balanced",
            30,
            "ddim_uniform",
            "decoder",
            0,
            checkpoint.clip,
        ).args[1]
        pictures += [look, sample]
    return [picture[0] for picture in pictures]


def new_style(checkpoint: toy.Toy) -> list[Tensor]:
    """A prompt; a style and the prompt in it, twice; two of a batch that takes its first's look."""
    prompt = checkpoint.encode_text(
        "a smiling woman with light skin and red hair wearing a blue hat, pink background, cartoon"
        " style"
    )
    noise, options = checkpoint.noise([3]), defaults_of(MagicStyleNewPicture)
    pictures = [checkpoint.decode(checkpoint.sample(checkpoint.model, prompt, noise))]
    for look in (portrait_in("sketch"), portrait_in("pastel")):
        parts = {"image": look, "vae": checkpoint.vae, "clip": checkpoint.clip}
        [model] = MagicStyleNewPicture.execute(model=checkpoint.model, **options, **parts).args
        pictures += [look, checkpoint.decode(checkpoint.sample(model, prompt, noise))]
    return [picture[0] for picture in pictures]


def edit(checkpoint: toy.Toy) -> list[Tensor]:
    """A picture; another colour of its hat; the same with all else kept; what is kept."""
    [portrait] = toy.held_out(1, lambda portrait: bool(portrait.hat and not portrait.glasses))
    portrait = replace(portrait, style="cartoon")
    rendering = portraits.render(portrait)
    assert portrait.hat
    colour = "green" if portrait.hat.colour != "green" else "yellow"
    other = replace(portrait, hat=replace(portrait.hat, colour=colour))
    was, words = (
        checkpoint.encode_text(portraits.caption(person, frozenset({*portraits.PARTS, "skin"})))
        for person in (portrait, other)
    )
    trajectory, *_ = MagicStyleInvert.execute(
        checkpoint.model,
        **{**defaults_of(MagicStyleInvert), "measure": False, "cache_mb": 0},
        image=toy.picture(rendering),
        vae=checkpoint.vae,
        clip=checkpoint.clip,
        positive=was,
    ).args
    conds = {"positive": words, "negative": checkpoint.encode_text("")}
    keep = 1 - toy.part_mask(rendering, "hat")
    pictures = [toy.picture(rendering)[0]]
    for own in ({}, {"keep": keep}):
        options = {**defaults_of(MagicStyleEdit), **own}
        model, start, _ = MagicStyleEdit.execute(checkpoint.model, trajectory, **options).args
        samples = resample_with(model, trajectory, start["samples"], conds, 4.0, None)
        pictures.append(checkpoint.decode(samples)[0])
    return [*pictures, gray(keep[0])]


def crop(checkpoint: toy.Toy) -> list[Tensor]:
    rendering = portraits.render(toy.held_out(1)[0], LARGE)
    image, mask = toy.picture(rendering), toy.part_mask(rendering, "face")
    cut, cut_mask, place = MagicPortraitCrop.execute(image, mask, 0.3, 128, True).args
    mirror = torch.lerp(cut, 1 - cut.flip(-1), gray(cut_mask[0]))
    out, _ = MagicPortraitPaste.execute(image, mirror, place, 0.1).args
    return [image[0], cut[0], mirror[0], out[0]]


def detail(_: toy.Toy) -> list[Tensor]:
    """As in the template MagicFace-7: two people, their layout, both drawn anew."""
    people = toy.Toy.load_transformer()
    defaults, options = defaults_of(MagicSemanticLayout), {"phrases": ", ".join(DETAIL_PHRASES)}
    model, positive, layout = MagicSemanticLayout.execute(
        people.model, people.clip, **{**defaults, **options, "prompt": DETAIL_PROMPT}
    ).args
    noise = torch.zeros(1, 4, people.side // 8, people.side // 8)
    samples = comfy.sample.sample(
        model,
        comfy.sample.prepare_noise(noise, DETAIL_SEED),
        25,
        4.0,
        "euler",
        people.scheduler,
        positive,
        people.encode_text(""),
        noise,
        disable_pbar=True,
        seed=DETAIL_SEED,
    )
    image = people.decode(samples)
    latent = {"samples": samples}
    overlay = MagicLayoutMasks.execute(layout, latent, -1, image).args[2][:, : people.side]
    references, concepts = template_concepts(DETAIL_REFERENCES, people.side)
    own = {"text": DETAIL_TEXT, "size": people.side, "margin": 0.0, "denoise": 0.65, "seed": 2}
    own |= {"steps": 12, "cfg": 4.0, "scheduler": people.scheduler, "inject_at": 0.0}
    parts = {"model": people.model, "clip": people.clip, "vae": people.vae, "concepts": concepts}
    areas = {"layout": layout, "samples": latent}
    out, _ = MagicDetailPass.execute(
        image, **{**defaults_of(MagicDetailPass), **own, **parts, **areas}
    ).args
    return [image[0], overlay[0], out[0], *references]


def toy_checkpoint(checkpoint: toy.Toy) -> list[Tensor]:
    prompt = (
        "a smiling woman with pale skin and red hair wearing a blue striped top hat, glasses and a"
        " green scarf, pink background, {} style"
    )
    pictures = []
    for i, name in enumerate(portraits.STYLES):
        positive = checkpoint.encode_text(prompt.format(name))
        samples = checkpoint.sample(checkpoint.model, positive, checkpoint.noise([i]))
        pictures.append(checkpoint.decode(samples)[0])
    return pictures


def toy_portrait(checkpoint: toy.Toy) -> list[Tensor]:
    [portrait] = toy.held_out(1, lambda portrait: bool(portrait.hat and portrait.scarf))
    rendering = portraits.render(portrait, LARGE)
    masks = (toy.part_mask(rendering, part)[0] for part in ("hat", "face", "scarf"))
    return [toy.picture(rendering)[0], *map(gray, masks)]


def concept_mask(checkpoint: toy.Toy) -> list[Tensor]:
    rendering = portraits.render(reference_sets()[0]["hat"], LARGE)
    image = toy.picture(rendering)
    [box] = boxes_of_parts(toy.part_mask(rendering, "hat")[0], SMALLEST_FACE)
    options = {
        "target": "points",
        "sam": NO_SAM,
        "detector": NO_MODEL,
        "face_model": NO_MODEL,
        "box": f"{box.x:g},{box.y:g},{box.width:g},{box.height:g}",
    }
    mask, _, overlay = MagicConceptMask.execute(
        **{**defaults_of(MagicConceptMask), **options}, image=image
    ).args
    return [image[0], overlay[0], gray(mask[0])]


def attention_maps(
    checkpoint: toy.Toy, phrases: str, seed: int
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """A sample, and the heat map and the mask of each phrase."""
    options = {**defaults_of(MagicAttentionMap), "prompt": PLAIN_PROMPT, "phrases": phrases}
    model, positive, record = MagicAttentionMap.execute(
        checkpoint.model, checkpoint.clip, **options
    ).args
    samples = checkpoint.sample(model, positive, checkpoint.noise([seed]))
    image = checkpoint.decode(samples)
    heatmaps, masks, _ = MagicAttentionHeatmap.execute(
        record, {"samples": samples}, 0.8, image
    ).args
    return image[0], [heatmap[0] for heatmap in heatmaps], [mask[0] for mask in masks]


def refine_mask(checkpoint: toy.Toy) -> list[Tensor]:
    image, _, [mask] = attention_maps(checkpoint, "scarf", 1)
    steps = [
        refined(mask, 0.5, *settings, False)[0]
        for settings in ((False, False, 0, 0), (True, True, 0, 0), (True, True, 3, 5))
    ]
    return [image, *(gray(step) for step in (mask, *steps))]


def attention(checkpoint: toy.Toy) -> list[Tensor]:
    image, heatmaps, _ = attention_maps(checkpoint, ", ".join(CONCEPTS), 1)
    return [image, *heatmaps]


def correspondence(checkpoint: toy.Toy) -> list[Tensor]:
    concepts = concepts_of(reference_sets()[0], prompt="")
    model, positive, _ = apply_concepts(checkpoint, concepts, prompt=PLAIN_PROMPT)
    region = torch.zeros(1, toy.SIDE, toy.SIDE)
    region[:, 92:108, 54:74] = 1
    model, record = MagicCorrespondence.execute(model, "", 0.0, 1.0, region).args
    samples = checkpoint.sample(model, positive, checkpoint.noise([1]))
    heatmaps, _ = MagicCorrespondenceMap.execute(record, {"samples": samples}, 0.8, concepts).args
    image = checkpoint.decode(samples)[0]
    return [image, image * (0.3 + 0.7 * gray(region[0])), *(heatmap[0] for heatmap in heatmaps)]


def compare(checkpoint: toy.Toy) -> list[Tensor]:
    sources, plain, magic = three_rows(checkpoint)
    options = {
        **defaults_of(MagicCompareGrid),
        "row_captions": "references\nplain\nMagicFace",
        "cell": 112,
        "font": 16,
    }
    [grid] = MagicCompareGrid.execute(sources, **options, row_2=plain, row_3=magic).args
    return [grid[0]]


def capture(checkpoint: toy.Toy) -> list[Tensor]:
    people, heads, looks, look_heads, truth, _ = MagicToyCapture.execute(7, "sketch", 2, LARGE).args
    sets = (
        masked_previews(capture_pictures([*pictures], [*masks], ["1", "2"]), [*masks])
        for pictures, masks in ((people, heads), (looks, [1 - mask for mask in look_heads]))
    )
    return [*(preview for previews in sets for preview in previews), truth[0]]


def toy_capture(checkpoint: toy.Toy) -> list[Tensor]:
    people, heads, looks, _, truth, _ = MagicToyCapture.execute(7, "sketch", 2, LARGE).args
    return [*people, gray(heads[0]), *looks, truth[0]]


def restore(checkpoint: toy.Toy) -> list[Tensor]:
    """No restoration network can come with the pack: what one would be given, and where its answer
    would go."""
    people, heads, *_ = MagicToyCapture.execute(7, "cartoon", 2, LARGE).args
    image, mask = torch.cat([*people], 1), torch.cat([*heads], 1)
    crops: list[Tensor] = []

    def look(crop: Tensor) -> Tensor:
        crops.append(crop[0].movedim(0, -1))
        return torch.ones_like(crop)

    places = torch.zeros(1, 3, *image.shape[:2])
    values = defaults_of(MagicPortraitRestore)
    for box in boxes_of_parts(mask, SMALLEST_FACE):
        restore_face(
            image.movedim(-1, 0)[None],
            box,
            look,
            values["margin"],
            values["strength"],
            values["feather"],
        )
        places = restore_face(
            places, box, torch.ones_like, values["margin"], values["strength"], values["feather"]
        )
    return [image, *crops, image * (0.2 + 0.8 * places[0].movedim(0, -1))]


PICTURES: dict[str, Callable[[toy.Toy], list[Tensor]]] = {
    function.__name__: function
    for function in (
        concept,
        concept_mask,
        refine_mask,
        magicface,
        layout,
        attention,
        correspondence,
        compare,
        inversion,
        style,
        new_style,
        edit,
        crop,
        detail,
        capture,
        restore,
        toy_checkpoint,
        toy_portrait,
        toy_capture,
    )
}


CAPTIONS = {
    "concept": ("picture", "mask", "what is taken"),
    "concept_mask": ("picture", "your box", "mask"),
    "refine_mask": ("picture", "soft mask", "threshold", "cleaned", "grown, soft"),
    "layout": ("picture", "layout", "hat", "scarf", "shirt"),
    "attention": ("picture", "hat", "scarf", "shirt"),
    "correspondence": ("picture", "watched place", "looks at: hat", "scarf", "shirt"),
    "inversion": ("picture", "its noise", "sampled again"),
    "detail": ("before", "layout", "after", "concept: hat", "concept: scarf"),
    "edit": ("picture", "other prompt", "with keep", "keep"),
    "new_style": ("prompt alone", "style", "result", "style", "result"),
    "style": ("portrait", "style", "result", "style", "result"),
    "crop": ("picture", "cut out", "changed", "pasted"),
    "capture": ("subject", "subject", "style", "style", "the aim: both"),
    "restore": ("picture", "first face", "second face", "where they go back"),
    "toy_checkpoint": ("cartoon", "sketch", "pastel", "neon"),
    "toy_portrait": ("portrait", "hat", "face", "scarf"),
    "toy_capture": ("subject", "subject", "head mask", "style", "style", "truth"),
}
"""What the pictures of a sheet are; a grid has captions of its own."""


def main() -> None:
    parser = bench_parser(__doc__)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"default: all, {', '.join(PICTURES)}"
    )
    names = parser.parse_args().names or list(PICTURES)
    if strangers := set(names) - PICTURES.keys():
        parser.error(f"there is no {', '.join(sorted(strangers))} among {', '.join(PICTURES)}")
    checkpoint = toy.Toy.load()
    for name in names:
        with torch.inference_mode():
            save(name, PICTURES[name](checkpoint))


if __name__ == "__main__":
    main()
