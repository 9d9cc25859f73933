"""Watching attention and correspondences: nothing changes, nothing stays, and the numbers are those
of the layers."""

from __future__ import annotations

import dataclasses
import gc
import json
import weakref
from typing import Any

import pytest
import torch

from magicportrait.host.analysis import correspondence
from magicportrait.host.sampling.backbone import unet
from magicportrait.nodes.analysis import (
    MagicAttentionHeatmap,
    MagicAttentionMap,
    MagicCorrespondence,
    MagicCorrespondenceMap,
)
from magicportrait.tests.host.sampling import PROMPT, Sampling, apply, concepts, parts

WHOLE = torch.ones(1, 128, 128)


def attention_map(
    model: Any, shape: str = "sd15", phrases: str = "hat, scarf", **options: Any
) -> tuple[Any, Any, Any]:
    arguments = {"layers": "all", "start": 0.0, "end": 1.0, **options}
    return MagicAttentionMap.execute(
        model, parts(shape)[1], arguments.pop("prompt", PROMPT), phrases, **arguments
    ).args


def watch(
    model: Any, points: str = "40,40", start: float = 0.0, end: float = 1.0, mask: Any = None
) -> tuple[Any, Any]:
    return MagicCorrespondence.execute(model, points, start, end, mask).args


# ---- attention maps ----


@pytest.mark.parametrize("shape", ["sd15", "sdxl", "sd21v"])
def test_watching_words_does_not_change_the_picture(shape):
    model, sampling = parts(shape)[0], Sampling(batch=2, steps=2)
    patched, positive, record = attention_map(model, shape)
    samples = sampling.run(patched, positive)
    assert torch.equal(samples, sampling.run(model, positive))
    maps = record.run_of(samples).maps
    assert maps.shape == (2, 2, 16, 16) if shape != "sdxl" else maps.shape[:2] == (2, 2)
    assert maps.min() > 0 and maps.max() < 1
    assert not torch.allclose(maps[0], maps[1]), "each picture of a batch has its own"


def test_the_map_is_the_layers_own_softmax():
    """One layer, one step: q and k taken by a patch of the test's own."""
    model = parts()[0].clone()
    taken: list[tuple[Any, ...]] = []

    def take(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, extra_options: dict[str, Any]
    ) -> torch.Tensor:
        from comfy.ldm.modules.attention import optimized_attention

        taken.append((q, k, extra_options["n_heads"], list(extra_options["cond_or_uncond"])))
        return optimized_attention(q, k, v, extra_options["n_heads"])

    model.set_model_patch_replace(take, "attn2", "output", 6)
    patched, positive, record = attention_map(model, layers="o6", phrases="hat")
    samples = Sampling(steps=1).run(patched, positive)
    q, k, heads, kinds = taken[0]
    row = kinds.index(0)
    q, k = (x[row].view(len(x[row]), heads, -1).transpose(0, 1) for x in (q, k))
    probabilities = ((q @ k.transpose(1, 2)) * q.shape[-1] ** -0.5).softmax(-1).mean(0)
    _, clip, _ = parts()
    position = next(
        i
        for i, (token, *_) in enumerate(clip.tokenize(PROMPT)["l"][0])
        if token == clip.tokenize("hat")["l"][0][1][0]
    )
    side = round(len(probabilities) ** 0.5)
    maps = record.run_of(samples).maps
    assert maps.shape == (1, 1, side, side)
    assert torch.allclose(
        maps[0, 0].float(), probabilities[:, position].view(side, side), atol=1e-4
    )


def test_words_together_have_the_shares_of_each():
    words = "a man wearing a red hat and a striped scarf"

    def maps(phrases: str) -> Any:
        patched, positive, record = attention_map(parts()[0], prompt=words, phrases=phrases)
        return record.run_of(Sampling(steps=1).run(patched, positive)).maps[0].float()

    total, parts_of_it = maps(words), maps("a man wearing a red hat, and a striped scarf")
    assert len(total) == 1 and len(parts_of_it) == 2 and total.min() > 0
    # The rest goes to the start token and to the padding.
    assert total.max() < 1 and torch.allclose(total[0], parts_of_it.sum(0), atol=2e-3)


def test_steps_outside_the_range_are_not_watched(monkeypatch):
    calls = []
    original = unet.head_mean_attention
    monkeypatch.setattr(
        unet, "head_mean_attention", lambda *args: (calls.append(1), original(*args))[1]
    )
    patched, positive, record = attention_map(parts()[0], layers="o6", start=0.0, end=0.0)
    model = parts()[0]
    sampling = Sampling()
    assert torch.equal(sampling.run(patched, positive), sampling.run(model, positive))
    assert not calls
    with pytest.raises(ValueError, match="the attention map is empty"):
        record.run_of(torch.zeros(1))
    patched, positive, _ = attention_map(parts()[0], layers="o6", start=0.5)
    sampling.run(patched, positive)
    assert len(calls) == 2


def test_a_negative_prompt_of_another_length_does_not_shift_the_words():
    from magicportrait.tests.host.sampling import encode

    patched, positive, record = attention_map(parts()[0])
    short = record.run_of(Sampling(steps=1).run(patched, positive)).maps
    long = Sampling(steps=1, negative=encode(" ".join(["blurry ugly"] * 60)))
    assert torch.allclose(
        record.run_of(long.run(patched, positive)).maps.float(), short.float(), atol=2e-3
    )


def test_the_heatmap_lies_over_the_picture():
    patched, positive, record = attention_map(parts()[0])
    samples = Sampling(batch=2, steps=1, size=(12, 20)).run(patched, positive)
    image = torch.rand(2, 96, 160, 3)
    heatmaps, masks, legend = MagicAttentionHeatmap.execute(
        record, {"samples": samples}, 0.8, image
    ).args
    assert [heat.shape for heat in heatmaps] == [(2, 96, 160, 3)] * 2
    assert [(mask.amin().item(), mask.amax().item()) for mask in masks] == [(0, 1)] * 2
    assert legend.startswith("hat: ") and "scarf: " in legend
    bare, *_ = MagicAttentionHeatmap.execute(record, {"samples": samples}, 0.8).args
    assert bare[0].shape == (2, 96, 160, 3)
    plain, *_ = MagicAttentionHeatmap.execute(record, {"samples": samples}, 0.0, image).args
    assert torch.equal(plain[0], image)


def test_words_of_a_magicface_picture():
    face, positive, _ = apply(parts()[0])
    patched, same, record = attention_map(face, positive=positive)
    sampling = Sampling(steps=2)
    samples = sampling.run(patched, same)
    assert torch.equal(samples, sampling.run(face, positive))
    assert record.run_of(samples).maps.shape[1] == 2


# ---- correspondences ----


@pytest.mark.parametrize("shape", ["sd15", "sdxl"])
def test_watching_references_does_not_change_the_picture(shape):
    face, positive, _ = apply(parts(shape)[0], shape)
    patched, record = watch(face)
    sampling = Sampling(batch=2, steps=3)
    samples = sampling.run(patched, positive)
    assert torch.equal(samples, sampling.run(face, positive))
    found = record.run_of(samples)
    assert found.shares.shape == (2, 2) and found.concepts == (0, 1)
    assert [maps.shape for maps in found.maps] == [(2, 16, 16)] * 2
    assert (found.shares > 0).any() and (found.shares.sum(1) < 1).all()


def test_maps_stay_inside_the_references_masks():
    face, positive, _ = apply(parts()[0], inject_at=1.0)
    patched, record = watch(face, mask=WHOLE)
    found = record.run_of(Sampling(steps=1).run(patched, positive))
    for maps in found.maps:
        # The masks of `concepts` leave out the lower third and the left edge; a cell of the coarse
        # level is 2 latent cells wide.
        assert maps[:, 14:].abs().max() == 0 and maps[:, :, :2].abs().max() == 0
        assert maps.max() > 0


def test_the_shares_are_those_of_the_layers(monkeypatch):
    """RSA, every place watched: what is watched is one minus what the picture's own tokens get."""
    seen = []
    original = correspondence.reference_shares

    def spy(q: torch.Tensor, k: torch.Tensor, references: Any, heads: int) -> Any:
        found = original(q, k, references, heads)
        keys = torch.cat([k, *(reference.k for reference in references)])
        bias = torch.cat([torch.zeros(len(k)), *(reference.bias for reference in references)])
        split = [x.view(len(x), heads, -1).transpose(0, 1).float() for x in (q, keys)]
        whole = (
            (split[0] @ split[1].transpose(1, 2) * split[0].shape[-1] ** -0.5 + bias)
            .softmax(-1)
            .mean(0)
        )
        seen.append((1 - whole[:, : len(k)].sum(-1).mean()).item())
        return found

    monkeypatch.setattr(correspondence, "reference_shares", spy)
    face, positive, _ = apply(parts()[0], inject_at=1.0)
    patched, record = watch(face, mask=WHOLE)
    found = record.run_of(Sampling(steps=2).run(patched, positive))
    assert found.shares.sum().item() == pytest.approx(sum(seen) / len(seen), rel=1e-3)


def test_a_region_of_its_own_looks_at_its_own_reference_only():
    """RBA from the first step, with the user's regions: the first concept owns the left half, the
    second the right."""
    left, right = torch.zeros(1, 128, 128), torch.zeros(1, 128, 128)
    left[..., :64], right[..., 64:] = 1, 1
    first = concepts(1, region=left)
    both = (*first, *concepts(2, region=right)[1:])
    face, positive, _ = apply(parts()[0], chained=both, inject_at=0.0)
    for points, own in (("20,60", 0), ("100,60", 1)):
        patched, record = watch(face, points)
        shares = record.run_of(Sampling(steps=2).run(patched, positive)).shares[0]
        assert shares[own] > 0 and shares[1 - own] == 0


def test_a_stronger_reference_is_looked_at_more():
    shares = []
    for strength in (0.0, 4.0):
        chained = tuple(dataclasses.replace(concept, strength=strength) for concept in concepts(1))
        face, positive, _ = apply(parts()[0], chained=chained, inject_at=1.0)
        patched, record = watch(face, mask=WHOLE)
        shares.append(record.run_of(Sampling(steps=1).run(patched, positive)).shares.item())
    assert shares[1] > 1.5 * shares[0]


@pytest.mark.parametrize("strong", [0, 1])
def test_several_images_of_a_concept_keep_their_order(strong):
    """The second concept's image has another size, so that the passes do not run in the order of
    the references. Of the first one's images a faint mask lets little of one be looked at."""
    hat, scarf = concepts(2)
    faint = torch.tensor([1.0, 0.12] if strong == 0 else [0.12, 1.0])
    hats = dataclasses.replace(
        hat, images=torch.cat([hat.images, scarf.images]), mask=hat.mask * faint[:, None, None]
    )
    wide = dataclasses.replace(concepts(1, size=(192, 128))[0], phrase="man")
    face, positive, _ = apply(parts()[0], chained=(hats, wide, scarf), inject_at=1.0)
    patched, record = watch(face, mask=WHOLE)
    run = record.run_of(Sampling(steps=1).run(patched, positive))
    assert run.concepts == (0, 0, 1, 2)
    assert [tuple(maps.shape[1:]) for maps in run.maps] == [(16, 16), (16, 16), (24, 16), (16, 16)]
    shares = run.shares[0].tolist()
    assert shares[strong] > 4 * shares[1 - strong] > 0


def test_the_map_node_shows_every_reference():
    chained = concepts()
    face, positive, _ = apply(parts()[0], chained=chained)
    patched, record = watch(face)
    samples = {"samples": Sampling(batch=2, steps=2).run(patched, positive)}
    output = MagicCorrespondenceMap.execute(record, samples, 0.8, chained)
    heatmaps, text = output.args
    assert [heat.shape for heat in heatmaps] == [(2, 128, 128, 3)] * 2
    read = json.loads(text)
    assert [[entry["phrase"] for entry in entries] for entries in read] == [["hat", "scarf"]] * 2
    shown = output.ui["magic_correspondence"]
    for entry in (entry for entries in shown for entry in entries):
        assert 0 <= entry["share"] <= 1 and all(0 < place < 1 for place in entry["peak"])
        assert len(entry["map"]) == 16 and all(
            0 <= level <= 255 for row in entry["map"] for level in row
        )
    bare = MagicCorrespondenceMap.execute(record, samples, 0.8).args[0]
    assert [heat.shape for heat in bare] == [(2, 128, 128, 3)] * 2
    with pytest.raises(ValueError, match="concepts have 1 images, but the run had 2"):
        MagicCorrespondenceMap.execute(record, samples, 0.8, chained[:1])


def test_bad_input_is_refused_before_sampling():
    model = parts()[0]
    with pytest.raises(ValueError, match="connect the MODEL output of MagicFace Apply"):
        watch(model)
    face, positive, _ = apply(model)
    with pytest.raises(ValueError, match="points is empty"):
        watch(face, "")
    with pytest.raises(ValueError, match="the mask is empty"):
        watch(face, mask=torch.zeros(1, 8, 8))
    assert "is not understood" in str(MagicCorrespondence.validate_inputs("here"))
    with pytest.raises(ValueError, match=r"start \(0.9\) is after end \(0.1\)"):
        MagicAttentionMap.execute(model, parts()[1], PROMPT, "hat", "all", 0.9, 0.1)
    steps: list[int] = []
    patched, _ = watch(face, "500,20")
    with pytest.raises(ValueError, match="point 500,20 is outside the picture, which is 128x128"):
        Sampling(callback=lambda step, *_: steps.append(step)).run(patched, positive)
    assert not steps


def test_nothing_is_held_after_sampling(monkeypatch):
    made: list[weakref.ref] = []
    for module, name in ((correspondence, "as_picture"), (unet, "head_mean_attention")):
        original = getattr(module, name)

        def track(*args: Any, original: Any = original) -> torch.Tensor:
            result = original(*args)
            made.append(weakref.ref(result))
            return result

        monkeypatch.setattr(module, name, track)
    face, positive, _ = apply(parts()[0])
    patched, _ = watch(attention_map(face, positive=positive)[0])
    Sampling(steps=2).run(patched, positive)
    gc.collect()
    assert made and not [ref for ref in made if ref() is not None]


def test_the_watched_model_leaves_its_source_as_it_was():
    face, positive, _ = apply(parts()[0])
    before = {
        kind: {key: list(wrappers) for key, wrappers in by_key.items()}
        for kind, by_key in face.wrappers.items()
    }
    watched, record = watch(face)
    after = {
        kind: {key: list(wrappers) for key, wrappers in by_key.items()}
        for kind, by_key in face.wrappers.items()
    }
    assert before == after
    assert sum(len(by_key) for by_key in watched.wrappers.values()) == 1
    Sampling(steps=2).run(face, positive)
    with pytest.raises(ValueError, match="the correspondence is empty"):
        record.run_of(torch.zeros(1))
