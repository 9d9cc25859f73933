"""Concept Options: references that the picture is led away from, and weights by layers."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from magicportrait.magic.concepts import Concept, with_loras_joined
from magicportrait.nodes.concept_options import MagicConceptOptions
from magicportrait.nodes.magicface_apply import IN_THE_SEQUENCE
from magicportrait.tests.host import dit_nodes, dits, sampling

EVERYWHERE = torch.ones(1, 64, 64)


def with_options(chained: tuple[Concept, ...], **options: Any) -> tuple[Concept, ...]:
    out: tuple[Concept, ...] = MagicConceptOptions.execute(chained, **options).args[0]
    return out


def on_a_unet(chained: tuple[Concept, ...] | None, steps: int = 1, **options: Any) -> Tensor:
    """The first steps at CFG 1; without concepts of the plain model."""
    plain = sampling.parts()[0]
    run = sampling.Sampling(size=(8, 8), steps=steps, cfg=1.0)
    if chained is None:
        return run.run(plain, sampling.encode(sampling.PROMPT))
    settings = {"inject_at": 0.0, "semantic_cfg": False, **options}
    model, positive, _ = sampling.apply(plain, chained=chained, **settings)
    return run.run(model, positive)


def on_a_flux(chained: tuple[Concept, ...] | None, **options: Any) -> Tensor:
    sigmas = (1.0, 0.7)
    if chained is None:
        plain, positive = (
            dits.random_transformer("flux"),
            dit_nodes.encode("flux", dit_nodes.PROMPT),
        )
        return dit_nodes.sample("flux", plain, positive, cfg=1.0, sigmas=sigmas)
    model, positive, _ = dit_nodes.apply("flux", None, chained, semantic_cfg=False, **options)
    return dit_nodes.sample("flux", model, positive, cfg=1.0, sigmas=sigmas)


def of_a_unet(**more: Any) -> tuple[Concept, ...]:
    [concept] = sampling.concepts(1, size=(64, 64), region=EVERYWHERE)
    return (dataclasses.replace(concept, **more),)


def of_a_flux(**more: Any) -> tuple[Concept, ...]:
    return dit_nodes.concepts(1, region=EVERYWHERE, **more)


KINDS = {"unet": (on_a_unet, of_a_unet, "o11"), "flux": (on_a_flux, of_a_flux, "s1")}


def cosine(first: Tensor, second: Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(first.flatten(), second.flatten(), dim=0))


@pytest.mark.parametrize("kind", KINDS)
def test_away_is_as_far_on_the_other_side(kind: str) -> None:
    drawn, concept, block = KINDS[kind]
    # Few enough that what comes after the layer is straight.
    chained = concept(strength=-6.0) if kind == "unet" else concept()
    if kind == "flux":
        chained = tuple(dataclasses.replace(own, strength=-6.0) for own in chained)
    plain, toward = drawn(None), drawn(chained, layers=block)
    away = drawn(with_options(chained, direction="away"), layers=block)
    assert (toward - plain).abs().max() > 1e-5
    assert cosine(toward - plain, away - plain) < -0.95
    ratio = float((away - plain).norm() / (toward - plain).norm())
    assert 0.8 < ratio < 1.25


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("direction", ["toward", "away"])
def test_a_layer_of_weight_0_has_no_reference(kind: str, direction: str) -> None:
    drawn, concept, block = KINDS[kind]
    off = with_options(concept(), direction=direction, layer_weights=f"{block}: 0")
    torch.testing.assert_close(drawn(off, layers=block), drawn(None), rtol=1e-3, atol=1e-3)
    as_ever = with_options(concept(), direction=direction, layer_weights=f"{block}: 0, all: 1")
    expected = with_options(concept(), direction=direction)
    assert torch.equal(drawn(as_ever, layers=block), drawn(expected, layers=block))
    assert (drawn(expected, layers=block) - drawn(None)).abs().max() > 1e-2


def test_a_weight_multiplies_the_odds() -> None:
    half = on_a_unet(with_options(of_a_unet(), layer_weights="up: 0.5"))
    weaker = on_a_unet(of_a_unet(strength=2.0 + float(torch.tensor(0.5).log())))
    torch.testing.assert_close(half, weaker, rtol=1e-4, atol=1e-4)


def test_only_its_region_is_led_away_and_not_before_there_is_one() -> None:
    [concept] = sampling.concepts(1, size=(64, 64))
    away = with_options((concept,), direction="away")
    # No layout in the first step, and none painted.
    torch.testing.assert_close(on_a_unet(away), on_a_unet(None), rtol=1e-3, atol=1e-3)
    assert (on_a_unet(away, steps=2) - on_a_unet(None, steps=2)).abs().max() > 1e-3
    # While all places look at all references, too.
    early = on_a_unet(with_options(of_a_unet(), direction="away"), inject_at=1.0)
    assert (early - on_a_unet(None)).abs().max() > 1e-2


def test_what_it_is_like_and_what_not_are_one_concept() -> None:
    hat, scarf = sampling.concepts(2, size=(64, 64))
    hat = dataclasses.replace(hat, target_region=EVERYWHERE)
    chained = (*with_options((hat,), direction="away"), scarf, hat)
    first, second = with_loras_joined(chained)
    assert (first.phrase, second.phrase) == ("hat", "scarf")
    assert first.images is hat.images and [own.images is hat.images for own in first.away] == [True]
    assert with_loras_joined((first, second)) == (first, second)
    _, _, layout = sampling.apply(sampling.parts()[0], chained=chained)
    assert layout.phrases == ("hat", "scarf")
    assert not torch.equal(on_a_unet(chained, steps=2), on_a_unet((hat, scarf), steps=2))


def test_without_a_choice_the_concepts_are_the_same() -> None:
    chained = sampling.concepts(2)
    assert with_options(chained) is chained
    out = with_options(chained, layer_weights=" mid: 0.5 ")
    assert out[0] is chained[0] and out[1].layer_weights == "mid: 0.5"


def test_what_cannot_be_is_said() -> None:
    chained = sampling.concepts(1)
    lora_alone = with_loras_joined(with_options(chained, direction="away"))
    with pytest.raises(ValueError, match="concept 'hat' has no picture of which this could be"):
        with_options(lora_alone, direction="away")
    with pytest.raises(ValueError, match="'hard: x' is not understood: write layers and a weight"):
        with_options(chained, layer_weights="hard: x")
    with pytest.raises(ValueError, match=r"concepts is empty, .*: connect a MagicFace Concept"):
        with_options(())
    assert "has no weight" in str(MagicConceptOptions.validate_inputs("mid"))
    wrong = with_options(chained, layer_weights="late: 1")
    with pytest.raises(ValueError, match=r"layer_weights of concept 'hat': .*'late' is not under"):
        sampling.apply(sampling.parts()[0], chained=wrong)
    given = with_options(dit_nodes.concepts(1), direction="away")
    with pytest.raises(ValueError, match="has Concept Options, which count beside a reference"):
        dit_nodes.apply("flux", None, given, references=IN_THE_SEQUENCE)


def test_the_last_node_decides_on_what_it_says() -> None:
    chain = of_a_unet()
    [away] = MagicConceptOptions.execute(chain, direction="away").args
    [weighed] = MagicConceptOptions.execute(away, direction="away", layer_weights="mid: 0").args
    [toward] = MagicConceptOptions.execute(weighed, direction="toward").args
    assert (weighed[-1].is_away, weighed[-1].layer_weights) == (True, "mid: 0")
    assert (toward[-1].is_away, toward[-1].layer_weights) == (False, "mid: 0")
