"""A picture that is sampled in several runs, one after the other, is the picture of one run."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from magicportrait.nodes.analysis import MagicAttentionMap, MagicCorrespondence
from magicportrait.nodes.declare import defaults_of
from magicportrait.tests.host.models import call_node
from magicportrait.tests.host.sampling import (
    NEGATIVE,
    PROMPT,
    apply,
    encode,
    parts,
    watch,
)

STEPS = 4


def sample_in_stages(
    model: Any, positive: Any, borders: tuple[int, ...], batch: int = 1
) -> list[Tensor]:
    """What KSamplerAdvanced makes in one run after another, with a border after some steps."""
    import nodes

    latent = {"samples": torch.zeros(batch, 4, 16, 16)}
    ends = (*borders, STEPS)
    results = []
    for start, end in zip((0, *borders), ends):
        [latent] = call_node(
            nodes.KSamplerAdvanced,
            model=model,
            add_noise="enable" if start == 0 else "disable",
            noise_seed=5,
            steps=STEPS,
            cfg=7.0,
            sampler_name="euler",
            scheduler="normal",
            positive=positive,
            negative=encode(NEGATIVE),
            latent_image=latent,
            start_at_step=start,
            end_at_step=end,
            return_with_leftover_noise="disable" if end == STEPS else "enable",
        )
        results.append(latent["samples"])
    return results


@cache
def in_one_run(options: tuple[tuple[str, Any], ...]) -> tuple[Any, Tensor]:
    """MAGIC_LAYOUT and picture of an unbroken MagicFace."""
    patched, positive, record = apply(parts()[0], **dict(options))
    [samples] = sample_in_stages(patched, positive, ())
    return record, samples


@pytest.mark.parametrize("borders", [(2,), (1,), (1, 2, 3)])
@pytest.mark.parametrize(
    "options",
    [
        {"inject_at": 0.2},
        {"inject_at": 0.0, "semantic_cfg": False},
        {"inject_at": 0.5, "reference_noise": "per step"},
        {"inject_at": 0.2, "keep_features": "memory"},
    ],
    ids=lambda options: ",".join(map(str, options.values())),
)
def test_magicface_goes_on_with_the_layout_of_the_run_before(options, borders):
    record, expected = in_one_run(tuple(options.items()))
    patched, positive, joined = apply(parts()[0], **options)
    *_, samples = sample_in_stages(patched, positive, borders)
    torch.testing.assert_close(samples, expected, rtol=1e-5, atol=1e-3)
    steps = joined.run_of(samples).steps
    for number, step in record.run_of(expected).steps.items():
        assert (steps[number].concepts == step.concepts).all()


def test_another_latent_starts_anew():
    """A second picture from noise of its own has nothing to do with the run before."""
    model = parts()[0]
    patched, positive, record = watch(model)
    first, *_ = sample_in_stages(patched, positive, (3,))
    assert record.run_of(first).total == 3
    [whole] = sample_in_stages(patched, positive, ())
    assert sorted(record.run_of(whole).steps) == list(range(STEPS))


def test_attention_maps_and_correspondences_are_those_of_all_runs():
    model, clip, _ = parts()
    face, positive, _ = apply(model, inject_at=1.0)
    results = []
    for borders in ((), (2,)):
        watched, correspondence = MagicCorrespondence.execute(face, "64,40", 0.0, 1.0).args
        watched, positive, attention = MagicAttentionMap.execute(
            watched,
            clip,
            **{**defaults_of(MagicAttentionMap), "prompt": PROMPT, "positive": positive},
        ).args
        *_, samples = sample_in_stages(watched, positive, borders)
        results.append((attention.run_of(samples).maps, correspondence.run_of(samples).shares))
    (maps, shares), (joined_maps, joined_shares) = results
    torch.testing.assert_close(joined_maps, maps, rtol=1e-2, atol=1e-3)
    torch.testing.assert_close(joined_shares, shares, rtol=1e-4, atol=1e-6)


def test_pictures_picked_from_a_batch_have_their_own_layouts():
    import nodes

    patched, positive, record = watch(parts()[0])
    [samples] = sample_in_stages(patched, positive, (), batch=3)
    layout = record.run_of(samples).steps[STEPS - 1].concepts
    for first, count in ((1, 2), (2, 1)):
        [picked] = call_node(
            nodes.LatentFromBatch,
            samples={"samples": samples},
            batch_index=first,
            length=count,
        )
        steps = record.run_of(picked["samples"]).steps
        assert (steps[STEPS - 1].concepts == layout[first : first + count]).all()
    swapped = record.run_of(samples[[2, 0]]).steps[STEPS - 1]
    assert (swapped.concepts == layout[[2, 0]]).all()
    with pytest.raises(ValueError, match="holds 2 pictures that are of none of the last runs"):
        record.run_of(torch.randn(2, 4, 16, 16))
