"""What the edit variant of the transformer toy learns from: reference portraits, and captions that
say which of them a garment is from ('a man wearing a second hat and a first scarf').
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from .captions import VOCABULARY, CaptionBatch, Captions, Line, TransformerCaptions
from .dataset import MASK_SIZE, SCENE_PARTS, as_bytes, encode
from .portraits import (
    GARMENT_COLOURS,
    HAT_KINDS,
    PARTS,
    PATTERNS,
    Garment,
    Portrait,
    Scene,
    caption_phrases,
    render,
    sample_portrait,
    scene_caption_phrases,
)
from .transformer import REFERENCE_SIDE, TEXT_TOKENS

ORDINALS = ("first", "second", "third")
REFERENCE_TOKENS = (REFERENCE_SIDE // 16) ** 2
Worn = Literal["hat", "scarf", "shirt"]
WORN: tuple[Worn, ...] = ("hat", "scarf", "shirt")
"""What references are asked for."""
SEED_OFFSET = 1 << 40
"""References of the training set are portraits of the seeds from here on."""


def sample_reference(seed: int) -> Portrait:
    """A cartoon with a hat, a scarf and a shirt."""
    portrait, rng = sample_portrait(seed, "cartoon"), random.Random(f"reference {seed}")

    def garment(kind: str = "") -> Garment:
        pattern = rng.choices(PATTERNS, (0.55, 0.15, 0.15, 0.15))[0]
        return Garment(rng.choice(list(GARMENT_COLOURS)), pattern, kind)

    return replace(
        portrait,
        hat=portrait.hat or garment(rng.choice(HAT_KINDS)),
        scarf=portrait.scarf or garment(),
    )


def worn_by(person: Portrait, part: Worn) -> Garment | None:
    garment: Garment | None = getattr(person, part)
    return garment


def reference_files(folder: Path) -> tuple[Path, Path]:
    """Where `encode_references` keeps latents and masks."""
    return folder / "edit_reference_latents.npy", folder / "edit_reference_masks.npy"


def encode_references(folder: Path, count: int, workers: int) -> None:
    """Renders references at 128 px and encodes them: latents (count 4 16 16, fp16) and, in the
    order of WORN, the share of each token that is the part (count 3 8 8, uint8)."""
    folder.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(workers) as pool:
        rows = list(pool.map(_encode_reference, range(count), chunksize=16))
    for path, column in zip(reference_files(folder), zip(*rows, strict=True), strict=True):
        np.save(path, np.stack(column))


def _encode_reference(index: int) -> tuple[np.ndarray, np.ndarray]:
    drawn = render(sample_reference(SEED_OFFSET + index), REFERENCE_SIDE)
    cells = np.stack([drawn.masks[part] for part in WORN]).reshape(len(WORN), 8, 16, 8, 16)
    return encode(drawn.image), as_bytes(cells.mean((2, 4)))


class EditCaptions(TransformerCaptions):
    """TransformerCaptions that know ORDINALS."""

    def __init__(self) -> None:
        Captions.__init__(self, (*VOCABULARY, *ORDINALS), TEXT_TOKENS)

    @property
    def word_ids(self) -> list[int]:
        """The tokens of ORDINALS."""
        return [token for word in ORDINALS for token in self.ids(word)]


@dataclass(frozen=True)
class Slot:
    """A garment that comes from a reference. person: 0 on the left, 1 on the right; reference: from
    0."""

    person: int
    part: Worn
    reference: int

    @property
    def key(self) -> int:
        """Its index in SCENE_PARTS."""
        return SCENE_PARTS.index((self.person, self.part))


def people_of(picture: Portrait | Scene) -> tuple[Portrait, ...]:
    return (picture.left, picture.right) if isinstance(picture, Scene) else (picture,)


def draw_slots(picture: Portrait | Scene, count: int, rng: random.Random) -> list[Slot]:
    """Which garments of a picture come from `count` references, at most one of each; in a scene
    mostly the same kind of both people's."""
    worn = [
        (i, part)
        for i, person in enumerate(people_of(picture))
        for part in WORN
        if worn_by(person, part)
    ]
    rng.shuffle(worn)
    parts = [part for _, part in worn]
    shared = [part for part in WORN if parts.count(part) == 2]
    if shared and rng.random() < 0.6:
        kind = rng.choice(shared)
        worn.sort(key=lambda place: place[1] != kind)
    order = rng.sample(range(count), count)
    return [
        Slot(person, part, reference)
        for (person, part), reference in zip(worn, order, strict=False)
    ]


def with_ordinals(picture: Portrait | Scene, slots: Sequence[Slot]) -> Portrait | Scene:
    """The picture as captions call it: garments of references by an ordinal alone."""
    people = list(people_of(picture))
    for slot in slots:
        person, garment = people[slot.person], Garment(ORDINALS[slot.reference])
        people[slot.person] = replace(
            person,
            hat=garment if slot.part == "hat" else person.hat,
            scarf=garment if slot.part == "scarf" else person.scarf,
            shirt=garment if slot.part == "shirt" else person.shirt,
        )
    if isinstance(picture, Scene):
        return replace(picture, left=people[0], right=people[1])
    return people[0]


def caption_line(
    captions: EditCaptions, picture: Portrait | Scene, slots: Sequence[Slot], rng: random.Random
) -> Line:
    """A caption of all that comes from references, and of some of the rest."""
    called = with_ordinals(picture, slots)
    must = [{slot.part for slot in slots if slot.person == i} for i in range(2)]
    chance = 0.92
    while True:
        said = [
            frozenset(must[i] | {part for part in PARTS if rng.random() < chance}) for i in range(2)
        ]
        if isinstance(called, Scene):
            phrases = [
                (
                    words,
                    SCENE_PARTS.index((0 if part == "background" else i, part)) if part else None,
                )
                for words, part, i in scene_caption_phrases(called, (said[0], said[1]))
            ]
        else:
            phrases = [
                (words, PARTS.index(part) if part else None)
                for words, part in caption_phrases(called, said[0])
            ]
        # References are cartoons, and so is what is made of them.
        line = phrases[:-1] if rng.random() < 0.5 else phrases
        if sum(len(captions.ids(words)) for words, _ in line) <= TEXT_TOKENS - 2:
            return line
        chance *= 0.8


@dataclass(frozen=True)
class EditBatch:
    """latents: B 4 32 32; masks: B 13 16 16 (SCENE_PARTS); references: R of B 4 16 16; looked_at: B
    3 N, which share of each picture token is the garment of the i-th slot, and sources: B 3 R*64,
    which share of the references' tokens shows it (0: no such slot)."""

    latents: Tensor
    masks: Tensor
    text: CaptionBatch
    references: list[Tensor]
    looked_at: Tensor
    sources: Tensor

    def to(self, device: torch.device) -> EditBatch:
        return EditBatch(
            self.latents.to(device),
            self.masks.to(device),
            self.text.to(device),
            [reference.to(device) for reference in self.references],
            self.looked_at.to(device),
            self.sources.to(device),
        )


class EditSet:
    """Cartoons of the large set with references of the same garments. pictures, latents and masks:
    of the large set, by kind."""

    def __init__(
        self,
        folder: Path,
        captions: EditCaptions,
        pictures: dict[str, list[Portrait | Scene]],
        latents: dict[str, Tensor],
        parts: dict[str, Tensor],
    ) -> None:
        files = reference_files(folder)
        self.reference_latents, self.reference_masks = (
            torch.from_numpy(np.load(path)) for path in files
        )
        self.captions, self.latents, self.parts, self.pictures = captions, latents, parts, pictures
        self.cartoons = {
            kind: [i for i, picture in enumerate(each) if people_of(picture)[0].style == "cartoon"]
            for kind, each in pictures.items()
        }
        self._wearing: dict[tuple[str, Garment], list[int]] = {}
        for index in range(len(self.reference_latents)):
            reference = sample_reference(SEED_OFFSET + index)
            for part in WORN:
                if garment := worn_by(reference, part):
                    self._wearing.setdefault((part, garment), []).append(index)

    def _wearer(self, picture: Portrait | Scene, slot: Slot, rng: random.Random) -> int | None:
        garment = worn_by(people_of(picture)[slot.person], slot.part)
        assert garment is not None
        wearers = self._wearing.get((slot.part, garment))
        return rng.choice(wearers) if wearers else None

    def batch(self, references: int, rngs: Sequence[random.Random]) -> EditBatch:
        """A picture drawn by each of `rngs`, with as many `references`."""
        count = len(rngs)
        latents, lines, indices = [], [], []
        masks = torch.zeros(count, len(SCENE_PARTS), MASK_SIZE, MASK_SIZE)
        looked_at = torch.zeros(count, len(ORDINALS), MASK_SIZE**2)
        sources = torch.zeros(count, len(ORDINALS), references * REFERENCE_TOKENS)
        for b, rng in enumerate(rngs):
            kind = "scenes" if rng.random() < 0.35 else "portraits"
            index = rng.choice(self.cartoons[kind])
            picture, parts = self.pictures[kind][index], self.parts[kind][index]
            masks[b, : len(parts)] = parts.float() / 255
            latents.append(self.latents[kind][index].float())
            pool = range(len(self.reference_latents))
            of_references = [rng.choice(pool) for _ in range(references)]
            slots: list[Slot] = []
            for slot in draw_slots(picture, references, rng):
                wearer = self._wearer(picture, slot, rng)
                if wearer is None:
                    continue
                of_references[slot.reference] = wearer
                looked_at[b, len(slots)] = masks[b, slot.key].flatten()
                there = self.reference_masks[wearer, WORN.index(slot.part)].float() / 255
                start = slot.reference * REFERENCE_TOKENS
                sources[b, len(slots), start : start + REFERENCE_TOKENS] = there.flatten()
                slots.append(slot)
            lines.append(caption_line(self.captions, picture, slots, rng))
            indices.append(of_references)
        return EditBatch(
            torch.stack(latents),
            masks,
            self.captions.encode(lines),
            [self.reference_latents[list(column)].float() for column in zip(*indices, strict=True)],
            looked_at,
            sources,
        )


def source_loss(maps: Sequence[Tensor], batch: EditBatch) -> Tensor:
    """Cross-entropy between where the places of a garment look among the references and where their
    reference shows it, averaged over places and layers. maps: B N R*64 each."""
    losses = []
    for attention in maps:
        there = torch.einsum("bnr,bsr->bsn", attention, (batch.sources > 0.3).to(attention))
        weight = batch.looked_at * (batch.sources.sum(-1, keepdim=True) > 0)
        losses.append(-(weight * (there + 1e-4).log()).sum() / weight.sum().clamp(min=1))
    return torch.stack(losses).mean()
