"""How good the transformer toy is: do colours land on the part, and the person, that they are said
of, and does attention know where each part is. On held-out portraits and scenes of two people.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .asked_colours import AskedColour, asked_colours, draw, right_colours
from .captions import CaptionBatch, Line, TransformerCaptions
from .dataset import HELD_OUT_SEEDS, LARGE_SIDE, MASK_SIZE, SCENE_PARTS, shipped_autoencoder
from .portraits import (
    PARTS,
    Portrait,
    Scene,
    caption_phrases,
    sample_portrait,
    sample_scene,
    scene_caption_phrases,
)
from .transformer import TEXT_TOKENS, ToyTransformer

LAYOUT_SIGMA = 0.5
"""How noisy the pictures are on which attention is compared with the exact masks."""


@dataclass(frozen=True)
class Case:
    """A held-out picture. `line`: its caption; `asked`: colours of it; `image`: H W 3 in 0..1;
    `masks`: 13 H W coverage in the order of SCENE_PARTS."""

    line: Line
    asked: tuple[AskedColour, ...]
    image: Tensor
    masks: Tensor


def held_out_portraits(count: int) -> list[Case]:
    """Portraits with a hat, and all that a caption can say of them but the skin."""
    portraits = (sample_portrait(seed) for seed in HELD_OUT_SEEDS)
    with_hats = (portrait for portrait in portraits if portrait.hat)
    return [
        _case(
            portrait,
            [
                (words, PARTS.index(part) if part else None)
                for words, part in caption_phrases(portrait)
            ],
        )
        for portrait in itertools.islice(with_hats, count)
    ]


def held_out_scenes(count: int, captions: TransformerCaptions) -> list[Case]:
    """Scenes of two people with hats, and a caption of their hats, their shirts and the background,
    where that fits into the tokens."""
    cases: list[Case] = []
    for seed in HELD_OUT_SEEDS:
        if len(cases) == count:
            break
        scene = sample_scene(seed)
        line = _line_of(scene, frozenset({"hat", "shirt", "background"}))
        tokens = sum(len(captions.ids(words)) for words, _ in line)
        if scene.left.hat and scene.right.hat and tokens <= TEXT_TOKENS - 2:
            cases.append(_case(scene, line))
    return cases


def _line_of(scene: Scene, mention: frozenset[str]) -> Line:
    return [
        (words, SCENE_PARTS.index((0 if part == "background" else person, part)) if part else None)
        for words, part, person in scene_caption_phrases(scene, (mention, mention))
    ]


def _case(picture: Portrait | Scene, line: Line) -> Case:
    image, masks = draw(picture, LARGE_SIDE)
    return Case(line, asked_colours(picture, LARGE_SIDE), image, masks)


def layout_of(attention: Tensor, text: CaptionBatch) -> Tensor:
    """Which part's words each place looks at most. attention: B N T; -> B N, indices of
    SCENE_PARTS."""
    naming = torch.zeros(len(attention), len(SCENE_PARTS), attention.shape[-1])
    for b, (tokens, parts, weights) in enumerate(
        zip(text.tokens, text.parts, text.weights, strict=True)
    ):
        naming[b, parts[weights > 0], tokens[weights > 0]] = 1
    return torch.einsum("bnt,bpt->bnp", attention, naming.to(attention)).argmax(-1)


@torch.inference_mode()
def sample(
    model: ToyTransformer,
    captions: TransformerCaptions,
    rows: Tensor,
    seeds: Sequence[int],
    steps: int = 25,
    cfg: float = 4.0,
) -> tuple[Tensor, Tensor]:
    """Latents of captions, B 4 32 32: Euler over a uniform schedule, picture i from the noise of
    seed i; and the last step's attention to the text, B N T. rows: B T."""
    device = next(model.parameters()).device
    noise = [
        torch.randn(1, 4, 32, 32, generator=torch.Generator().manual_seed(seed)) for seed in seeds
    ]
    x = torch.cat(noise).to(device)
    empty = captions.encode([[] for _ in seeds]).rows
    both = torch.cat([rows, empty]).to(device)
    sigmas = torch.linspace(1, 0, steps + 1).tolist()
    attention = torch.empty(0)
    for sigma, following in itertools.pairwise(sigmas):
        velocity, maps = model(
            torch.cat([x, x]),
            torch.full((len(both),), sigma, device=device),
            both,
            captions.end_row,
        )
        asked, unasked = velocity.chunk(2)
        x = x + (following - sigma) * (unasked + cfg * (asked - unasked))
        attention = torch.stack(maps).mean(0)[: len(x)]
    return x, attention


@torch.inference_mode()
def decode(latents: Tensor) -> Tensor:
    """Pictures B H W 3 in 0..1 by the shipped autoencoder."""
    images: Tensor = shipped_autoencoder().decode(latents.cpu())
    return images.clamp(0, 1).movedim(1, -1)


def binding(
    model: ToyTransformer, captions: TransformerCaptions, cases: Sequence[Case], batch: int = 8
) -> dict[str, float]:
    """Share of captions whose hats, shirts and background have the asked colour where the layout of
    the last step has them."""
    right: dict[str, list[bool]] = {}
    for start in range(0, len(cases), batch):
        several = cases[start : start + batch]
        text = captions.encode([case.line for case in several])
        seeds = range(start, start + len(several))
        latents, attention = sample(model, captions, text.rows, seeds)
        owners = layout_of(attention.cpu(), text).unflatten(1, (MASK_SIZE, MASK_SIZE))
        large = F.interpolate(owners[:, None].float(), size=(LARGE_SIDE, LARGE_SIDE))[:, 0].long()
        for image, owner, case in zip(decode(latents), large, several, strict=True):
            _add(right, case, right_colours(image, owner, case.asked))
    return {part: sum(values) / len(values) for part, values in right.items()}


def _add(right: dict[str, list[bool]], case: Case, are_right: Sequence[bool]) -> None:
    for asked, is_right in zip(case.asked, are_right, strict=True):
        right.setdefault(SCENE_PARTS[asked.part][1], []).append(is_right)


def ceiling(cases: Sequence[Case]) -> dict[str, float]:
    """What `binding` gives to the pictures as they were drawn, with the exact masks."""
    right: dict[str, list[bool]] = {}
    for case in cases:
        _add(right, case, right_colours(case.image, case.masks.argmax(0), case.asked))
    return {part: sum(values) / len(values) for part, values in right.items()}


@torch.inference_mode()
def layout_overlap(
    model: ToyTransformer, captions: TransformerCaptions, cases: Sequence[Case], batch: int = 8
) -> dict[str, float]:
    """Intersection over union of each part's cells in the layout and in the exact masks, on the
    pictures noised to LAYOUT_SIGMA, averaged over the pictures that show the part."""
    device = next(model.parameters()).device
    scores: dict[str, list[float]] = {}
    for start in range(0, len(cases), batch):
        several = cases[start : start + batch]
        text = captions.encode([case.line for case in several])
        images = torch.stack([case.image for case in several]).movedim(-1, 1)
        latents = shipped_autoencoder().encode(images)
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(start))
        noisy = (1 - LAYOUT_SIGMA) * latents + LAYOUT_SIGMA * noise
        sigma = torch.full((len(several),), LAYOUT_SIGMA, device=device)
        _, maps = model(noisy.to(device), sigma, text.rows.to(device), captions.end_row)
        owners = layout_of(torch.stack(maps).mean(0).cpu(), text)
        masks = torch.stack([case.masks for case in several])
        cells = F.adaptive_avg_pool2d(masks, MASK_SIZE).flatten(2)  # B P N
        for b, case in enumerate(several):
            for part in {index for _, index in case.line if index is not None}:
                coverage, is_owned = cells[b, part], owners[b] == part
                # Thin parts, such as glasses, fill no cell by half.
                truth = coverage > min(0.5, 0.5 * float(coverage.max()))
                if coverage.sum() < 0.5:
                    continue
                shared, either = (truth & is_owned).sum(), (truth | is_owned).sum()
                scores.setdefault(SCENE_PARTS[part][1], []).append(float(shared / either))
    return {part: sum(values) / len(values) for part, values in scores.items()}


def report(model: ToyTransformer, captions: TransformerCaptions, count: int) -> list[str]:
    """Binding and layout on `count` portraits and as many scenes, a line each."""
    kinds = {"one": held_out_portraits(count), "two": held_out_scenes(count, captions)}
    lines = []
    for kind, cases in kinds.items():
        for title, figures in (
            ("binding", binding(model, captions, cases)),
            ("binding as drawn", ceiling(cases)),
            ("layout IoU", layout_overlap(model, captions, cases)),
        ):
            values = ", ".join(f"{part} {value:.2f}" for part, value in figures.items())
            lines.append(f"{kind} in the picture, {len(cases)} captions, {title}: {values}")
    return lines
