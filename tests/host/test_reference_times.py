"""References that act at some times only, and as strongly as a curve says."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from magicportrait.magic.concepts import Concept
from magicportrait.magic.curves import Curve
from magicportrait.nodes.magicface_apply import IN_THE_SEQUENCE
from magicportrait.nodes.magicface_concept import MagicFaceConcept
from magicportrait.tests.host import dit_nodes, sampling


def concepts(*settings: dict[str, Any]) -> tuple[Concept, ...]:
    own = sampling.concepts(2, size=(64, 64))
    return tuple(
        dataclasses.replace(concept, **more) for concept, more in zip(own, settings, strict=False)
    )


def draw(chained: tuple[Concept, ...]) -> tuple[Tensor, Tensor]:
    """A step, at the beginning of sampling: with references, and without."""
    model = sampling.parts()[0]
    patched, positive, _ = sampling.apply(model, chained=chained, semantic_cfg=False)
    run = sampling.Sampling(1, (8, 8), steps=1)
    return run.run(patched, positive), run.run(model, positive)


def test_out_of_its_time_a_reference_changes_nothing_bit_for_bit() -> None:
    with_references, plain = draw(concepts({"start": 0.6}, {"start": 0.9}))
    assert torch.equal(with_references, plain)


@pytest.mark.parametrize(
    ("settings", "strength"),
    [({"curve": Curve(((0.0, 4.0), (1.0, 0.0)))}, 4.0), ({"end": 0.5}, 2.0)],
)
def test_in_its_time_it_is_as_strong_as_it_is_said(
    settings: dict[str, Any], strength: float
) -> None:
    timed, plain = draw(concepts(settings))
    expected, _ = draw(concepts({"strength": strength}))
    torch.testing.assert_close(timed, expected, rtol=1e-3, atol=1e-3)
    assert (timed - plain).abs().max() > 1e-2


def test_beside_another_it_is_as_if_it_was_not_there() -> None:
    both, plain = draw(concepts({}, {"start": 0.6}))
    alone, _ = draw(concepts({}))
    torch.testing.assert_close(both, alone, rtol=1e-3, atol=1e-3)
    assert (both - plain).abs().max() > 1e-2


def test_the_node_reads_times() -> None:
    image = torch.rand(1, 64, 64, 3)
    [concept] = MagicFaceConcept.execute(
        image, "hat", start=0.25, strength_curve="0: 3, 1: 1"
    ).args[0]
    assert (concept.start, concept.end) == (0.25, 1.0)
    assert concept.curve is not None and concept.curve.at(0.5) == 2.0
    with pytest.raises(ValueError, match=r"start .* is after end"):
        MagicFaceConcept.execute(image, "hat", start=0.5, end=0.25)
    with pytest.raises(ValueError, match="is no point of a curve"):
        MagicFaceConcept.execute(image, "hat", strength_curve="0: 30")


@pytest.mark.parametrize(("preset", "strength"), [("custom", 3), ("strong", 4)])
def test_a_name_shapes_the_strength_or_the_preset(preset: str, strength: int) -> None:
    image = sampling.picture(0)[..., ::2, ::2].movedim(1, -1)

    def of(curve: str) -> Tensor:
        [chained] = MagicFaceConcept.execute(
            image, "hat", 3.0, preset=preset, strength_curve=curve
        ).args
        return draw(chained)[0]

    assert torch.equal(of("fall"), of(f"0: {strength}, 1: 0"))
    assert not torch.equal(of("fall"), of("rise"))


def test_in_the_sequence_there_are_no_such_times() -> None:
    chained = dit_nodes.concepts(1, start=0.5)
    with pytest.raises(ValueError, match="count beside a reference pass only"):
        dit_nodes.apply("flux", None, chained, references=IN_THE_SEQUENCE)
