"""Where a concept's LoRA acts, against counting by hand."""

from __future__ import annotations

import pytest
import torch

from magicportrait.magic.concept_regions import concept_shares, share_at
from magicportrait.magic.concepts import Concept, ConceptLora, with_loras_joined

OWNERS = torch.tensor([[[0, 0, -1, 1], [0, 0, 1, 1]]])
LEFT = torch.tensor([[[1.0, 0.5, 0.0, 0.0], [1.0, 0.5, 0.0, 0.0]]])


def test_without_a_painted_region_it_is_what_the_layout_has() -> None:
    first, second = concept_shares(OWNERS, (None, None), (), 1)
    assert torch.equal(first, (OWNERS == 0).float())
    assert torch.equal(second, (OWNERS == 1).float())


def test_before_there_is_a_layout_only_painted_regions_are_known() -> None:
    shares = concept_shares(None, (None, LEFT, LEFT), {2}, 3)
    assert shares[0] is None and shares[2] is None
    assert shares[1].shape == (3, 2, 4) and torch.equal(shares[1][2], LEFT[0])


def test_a_painted_region_replaces_or_limits_the_layout() -> None:
    [replaced] = concept_shares(OWNERS, (LEFT,), (), 1)
    [limited] = concept_shares(OWNERS, (LEFT,), {0}, 1)
    assert torch.equal(replaced, LEFT)
    assert limited.tolist() == [[[1, 0.5, 0, 0], [1, 0.5, 0, 0]]]


def test_what_another_concept_was_painted_over_is_not_ones_own() -> None:
    first, _ = concept_shares(OWNERS, (None, LEFT), (), 1)
    assert first.tolist() == [[[0, 1, 0, 0], [0, 1, 0, 0]]]
    unhurt, _ = concept_shares(OWNERS, (None, LEFT), {1}, 1)
    assert torch.equal(unhurt, (OWNERS == 0).float())


def test_on_other_grids() -> None:
    assert share_at(LEFT, (2, 4)) is LEFT
    assert share_at(LEFT, (1, 2)).tolist() == [[[0.75, 0.0]]]
    finer = share_at(LEFT, (2, 8))
    assert finer.shape == (1, 2, 8) and finer[0, 0, 0] == 1 and finer[0, 0, -1] == 0
    assert 0.5 < finer[0, 0, 2] < 1
    assert torch.equal(share_at(torch.ones(1, 3, 5), (7, 2)), torch.ones(1, 7, 2))


def reference(phrase: str) -> Concept:
    return Concept(phrase, torch.rand(1, 8, 8, 3), None, "", 3.0)


def lora(phrase: str, name: str, region: torch.Tensor | None = None) -> Concept:
    own = ConceptLora(name, {}, 1.0)
    return Concept(phrase, None, None, "", 0.0, region, loras=(own,))


def test_references_and_loras_of_a_phrase_are_one_concept() -> None:
    hat, scarf = reference("red hat"), reference("scarf")
    before, after = lora("Red  hat", "a"), lora("(red:1.2) hat", "b", LEFT)
    alone = lora("shirt", "c")
    joined = with_loras_joined((before, hat, alone, scarf, after))
    assert [concept.phrase for concept in joined] == ["red hat", "shirt", "scarf"]
    assert [[each.name for each in concept.loras] for concept in joined] == [["a", "b"], ["c"], []]
    assert joined[0].images is hat.images and joined[0].target_region is LEFT
    assert joined[2] is scarf


def test_two_references_of_a_phrase_stay_two_concepts() -> None:
    joined = with_loras_joined((reference("man"), reference("man"), lora("man", "a")))
    assert [len(concept.loras) for concept in joined] == [0, 1]


@pytest.mark.parametrize(("once", "count"), [((), 2), (("man",), 1), (("hat",), 2)])
def test_the_only_man_is_the_first_one_too(once: tuple[str, ...], count: int) -> None:
    for chained in (
        (reference("man"), lora("Man # 1", "a")),
        (lora("man#1", "a"), reference("man")),
        (reference("man#1"), lora("man", "a")),
    ):
        joined = with_loras_joined(chained, once)
        assert len(joined) == count and [len(concept.loras) for concept in joined].count(1) == 1
    assert len(with_loras_joined((reference("man"), lora("man#2", "a")), ("man",))) == 2


def test_a_concept_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="neither an image nor a LoRA"):
        Concept("hat", None, None, "", 3.0)
