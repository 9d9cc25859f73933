"""References that are looked at in some steps only."""

from __future__ import annotations

import dataclasses
import importlib
import logging
from typing import Any

import pytest
import torch

from magicportrait.host.sampling.patch import patches_of
from magicportrait.host.sampling.range import noise_bands, prediction_of
from magicportrait.host.systems import magicface
from magicportrait.magic.reference_passes import SPARSE, pass_levels
from magicportrait.tests.host import models
from magicportrait.tests.host.models import call_node, lora_file
from magicportrait.tests.host.sampling import Sampling, apply, parts

SPARSELY = {"reference_passes": "sparse"}
EIGHT_OF_25 = [0, 8, 16, 20, 21, 22, 23, 24]


def sigmas_of(model: Any, steps: int) -> list[float]:
    import comfy.samplers

    sampling = model.get_model_object("model_sampling")
    sigmas: list[float] = comfy.samplers.calculate_sigmas(sampling, "normal", steps).tolist()
    return sigmas[:-1]


@pytest.fixture
def passes(monkeypatch):
    """The noise level of every reference pass."""
    levels: list[float] = []
    original = magicface.ReferencePass.run
    monkeypatch.setattr(
        magicface.ReferencePass,
        "run",
        lambda self, model, sigma, *rest: (
            levels.append(float(sigma[0])),
            original(self, model, sigma, *rest),
        ),
    )
    return levels


@pytest.mark.parametrize("shape", ["sd15", "sd21v"])
def test_eight_of_25_steps_look_at_the_references(shape, passes, caplog):
    model = parts(shape)[0]
    patched, positive, _ = apply(model, shape, **SPARSELY)
    with caplog.at_level(logging.INFO):
        sampled = Sampling(steps=25, size=(8, 8)).run(patched, positive)
    sigmas = sigmas_of(model, 25)
    assert passes == pytest.approx([sigmas[step] for step in EIGHT_OF_25])
    assert "MagicFace: 8 reference passes for 25 model calls" in caplog.messages
    assert sampled.isfinite().all()


def test_a_run_whose_steps_all_need_a_pass_is_bit_identical_to_one_at_every_step(passes):
    model = parts()[0]
    pictures = []
    for choice in ("every step", "sparse"):
        patched, positive, _ = apply(model, reference_passes=choice)
        pictures.append(Sampling(steps=4, batch=2).run(patched, positive))
    assert torch.equal(*pictures) and len(passes) == 8


@pytest.mark.parametrize("sampler", ["heun", "dpmpp_2s_ancestral", "dpm_adaptive"])
def test_samplers_that_call_the_model_several_times_a_step(sampler, passes):
    """A pass a band, as far as the noise does not rise again."""
    patched, positive, _ = apply(parts()[0], **SPARSELY)
    assert Sampling(steps=6, size=(8, 8), sampler=sampler).run(patched, positive).isfinite().all()
    sampling = patched.get_model_object("model_sampling")
    bands = noise_bands(SPARSE, sampling)
    assert pass_levels(passes, bands) == passes, "no pass that the one before would have served"
    every, positive, _ = apply(parts()[0])
    sparse = len(passes)
    Sampling(steps=6, size=(8, 8), sampler=sampler).run(every, positive)
    assert sparse < len(passes) - sparse


@pytest.mark.parametrize("noise", ["fixed", "per step"])
def test_a_range_begins_with_a_pass(noise, passes):
    model = parts()[0]
    patched, positive, _ = apply(model, start=0.4, end=0.9, reference_noise=noise, **SPARSELY)
    Sampling(steps=25, size=(8, 8)).run(patched, positive)
    sigmas = sigmas_of(model, 25)
    assert passes == pytest.approx([sigmas[step] for step in (10, 16, 20, 21)])


def test_kept_features_are_those_of_the_passes_only(passes):
    model, sampling = parts()[0], Sampling(steps=10, size=(8, 8))
    live, positive, _ = apply(model, **SPARSELY)
    expected = sampling.run(live, positive)
    kept, positive, _ = apply(model, keep_features="memory", **SPARSELY)
    passes.clear()
    assert torch.equal(sampling.run(kept, positive), expected)
    made = len(passes)
    assert torch.equal(sampling.run(kept, positive), expected)
    assert len(passes) == made, "the second run needs none"
    [(_, _, patch)] = patches_of(kept)
    every, positive, _ = apply(model, keep_features="memory")
    sampling.run(every, positive)
    [(_, _, whole)] = patches_of(every)
    assert patch.store.size_in_memory * 10 == whole.store.size_in_memory * made


@pytest.mark.parametrize("first", ["every step", "sparse"])
def test_neither_way_spoils_what_is_kept_for_the_other(first):
    """As if two patches shared what is kept."""
    model, sampling = parts()[0], Sampling(steps=7, size=(8, 8))
    expected = {}
    for choice in ("every step", "sparse"):
        patched, positive, _ = apply(model, reference_passes=choice)
        expected[choice] = sampling.run(patched, positive)
    assert not torch.equal(*expected.values())
    kept, positive, _ = apply(model, keep_features="memory", reference_passes=first)
    assert torch.equal(sampling.run(kept, positive), expected[first])
    [(_, _, patch)] = patches_of(kept)
    [other] = {*expected} - {first}
    swapped = dataclasses.replace(patch, bands=SPARSE if other == "sparse" else None)
    again = swapped.add_to(model)
    assert torch.equal(sampling.run(again, positive), expected[other])
    assert torch.equal(sampling.run(again, positive), expected[other])
    assert torch.equal(sampling.run(kept, positive), expected[first])


def test_a_cancelled_run_leaves_nothing_to_the_next(passes):
    import comfy.model_management as management

    def cancel(step: int, *_: Any) -> None:
        if step == 3:
            raise management.InterruptProcessingException()

    sampling = Sampling(steps=10, size=(8, 8))
    patched, positive, _ = apply(parts()[0], keep_features="memory", **SPARSELY)
    with pytest.raises(management.InterruptProcessingException):
        Sampling(steps=10, size=(8, 8), callback=cancel).run(patched, positive)
    samples = sampling.run(patched, positive)
    fresh, positive, _ = apply(parts()[0], **SPARSELY)
    assert torch.equal(samples, sampling.run(fresh, positive))


def with_lora(conditioning: list[Any], keyframes: Any = None) -> list[Any]:
    """Under a hook that puts a LoRA on the model."""
    import comfy.hooks

    lora = lora_file(parts()[0], "output_blocks.8.1", 0.5)
    hooks = comfy.hooks.create_hook_lora(lora, 1.0, 0.0)
    if keyframes is not None:
        hooks.set_keyframes_on_hooks(keyframes)
    return comfy.hooks.set_hooks_for_conditioning(conditioning, hooks)


def test_a_hook_whose_strength_changes_needs_a_pass_at_every_step(passes):
    import comfy.hooks

    keyframes = comfy.hooks.HookKeyframeGroup()
    keyframes.add(comfy.hooks.HookKeyframe(1.0, 0.0))
    keyframes.add(comfy.hooks.HookKeyframe(0.2, 0.5))
    pictures = []
    for choice in ("every step", "sparse"):
        patched, positive, _ = apply(parts()[0], semantic_cfg=False, reference_passes=choice)
        hooked = with_lora(positive, keyframes)
        pictures.append(Sampling(steps=8, size=(8, 8)).run(patched, hooked))
    assert torch.equal(*pictures) and len(passes) == 16
    passes.clear()
    Sampling(steps=8, size=(8, 8)).run(patched, with_lora(positive))
    assert len(passes) == 5, "a hook that stays as it is changes nothing"


def test_a_prompt_that_changes_its_hooks_in_mid_band_has_a_pass_there(passes):
    import node_helpers

    patched, positive, _ = apply(parts()[0], semantic_cfg=False, **SPARSELY)
    first = node_helpers.conditioning_set_values(positive, {"end_percent": 0.5})
    second = node_helpers.conditioning_set_values(with_lora(positive), {"start_percent": 0.5})
    Sampling(steps=25, size=(8, 8)).run(patched, [*first, *second])
    sigmas = sigmas_of(parts()[0], 25)
    assert pytest.approx(sigmas[12]) in passes
    assert len(passes) == 9


def test_another_nodes_part_that_comes_in_mid_band_has_a_pass_there(passes):
    """Such as a wrapper that a node puts in for some steps."""
    import comfy.patcher_extension as extension

    def around(executor: Any, *args: Any, **kwargs: Any) -> Any:
        return executor(*args, **kwargs)

    def sometimes(executor: Any, x: Any, timestep: Any, options: Any, *rest: Any) -> Any:
        if float(timestep[0]) < 5:
            own = {**options["transformer_options"]}
            wrappers = {**own.get("wrappers", {})}
            wrappers[extension.WrappersMP.APPLY_MODEL] = {"test": [around]}
            options = {**options, "transformer_options": {**own, "wrappers": wrappers}}
        return executor(x, timestep, options, *rest)

    patched = parts()[0].clone()
    kind = extension.WrappersMP.PREDICT_NOISE
    patched.add_wrapper_with_key(kind, "test", sometimes)
    patched, positive, _ = apply(patched, **SPARSELY)
    Sampling(steps=25, size=(8, 8)).run(patched, positive)
    following = next(sigma for sigma in sigmas_of(parts()[0], 25) if sigma < 5)
    assert pytest.approx(following) in passes
    assert len(passes) == 9


def test_a_second_stage_begins_with_a_pass(passes):
    import nodes

    patched, positive, _ = apply(parts()[0], **SPARSELY)
    latent = {"samples": torch.zeros(1, 4, 8, 8)}
    for start, end in ((0, 12), (12, 25)):
        [latent] = call_node(
            nodes.KSamplerAdvanced,
            model=patched,
            add_noise="enable" if start == 0 else "disable",
            noise_seed=5,
            steps=25,
            cfg=7.0,
            sampler_name="euler",
            scheduler="normal",
            positive=positive,
            negative=Sampling().negative,
            latent_image=latent,
            start_at_step=start,
            end_at_step=end,
            return_with_leftover_noise="disable" if end == 25 else "enable",
        )
    sigmas = sigmas_of(parts()[0], 25)
    assert passes == pytest.approx([sigmas[step] for step in sorted([*EIGHT_OF_25, 12])])


def test_flows_are_told_from_other_models():
    model = models.random_model()
    assert prediction_of(model.get_model_object("model_sampling")) == "noise"
    node = importlib.import_module("comfy_extras.nodes_model_advanced").ModelSamplingSD3
    [flow] = call_node(node, model=model, shift=3.0)
    sampling = flow.get_model_object("model_sampling")
    assert prediction_of(sampling) == "flow"
    bands = noise_bands(SPARSE, sampling)
    steps = sigmas_of(flow, 25)
    early = sum(1 for level in pass_levels(steps, bands) if level in steps[:9])
    assert early == 9
