"""Inversion through the host's sampling loop, and what is remembered of it."""

from __future__ import annotations

import collections
import dataclasses
import errno
import functools
import importlib.util
import logging
import math
import os
import signal
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import folder_paths
import pytest
import safetensors.torch
import torch
from torch import Tensor

from magicportrait.host.inversion import files as inversion_files
from magicportrait.host.inversion.cache import (
    InversionCache,
    InversionKey,
    cache_folder,
    inversion_key,
)
from magicportrait.host.inversion.files import (
    UnreadableInversion,
    read_inversion,
    write_inversion,
)
from magicportrait.host.inversion.inputs import zero_conditioning
from magicportrait.host.inversion.run import Inversion, Recipe, sampler_for
from magicportrait.magic.inversion import psnr
from magicportrait.nodes.inversion import MagicInversionLoad, MagicInversionSave
from magicportrait.tests.host.inverting import invert, latent, sample, sample_again
from magicportrait.tests.host.models import (
    call_node,
    lora_file,
    random_model,
    state_of,
    with_control,
)
from magicportrait.tests.host.sampling import encode, parts

ROOT = Path(__file__).resolve().parents[2]
LOW = torch.tensor([0.8, 0.5, 0.2, 0.0])
"""Noise levels at which the random model is as tame as a trained one."""


def quality(out: Tensor, truth: Tensor) -> float:
    return psnr(out, truth, float(truth.max() - truth.min()))


# In all the ways in which a host may run it

COMBINATIONS = [
    ("sd15", torch.float32, "euler", 3, (8, 8)),
    ("sd15", torch.float16, "fixed-point", 1, (9, 13)),
    ("sd15", torch.bfloat16, "o-belm", 2, (8, 15)),
    ("sd21v", torch.float32, "fixed-point", 2, (11, 8)),
    ("sd21v", torch.float16, "o-belm", 1, (8, 8)),
    ("sd21v", torch.bfloat16, "fireflow", 1, (9, 9)),
    ("sdxl", torch.float32, "o-belm", 2, (13, 8)),
    ("sdxl", torch.float16, "euler", 1, (8, 9)),
    ("sdxl", torch.bfloat16, "fixed-point", 1, (8, 8)),
]


@pytest.mark.parametrize(("shape", "dtype", "method", "batch", "size"), COMBINATIONS)
def test_runs_and_is_finite(shape, dtype, method, batch, size, model_calls):
    model, samples = parts(shape, dtype)[0], latent(batch, size)
    inversion, noise, sigmas, _, positive, report = invert(
        model, samples, shape, method=method, measure=False, iterations=1, tolerance=0.0, cache_mb=0
    )
    assert (
        inversion.latents.shape == (4, batch, 4, *size)
        and inversion.latents.isfinite().all()
        and inversion.batch == batch
    )
    assert (
        sigmas.tolist() == sorted(sigmas.tolist(), reverse=True)
        and sigmas[-1] == 0
        and torch.equal(sigmas, inversion.sigmas)
    )
    torch.testing.assert_close(inversion.latents[-1], model.model.process_latent_in(samples))
    assert torch.equal(noise["samples"], model.model.process_latent_out(inversion.latents[0]))
    assert (
        inversion.resampled is None
        and "sampled again" not in report
        and positive is inversion.conditioning
    )
    expected = 6 if method == "fixed-point" else 3
    assert (inversion.model_calls, model_calls) == (expected, [batch] * expected)


@pytest.mark.parametrize(
    ("shape", "dtype", "least"),
    [("sd15", torch.float32, 90), ("sdxl", torch.float32, 90), ("sd21v", torch.float16, 45)],
)
def test_belm_round_trip(shape, dtype, least):
    model, samples = parts(shape, dtype)[0], latent(2)
    inverted = invert(model, samples, shape, method="o-belm")
    assert quality(inverted[0].resampled, samples) >= least
    assert torch.equal(sample_again(model, inverted), inverted[0].resampled), (
        "the outputs are wired as the report measured"
    )


def test_belm_over_other_sigmas_does_not_use_the_latents_of_its_own():
    model = parts()[0]
    inversion, noise, sigmas, sampler, positive, _ = invert(model, method="o-belm", measure=False)
    other = sigmas.clone()
    other[1] *= 0.5
    poisoned = dataclasses.replace(
        inversion,
        latents=torch.cat([inversion.latents[:1], torch.full_like(inversion.latents[1:], 1e3)]),
    )
    results = [
        sample(model, noise, levels, each, positive)
        for levels in (sigmas, other)
        for each in (sampler, sampler_for(model, poisoned))
    ]
    assert not torch.equal(results[0], results[1]), "over its own sigmas it takes its second latent"
    assert torch.equal(results[2], results[3])


@pytest.mark.parametrize(("shape", "sigmas"), [("sd15", LOW), ("sd21v", None)])
def test_the_methods_differ_in_how_close_they_come(shape, sigmas):
    model, samples = parts(shape)[0], latent(1, (8, 8))
    inversions = {
        method: invert(model, samples, shape, method=method, sigmas=sigmas)[0]
        for method in ("euler", "fixed-point", "o-belm")
    }
    reached = {
        method: quality(inversion.resampled, samples) for method, inversion in inversions.items()
    }
    assert reached["fixed-point"] > reached["euler"] + 6
    assert reached["o-belm"] > reached["fixed-point"] + 20 and reached["o-belm"] > 90


@pytest.mark.parametrize("method", ["euler", "fixed-point", "o-belm"])
def test_images_of_a_batch_do_not_see_each_other(method):
    model = parts()[0]
    options = {"method": method, "sigmas": LOW, "tolerance": 0.0, "measure": False}
    together = invert(model, latent(3), **options)[0].latents
    for i in range(3):
        alone = invert(model, latent(1, seed=i), **options)[0].latents
        torch.testing.assert_close(alone[:, 0], together[:, i], rtol=1e-3, atol=1e-3)


def test_guidance_takes_part(model_calls):
    model = parts()[0]
    plain, guided, other = (
        invert(model, cfg=cfg, negative=negative, measure=False, method="euler")[0].latents[0]
        for cfg, negative in ((1.0, None), (3.0, encode("blurry")), (3.0, encode("a red hat")))
    )
    assert model_calls == [1, 1, 1] + [2] * 6
    assert not torch.equal(plain, guided) and not torch.equal(guided, other)


def with_hooks(conditioning: list[Any]) -> list[Any]:
    """Under a hook that changes a weight while this conditioning is used."""
    import comfy.hooks

    hook = comfy.hooks.create_hook_lora(lora_file(parts()[0], "output_blocks.8.1", 0.05), 1.0, 0.0)
    return comfy.hooks.set_hooks_for_conditioning(conditioning, hook)


@pytest.mark.parametrize(
    "change",
    [lambda cond: with_control(parts()[0], cond, cond, 64)[0], with_hooks],
    ids=["ControlNet", "hook"],
)
def test_what_hangs_on_the_conditioning_takes_part(change, caplog):
    caplog.set_level(logging.INFO)
    plain = encode("a red hat")
    options = {"measure": False, "method": "euler", "cache_mb": 64}
    with_it, without = (
        invert(parts()[0], positive=positive, **options)[0].latents[0]
        for positive in (change(plain), plain)
    )
    assert with_it.isfinite().all() and not torch.equal(with_it, without)
    assert torch.equal(invert(parts()[0], positive=plain, **options)[0].latents[0], without), (
        "nothing is left behind"
    )
    assert (
        len(list(Path(folder_paths.get_user_directory()).rglob("*.safetensors"))) == 1
        and "an inversion is not remembered" in caplog.text
    )


def test_samplers_that_write_into_their_sigmas_leave_the_inversion_alone():
    import comfy.samplers

    model = parts()[0]
    inversion, noise, sigmas, _, positive, _ = invert(model, measure=False)
    sample(model, noise, sigmas, comfy.samplers.sampler_object("uni_pc"), positive)
    assert inversion.sigmas[-1] == 0


def test_sigmas_that_a_sampler_wrote_into_are_read_as_they_were():
    """A graph holds the output of a scheduler node, and what uni_pc wrote into it stays there."""
    import comfy.samplers

    model = parts()[0]
    levels = LOW.clone()
    _, noise, _, _, positive, _ = invert(model, measure=False, sigmas=levels)
    sample(model, noise, levels, comfy.samplers.sampler_object("uni_pc"), positive)
    spoiled = levels.clone()
    assert spoiled[-1] > 0
    again = invert(model, measure=False, sigmas=levels)[0]
    assert torch.equal(again.sigmas, LOW)
    assert torch.equal(levels, spoiled), "an input is nobody's to write into"


def test_a_cfg_that_a_node_sets_brings_the_negative_into_the_key():
    import comfy_extras.nodes_custom_sampler as samplers

    if not hasattr(samplers, "CFGOverride"):
        pytest.skip("this host has no CFG Override")
    model = call_node(
        samplers.CFGOverride, model=parts()[0], cfg=5.0, start_percent=0.0, end_percent=1.0
    )[0]
    keys = {key_of(model, negative=encode(text)).text for text in ("a wall", "a hat")}
    assert len(keys) == 2


def test_without_a_negative_guidance_is_away_from_the_empty_prompt():
    options = {"positive": encode("a red hat"), "measure": False, "method": "euler"}
    default, empty, plain = (
        invert(parts()[0], **options, **more)[0].latents
        for more in ({"cfg": 3.0}, {"cfg": 3.0, "negative": encode("")}, {"cfg": 1.0})
    )
    assert torch.equal(default, empty) and not torch.equal(default, plain)


@pytest.mark.parametrize("name", ["positive", "negative"])
def test_a_prompt_with_numbers_that_are_none_is_refused_before_the_inversion(name):
    model, clip, _ = parts()
    tokens = clip.tokenize("a (hat:nan)")
    broken = clip.encode_from_tokens_scheduled(tokens)
    with pytest.raises(ValueError, match=rf"^{name} has numbers that are none"):
        invert(model, **{name: broken})


def test_without_a_text_encoder_the_conditioning_is_zero():
    model = parts()[0]
    inversion, *_, positive, _ = invert(model, clip=None, measure=False)
    assert (
        not positive[0][0].any()
        and positive[0][0].shape[-1] == model.model.model_config.unet_config["context_dim"]
    )
    assert not torch.equal(inversion.latents[0], invert(model, measure=False)[0].latents[0])


def test_the_report_measures_latent_and_picture():
    model, _, vae = parts()
    image = torch.rand(1, 64, 72, 4, generator=torch.Generator().manual_seed(0))
    report = invert(model, None, latent=None, image=image, vae=vae, sigmas=LOW)[-1].splitlines()
    assert report[0] == "fixed-point, 3 steps up to sigma 0.80: 0.0 MB"
    assert report[1].endswith(" s") and "model calls" in report[1]
    assert [line.split(":")[0] for line in report[2:]] == [
        "latent sampled again",
        "picture sampled again",
        "to the image",
    ]


def test_every_step_is_reported_to_the_host(monkeypatch):
    import latent_preview

    steps: list[tuple[int, int, tuple[int, ...]]] = []
    monkeypatch.setattr(
        latent_preview,
        "prepare_callback",
        lambda model, count: lambda i, x0, x, total: steps.append((i, total, tuple(x0.shape))),
    )
    invert(parts()[0], method="fixed-point", measure=True)
    assert steps == [(i, 3, (1, 4, 8, 8)) for i in (0, 1, 2, 0, 1, 2)]


# What is refused


def picture_of(*shape: int, value: float = 0.5) -> dict[str, Any]:
    return {"latent": None, "image": torch.full(shape, value), "vae": parts()[2]}


def test_the_host_is_told_before_it_runs():
    node = MagicInversionLoad
    assert node.validate_inputs() is True, "an input that is missing is the host's matter"
    assert "inversion file 'gone' is not there" in str(node.validate_inputs(file="gone"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"latent": None}, "connect latent, or both image and vae"),
        ({"latent": {"samples": torch.zeros(1, 4, 8, 8)}}, "the latent is empty"),
        (
            {"sigmas": torch.tensor([3.0, 1.0, 0.5])},
            "sigmas must fall to 0 in two steps or more, got",
        ),
        ({"sigmas": torch.tensor([1.0, 2.0, 0.0])}, "sigmas must fall to 0"),
        ({"sigmas": torch.tensor([1.0, 0.0])}, "two steps or more"),
        ({"sigmas": torch.tensor([[3.0, 1.0], [0.5, 0.0]])}, "sigmas must fall to 0"),
        ({"sigmas": torch.tensor([math.inf, 1.0, 0.0])}, "sigmas must fall to 0"),
        ({"sigmas": torch.tensor([3.0, math.nan, 0.0])}, "sigmas must fall to 0"),
        (
            {"latent": {"samples": torch.ones(1, 16, 8, 8)}},
            "the latent has 16 channels, this model works in 4",
        ),
        (
            {"latent": {"samples": torch.ones(1, 4, 1, 8, 8)}},
            r"has the shape \[1, 4, 1, 8, 8\], this model takes B 4 h w",
        ),
        ({"latent": {"samples": torch.ones(8)}}, r"has the shape \[8\]: expected B C h w"),
        (
            {"latent": {"samples": torch.full((1, 4, 8, 8), math.nan)}},
            "the latent has values in it that are no numbers",
        ),
        (picture_of(1, 64, 64, 2), r"image has the shape \[1, 64, 64, 2\]: expected a batch"),
        (picture_of(64, 64, 3), r"image has the shape \[64, 64, 3\]: expected a batch"),
        (picture_of(0, 64, 64, 3), r"image has the shape \[0, 64, 64, 3\]: expected a batch"),
        (picture_of(1, 1, 1, 3), "image has 1x1 pixels, which is too small for the VAE"),
        (picture_of(1, 64, 64, 3, value=math.nan), "image has values in it that are no numbers"),
        ({"cfg": math.nan}, "cfg is nan, expected 1 to 20"),
        ({"tolerance": math.inf}, "tolerance is inf, expected 0 to 0.1"),
        ({"cfg": "high"}, "cfg is 'high', a number is expected"),
        ({"cfg": {"a": 1}}, "cfg is {'a': 1}, a number is expected"),
        ({"iterations": 10**400}, "iterations is a number of 401 digits, expected"),
    ],
)
def test_bad_input_is_refused_before_any_model_call(options, message, model_calls):
    with pytest.raises(ValueError, match=message):
        invert(parts()[0], **options)
    assert not model_calls


@pytest.mark.parametrize("is_patched", [True, False])
def test_a_model_without_an_ode_that_is_known_is_refused(is_patched, model_calls):
    """Whether it is one by itself or by a ModelSampling node: what is sampled with counts."""
    plain = random_model()
    model = core(
        "nodes_model_advanced", "ModelSamplingDiscrete", plain, sampling="img_to_img", zsnr=False
    )
    if not is_patched:
        plain.model.model_sampling, model = model.get_model_object("model_sampling"), plain
    with pytest.raises(
        ValueError, match=r"needs a model with eps or v prediction .* got one with .*IMG_TO_IMG"
    ):
        invert(model)
    assert not model_calls


@functools.cache
def inverted_in_five_steps(method: str) -> Any:
    return invert(parts()[0], steps=5, method=method, cache_mb=0)[0]


@pytest.mark.parametrize("node", ["EasyCacheNode", "LazyCacheNode"])
@pytest.mark.parametrize("method", ["euler", "fixed-point", "o-belm"])
def test_step_caches_have_no_part_in_an_inversion(node, method):
    """They reckon with noise that falls."""
    cache = {"reuse_threshold": 10.0, "start_percent": 0.0, "end_percent": 1.0, "verbose": False}
    patched = core("nodes_easycache", node, parts()[0], **cache)
    before = state_of(patched)
    plain = inverted_in_five_steps(method)
    beside = invert(patched, steps=5, method=method, cache_mb=0)[0]
    assert same(dataclasses.replace(beside, seconds=plain.seconds), plain)
    assert state_of(patched) == before, "for sampling it stays"


@pytest.mark.parametrize(
    "kind", ["RunTwice", "DeepcopyOptions", "NoPrecision", "Couple", "OwnOptions", "StepCache"]
)
def test_what_other_packs_do_changes_no_inversion(kind):
    pack = ROOT / "tests" / "e2e" / "stub_pack" / "__init__.py"
    spec = importlib.util.spec_from_file_location("stub_pack", pack)
    assert spec is not None and spec.loader is not None
    stubs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(stubs)
    stub = stubs.NODE_CLASS_MAPPINGS[f"Stub{kind}"]()
    model, options = parts()[0], {"measure": False, "cache_mb": 0}
    [patched] = getattr(stub, stub.FUNCTION)(model)
    plain, beside = (invert(each, **options)[0] for each in (model, patched))
    torch.testing.assert_close(beside.latents, plain.latents, rtol=1e-3, atol=1e-3)
    assert beside.model_calls == plain.model_calls


@pytest.mark.parametrize("kind", ["eps", "v_prediction", "x0", "lcm"])
def test_models_with_gaussian_noise_on_top_are_not(kind):
    assert invert(sampling_type(random_model(), kind), measure=False)[0].latents.isfinite().all()


def test_cancelling_leaves_the_model_clean_and_nothing_cached(monkeypatch):
    import comfy.model_management as management
    import latent_preview

    def cancel(step: int, *_: Any) -> None:
        if step == 1:
            raise management.InterruptProcessingException()

    model = parts()[0]
    before = state_of(model)
    with monkeypatch.context() as patched, pytest.raises(management.InterruptProcessingException):
        patched.setattr(latent_preview, "prepare_callback", lambda *_: cancel)
        invert(model)
    assert state_of(model) == before
    assert not list(Path(folder_paths.get_user_directory()).rglob("*.safetensors"))
    assert invert(model)[0].latents.isfinite().all()


# The cache


def same(one: Inversion, other: Inversion) -> bool:
    tensors = [
        (one.sigmas, other.sigmas),
        (one.latents, other.latents),
        (one.conditioning[0][0], other.conditioning[0][0]),
    ]
    if one.resampled is not None and other.resampled is not None:
        tensors.append((one.resampled, other.resampled))
    plain = ("method", "model", "key", "model_calls", "seconds")
    return all(torch.equal(*pair) for pair in tensors) and all(
        getattr(one, name) == getattr(other, name) for name in plain
    )


def test_the_second_time_makes_no_model_call(model_calls):
    first = invert(parts()[0])
    assert model_calls and "from the cache" not in first[-1]
    model_calls.clear()
    second = invert(parts()[0])
    assert not model_calls and "from the cache: none now" in second[-1]
    assert second[0] is not first[0] and same(second[0], first[0])
    assert torch.equal(second[1]["samples"], first[1]["samples"])
    assert folder_paths.get_user_directory() in str(cache_folder())


def test_the_same_weights_loaded_anew_are_known(model_calls):
    invert(parts()[0], measure=False)
    model_calls.clear()
    assert "from the cache" in invert(random_model(), measure=False)[-1] and not model_calls
    assert "from the cache" not in invert(random_model(seed=1), measure=False)[-1] and model_calls


def test_measuring_is_made_up_for(model_calls):
    plain = invert(parts()[0], measure=False, method="euler")[0]
    model_calls.clear()
    measured = invert(parts()[0], measure=True, method="euler")[0]
    assert len(model_calls) == 3, "only the resampling"
    assert same(plain, measured) and plain.resampled is None and measured.resampled is not None
    model_calls.clear()
    assert (
        invert(parts()[0], measure=True, method="euler")[0].resampled is not None
        and not model_calls
    )


def test_no_cache_when_there_is_no_room_for_it(model_calls):
    for _ in range(2):
        model_calls.clear()
        invert(parts()[0], cache_mb=0, measure=False)
        assert model_calls
    assert not cache_folder().exists()


class PacksObject:
    """What another pack may keep among a model's options."""

    def __init__(self, **attributes: Any) -> None:
        vars(self).update(attributes)


def with_option(thing: Any) -> Any:
    model = parts()[0].clone()
    model.model_options["transformer_options"]["pack"] = thing
    return model


def chain(length: int) -> PacksObject:
    link = PacksObject(following=None)
    for _ in range(length):
        link = PacksObject(following=link)
    return link


def nest(depth: int) -> list[Any]:
    inner: list[Any] = []
    for _ in range(depth):
        inner = [inner]
    return inner


def files_after(runs: int, make: Callable[[], Any]) -> list[Path]:
    for _ in range(runs):
        invert(with_option(make()), measure=False, method="euler")
    return list(cache_folder().glob("*")) if cache_folder().exists() else []


def test_what_cannot_be_recognised_again_fills_no_cache(caplog):
    caplog.set_level(logging.INFO)
    assert not files_after(3, lambda: PacksObject(handle=iter([1]), values=[object()]))
    assert "not remembered" in caplog.text
    assert "model_options['transformer_options']['pack'].handle (list_iterator)" in caplog.text
    assert "model_options['transformer_options']['pack'].values[0] (object)" in caplog.text


def test_what_a_run_changes_fills_no_cache(caplog):
    """Its own key is another one afterwards."""
    caplog.set_level(logging.INFO)
    counter = PacksObject(runs=0)

    def count_call(executor: Any, *args: Any, **kwargs: Any) -> Any:
        counter.runs += 1
        return executor(*args, **kwargs)

    from comfy.patcher_extension import WrappersMP

    model = with_option(counter)
    model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, "pack", count_call)
    for _ in range(3):
        invert(model, measure=False, method="euler")
    assert counter.runs == 3 and not list(Path(folder_paths.get_user_directory()).rglob("*.*"))
    assert "It changes as it runs: model_options, wrappers" in caplog.text


@pytest.mark.parametrize(
    "make",
    [
        lambda: PacksObject(log=logging.getLogger("a.pack"), lock=threading.Lock()),
        lambda: PacksObject(lock=threading.RLock(), queue=collections.deque([1])),
        lambda: chain(120),
        lambda: chain(5000),
        lambda: nest(500),
        lambda: nest(5000),
    ],
    ids=["logger", "lock", "chain", "long chain", "nesting", "deep nesting"],
)
def test_what_says_nothing_or_lies_deep_is_recognised_again(make, model_calls):
    assert len(files_after(1, make)) == 1
    model_calls.clear()
    assert len(files_after(2, make)) == 1 and not model_calls


# The key


def lora(model: Any, strength: float, value: float = 0.05) -> Any:
    name = "diffusion_model.output_blocks.8.1.transformer_blocks.0.attn1.to_v.weight"
    patched = model.clone()
    patched.add_patches(
        {name: ("diff", (torch.full_like(model.model.state_dict()[name], value),))}, strength
    )
    return patched


def core(module: str, node: str, model: Any, **options: Any) -> Any:
    return call_node(
        getattr(importlib.import_module(f"comfy_extras.{module}"), node), model=model, **options
    )[0]


def free_u(model: Any, b1: float) -> Any:
    return core("nodes_freelunch", "FreeU_V2", model, b1=b1, b2=1.4, s1=0.9, s2=0.2)


def sampling_type(model: Any, kind: str) -> Any:
    return core("nodes_model_advanced", "ModelSamplingDiscrete", model, sampling=kind, zsnr=False)


def scale_weight(
    q: Tensor, k: Tensor, v: Tensor, extra_options: dict[str, Any], strength: float
) -> Tensor:
    return v * strength


def attention(model: Any, strength: float) -> Any:
    patched = model.clone()
    patched.set_model_attn1_replace(functools.partial(scale_weight, strength=strength), "output", 8)
    return patched


def key_of(
    model: Any = None,
    samples: Tensor | None = None,
    text: str = "",
    levels: Tensor = LOW,
    negative: Any = None,
    **changes: Any,
) -> InversionKey:
    recipe = Recipe(
        **{"method": "fixed-point", "iterations": 2, "tolerance": 1e-4, "cfg": 1.0, **changes}
    )
    conds = {"positive": encode(text), "negative": negative or encode("")}
    return inversion_key(
        model or parts()[0], latent() if samples is None else samples, conds, levels, recipe
    )


def with_another_weight() -> Any:
    changed = random_model()
    changed.model.diffusion_model.out[2].bias.data[1] += 1e-3
    return changed


OTHER_INPUTS: dict[str, dict[str, Any]] = {
    "latent": {"samples": latent() + 1e-6},
    "conditioning": {"text": "a hat"},
    "sigmas": {"levels": LOW * 1.001},
    "steps": {"levels": LOW[1:]},
    "method": {"method": "euler"},
    "iterations": {"iterations": 3},
    "tolerance": {"tolerance": 1e-3},
    "cfg": {"cfg": 2.0},
}


@pytest.mark.parametrize("name", OTHER_INPUTS)
def test_another_input_is_another_key(name):
    key, other = key_of(), key_of(**OTHER_INPUTS[name])
    assert other.text != key.text and other.model == key.model and not other.unstable


def test_a_negative_that_has_no_part_in_it_is_not_in_the_key():
    negatives = [encode(text) for text in ("blurry", "a red hat")]
    assert len({key_of(negative=negative, cfg=1.0).text for negative in negatives}) == 1
    assert len({key_of(negative=negative, cfg=2.0).text for negative in negatives}) == 2
    always = parts()[0].clone()
    always.model_options["disable_cfg1_optimization"] = True
    assert len({key_of(always, negative=negative, cfg=1.0).text for negative in negatives}) == 2


@pytest.mark.parametrize("method", ["euler", "o-belm"])
def test_what_a_method_does_not_use_is_not_in_its_key(method):
    assert key_of(method=method) == key_of(method=method, iterations=7, tolerance=0.01)
    assert key_of(method=method) != key_of()


OTHER_MODELS: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    # Each with a partner that differs in a number only.
    "LoRA": (lambda model: lora(model, 1.0), lambda model: lora(model, 0.9)),
    "LoRA's values": (lambda model: lora(model, 1.0), lambda model: lora(model, 1.0, 0.04)),
    "FreeU": (lambda model: free_u(model, 1.3), lambda model: free_u(model, 1.31)),
    "PAG": (
        lambda model: core("nodes_pag", "PerturbedAttentionGuidance", model, scale=3.0),
        lambda model: core("nodes_pag", "PerturbedAttentionGuidance", model, scale=3.5),
    ),
    "RescaleCFG": (
        lambda model: core("nodes_model_advanced", "RescaleCFG", model, multiplier=0.7),
        lambda model: core("nodes_model_advanced", "RescaleCFG", model, multiplier=0.6),
    ),
    "attention patch": (lambda model: attention(model, 1.0), lambda model: attention(model, 0.5)),
    "sampling type": (
        lambda model: sampling_type(model, "eps"),
        lambda model: sampling_type(model, "v_prediction"),
    ),
}


@pytest.mark.parametrize("name", OTHER_MODELS)
def test_another_patch_is_another_key_and_the_same_one_the_same(name):
    one, other = OTHER_MODELS[name]
    key = key_of(one(parts()[0]))
    assert not key.unstable and key_of(one(parts()[0])) == key
    assert len({key.text, key_of().text, key_of(other(parts()[0])).text}) == 3


def test_one_changed_weight_is_another_model():
    assert key_of(with_another_weight()).model != key_of().model
    assert key_of(with_another_weight()) == key_of(with_another_weight())


def test_where_the_weights_are_does_not_matter():
    import comfy.model_management as management

    base = random_model()
    patched = lora(base, 1.0)
    plain, with_lora = key_of(base), key_of(patched)
    assert plain == key_of(base.clone()) == key_of() and with_lora == key_of(patched.clone())
    value = base.model.diffusion_model.output_blocks[8][1].transformer_blocks[0].attn1.to_v
    before = value.weight.clone()
    management.load_models_gpu([patched])
    assert not torch.equal(value.weight, before), "the LoRA is in the weights now"
    assert key_of(base) == plain and key_of(patched) == with_lora
    management.load_models_gpu([base])
    assert (
        torch.equal(value.weight, before) and key_of(base) == plain and key_of(patched) == with_lora
    )


# Files


def made_up(key: str, seed: int = 0) -> Inversion:
    generator = torch.Generator().manual_seed(seed)
    options = {"pooled_output": torch.randn(1, 8, generator=generator), "strength": 0.5, "n": None}
    cond = [[torch.randn(1, 77, 8, generator=generator), options]]
    latents = torch.randn(4, 1, 4, 8, 8, generator=generator)
    return Inversion(LOW, latents, cond, "euler", "model", key, 3, 1.5, latents[-1] + 0.1)


def test_a_file_holds_everything(tmp_path):
    written = made_up("key")
    write_inversion(tmp_path / "new" / "one.safetensors", written)
    read = read_inversion(tmp_path / "new" / "one.safetensors")
    assert same(read, written)
    options, original = read.conditioning[0][1], written.conditioning[0][1]
    assert torch.equal(options.pop("pooled_output"), original["pooled_output"]) and options == {
        "strength": 0.5,
        "n": None,
    }
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["one.safetensors"]


def damage(path: Path, kind: str) -> None:
    content = path.read_bytes()
    if kind in ("empty", "truncated", "cut by one"):
        path.write_bytes(
            content[
                : {"empty": 0, "truncated": len(content) // 2, "cut by one": len(content) - 1}[kind]
            ]
        )
    elif kind == "noise":
        path.write_bytes(b"\x93PNG" * 500)
    elif kind == "foreign":
        safetensors.torch.save_file({"latents": torch.zeros(3)}, path, {"format": "pt"})
    elif kind == "edited latents":
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif kind == "edited header":
        path.write_bytes(content.replace(b"model_calls", b"model_cells"))
    else:
        assert kind == "another's"
        write_inversion(path, made_up("another key"))


KINDS = {
    "empty": "damaged or no safetensors file",
    "truncated": "damaged or no safetensors file",
    "cut by one": "damaged or no safetensors file",
    "noise": "damaged or no safetensors file",
    "foreign": "not an inversion of this version",
    "edited latents": "changed after it was written",
    "edited header": "changed after it was written",
    "another's": "belongs to another picture",
}


CHANGES: dict[str, Callable[[Inversion], dict[str, Any]]] = {
    "its sigmas|sigmas must": lambda _: {"sigmas": LOW.flip(0)},
    "got \\[0.8, nan": lambda _: {"sigmas": torch.tensor([0.8, math.nan, 0.2, 0.0])},
    "got \\[0.8, 0.0, 0.5": lambda _: {"sigmas": torch.tensor([[0.8, 0.0], [0.5, 0.0]])},
    "latents have the shape \\(3,": lambda whole: {"latents": whole.latents[1:]},
    "latents have the shape \\(4, 4,": lambda whole: {"latents": whole.latents[:, 0]},
    "latents have the shape \\(4, 0,": lambda whole: {"latents": whole.latents[:, :0]},
    "its latents are not finite": lambda whole: {"latents": whole.latents / 0},
    "sampled again have the shape": lambda whole: {"resampled": whole.latents[0, :, :2]},
    "its method cannot be 'magic'": lambda _: {"method": "magic"},
    "its model cannot be 3": lambda _: {"model": 3},
    "its model_calls cannot be -1": lambda _: {"model_calls": -1},
    "its model_calls cannot be True": lambda _: {"model_calls": True},
    "its seconds cannot be nan": lambda _: {"seconds": math.nan},
    "its conditioning cannot be \\[\\]": lambda _: {"conditioning": []},
    "conditioning.0 has the shape": lambda _: {"conditioning": [[torch.zeros(77, 8), {}]]},
    "conditioning.0  are not finite": lambda _: {
        "conditioning": [[torch.full((1, 77, 8), math.inf), {}]]
    },
    "conditioning.0 pooled_output are not finite": lambda _: {
        "conditioning": [[torch.zeros(1, 77, 8), {"pooled_output": torch.tensor([math.nan])}]]
    },
    "conditioning.0 strength is nan": lambda _: {
        "conditioning": [[torch.zeros(1, 77, 8), {"strength": math.nan}]]
    },
}


@pytest.mark.parametrize("message", CHANGES)
def test_what_does_not_fit_together_is_refused_and_no_error_of_the_cache(message, tmp_path, caplog):
    whole = made_up("key")
    path = tmp_path / "key.safetensors"
    write_inversion(path, dataclasses.replace(whole, **CHANGES[message](whole)))
    with pytest.raises(
        UnreadableInversion, match=rf"^key\.safetensors is no inversion: .*{message}"
    ):
        read_inversion(path)
    assert InversionCache(tmp_path, 10**6).get("key") is None
    assert "computed again: key.safetensors is no inversion" in caplog.text


def with_start(path: Path, header: bytes, length: int | None = None) -> None:
    path.write_bytes((len(header) if length is None else length).to_bytes(8, "little") + header)


METADATA = '{"mark": "magicportrait inversion", "version": "1", "header": "{}"}'


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"{",
        b"[]",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"__metadata__": []}',
        b'{"a": {"data_offsets": "ab"}}',
        b'{"a": {"data_offsets": []}}',
        f'{{"__metadata__": {METADATA}, "a": {{"data_offsets": [0, 10]}}}}'.encode(),
        f'{{"__metadata__": {METADATA}, "a": {{"data_offsets": [0, 0]}}}}'.encode(),
        f'{{"__metadata__": {METADATA}}}'.encode(),
    ],
)
def test_a_header_that_is_none_is_refused(header, tmp_path):
    path = tmp_path / "odd.safetensors"
    with_start(path, header)
    # Only our own words.
    reasons = r"is damaged or no safetensors file(: it.*)?|is not an inversion.*|was changed.*"
    with pytest.raises(UnreadableInversion, match=rf"^odd\.safetensors ({reasons})$"):
        read_inversion(path)


@pytest.mark.parametrize("length", [10**6, 2**63, 2**64 - 1])
def test_a_header_longer_than_the_file_is_not_read(length, tmp_path):
    path = tmp_path / "odd.safetensors"
    with_start(path, b"{}", length)
    with pytest.raises(UnreadableInversion, match="its header is not whole"):
        read_inversion(path)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b'{"a": {"data_offsets": [0, 300000000]}}', "is not an inversion of this version"),
        (f'{{"__metadata__": {METADATA}}}'.encode(), r"has 300000000 bytes, \d+ are expected"),
        (b"\x89PNG" * 100, "its header cannot be read"),
    ],
)
def test_a_large_file_that_is_no_inversion_is_not_read_whole(header, message, tmp_path):
    path = tmp_path / "large.safetensors"
    with_start(path, header)
    os.truncate(path, 300_000_000)
    tracemalloc.start()
    try:
        with pytest.raises(UnreadableInversion, match=message):
            read_inversion(path)
        assert tracemalloc.get_traced_memory()[1] < 10**6
    finally:
        tracemalloc.stop()


def test_a_folder_in_the_place_of_a_file_is_a_miss(tmp_path, caplog):
    (tmp_path / "key.safetensors").mkdir()
    cache = InversionCache(tmp_path, 10**6)
    assert cache.get("key") is None
    assert "computed again: key.safetensors cannot be read: Is a directory" in caplog.text
    cache.keep(made_up("key"))
    assert "there is a folder of that name" in caplog.text


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_file_is_reported_and_replaced(kind, tmp_path, caplog):
    cache, inversion = InversionCache(tmp_path, 10**6), made_up("key")
    cache.keep(inversion)
    assert same(cache.get("key"), inversion)
    [path] = tmp_path.iterdir()
    damage(path, kind)
    with caplog.at_level(logging.WARNING):
        assert cache.get("key") is None
    assert f"computed again: {path.name} " in caplog.text and KINDS[kind] in caplog.text
    cache.keep(inversion)
    assert same(cache.get("key"), inversion)


def test_a_damaged_file_costs_one_computation(model_calls, caplog):
    first = invert(parts()[0], measure=False)[0]
    [path] = cache_folder().iterdir()
    damage(path, "truncated")
    model_calls.clear()
    second = invert(parts()[0], measure=False)
    assert (
        model_calls
        and "from the cache" not in second[-1]
        and torch.equal(second[0].latents, first.latents)
    )
    assert "computed again" in caplog.text
    model_calls.clear()
    assert "from the cache" in invert(parts()[0], measure=False)[-1] and not model_calls


def test_nothing_is_said_of_what_was_never_there(tmp_path, caplog):
    assert InversionCache(tmp_path / "missing", 1).get("key") is None
    assert not caplog.text


def test_the_least_recently_used_goes_first(tmp_path):
    InversionCache(tmp_path, 10**6).keep(made_up("a"))
    size = next(tmp_path.iterdir()).stat().st_size
    cache = InversionCache(tmp_path, 3 * size)
    for age, key in enumerate("cba"):
        cache.keep(made_up(key))
        os.utime(tmp_path / f"{key}.safetensors", (10**9 - age, 10**9 - age))
    assert all(cache.get(key) is not None for key in "ac"), "now b is the oldest"
    cache.keep(made_up("d"))
    assert {path.stem for path in tmp_path.iterdir()} == {"a", "c", "d"}
    InversionCache(tmp_path, 1).keep(made_up("e"))
    assert {path.stem for path in tmp_path.iterdir()} == {"e"}, (
        "the newest stays, even when it alone is too large"
    )


def test_a_full_disk_costs_the_cache_and_no_more(tmp_path, monkeypatch, caplog):
    def fail(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    InversionCache(tmp_path, 10**6).keep(made_up("key"))
    assert (
        "could not be cached" in caplog.text
        and "the disk is full" in caplog.text
        and not list(tmp_path.iterdir())
    )


def test_a_file_that_cannot_be_touched_is_still_read(tmp_path, monkeypatch):
    def fail(*_: Any) -> None:
        raise PermissionError("not yours")

    cache = InversionCache(tmp_path, 10**6)
    cache.keep(made_up("key"))
    monkeypatch.setattr(os, "utime", fail)
    assert cache.get("key") is not None


def test_what_a_file_cannot_hold_is_not_cached(tmp_path, caplog):
    odd = made_up("key")
    odd.conditioning[0][1]["control"] = object()
    InversionCache(tmp_path, 10**6).keep(odd)
    assert not list(tmp_path.iterdir()) and not caplog.text


CHILD = """
import os, signal, sys
from pathlib import Path
sys.path.append(sys.argv[1])
from devkit.pack import load_pack
load_pack()
import torch
from magicportrait.host.inversion.run import Inversion
from magicportrait.host.inversion.cache import InversionCache

latents = torch.randn(4, 1, 4, 8, 8)
sigmas, conditioning = torch.tensor([0.8, 0.5, 0.2, 0.0]), [[torch.zeros(1, 77, 8), {}]]
made = lambda key: Inversion(sigmas, latents, conditioning, "euler", "model", key, 3, 1.5)
cache = InversionCache(Path(sys.argv[2]), 10**6)
cache.keep(made("whole"))
cache.keep(made("again"))
os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)
cache.keep(made(sys.argv[3]))
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="Windows cannot kill like that")
def test_a_process_killed_while_it_writes_leaves_a_usable_cache(tmp_path, caplog):
    for key in ("fresh", "again"):
        child = subprocess.run(
            [sys.executable, "-c", CHILD, str(ROOT), str(tmp_path), key],
            capture_output=True,
            text=True,
        )
        assert child.returncode == -signal.SIGKILL, child.stderr
    leftovers = list(tmp_path.glob("*.part"))
    assert len(leftovers) == 2
    cache = InversionCache(tmp_path, 10**6)
    assert cache.get("fresh") is None and cache.get("whole") is not None
    assert cache.get("again") is not None, "the old file stays until the new one is whole"
    cache.keep(made_up("fresh"))
    assert same(cache.get("fresh"), made_up("fresh")) and not caplog.text
    for part in leftovers:
        os.utime(part, (10**9, 10**9))
    cache.keep(made_up("fresh"))
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize("name", [".tmpA1b2C3", "a.safetensors.0123.part"])
def test_what_a_dead_writer_left_counts_and_goes(name, tmp_path):
    """In the forms of earlier versions too, where nothing removed it."""
    InversionCache(tmp_path, 10**6).keep(made_up("a"))
    size = (tmp_path / "a.safetensors").stat().st_size
    leftover = tmp_path / name
    leftover.write_bytes(bytes(size))
    cache = InversionCache(tmp_path, 3 * size)
    for key in "bc":
        cache.keep(made_up(key))
    assert {path.name for path in tmp_path.iterdir()} == {
        "b.safetensors",
        "c.safetensors",
        name,
    }, "a had to go, for somebody may be writing"
    os.utime(leftover, (10**9, 10**9))
    cache.keep(made_up("d"))
    assert {path.stem for path in tmp_path.iterdir()} == {"b", "c", "d"}


BUSY = """
import sys, time
from pathlib import Path
sys.path.append(sys.argv[1])
from devkit.pack import load_pack
load_pack()
import torch
from magicportrait.host.inversion.run import Inversion
from magicportrait.host.inversion.cache import InversionCache

folder, own = Path(sys.argv[2]), sys.argv[3]
latents = torch.full((4, 1, 4, 32, 32), float(own))
sigmas, conditioning = torch.tensor([0.8, 0.5, 0.2, 0.0]), [[torch.zeros(1, 77, 8), {}]]
made = lambda key: Inversion(sigmas, latents, conditioning, "euler", "model", key, 3, 1.5)
# Room for two of three: both throw out what the other writes and reads.
cache = InversionCache(folder / "cache", 170_000)
(folder / own).touch()
while len(list(folder.iterdir())) < 2 + (folder / "cache").exists():
    time.sleep(0.001)
for i in range(150):
    cache.keep(made("abc"[i % 3]))
    cached = cache.get("abc"[(i + 1) % 3])
    values = [0.0] if cached is None else cached.latents.unique().tolist()
    assert values in ([0.0], [1.0]), "half of one and half of the other"
"""


def test_two_processes_share_a_cache(tmp_path):
    """They write the same entries at once, and throw out each other's."""
    command = [sys.executable, "-c", BUSY, str(ROOT), str(tmp_path)]
    children = [
        subprocess.Popen(
            [*command, own], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for own in "01"
    ]
    said = [child.communicate()[0] for child in children]
    assert [child.returncode for child in children] == [0, 0] and said == [
        "",
        "",
    ], "neither fails, and nothing is complained about"
    assert not list(tmp_path.glob("cache/*.part"))
    assert any(InversionCache(tmp_path / "cache", 10**6).get(key) for key in "abc")


# Save and load


@pytest.fixture
def folders(tmp_path, monkeypatch) -> Path:
    """The output folder, with output/inversions and models/inversions as the only places of
    inversions."""
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "output"))
    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path / "models"))
    # So that what the test registers goes with it.
    monkeypatch.setattr(
        folder_paths, "folder_names_and_paths", {**folder_paths.folder_names_and_paths}
    )
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    folder_paths.folder_names_and_paths.pop(inversion_files.FOLDER_KIND, None)
    inversion_files.register_folders()
    return tmp_path / "output"


def test_saving_and_loading(folders):
    model = parts()[0]
    inverted = invert(model, method="o-belm", cache_mb=0)
    names = [
        MagicInversionSave.execute(inverted[0], name).args[0]
        for name in ("face", "face", "sub/face")
    ]
    assert names == [
        "face_00001_.safetensors",
        "face_00002_.safetensors",
        os.path.join("sub", "face_00001_.safetensors"),
    ]
    assert sorted(inversion_files.list_files()) == sorted(names)
    assert MagicInversionLoad.validate_inputs(names[0]) is True
    loaded = MagicInversionLoad.execute(model, names[2]).args
    assert same(loaded[0], inverted[0])
    assert torch.equal(sample_again(model, (*loaded[:5], "")), sample_again(model, inverted))
    before = MagicInversionLoad.fingerprint_inputs(names[0])
    os.utime(folders / "inversions" / names[0], (10**9, 10**9))
    assert MagicInversionLoad.fingerprint_inputs(names[0]) != before


def test_files_in_the_models_folder_are_found(folders):
    write_inversion(folders.parent / "models" / "inversions" / "mine.safetensors", made_up("key"))
    assert inversion_files.list_files() == ["mine.safetensors"]


@pytest.mark.parametrize("name", ["../face", "../../face", "sub/../../face", "/face"])
def test_nothing_is_written_outside(name, folders):
    before = {path for path in folders.parent.rglob("*") if path.is_file()}
    with pytest.raises(OSError, match=r"leads out of .*: take one that stays inside"):
        MagicInversionSave.execute(made_up("key"), name)
    assert {path for path in folders.parent.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("x" * 300, "has 300 bytes, 236 are the most: take a shorter one"),
        ("sub/" + "帽" * 80, "has 240 bytes, 236 are the most"),
        ("a\0b", "has a NUL character"),
    ],
)
def test_a_name_that_no_disk_takes_is_refused_in_words(name, message, folders):
    with pytest.raises(OSError, match=message):
        MagicInversionSave.execute(made_up("key"), name)


def test_a_file_of_the_same_second_and_size_is_another_one(folders):
    name = MagicInversionSave.execute(made_up("key"), "face").args[0]
    path = folders / "inversions" / name
    states = set()
    for nanoseconds, size in ((0, 0), (1, 0), (1, 1)):
        with path.open("ab") as file:
            file.write(bytes(size))
        os.utime(path, ns=(0, 10**18 + nanoseconds))
        states.add(MagicInversionLoad.fingerprint_inputs(file=name, model=None))
    assert len(states) == 3
    path.unlink()
    assert MagicInversionLoad.fingerprint_inputs(file=name) not in states
    assert MagicInversionLoad.fingerprint_inputs() == ""


@pytest.mark.parametrize("name", ["", " "])
def test_without_a_name_there_is_one(name, folders):
    assert (
        MagicInversionSave.execute(made_up("key"), name).args[0] == "inversion_00001_.safetensors"
    )


@pytest.mark.parametrize(
    "name",
    ["../secret.safetensors", "secret.safetensors", "/etc/passwd", "sub/../../secret.safetensors"],
)
def test_nothing_is_read_outside(name, folders):
    write_inversion(folders / "secret.safetensors", made_up("key"))
    MagicInversionSave.execute(made_up("key"), "sub/face")
    assert "is not there" in str(MagicInversionLoad.validate_inputs(name))
    with pytest.raises(ValueError, match="is not there"):
        MagicInversionLoad.execute(parts()[0], name)


def test_a_damaged_file_of_the_users_is_refused_with_the_reason(folders):
    name = MagicInversionSave.execute(made_up("key"), "face").args[0]
    damage(folders / "inversions" / name, "edited latents")
    with pytest.raises(
        UnreadableInversion, match=r"face_00001_\.safetensors was changed after it was written"
    ):
        MagicInversionLoad.execute(parts()[0], name)


@pytest.mark.parametrize("other", ["another LoRA", "another sampling type"])
def test_another_model_is_refused_with_both_named(other, folders):
    model = parts()[0]
    inversion = invert(model, measure=False)[0]
    name = MagicInversionSave.execute(inversion, "face").args[0]
    changed = lora(model, 0.5) if other == "another LoRA" else sampling_type(model, "v_prediction")
    with pytest.raises(ValueError, match="was inverted with another model") as caught:
        MagicInversionLoad.execute(changed, name)
    assert f"'{name}'" in str(caught.value)
    assert inversion.model[:8] in str(caught.value) and key_of(changed).model[:8] in str(
        caught.value
    )


@pytest.mark.parametrize("width", [64, 1280])
def test_zeros_fit_sdxls_pooled_embedding(width):
    model = random_model("sdxl", pooled=width)
    assert zero_conditioning(model)[0][1]["pooled_output"].shape == (1, width)
    assert invert(model, shape="sdxl", clip=None, measure=False)[0].latents.isfinite().all()
    assert zero_conditioning(parts()[0])[0][1]["pooled_output"] is None
