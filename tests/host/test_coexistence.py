"""Together with the nodes that people use: it works, or it says clearly why not."""

from __future__ import annotations

import importlib
import inspect
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from magicportrait.host.layout import tracker as layout_tracker
from magicportrait.host.systems import regions
from magicportrait.tests.host.models import call_node, with_control
from magicportrait.tests.host.sampling import (
    PROMPT,
    Sampling,
    apply,
    concepts,
    encode,
    parts,
    watch,
)


def core_node(module: str, name: str) -> Any:
    return getattr(importlib.import_module(f"comfy_extras.{module}"), name)


# A threshold so high that steps are skipped for certain.
CACHE = {"reuse_threshold": 10.0, "start_percent": 0.1, "end_percent": 0.95, "verbose": False}
PATCHES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "freeu": ("nodes_freelunch", "FreeU_V2", {"b1": 1.3, "b2": 1.4, "s1": 0.9, "s2": 0.2}),
    "pag": ("nodes_pag", "PerturbedAttentionGuidance", {"scale": 3.0}),
    "sag": ("nodes_sag", "SelfAttentionGuidance", {"scale": 0.5, "blur_sigma": 2.0}),
    "deep_shrink": (
        "nodes_model_downscale",
        "PatchModelAddDownscale",
        {
            "block_number": 3,
            "downscale_factor": 2.0,
            "start_percent": 0.0,
            "end_percent": 0.35,
            "downscale_after_skip": True,
            "downscale_method": "bicubic",
            "upscale_method": "bicubic",
        },
    ),
    "rescale_cfg": ("nodes_model_advanced", "RescaleCFG", {"multiplier": 0.7}),
    "easy_cache": ("nodes_easycache", "EasyCacheNode", CACHE),
    "lazy_cache": ("nodes_easycache", "LazyCacheNode", CACHE),
}


def sampling_beside_patch() -> Sampling:
    """One step of RSA and one of RBA."""
    return Sampling(batch=2, steps=2)


def sampling_beside_cache() -> Sampling:
    """EasyCache needs some steps to learn from before it skips one, and in 0.3.64 its cache does
    not fit the rows of a batch of two."""
    return Sampling(steps=8)


@cache
def magicface_alone(is_cache: bool) -> torch.Tensor:
    plain, positive, _ = apply(parts()[0])
    return (sampling_beside_cache() if is_cache else sampling_beside_patch()).run(plain, positive)


def beside(name: str) -> Sampling:
    return sampling_beside_cache() if "cache" in name else sampling_beside_patch()


@cache
def patch_alone(name: str) -> torch.Tensor:
    module, node, options = PATCHES[name]
    [patched] = call_node(core_node(module, node), model=parts()[0], **options)
    return beside(name).run(patched, apply(parts()[0])[1])


@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("name", PATCHES)
def test_works_together_in_any_order(name, order):
    module, node, options = PATCHES[name]
    model = parts()[0]
    if order == "before":
        patched, positive, _ = apply(call_node(core_node(module, node), model=model, **options)[0])
    else:
        patched, positive, _ = apply(model)
        patched = call_node(core_node(module, node), model=patched, **options)[0]
    samples = beside(name).run(patched, positive)
    assert samples.isfinite().all()
    assert not torch.equal(samples, patch_alone(name)), "MagicFace had no effect"
    assert not torch.equal(samples, magicface_alone("cache" in name)), f"{name} had no effect"


@pytest.mark.parametrize("node", ["nodes_hypertile.HyperTile", "nodes_tomesd.TomePatchModel"])
def test_nodes_that_rearrange_tokens_are_refused_with_a_reason(node):
    module, name = node.split(".")
    options = (
        {"tile_size": 64, "swap_size": 2, "max_depth": 3, "scale_depth": False}
        if "Tile" in name
        else {"ratio": 0.5}
    )
    patched, positive, _ = apply(parts()[0])
    patched = call_node(core_node(module, name), model=patched, **options)[0]
    with pytest.raises(ValueError, match=r"rearranges the tokens \(HyperTile, Token Merging\)"):
        Sampling(size=(32, 32)).run(patched, positive)


def tiles(batch: int) -> Any:
    """The model in two halves, `batch` of them in one call, as packs for tiled diffusion run it."""

    def wrapper(apply_model, args):
        x, sigma, conds = args["input"], args["timestep"], args["c"]
        options = conds["transformer_options"]
        halves = x.chunk(2, dim=-1)
        if batch == 1:
            return torch.cat([apply_model(half, sigma, **conds) for half in halves], dim=-1)
        doubled = {
            name: torch.cat([value, value]) if torch.is_tensor(value) else value
            for name, value in conds.items()
        }
        both = apply_model(
            torch.cat(halves),
            torch.cat([sigma, sigma]),
            **{**doubled, "transformer_options": options},
        )
        return torch.cat(both.chunk(2), dim=-1)

    return wrapper


@pytest.mark.parametrize("batch", [1, 2])
def test_pictures_cut_into_tiles_are_refused_with_a_reason(batch):
    patched, positive, _ = apply(parts()[0])
    patched = patched.clone()
    patched.set_model_unet_function_wrapper(tiles(batch))
    with pytest.raises(ValueError, match="another node cuts the picture into tiles"):
        Sampling(size=(16, 32)).run(patched, positive)


def test_another_attention_patch_keeps_the_rows_that_are_not_ours():
    """A pack that replaces attn1 in the same layers, set after ours: it must see the unconditional
    rows, and only these."""
    seen: list[tuple[list[int], int]] = []

    def foreign(q, k, v, extra_options):
        seen.append((list(extra_options["cond_or_uncond"]), q.shape[0]))
        return v

    patched, positive, _ = apply(parts()[0], semantic_cfg=False)
    patched = patched.clone()
    for block in range(6, 12):
        patched.set_model_attn1_replace(foreign, "output", block)
    Sampling(batch=2, steps=2).run(patched, positive)
    assert seen and all(chunks == [1] and rows == 2 for chunks, rows in seen)


def test_a_node_that_hides_the_attention_from_the_layout_is_refused():
    """One that replaces it for a model call, when everything of ours stands in its place."""
    import comfy.patcher_extension as extension

    def hide(executor, model, conds, x, sigma, model_options):
        own = model_options["transformer_options"]
        slots = dict.fromkeys((("output", block) for block in range(12)), lambda q, k, v, _: v)
        replaced = {**own["patches_replace"], "attn1": slots}
        options = {**model_options, "transformer_options": {**own, "patches_replace": replaced}}
        return executor(model, conds, x, sigma, options)

    patched, positive, _ = watch(parts()[0])
    patched.add_wrapper_with_key(extension.WrappersMP.CALC_COND_BATCH, "test", hide)
    with pytest.raises(ValueError, match="another node draws the picture's attention here"):
        Sampling(steps=1).run(patched, positive)


def test_attention_patch_of_a_single_transformer_block():
    calls: list[int] = []

    def foreign(q, k, v, extra_options):
        calls.append(q.shape[0])
        return v

    patched, positive, _ = apply(parts("sdxl")[0], "sdxl", semantic_cfg=False)
    patched = patched.clone()
    patched.set_model_attn1_replace(foreign, "output", 4, 1)
    samples = Sampling(steps=1).run(patched, positive)
    assert calls == [1] and samples.isfinite().all()


def test_lora_before_and_after():
    model = parts()[0]
    name = "diffusion_model.output_blocks.8.1.transformer_blocks.0.attn1.to_v.weight"
    change = {name: ("diff", (torch.full_like(model.model.state_dict()[name], 0.05),))}
    before = model.clone()
    before.add_patches(change, 1.0)
    first, positive, _ = apply(before)
    after, second_positive, _ = apply(model)
    after.add_patches(change, 1.0)
    sampling = Sampling(steps=2)
    one, two = sampling.run(first, positive), sampling.run(after, second_positive)
    torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-3)


def sample_with(guider: Any) -> torch.Tensor:
    import comfy.samplers

    noise = Sampling().noise()
    sigmas = comfy.samplers.calculate_sigmas(
        parts()[0].get_model_object("model_sampling"), "normal", 3
    )
    return guider.sample(
        noise,
        torch.zeros_like(noise),
        comfy.samplers.sampler_object("euler"),
        sigmas,
        disable_pbar=True,
        seed=1,
    )


@pytest.mark.parametrize("name", ["PerpNegGuider", "DualCFGGuider"])
def test_other_guiders_are_ours_too_wherever_our_rows_stand(name):
    node = core_node("nodes_perpneg" if name == "PerpNegGuider" else "nodes_custom_sampler", name)
    patched, positive, record = apply(parts()[0])
    conds = (
        {"cond1": positive, "cond2": encode("a man")}
        if name == "DualCFGGuider"
        else {"positive": positive}
    )
    inputs = {
        **conds,
        "negative": encode("bad"),
        "empty_conditioning": encode(""),
        "cfg": 7.0,
        "neg_scale": 1.0,
        "cfg_conds": 5.0,
        "cfg_cond2_negative": 3.0,
        "style": "regular",
    }
    known = inspect.signature(
        node.execute if hasattr(node, "define_schema") else getattr(node, node.FUNCTION)
    ).parameters
    inputs = {name: value for name, value in inputs.items() if name in known}
    samples, plain = (
        sample_with(call_node(node, model=model, **inputs)[0]) for model in (patched, parts()[0])
    )
    assert samples.isfinite().all() and sorted(record.run_of(samples).steps) == [0, 1, 2]
    assert not torch.equal(samples, plain)


def test_regional_conditioning():
    import nodes

    patched, positive, _ = apply(parts()[0])
    left = nodes.ConditioningSetArea().append(positive, 64, 128, 0, 0, 1.0)[0]
    mask = torch.zeros(1, 16, 16)
    mask[..., 8:] = 1
    right = nodes.ConditioningSetMask().append(encode("a wall"), mask, "default", 1.0)[0]
    combined = nodes.ConditioningCombine().combine(left, right)[0]
    sampling = Sampling(batch=2)
    samples = sampling.run(patched, combined)
    plain = sampling.run(parts()[0], combined)
    assert samples.isfinite().all() and not torch.equal(samples, plain)


def test_the_layout_of_a_part_of_the_picture_stays_in_its_place():
    import nodes

    patched, positive, record = watch(parts()[0])
    # As the host cuts it off, the second one may reach beyond the picture.
    areas = [
        nodes.ConditioningSetArea().append(positive, width, 128, x, 0, 1.0)[0]
        for x, width in ((0, 64), (192, 96))
    ]
    for area, columns in ((areas[0], slice(0, 8)), (areas[0] + areas[1], slice(0, 32))):
        samples = Sampling(size=(16, 32), steps=2).run(patched, area + encode("a wall"))
        layout = list(record.run_of(samples).steps.values())[-1]
        owned = np.zeros((16, 32), bool)
        owned[:, columns] = True
        owned[:, 8:24] = False
        assert (layout.concepts[0][~owned] == -1).all() and not layout.foreground[0][~owned].any()
        assert not layout.phrase_maps[0][:, ~owned].any() and layout.phrase_maps[0][:, owned].all()


@pytest.mark.parametrize("make", [apply, watch])
def test_another_prompt_may_be_limited_to_an_area(make):
    """The host copies it, id included, into the negative, and the negative's into the positive."""
    import nodes

    patched, positive, record = make(parts()[0])
    wall, bad = (
        nodes.ConditioningSetArea().append(encode(text), 64, 128, 0, 0, 1.0)[0]
        for text in ("a wall", "bad")
    )
    for ours, negative in (
        (positive + wall, encode("bad")),
        (positive, encode("bad") + bad),
        (positive + wall, bad),
    ):
        samples = Sampling(steps=2, batch=2, negative=negative).run(patched, ours)
        assert samples.isfinite().all() and sorted(record.run_of(samples).steps) == [0, 1]


def test_without_an_unconditional_prediction_nothing_is_guided():
    on, off = (apply(parts()[0], semantic_cfg=wanted) for wanted in (True, False))
    node = core_node("nodes_perpneg", "PerpNegGuider")
    inputs = {
        "negative": encode("bad"),
        "empty_conditioning": encode(""),
        "cfg": 7.0,
        "neg_scale": 0.0,
    }
    results = [
        sample_with(call_node(node, model=patched, positive=positive, **inputs)[0])
        for patched, positive, _ in (on, off)
    ]
    torch.testing.assert_close(*results)


def test_a_cfg_that_a_node_sets_for_some_steps_counts():
    import comfy_extras.nodes_custom_sampler as samplers

    if not hasattr(samplers, "CFGOverride"):
        pytest.skip("this host has no CFG Override")
    on, off = (apply(parts()[0], semantic_cfg=wanted) for wanted in (True, False))

    def pictures(cfg: float, override: float) -> list[torch.Tensor]:
        models = (
            call_node(
                samplers.CFGOverride,
                model=patched,
                cfg=override,
                start_percent=0.0,
                end_percent=1.0,
            )[0]
            for patched, *_ in (on, off)
        )
        return [
            Sampling(steps=3, cfg=cfg).run(model, positive)
            for model, (_, positive, _) in zip(models, (on, off), strict=True)
        ]

    torch.testing.assert_close(*pictures(7.0, 1.0))
    guided, plain = pictures(1.0, 7.0)
    assert not torch.allclose(guided, plain)


def test_shares_of_sampling_are_of_the_sampling_that_runs():
    node = core_node("nodes_model_advanced", "ModelSamplingContinuousEDM")
    edm = {"sampling": "eps", "sigma_max": 300.0, "sigma_min": 0.002}
    model = parts()[0]
    before, positive, _ = apply(call_node(node, model=model, **edm)[0], inject_at=0.4, start=0.1)
    after, again, _ = apply(model, inject_at=0.4, start=0.1)
    sampling = Sampling(steps=6)
    one, two = (
        sampling.run(before, positive),
        sampling.run(call_node(node, model=after, **edm)[0], again),
    )
    assert torch.equal(one, two)


def test_a_target_region_stays_where_it_was_painted_in_an_area_of_the_picture(monkeypatch):
    """A region over the picture's left half is all of an area that covers this half, and none of
    the other half's."""
    import nodes

    left = torch.zeros(1, 64, 128)
    left[..., :64] = 1
    patched, positive, _ = apply(
        parts()[0], chained=concepts(1, region=left), inject_at=0.0, semantic_cfg=False
    )
    owned: list[torch.Tensor] = []
    original = regions.group_tokens
    monkeypatch.setattr(
        regions, "group_tokens", lambda places: (owned.append(places), original(places))[1]
    )
    for x, concept in ((0, 0), (128, -1)):
        owned.clear()
        area = nodes.ConditioningSetArea().append(positive, 128, 128, x, 0, 1.0)[0]
        Sampling(size=(16, 32), steps=1).run(patched, area + encode("a wall"))
        assert owned and all((places == concept).all() for places in owned)


def test_a_prompt_joined_behind_ours_does_not_mix_up_the_words(monkeypatch):
    """ConditioningConcat gives twice the tokens, and so does the host to a short prompt that stands
    beside a long one."""
    import nodes

    lengths: set[int] = set()
    original = layout_tracker.maths.token_maps
    monkeypatch.setattr(
        layout_tracker.maths,
        "token_maps",
        lambda maps, *rest: (lengths.add(maps.shape[-1]), original(maps, *rest))[1],
    )
    patched, positive, _ = watch(parts()[0])
    joined = nodes.ConditioningConcat().concat(positive, encode("a wall"))[0]
    long = encode(" ".join(["blurry ugly"] * 60))
    foreground = 2
    for conditioning, tokens in ((joined, 154), (positive, 77)):
        lengths.clear()
        Sampling(steps=1, negative=long).run(patched, conditioning)
        assert lengths == {foreground, tokens}


def test_time_ranges():
    import nodes

    patched, positive, record = apply(parts()[0])
    early = nodes.ConditioningSetTimestepRange().set_range(positive, 0.0, 0.5)[0]
    late = nodes.ConditioningSetTimestepRange().set_range(positive, 0.5, 1.0)[0]
    plain = nodes.ConditioningSetTimestepRange().set_range(encode(PROMPT), 0.5, 1.0)[0]
    sampling = Sampling(steps=4)
    samples = sampling.run(patched, early + late)
    assert samples.isfinite().all() and sorted(record.run_of(samples).steps) == [0, 1, 2, 3]
    first, second = sampling.run(patched, early + plain), sampling.run(patched, plain + late)
    assert not torch.equal(samples, first) and not torch.equal(samples, second), (
        "both ranges are ours"
    )


def test_controlnet_with_random_weights():
    model = parts()[0]
    patched, ours, _ = apply(model)
    positive, negative = with_control(model, ours, encode("bad"))
    sampling = Sampling(batch=2, steps=2, negative=negative)
    samples = sampling.run(patched, positive)
    assert samples.isfinite().all() and not torch.equal(samples, sampling.run(model, positive))
    assert not torch.equal(samples, sampling.run(patched, ours)), "the ControlNet does nothing"


def test_a_second_apply_on_one_model_is_refused_where_it_stands():
    first, *_ = apply(parts()[0])
    with pytest.raises(ValueError, match="chain all MagicFace Concept nodes into one"):
        apply(first, prompt=PROMPT)


@pytest.mark.parametrize("options", [{"inject_at": 1.0}, {"inject_at": 0.0}], ids=["RSA", "RBA"])
def test_keys_that_another_node_adds_leave_references_their_weight(options):
    """StyleAligned and reference-only packs put keys behind the picture's own. Here every key comes
    twice, which changes nothing without references."""
    model = parts()[0]
    doubled = model.clone()
    doubled.set_model_attn1_patch(
        lambda q, k, v, extra: (q, torch.cat([k, k], dim=1), torch.cat([v, v], dim=1))
    )
    sampling, results = Sampling(steps=2), []
    for each in (model, doubled):
        patched, positive, record = apply(each, **options)
        samples = sampling.run(patched, positive)
        results.append((samples, record.run_of(samples).steps[1].concepts))
    (expected, layout), (samples, crowded) = results
    torch.testing.assert_close(samples, expected, rtol=1e-3, atol=1e-3)
    assert (crowded == layout).mean() > 0.99
