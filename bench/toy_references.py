"""MagicFace in the toy world: sets of references, the prompt, and pictures with and without."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from . import toy

# ruff: isort: split
from torch import Tensor

from magicportrait.demo.portraits import Garment, Portrait, Pose, render
from magicportrait.nodes.declare import defaults_of
from magicportrait.nodes.layout_conditioning import MagicLayoutConditioning
from magicportrait.nodes.magicface_apply import MagicFaceApply
from magicportrait.nodes.magicface_concept import DEFAULT_STRENGTH, MagicFaceConcept

PROMPT = (
    "a man with pale skin and black hair wearing a green hat, a white scarf and a blue shirt, pink"
    " background, cartoon style"
)
NEUTRAL_PROMPT = (
    "a man with pale skin and black hair wearing a hat, a scarf and a shirt, pink background,"
    " cartoon style"
)
"""The same without the colours that contradict the references, as people write."""
PLAIN_PROMPT = (
    "a smiling woman with pale skin and red hair wearing a top hat, a scarf and a shirt, pink"
    " background, cartoon style"
)
"""Names no colours that references could have: for pictures that show what a node does."""
CONCEPTS = ("hat", "scarf", "shirt")
PHRASES = {
    PROMPT: {"hat": "green hat", "scarf": "white scarf", "shirt": "blue shirt"},
    NEUTRAL_PROMPT: {part: part for part in CONCEPTS},
}
"""What the prompts call the CONCEPTS."""
BYSTANDERS = ("black hair", "pale skin", "pink background")
"""Phrases of the prompt that have no reference. The face is the skin's: 'man' owns next to nothing
in these layouts."""
SKIN = (198, 140, 98)


def reference_sets() -> list[dict[str, Portrait]]:
    """Four sets of hat, scarf and shirt, each on a portrait of its own, none in a colour that the
    prompt names."""
    garments = [
        (Garment("red", "plain", "top"), Garment("purple"), Garment("orange")),
        (
            Garment("orange", "plain", "sun"),
            Garment("red", "striped"),
            Garment("purple", "checkered"),
        ),
        (Garment("purple", "striped", "beanie"), Garment("yellow"), Garment("red", "dotted")),
        (Garment("yellow", "dotted", "sun"), Garment("orange"), Garment("pink", "striped")),
    ]
    sets = []
    for i, (hat, scarf, shirt) in enumerate(garments):
        plain = Portrait(
            "woman" if i % 2 else "man",
            SKIN,
            "brown",
            "short",
            Garment("white"),
            "gray",
            pose=Pose(0.03 * (i - 1.5), 0.02, 1.05, 3 * i - 4),
        )
        sets.append(
            {
                "hat": replace(plain, hat=hat),
                "scarf": replace(plain, scarf=scarf),
                "shirt": replace(plain, shirt=shirt),
            }
        )
    return sets


@dataclass(frozen=True)
class Pictures:
    """A batch, and where things are in it.

    images: B H W 3 in 0..1; regions: for each concept (and bystander, in plain pictures) B H W,
    bool.
    """

    images: Tensor
    regions: dict[str, Tensor]


def concepts_of(
    references: Mapping[str, Portrait],
    strength: float = DEFAULT_STRENGTH,
    prompt: str = "a {gender} wearing a {part}",
    side: int = toy.SIDE,
) -> Any:
    """The MAGIC_CONCEPTS of a set of references. prompt: of each reference picture; side: its size
    in pixels."""
    concepts: Any = ()
    for part, portrait in references.items():
        rendering = render(portrait, side)
        [concepts] = MagicFaceConcept.execute(
            toy.picture(rendering),
            part,
            strength,
            toy.part_mask(rendering, part),
            prompt.format(gender=portrait.gender, part=part),
            None,
            concepts,
        ).args
    return concepts


def text_concepts(
    texts: Mapping[str, str],
    regions: Mapping[str, Tensor] | None = None,
    strength: float = 1.0,
    start: float = 0.0,
    before: Any = (),
) -> Any:
    """MAGIC_CONCEPTS of texts by their phrases. regions: painted, 1 H W each; before: concepts of
    references, which the texts are chained with."""
    concepts = before
    for phrase, text in texts.items():
        region = None if regions is None else regions[phrase]
        [concepts] = MagicLayoutConditioning.execute(
            phrase, text, strength, "", region, concepts, start=start
        ).args
    return concepts


def apply_concepts(checkpoint: toy.Toy, concepts: Any, **options: Any) -> tuple[Any, Any, Any]:
    """MODEL, conditioning and layout of MagicFace Apply with its defaults but for `options`."""
    arguments = {**defaults_of(MagicFaceApply), "prompt": PROMPT, **options}
    model, positive, record = MagicFaceApply.execute(
        checkpoint.model, checkpoint.clip, checkpoint.vae, concepts, **arguments
    ).args
    return model, positive, record


def prompt_with(references: Mapping[str, Portrait]) -> tuple[str, dict[str, str]]:
    """The neutral prompt with the references in words, and what it calls the CONCEPTS."""
    phrases, prompt = {part: part for part in CONCEPTS}, NEUTRAL_PROMPT
    for part, portrait in references.items():
        cloth = getattr(portrait, part)
        pattern = "" if cloth.pattern == "plain" else f"{cloth.pattern} "
        kind = f"{cloth.kind} " if part == "hat" else ""
        phrases[part] = f"{cloth.colour} {pattern}{kind}{part}"
        article = "an" if cloth.colour[0] in "aeiou" else "a"
        prompt = prompt.replace(f"a {part}", f"{article} {phrases[part]}")
    return prompt, phrases


def worded_pictures(
    checkpoint: toy.Toy, noise: Tensor, references: Mapping[str, Portrait]
) -> Pictures:
    """Without references, which the prompt names instead."""
    prompt, phrases = prompt_with(references)
    model, positive, record = checkpoint.watch(prompt, [*phrases.values(), *BYSTANDERS])
    samples = checkpoint.sample(model, positive, noise)
    return Pictures(
        checkpoint.decode(samples), toy.regions(record, samples, [*CONCEPTS, *BYSTANDERS])
    )


def plain_pictures(
    checkpoint: toy.Toy, noise: Tensor, steps: int = 25, cfg: float = 4.0, prompt: str = PROMPT
) -> Pictures:
    """Without references; their layout tells where things are. prompt: a key of PHRASES."""
    phrases = [*PHRASES[prompt].values(), *BYSTANDERS]
    model, positive, record = checkpoint.watch(prompt, phrases)
    samples = checkpoint.sample(model, positive, noise, steps, cfg)
    return Pictures(
        checkpoint.decode(samples), toy.regions(record, samples, [*CONCEPTS, *BYSTANDERS])
    )


def magic_pictures(
    checkpoint: toy.Toy,
    noise: Tensor,
    references: Mapping[str, Portrait],
    strength: float = DEFAULT_STRENGTH,
    text_strength: float = 0.0,
    **options: Any,
) -> Pictures:
    """With references. text_strength: how much of what their regions read is the neutral prompt;
    options: of MagicFace Apply, where not its defaults."""
    concepts = concepts_of(references, strength, side=checkpoint.side)
    if text_strength:
        texts = dict.fromkeys(references, NEUTRAL_PROMPT)
        concepts = text_concepts(texts, strength=text_strength, before=concepts)
    model, positive, record = apply_concepts(checkpoint, concepts, **options)
    samples = checkpoint.sample(model, positive, noise)
    return Pictures(checkpoint.decode(samples), toy.regions(record, samples, list(references)))
