"""A patch comes and goes without a trace."""

from __future__ import annotations

import dataclasses
import functools
import gc
import importlib
import re
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

from magicportrait.host.layout import patch as layout_patch
from magicportrait.host.sampling.backbone import backbone_of
from magicportrait.host.sampling.feature_store import FeatureStore
from magicportrait.host.sampling.references import prepare_references
from magicportrait.host.systems import magicface
from magicportrait.magic.concepts import Concept
from magicportrait.nodes import layout as layout_nodes
from magicportrait.nodes import magicface_apply
from magicportrait.nodes.analysis import MagicAttentionMap
from magicportrait.nodes.declare import defaults_of
from magicportrait.nodes.layout import MagicSemanticLayout
from magicportrait.nodes.magicface_apply import MagicFaceApply
from magicportrait.tests.host.models import call_node, state_of, structure_of
from magicportrait.tests.host.sampling import (
    PROMPT,
    Sampling,
    apply,
    concepts,
    encode,
    parts,
    watch,
)


def test_three_runs_leave_the_upstream_model_as_it_was():
    model = parts()[0]
    before = state_of(model)
    for _ in range(3):
        patched, positive, _ = apply(model)
        Sampling(steps=2).run(patched, positive)
    assert state_of(model) == before


def test_patched_model_carries_one_wrapper_and_nothing_else():
    model = parts()[0]
    patched, *_ = apply(model)
    assert structure_of(patched.model_options) == structure_of(model.model_options)
    assert sum(len(by_key) for by_key in patched.wrappers.values()) == 1


@pytest.mark.parametrize("shape", ["sd15", "sdxl", "sd21v"])
def test_out_of_range_is_bit_identical_to_no_patch(shape):
    model = parts(shape)[0]
    patched, positive, _ = apply(model, shape, start=1.0, end=1.0, semantic_cfg=False)
    sampling = Sampling(batch=2, steps=2)
    assert torch.equal(sampling.run(patched, positive), sampling.run(model, positive))


def test_watching_the_layout_does_not_change_the_picture():
    model = parts()[0]
    patched, positive, record = watch(model)
    sampling = Sampling(batch=2, steps=3)
    samples = sampling.run(patched, positive)
    assert torch.equal(samples, sampling.run(model, positive))
    assert sorted(record.run_of(samples).steps) == list(range(sampling.steps))


@pytest.fixture
def tracked_features(monkeypatch):
    """Weak references to all features that a run makes."""
    made: list[weakref.ref] = []
    original = magicface.ReferenceTokens

    def track(k, v, bias):
        made.extend(weakref.ref(tensor) for tensor in (k, v))
        return original(k, v, bias)

    monkeypatch.setattr(magicface, "ReferenceTokens", track)
    return made


def test_nothing_is_held_after_sampling(tracked_features):
    patched, positive, _ = apply(parts()[0])
    Sampling(steps=2).run(patched, positive)
    gc.collect()
    assert tracked_features and not [ref for ref in tracked_features if ref() is not None]


def test_nothing_is_held_after_a_cancel_in_mid_sampling(tracked_features):
    import comfy.model_management as management

    def cancel(step: int, *_: Any) -> None:
        if step == 1:
            raise management.InterruptProcessingException()

    model = parts()[0]
    before = state_of(model)
    patched, positive, record = apply(model)
    with pytest.raises(management.InterruptProcessingException):
        Sampling(callback=cancel).run(patched, positive)
    gc.collect()
    assert tracked_features and not [ref for ref in tracked_features if ref() is not None]
    assert state_of(model) == before
    with pytest.raises(ValueError, match="has not been sampled"):
        record.run_of(torch.zeros(1))


@pytest.mark.parametrize("shape", ["sd15", "sdxl"])
def test_live_and_kept_give_the_same_picture(shape):
    model, sampling = parts(shape)[0], Sampling(batch=2, steps=3)
    live, positive, _ = apply(model, shape)
    expected = sampling.run(live, positive)
    kept, positive, _ = apply(model, shape, keep_features="memory")
    assert torch.equal(sampling.run(kept, positive), expected)
    assert torch.equal(sampling.run(kept, positive), expected)


def test_kept_features_are_used_and_only_for_the_same_weights(monkeypatch):
    passes = []
    original = magicface.ReferencePass.run
    monkeypatch.setattr(
        magicface.ReferencePass,
        "run",
        lambda self, *args: (passes.append(1), original(self, *args)),
    )
    patched, positive, _ = apply(parts()[0], keep_features="memory")
    Sampling(steps=2).run(patched, positive)
    assert len(passes) == 2
    Sampling(steps=2, seed=9).run(patched, positive)
    assert len(passes) == 2
    name = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_k.weight"
    changed = patched.clone()
    changed.add_patches({name: ("diff", (torch.ones_like(changed.model.state_dict()[name]),))}, 1.0)
    Sampling(steps=2).run(changed, positive)
    assert len(passes) == 4
    sampling = importlib.import_module("comfy_extras.nodes_model_advanced").ModelSamplingDiscrete
    other = call_node(sampling, model=patched, sampling="v_prediction", zsnr=False)[0]
    Sampling(steps=2).run(other, positive)
    assert len(passes) == 6, "the same sigmas mean another picture"


def test_what_runs_have_not_used_for_long_is_forgotten(monkeypatch):
    """Every number of steps has sigmas of its own, and an adaptive sampler has others for every
    seed."""
    import comfy.samplers
    import folder_paths

    monkeypatch.setattr(magicface_apply, "FeatureStore", functools.partial(FeatureStore, budget=0))
    patched, positive, _ = apply(parts()[0], keep_features="memory")
    sampling, sigmas = patched.get_model_object("model_sampling"), []
    for steps in range(1, 7):
        Sampling(steps=steps, size=(8, 8)).run(patched, positive)
        sigmas.append(
            {
                float(sigma)
                for sigma in comfy.samplers.calculate_sigmas(sampling, "normal", steps)[:-1]
            }
        )
        files = list(Path(folder_paths.get_temp_directory()).rglob("*.safetensors"))
        assert len(files) == len(set().union(*sigmas[-4:])), "those of the last four runs"


def test_a_measurement_ends_once(monkeypatch):
    """It copies from the GPU, which waits for it."""
    recorded: list[int] = []
    original = layout_patch.layout_step
    monkeypatch.setattr(
        layout_patch, "layout_step", lambda *args: (recorded.append(1), original(*args))[1]
    )
    patched, positive, _ = apply(parts()[0])
    Sampling(steps=3).run(patched, positive)
    assert len(recorded) == 3


def test_an_injection_is_no_part_of_what_was_kept_without_it(monkeypatch):
    """A bypassed LoRA changes no weights."""
    from comfy.patcher_extension import PatcherInjection

    passes = []
    original = magicface.ReferencePass.run
    monkeypatch.setattr(
        magicface.ReferencePass,
        "run",
        lambda self, *args: (passes.append(1), original(self, *args)),
    )
    patched, positive, _ = apply(parts()[0], keep_features="memory")
    injection = [PatcherInjection(inject=lambda patcher: None, eject=lambda patcher: None)]
    counts = []
    for injections in (
        [],
        injection,
        injection,
        [PatcherInjection(inject=lambda patcher: None, eject=lambda patcher: None)],
    ):
        model = patched.clone()
        model.set_injections("bypass", injections)
        Sampling(steps=2).run(model, positive)
        counts.append(len(passes))
    assert counts == [2, 4, 4, 6]


@pytest.mark.parametrize("half", [False, True])
def test_every_run_of_a_list_finds_its_own_layout(half):
    patched, positive, record = watch(parts()[0])
    samples = [
        Sampling(seed=seed, steps=1, size=(8, 8)).run(patched, positive) for seed in range(6)
    ]
    found = [record.run_of(latent.half() if half else latent) for latent in samples]
    assert len({id(run) for run in found}) == 6


def test_references_in_half_precision_are_made_smaller():
    """As LoadImage gives them under --fp16-intermediates."""
    _, clip, vae = parts()
    [reference] = prepare_references(
        (Concept("hat", torch.rand(1, 256, 320, 3).half(), None, "", 1.0, None),),
        clip,
        vae,
        backbone_of(parts()[0]),
    )
    assert reference.latent.isfinite().all()


def test_the_largest_noise_seed_serves_several_references():
    patched, positive, _ = apply(parts()[0], noise_seed=2**64 - 1)
    assert Sampling(steps=1).run(patched, positive).isfinite().all()


def test_references_that_do_not_fit_into_memory_together_run_one_by_one(monkeypatch):
    patched, positive, _ = apply(parts()[0])
    sampling = Sampling(steps=2)
    together = sampling.run(patched, positive)
    rows: list[int] = []
    original = magicface.ReferencePass._options
    monkeypatch.setattr(
        magicface.ReferencePass,
        "_options",
        lambda self, options, group, *rest: (
            rows.append(len(group)),
            original(self, options, group, *rest),
        )[1],
    )
    monkeypatch.setattr(type(patched.model), "memory_required", lambda *args, **kwargs: 1e30)
    torch.testing.assert_close(sampling.run(patched, positive), together, rtol=1e-3, atol=3e-3)
    assert set(rows) == {1} and len(rows) == 4


def test_one_reference_pass_a_sigma_serves_the_whole_batch(monkeypatch):
    passes = []
    original = magicface.ReferencePass.run
    monkeypatch.setattr(
        magicface.ReferencePass,
        "run",
        lambda self, *args: (passes.append(1), original(self, *args)),
    )
    patched, positive, _ = apply(parts()[0])
    Sampling(batch=3, steps=3).run(patched, positive)
    assert len(passes) == 3


def test_conditioning_from_elsewhere_is_refused_before_sampling():
    patched, *_ = apply(parts()[0])
    with pytest.raises(ValueError, match="connect the output positive"):
        Sampling().run(patched, encode("a man"))


def test_a_latent_of_no_pictures_is_refused():
    for patched, positive, _ in (apply(parts()[0]), watch(parts()[0])):
        with pytest.raises(ValueError, match=r"^the latent has no pictures: connect one"):
            Sampling().run(patched, positive, torch.zeros(0, 4, 16, 16))


@pytest.mark.parametrize("weight", ["inf", "-inf", "nan", "1e30"])
def test_a_weight_of_which_no_model_makes_a_picture_is_named(weight):
    shown = re.escape(f"gives a word the weight {float(weight):g}, of which no model")
    sentence = rf"^prompt '.*\(hat:{weight}\).*' {shown}"
    with pytest.raises(ValueError, match=sentence):
        apply(parts()[0], prompt=f"a man wearing a (hat:{weight}) and a scarf")
    with pytest.raises(ValueError, match=sentence):
        MagicSemanticLayout.execute(*parts()[:2], f"a man in a (hat:{weight})", "hat", 0.6)
    [concept] = concepts(1)
    reference = dataclasses.replace(concept, prompt=f"a (hat:{weight})")
    with pytest.raises(ValueError, match=sentence):
        apply(parts()[0], chained=(reference,))
    with pytest.raises(ValueError, match=sentence):
        inputs = {**defaults_of(MagicFaceApply), "prompt": f"a (hat:{weight})"}
        MagicFaceApply.execute(*parts(), (), **inputs)


@pytest.mark.parametrize("weight", ["1.2", "-1", "100", "0"])
def test_weights_that_models_can_take_stay(weight):
    _, positive, _ = apply(parts()[0], prompt=f"a man wearing a (hat:{weight}) and a scarf")
    assert positive[0][0].isfinite().all()


def test_a_phrase_behind_a_written_end_is_explained():
    prompt = "a man <|endoftext|> hat"
    with pytest.raises(ValueError) as refusal:
        apply(parts()[0], chained=tuple(concepts(1)), prompt=prompt)
    assert "Words that are there: a, man. Name" in str(refusal.value)
    assert str(refusal.value).endswith("behind <|endoftext|> is not read: take that out")


def test_long_texts_are_cut_in_messages():
    [concept] = concepts(1)
    words = " ".join(f"word{number}" for number in range(500))
    long = dataclasses.replace(concept, phrase="h" * 5000)
    with pytest.raises(ValueError, match=rf"^phrase '{'h' * 200}\.\.\.' is not") as refusal:
        apply(parts()[0], chained=(long,), prompt=words)
    assert len(str(refusal.value)) < 600


def test_layout_of_the_right_run_is_found():
    patched, positive, record = watch(parts()[0])
    first = Sampling(seed=1, steps=2).run(patched, positive)
    second = Sampling(seed=2, steps=2).run(patched, positive)
    assert record.run_of(first) is not record.run_of(second)
    assert record.run_of(second * 2) is record.run_of(second), (
        "a changed latent falls back to the last run"
    )


def attention(model: Any) -> tuple[Any, Any, Any]:
    return MagicAttentionMap.execute(
        model, parts()[1], PROMPT, "hat, scarf", layers="all", start=0.0, end=1.0
    ).args


@pytest.mark.parametrize("make", [apply, watch, attention], ids=["face", "layout", "attention"])
def test_a_latent_that_no_run_has_made_shows_no_other_runs_layout(make, caplog):
    """A sampler with denoise 0 hands on what it got; one in whose steps our prompt never acts makes
    a picture of which nothing was seen."""
    import nodes as core

    patched, positive, record = make(parts()[0])
    blank = torch.zeros(1, 4, 16, 16)
    with pytest.raises(ValueError, match=r"is empty: the MODEL .* has not been sampled"):
        record.run_of(blank)
    started = torch.ones(1, 4, 16, 16)
    options = {"seed": 1, "steps": 2, "cfg": 4.0, "sampler_name": "euler", "scheduler": "normal"}

    def ksampler(latent: torch.Tensor, positive: Any, denoise: float) -> torch.Tensor:
        [out] = core.KSampler().sample(
            patched,
            positive=positive,
            negative=encode("blurry"),
            latent_image={"samples": latent},
            denoise=denoise,
            **options,
        )
        return out["samples"]

    samples = ksampler(started, positive, 1.0)
    layout = record.run_of(samples)
    for unsampled in (started, blank, ksampler(started, positive, 0.0)):
        with pytest.raises(ValueError, match=r"nothing was sampled with .* to make this"):
            record.run_of(unsampled)
    said: list[str] = []
    assert record.run_of(samples * 2, said.append) is layout
    assert len(said) == 1 and "of its last run is shown" in said[0]
    assert record.run_of(samples * 2) is layout and said[0] in caplog.text

    # The first of the two steps is at the start of sampling, the second at its end.
    between = core.ConditioningSetTimestepRange().set_range(positive, 0.4, 0.6)[0]
    other = ksampler(blank, between + encode("a man"), 1.0)
    for unseen in (other, other * 2):
        with pytest.raises(ValueError, match="acts in no step of it that is looked at"):
            record.run_of(unseen)
    assert record.run_of(samples) is layout


def test_a_layout_of_another_latent_is_noticed_on_the_node(monkeypatch):
    patched, positive, record = watch(parts()[0])
    samples = Sampling(steps=2).run(patched, positive)
    said: list[str] = []
    monkeypatch.setattr(layout_nodes, "notice", said.append)
    for latent, notices in ((samples, 0), (samples * 2, 1)):
        layout_nodes.MagicLayoutMasks.execute(record, {"samples": latent}, -1)
        assert len(said) == notices


def test_a_sampler_without_a_step_keeps_the_layout_of_the_latent_that_it_hands_on():
    patched, positive, record = watch(parts()[0])
    samples = Sampling(steps=2).run(patched, positive)
    layout = record.run_of(samples)
    record.store(samples, None, samples)
    assert record.run_of(samples) is layout


def test_target_region_replaces_the_measured_one():
    region = torch.zeros(1, 64, 64)
    region[:, :32] = 1
    patched, positive, record = apply(parts()[0], chained=concepts(1, region=region), inject_at=0.0)
    samples = Sampling(steps=2).run(patched, positive)
    owned = record.run_of(samples).steps[1].concepts[0]
    assert (owned[: owned.shape[0] // 2] == 0).all() and (owned[owned.shape[0] // 2 :] == -1).all()
