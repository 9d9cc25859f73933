"""MagicStyle in the host: what it must reproduce, what it must leave alone, and whom it must get
along with."""

from __future__ import annotations

import dataclasses
import functools
import gc
import importlib
import logging
import weakref
from functools import cache
from pathlib import Path
from typing import Any

import folder_paths
import pytest
import torch
from torch import Tensor

from magicportrait.host.sampling import feature_store
from magicportrait.host.sampling.feature_store import FeatureStore
from magicportrait.host.sampling.range import noise_bands
from magicportrait.host.systems import magicstyle
from magicportrait.magic.inversion import psnr
from magicportrait.magic.reference_passes import SPARSE, pass_levels
from magicportrait.nodes import magicstyle as nodes
from magicportrait.nodes.declare import defaults_of
from magicportrait.nodes.magicstyle import MagicStyleApply, MagicStyleReference, MagicStyleSampler
from magicportrait.tests.host.inverting import invert, latent, sample
from magicportrait.tests.host.models import call_node, state_of
from magicportrait.tests.host.sampling import apply as with_face
from magicportrait.tests.host.sampling import encode, parts, watch

FP32 = torch.float32
LARGE = (16, 16)
"""Core's FreeU and SAG need more than one token in the middle."""


@cache
def invert_picture(
    seed: int = 0,
    size: tuple[int, int] = (8, 8),
    batch: int = 1,
    shape: str = "sd15",
    dtype: torch.dtype = FP32,
    **options: Any,
) -> tuple[Any, ...]:
    """All outputs of MagicStyleInvert, computed once for all tests."""
    chosen = {"method": "o-belm", "measure": False, "cache_mb": 0, **options}
    return invert(parts(shape, dtype)[0], latent(batch, size, seed), shape, **chosen)


def style(
    seed: int = 50,
    weight: float = 1.0,
    mask: Tensor | None = None,
    styles: tuple[Any, ...] = (),
    invert: bool = False,
    **options: Any,
) -> Any:
    """MAGIC_STYLES with one more."""
    inversion = invert_picture(seed, **options)[0]
    return MagicStyleReference.execute(inversion, weight, mask, styles, invert).args[0]


def apply(
    model: Any = None, content: tuple[Any, ...] | None = None, styles: Any = None, **options: Any
) -> tuple[Any, dict[str, Any]]:
    """MODEL and LATENT of MagicStyleApply, fused in every step unless the options say otherwise."""
    chosen = {
        **defaults_of(MagicStyleApply),
        "preset": "custom",
        "style_scale": 1.0,
        "end": 1.0,
        **options,
    }
    content = content or invert_picture()
    return MagicStyleApply.execute(
        model or parts()[0], content[0], styles or style(), **chosen
    ).args[:2]


def run(
    patched: tuple[Any, dict[str, Any]], content: tuple[Any, ...] | None = None, **options: Any
) -> Tensor:
    """The picture, sampled with core's SamplerCustom."""
    _, _, sigmas, sampler, positive, _ = content or invert_picture()
    model, noise = patched
    return sample(model, noise, sigmas, sampler, **{"positive": positive, **options})


def close(out: Tensor, expected: Tensor, tolerance: float = 2e-3) -> None:
    torch.testing.assert_close(
        out, expected, rtol=tolerance, atol=tolerance * expected.std().item()
    )


@pytest.fixture
def passes(monkeypatch) -> list[int]:
    """One entry for each reference pass."""
    seen: list[int] = []
    original = magicstyle.ReferencePass.run
    monkeypatch.setattr(
        magicstyle.ReferencePass,
        "run",
        lambda self, *args: (seen.append(1), original(self, *args))[1],
    )
    return seen


# In all the ways in which a host may run it

COMBINATIONS = [
    # shape, dtype, batch, cfg, content, style, keys
    ("sd15", torch.float32, 2, 1.0, (9, 13), (8, 8), "content+style"),
    ("sd15", torch.float16, 1, 7.0, (8, 8), (8, 11), "blend"),
    ("sd21v", torch.float32, 1, 7.0, (8, 8), (13, 8), "style"),
    ("sd21v", torch.bfloat16, 2, 1.0, (8, 9), (8, 9), "content"),
    ("sdxl", torch.float16, 2, 7.0, (11, 8), (8, 8), "content+style"),
    ("sdxl", torch.bfloat16, 1, 1.0, (9, 9), (8, 8), "style"),
]


@pytest.mark.parametrize(
    ("shape", "dtype", "batch", "cfg", "size", "style_size", "keys"), COMBINATIONS
)
def test_runs_and_is_finite(shape, dtype, batch, cfg, size, style_size, keys):
    of_model = {"shape": shape, "dtype": dtype, "method": "euler", "steps": 2}
    content, model = invert_picture(0, size, batch, **of_model), parts(shape, dtype)[0]
    # Three quarters of the queries, so that the picture's own take part too.
    patched = apply(
        model, content, style(size=style_size, **of_model), keys=keys, alpha=0.5, beta=0.25
    )
    samples = run(patched, content, cfg=cfg)
    assert samples.shape == (batch, 4, *size) and samples.isfinite().all()
    assert not torch.equal(samples, run((model, patched[1]), content, cfg=cfg))


# What must come out


@pytest.mark.parametrize(
    ("shape", "method"), [("sd15", "o-belm"), ("sd21v", "fixed-point"), ("sd21v", "o-belm")]
)
def test_content_alone_is_reproduced_as_well_as_the_inverter_can(shape, method):
    model, samples = parts(shape)[0], latent()
    content = invert(model, samples, shape, method=method, cache_mb=0)
    patched = apply(
        model,
        content,
        style(shape=shape),
        alpha=1.0,
        beta=0.0,
        keys="content",
        adain=0.0,
        temperature=1.0,
        layers="all",
    )
    span = float(samples.max() - samples.min())
    limit = psnr(content[0].resampled, samples, span)
    reached = psnr(run(patched, content), samples, span)
    assert limit > 30
    assert reached > min(limit - 1, 80), f"{reached:.1f} dB, the inverter alone {limit:.1f} dB"


@pytest.mark.parametrize("cfg", [1.0, 7.0])
@pytest.mark.parametrize("moment", [0.0, 1.0])
def test_out_of_range_is_bit_identical_to_no_patch(moment, cfg):
    patched, noise = apply(start=moment, end=moment, adain=0.0)
    assert torch.equal(noise["samples"], invert_picture()[1]["samples"])
    assert torch.equal(run((patched, noise), cfg=cfg), run((parts()[0], noise), cfg=cfg))


def test_a_range_acts_in_its_steps_only(passes):
    run(apply(start=0.0, end=1.0))
    assert len(passes) == 3
    run(apply(start=0.5, end=1.0))
    assert 3 < len(passes) < 6


def test_without_weight_and_mask_a_style_changes_nothing():
    alone = run(apply())
    close(run(apply(styles=style(60, weight=0.0, styles=style()))), alone, 1e-5)
    assert not torch.equal(run(apply(styles=style(weight=0.5))), alone)


def test_two_masks_of_one_style_are_that_style_everywhere():
    left = torch.zeros(1, 64, 64)
    left[..., :24] = 1
    left[..., 24:40] = 0.25
    both = style(mask=1 - left, styles=style(mask=left))
    close(run(apply(styles=both)), run(apply()), 1e-3)


def test_each_half_takes_after_the_style_of_its_mask():
    left = torch.zeros(1, 8, 8)
    left[..., :4] = 1
    options = {"keys": "style", "alpha": 1.0, "beta": 0.0, "adain": 1.0}
    both = apply(styles=style(60, mask=1 - left, styles=style(50, mask=left)), **options)[1][
        "samples"
    ]
    first, second = (apply(styles=style(seed), **options)[1]["samples"] for seed in (50, 60))
    torch.testing.assert_close(both[..., :4], first[..., :4])
    torch.testing.assert_close(both[..., 4:], second[..., 4:])
    mixed = run(apply(styles=style(60, mask=1 - left, styles=style(50, mask=left)), **options))
    alone = [run(apply(styles=style(seed), **options)) for seed in (50, 60)]
    apart = [
        [float((mixed - other)[..., half].norm()) for half in (slice(0, 3), slice(5, 8))]
        for other in alone
    ]
    assert apart[0][0] < apart[1][0] and apart[1][1] < apart[0][1]


def test_contents_of_a_batch_do_not_see_each_other():
    content = invert_picture(0, batch=3)
    together = run(apply(content=content), content)
    for i in range(3):
        alone = invert_picture(i)
        close(run(apply(content=alone), alone)[0], together[i])


def test_the_single_node_is_the_graph():
    model, clip, vae = parts()
    pictures = [
        torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)
    ]
    latent, picture = MagicStyleSampler.execute(
        model=model,
        vae=vae,
        content=pictures[0],
        style=pictures[1],
        clip=clip,
        **{**defaults_of(MagicStyleSampler), "steps": 3},
    ).args
    content, other = (invert(model, vae.encode(given), measure=False) for given in pictures)
    patched = apply(
        model, content, MagicStyleReference.execute(other[0], 1.0).args[0], preset="balanced"
    )
    assert torch.equal(latent["samples"], run(patched, content))
    assert torch.equal(picture, vae.decode(latent["samples"]))


@pytest.mark.parametrize("method", ["NoPreviews", "Latent2RGB"])
def test_one_node_shows_the_hosts_previews_if_they_are_on(method, monkeypatch):
    import comfy.utils
    import latent_preview

    shown: list[Any] = []
    monkeypatch.setattr(
        comfy.utils, "PROGRESS_BAR_HOOK", lambda *progress, **_: shown.append(progress)
    )
    methods = latent_preview.LatentPreviewMethod
    monkeypatch.setattr(latent_preview.args, "preview_method", methods[method])
    model, clip, vae = parts()
    picture = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(0))
    options = {**defaults_of(MagicStyleSampler), "steps": 2, "cache_mb": 0}
    MagicStyleSampler.execute(
        model=model, vae=vae, content=picture, style=picture, clip=clip, **options
    )
    # Two inversions of two steps, and the sampling.
    assert [progress[:2] for progress in shown] == [(1, 2), (2, 2)] * 3
    assert [progress[2] is not None for progress in shown] == [method != "NoPreviews"] * 6


# Guidance


def rows_seen_by_another_patch(model: Any, **options: Any) -> list[list[int]]:
    seen: list[list[int]] = []

    def foreign(q: Tensor, k: Tensor, v: Tensor, extra_options: dict[str, Any]) -> Tensor:
        seen.append(list(extra_options["cond_or_uncond"]))
        return v

    patched = model.clone()
    patched.set_model_attn1_replace(foreign, "output", 8)
    styled, noise = apply(patched, **options)
    assert run((styled, noise), cfg=7.0).isfinite().all()
    return seen


def test_another_attention_patch_keeps_the_rows_that_are_not_ours():
    # An attention patch is no part of the weights: the inversion stays valid.
    seen = rows_seen_by_another_patch(parts()[0])
    assert seen and all(chunks == [1] for chunks in seen)
    assert not rows_seen_by_another_patch(parts()[0], fuse_negative=True)


def test_fusing_the_negative_rows_changes_them_only_with_guidance():
    plain, fused = apply(), apply(fuse_negative=True)
    assert torch.equal(run(plain, cfg=1.0), run(fused, cfg=1.0))
    assert not torch.equal(run(plain, cfg=7.0), run(fused, cfg=7.0))


@pytest.mark.parametrize("fuse_negative", [False, True])
def test_low_memory_splitting_changes_nothing(fuse_negative, monkeypatch, model_calls):
    content = invert_picture(0, batch=2)
    patched = apply(content=content, fuse_negative=fuse_negative)
    model_calls.clear()
    joined = run(patched, content, cfg=7.0)
    # The reference pass, content and style together, and the picture's rows.
    assert set(model_calls) == {3, 4}
    model_calls.clear()
    monkeypatch.setattr(type(patched[0].model), "memory_required", lambda *args, **kwargs: 1e30)
    split = run(patched, content, cfg=7.0)
    assert set(model_calls) == {
        1,
        2,
    }, "references ran one by one, conditional and unconditional rows apart"
    close(split, joined)


# Features


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float16, 1e-3)])
def test_kept_features_give_the_same_picture_without_a_reference_pass(dtype, tolerance, passes):
    model, content = parts("sd15", dtype)[0], invert_picture(dtype=dtype)
    live = run(apply(model, content, style(dtype=dtype)), content)
    kept = apply(model, content, style(dtype=dtype), keep_features="memory")
    passes.clear()
    for expected in (3, 0):
        close(run(kept, content), live, tolerance)
        assert len(passes) == expected
        passes.clear()
    run(kept, content, cfg=7.0, positive=encode("a hat"))
    assert not passes, "the picture's own prompt and guidance do not matter to the references"


def test_sparse_passes_are_those_of_the_bands_and_kept_ones_need_none(passes, caplog):
    content, styles = invert_picture(steps=10), style(steps=10)
    every = run(apply(content=content, styles=styles), content)
    passes.clear()
    with caplog.at_level(logging.INFO):
        sparse = run(apply(content=content, styles=styles, reference_passes="sparse"), content)
    sampling = parts()[0].get_model_object("model_sampling")
    levels = pass_levels(content[2].tolist()[:-1], noise_bands(SPARSE, sampling))
    assert len(passes) == len(levels) < 10
    assert f"MagicStyle: {len(levels)} reference passes for 10 model calls" in caplog.messages
    assert not torch.equal(sparse, every)
    kept = apply(content=content, styles=styles, reference_passes="sparse", keep_features="memory")
    passes.clear()
    for expected in (len(levels), 0):
        assert torch.equal(run(kept, content), sparse) and len(passes) == expected
        passes.clear()


def test_features_above_the_budget_go_to_disk_and_leave_with_the_patch(monkeypatch, passes):
    monkeypatch.setattr(nodes, "FeatureStore", functools.partial(FeatureStore, budget=1000))
    live = run(apply())
    kept = apply(keep_features="memory")
    passes.clear()
    assert torch.equal(run(kept), live) and len(passes) == 3
    files = list(Path(folder_paths.get_temp_directory()).rglob("*.safetensors"))
    assert len(files) == 3
    assert torch.equal(run(kept), live) and len(passes) == 3
    del kept
    gc.collect()
    assert not any(path.exists() for path in files)


def test_on_a_full_disk_features_are_computed_again(monkeypatch, passes, caplog):
    def full(*_: Any, **__: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(nodes, "FeatureStore", functools.partial(FeatureStore, budget=1000))
    monkeypatch.setattr(feature_store, "write_file", full)
    live, kept = run(apply()), apply(keep_features="memory")
    passes.clear()
    assert torch.equal(run(kept), live) and torch.equal(run(kept), live)
    assert len(passes) == 6 and "No space left on device" in caplog.text


@pytest.mark.parametrize("change", [Path.unlink, lambda path: path.write_bytes(b"\1" * 100)])
def test_features_that_are_gone_from_the_disk_are_computed_again(
    change, monkeypatch, passes, caplog
):
    monkeypatch.setattr(nodes, "FeatureStore", functools.partial(FeatureStore, budget=1000))
    kept = apply(keep_features="memory")
    live = run(kept)
    change(next(Path(folder_paths.get_temp_directory()).rglob("*.safetensors")))
    passes.clear()
    for expected in (1, 0):
        assert torch.equal(run(kept), live) and len(passes) == expected
        passes.clear()
    assert "features kept on disk are gone" in caplog.text


def test_content_and_style_may_differ_in_what_else_their_conditioning_holds():
    """A CLIP gives a pooled output too, nothing gives zeros without one: equal sizes must not make
    them one batch."""
    content, other = invert_picture(0), invert_picture(50)[0]
    tensor = content[0].conditioning[0][0]
    for ours, theirs in ((torch.zeros(1, 8), None), (None, torch.zeros(1, 8))):
        one, two = (
            dataclasses.replace(i, conditioning=[[tensor, {"pooled_output": p}]])
            for i, p in ((content[0], ours), (other, theirs))
        )
        styles = MagicStyleReference.execute(two, 1.0).args[0]
        assert run(apply(content=(one, *content[1:]), styles=styles), content).isfinite().all()


def one_node(model: Any) -> Tensor:
    """What MagicStyle Sampler draws of two portraits."""
    _, clip, vae = parts()
    pictures = {"content": portrait(0), "style": portrait(1)}
    options = {**defaults_of(MagicStyleSampler), "steps": 6, "cache_mb": 0, **pictures}
    samples: Tensor = MagicStyleSampler.execute(model=model, vae=vae, clip=clip, **options).args[0][
        "samples"
    ]
    return samples


@cache
def in_one_node() -> Tensor:
    return one_node(parts()[0])


@pytest.mark.parametrize("node", ["EasyCacheNode", "LazyCacheNode"])
def test_the_one_node_sampler_works_with_step_caches(node):
    """They act on the picture, and not on the inversions, whose noise rises."""
    module = importlib.import_module("comfy_extras.nodes_easycache")
    cache = {"reuse_threshold": 10.0, "start_percent": 0.1, "end_percent": 0.95, "verbose": False}
    [cached] = call_node(getattr(module, node), model=parts()[0], **cache)
    drawn = [in_one_node(), one_node(cached)]
    assert all(samples.isfinite().all() for samples in drawn)
    assert not torch.equal(*drawn), f"{node} had no effect"


def portrait(seed: int) -> Tensor:
    return torch.rand(1, 128, 128, 3, generator=torch.Generator().manual_seed(seed))


def test_kept_features_are_those_of_the_same_weights_and_patches(passes):
    content, styles = invert_picture(size=LARGE), style(size=LARGE)
    model, noise = apply(content=content, styles=styles, keep_features="memory")
    for change in (lambda model: model, free_u, functools.partial(free_u, b1=1.6), with_lora):
        passes.clear()
        kept = run((change(model), noise), content)
        assert len(passes) == 3
        close(kept, run((change(apply(content=content, styles=styles)[0]), noise), content), 1e-5)


def test_one_reference_pass_a_sigma_serves_the_whole_batch(passes):
    content = invert_picture(0, batch=3)
    run(apply(content=content), content, cfg=7.0)
    assert len(passes) == 3


# Without a trace


def test_three_runs_leave_the_upstream_model_as_it_was():
    model = parts()[0]
    before = state_of(model)
    for _ in range(3):
        patched, noise = apply(model)
        run((patched, noise), cfg=7.0)
    assert state_of(model) == before
    assert sum(len(by_key) for by_key in patched.wrappers.values()) == 1
    assert state_of(patched)[0] == before[0]


@pytest.fixture
def tracked_features(monkeypatch) -> list[Any]:
    """Weak references to all features that a run makes."""
    made: list[Any] = []
    original = magicstyle.Features

    def track(q: Tensor, k: Tensor, v: Tensor, grid: tuple[int, int]) -> Any:
        made.extend(weakref.ref(tensor) for tensor in (q, k, v))
        return original(q, k, v, grid)

    monkeypatch.setattr(magicstyle, "Features", track)
    return made


def test_nothing_is_held_after_sampling(tracked_features):
    patched = apply()
    run(patched)
    gc.collect()
    assert tracked_features and not [ref for ref in tracked_features if ref() is not None]


def test_nothing_is_held_after_a_cancel_in_mid_sampling(tracked_features, monkeypatch):
    import comfy.model_management as management
    import latent_preview

    def cancel(step: int, *_: Any) -> None:
        if step == 1:
            raise management.InterruptProcessingException()

    model = parts()[0]
    before = state_of(model)
    patched = apply(model)
    with (
        monkeypatch.context() as changed,
        pytest.raises(management.InterruptProcessingException) as caught,
    ):
        changed.setattr(latent_preview, "prepare_callback", lambda *_: cancel)
        run(patched)
    gc.collect()
    # Whoever keeps the exception keeps the frames that it passed, but not what we held in them.
    assert caught.value is not None
    assert tracked_features and not [ref for ref in tracked_features if ref() is not None]
    assert state_of(model) == before
    assert run(patched).isfinite().all()


# Together with others


def core(module: str, node: str, **options: Any) -> Any:
    return call_node(getattr(importlib.import_module(f"comfy_extras.{module}"), node), **options)[0]


def free_u(model: Any, b1: float = 1.3) -> Any:
    return core("nodes_freelunch", "FreeU_V2", model=model, b1=b1, b2=1.4, s1=0.9, s2=0.2)


def with_lora(model: Any) -> Any:
    name = "diffusion_model.output_blocks.8.1.transformer_blocks.0.attn1.to_v.weight"
    patched = model.clone()
    patched.add_patches(
        {name: ("diff", (torch.full_like(model.model.state_dict()[name], 0.05),))}, 1.0
    )
    return patched


OTHERS = {
    "freeu": free_u,
    "pag": lambda model: core("nodes_pag", "PerturbedAttentionGuidance", model=model, scale=3.0),
    "sag": lambda model: core(
        "nodes_sag", "SelfAttentionGuidance", model=model, scale=0.5, blur_sigma=2.0
    ),
    "rescale_cfg": lambda model: core(
        "nodes_model_advanced", "RescaleCFG", model=model, multiplier=0.7
    ),
}


@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("name", OTHERS)
def test_works_together_in_any_order(name, order):
    other, content, styles = OTHERS[name], invert_picture(size=LARGE), style(size=LARGE)
    if order == "before":
        patched, noise = apply(other(parts()[0]), content, styles)
    else:
        patched, noise = apply(None, content, styles)
        patched = other(patched)
    samples = run((patched, noise), content, cfg=7.0)
    assert samples.isfinite().all()
    assert not torch.equal(samples, run((other(parts()[0]), noise), content, cfg=7.0)), (
        "MagicStyle had no effect"
    )
    assert not torch.equal(
        samples, run((apply(None, content, styles)[0], noise), content, cfg=7.0)
    ), f"{name} had no effect"


def test_a_lora_takes_part_in_inversion_and_stylisation():
    model = with_lora(parts()[0])
    content, other = (
        invert(model, latent(seed=seed), method="o-belm", measure=False) for seed in (0, 50)
    )
    styles = MagicStyleReference.execute(other[0], 1.0).args[0]
    samples = run(apply(model, content, styles), content)
    assert samples.isfinite().all() and not torch.equal(samples, run(apply()))


def test_regional_masks_on_the_prompt():
    import nodes as core_nodes

    mask = torch.zeros(1, 64, 64)
    mask[..., 32:] = 1
    left = core_nodes.ConditioningSetMask().append(encode("a hat"), 1 - mask, "default", 1.0)[0]
    right = core_nodes.ConditioningSetMask().append(encode("a wall"), mask, "default", 1.0)[0]
    both = core_nodes.ConditioningCombine().combine(left, right)[0]
    patched = apply()
    samples = run(patched, positive=both, cfg=7.0)
    assert samples.isfinite().all()
    assert not torch.equal(samples, run((parts()[0], patched[1]), positive=both, cfg=7.0))
    assert not torch.equal(samples, run(patched, positive=encode("a hat"), cfg=7.0))


def test_two_of_them_on_one_model():
    first, noise = apply(start=0.0, end=0.5)
    second, _ = apply(first, styles=style(60), start=0.5, end=1.0)
    samples = run((second, noise))
    assert samples.isfinite().all() and not torch.equal(samples, run((first, noise)))


@pytest.mark.parametrize("cfg", [1.0, 3.0])
@pytest.mark.parametrize("other", [with_face, watch], ids=["MagicFace", "Semantic Layout"])
def test_magicface_and_the_layout_get_along_in_either_order(other, cfg):
    """They look at the picture's own attention in the layers that MagicStyle draws."""
    content, styles, results = invert_picture(size=LARGE), style(size=LARGE), []
    for is_first in (True, False):
        if is_first:
            patched, noise = apply(None, content, styles, fuse_negative=True)
            patched, positive, record = other(patched)
        else:
            patched, positive, record = other(parts()[0])
            patched, noise = apply(patched, content, styles, fuse_negative=True)
        samples = run((patched, noise), content, positive=positive, cfg=cfg)
        results.append((samples, record.run_of(samples).steps))
    (samples, layouts), (again, found) = results
    assert torch.equal(samples, again) and sorted(layouts) == sorted(found) == [0, 1, 2]
    for number, step in layouts.items():
        assert (step.concepts == found[number].concepts).all()
        assert (step.phrase_maps == found[number].phrase_maps).all()
    plain, positive, _ = other(parts()[0])
    assert not torch.equal(samples, run((plain, noise), content, positive=positive, cfg=cfg))


def test_it_works_with_samplers_that_call_between_the_sigmas(passes):
    import comfy.samplers

    _, _, sigmas, _, positive, _ = invert_picture()
    patched, noise = apply()
    samples = sample(patched, noise, sigmas, comfy.samplers.sampler_object("dpm_2"), positive)
    assert samples.isfinite().all() and len(passes) > 3


# What is refused


def test_areas_are_refused_with_the_way_out():
    import nodes as core_nodes

    area = core_nodes.ConditioningSetArea().append(encode("a hat"), 32, 64, 0, 0, 1.0)[0]
    with pytest.raises(
        ValueError,
        match=r"the content has .* tokens, this call .* use ConditioningSetMask, not areas",
    ):
        run(apply(), positive=area)


def test_other_sigmas_are_refused_before_sampling(model_calls):
    sigmas = invert_picture()[2]
    patched, noise = apply()
    model_calls.clear()
    with pytest.raises(
        ValueError,
        match=(
            r"the content was inverted over 3 steps .*, the sampler runs 3 steps .* SIGMAS output"
        ),
    ):
        sample(patched, noise, sigmas * 0.9, invert_picture()[3], invert_picture()[4])
    assert not model_calls
    with pytest.raises(ValueError, match=r"starts at sigma .* connect all of the SIGMAS"):
        sample(patched, noise, sigmas[1:], invert_picture()[3], invert_picture()[4])
    assert not model_calls


@pytest.mark.parametrize("is_patched", [True, False], ids=["patched", "plain"])
def test_a_sampler_that_writes_into_the_sigmas_spoils_no_later_run(is_patched):
    """The host's uni_pc does, and a graph holds the SIGMAS of MagicStyle Invert for later runs. A
    MODEL without our patch it may well spoil: then the last sigma still passes for 0."""
    import comfy.samplers

    sigmas, patched = invert_picture()[2].clone(), apply()
    model, noise = patched if is_patched else (parts()[0], invert_picture()[1])
    uni_pc = comfy.samplers.sampler_object("uni_pc")
    sample(model, noise, sigmas, uni_pc, invert_picture()[4])
    assert torch.equal(sigmas, invert_picture()[2]) == is_patched
    out = sample(*patched, sigmas, invert_picture()[3], invert_picture()[4])
    close(out, run(patched))


def test_a_second_sampler_goes_on_where_the_first_ended():
    patched, noise = apply()
    import comfy.samplers

    _, _, sigmas, _, positive, _ = invert_picture()
    sampler = comfy.samplers.sampler_object("euler")
    whole = sample(patched, noise, sigmas, sampler, positive)
    first = sample(patched, noise, sigmas[:2], sampler, positive)
    second = sample(patched, {"samples": first}, sigmas[1:], sampler, positive)
    torch.testing.assert_close(second, whole, rtol=1e-3, atol=1e-3)


def test_another_latent_size_is_refused_before_sampling(model_calls):
    patched, _ = apply()
    with pytest.raises(
        ValueError,
        match=(
            "inverted at 64x64, the sampler runs at 96x72: connect the LATENT output of MagicStyle"
            " Apply"
        ),
    ):
        sample(
            patched,
            {"samples": torch.zeros(1, 4, 9, 12)},
            invert_picture()[2],
            invert_picture()[3],
            invert_picture()[4],
        )
    assert not model_calls


def test_another_number_of_pictures_is_refused_before_sampling(model_calls):
    content = invert_picture(0, batch=3)
    patched, noise = apply(content=content)
    model_calls.clear()
    with pytest.raises(ValueError, match="the content holds 3 pictures, the sampler runs 2"):
        run((patched, {"samples": noise["samples"][:2]}), content)
    assert not model_calls


def test_one_content_serves_a_larger_batch():
    patched, noise = apply()
    twice = run((patched, {"samples": noise["samples"].expand(2, -1, -1, -1).clone()}))
    close(twice[0], twice[1], 1e-5)


@pytest.mark.parametrize("which", ["content", "style"])
def test_an_inversion_of_another_model_is_refused(which):
    model = with_lora(parts()[0])
    theirs = invert(model, method="o-belm", measure=False)
    inversion = (theirs if which == "style" else invert_picture())[0]
    name = "style 1" if which == "style" else "the content"
    used = parts()[0] if which == "style" else model
    styles = MagicStyleReference.execute(
        theirs[0] if which == "style" else invert_picture(50)[0], 1.0
    ).args[0]
    with pytest.raises(ValueError, match=f"{name} was inverted with another model") as caught:
        apply(used, invert_picture(), styles)
    assert inversion.model[:8] in str(caught.value)


@pytest.mark.parametrize(
    ("styles", "options", "message"),
    [
        (lambda: style(batch=2), {}, "style 1 holds 2 pictures: invert one at a time"),
        (
            lambda: MagicStyleReference.execute(
                invert(parts()[0], steps=5, measure=False)[0], 1.0, None, style()
            ).args[0],
            {},
            "style 2 was inverted over 5 steps",
        ),
        (lambda: style(mask=torch.zeros(1, 8, 8)), {}, "the mask of a style is empty"),
        (
            lambda: style(mask=torch.ones(1, 8, 8), invert=True),
            {},
            "the mask of a style, turned round, is empty: turn off invert",
        ),
        (lambda: style(), {"layers": "o99"}, "'o99' has no self-attention in this model"),
    ],
)
def test_what_does_not_belong_together_is_refused_by_the_node(styles, options, message):
    with pytest.raises(ValueError, match=message):
        apply(styles=styles(), **options)


def test_values_that_contradict_each_other_are_refused_where_they_count():
    apply(preset="custom", start=0.2, end=0.8, alpha=0.8, beta=0.2)
    with pytest.raises(ValueError, match=r"start \(0.9\) is after end \(0.8\)"):
        apply(preset="custom", start=0.9, end=0.8, alpha=0.8, beta=0.2)
    with pytest.raises(ValueError, match=r"alpha \(0.8\) and beta \(0.3\) add up to more than 1"):
        apply(preset="custom", start=0.0, end=1.0, alpha=0.8, beta=0.3)
    # A preset has values of its own.
    apply(preset="gentle", start=0.9, end=0.8, alpha=0.8, beta=0.3)
    with pytest.raises(ValueError, match="preset: 'weird' is not one of"):
        apply(preset="weird")


def test_several_styles_for_the_sampler_are_refused_before_any_model_call(model_calls):
    pictures = {"content": torch.rand(1, 64, 64, 3), "style": torch.rand(3, 64, 64, 3)}
    model, clip, vae = parts()
    with pytest.raises(ValueError, match=r"style has 3 pictures, .* chain a MagicStyle Reference"):
        MagicStyleSampler.execute(
            model=model, clip=clip, vae=vae, **{**defaults_of(MagicStyleSampler), **pictures}
        )
    assert not model_calls


def test_the_mask_of_a_cut_out_style_is_noticed_and_can_be_turned_round(caplog):
    cut_out = torch.ones(1, 16, 16)
    cut_out[:, 4:12, 4:12] = 0
    [taken] = style(mask=cut_out)
    assert torch.equal(taken.mask, cut_out[0])
    assert "the mask of a style has the border of the picture" in caplog.text
    caplog.clear()
    [turned] = style(mask=cut_out, invert=True)
    assert torch.equal(turned.mask, 1 - cut_out[0]) and not caplog.text
