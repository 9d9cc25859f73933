"""MagicStyle on flow models, whose text and picture share one attention and whose keys know where
they lie."""

from __future__ import annotations

import dataclasses
import functools
import gc
from pathlib import Path
from typing import Any

import folder_paths
import pytest
import torch
from torch import Tensor

from magicportrait.host.inversion.run import Inversion, sampler_for
from magicportrait.host.sampling import reference_memory
from magicportrait.host.sampling.backbone import LayerView, backbone_of
from magicportrait.host.sampling.feature_store import FeatureStore
from magicportrait.host.systems import magicstyle
from magicportrait.host.systems.placement import PlacedPictures
from magicportrait.magic.blocks import Block
from magicportrait.magic.feature_fusion import Features, resample_tokens
from magicportrait.magic.positions import turned
from magicportrait.nodes import magicstyle as nodes
from magicportrait.nodes.declare import defaults_of
from magicportrait.nodes.magicstyle import MagicStyleSampler
from magicportrait.tests.host import dits
from magicportrait.tests.host.dit_nodes import SmallVae
from magicportrait.tests.host.dit_text import random_clip_of
from magicportrait.tests.host.flow import (
    SIZE,
    apply,
    euler,
    invert_picture,
    latent,
    sample,
    sample_advanced,
    style,
)
from magicportrait.tests.host.test_transformers import apart, backbone, draw, with_rule

FAMILIES = ("flux", "qwen", "zimage", "sd3", "anima")


def run(
    family: str, patched: tuple[Any, ...], content: tuple[Any, ...] | None = None, **options: Any
) -> Tensor:
    """The picture, through SamplerCustom."""
    return sample(patched[0], patched[1], content or invert_picture(family), **options)


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


# What the rule is given


@pytest.mark.parametrize("family", ["flux", "qwen", "zimage", "lumina2", "sd3"])
def test_the_pictures_own_tokens_beside_the_text_are_the_layers_own_attention(family):
    """In another order, with all that the host masks, each row of a batch with its own text."""

    def rule(view: LayerView) -> Tensor:
        rows = []
        for i in range(len(view.q)):
            one = slice(i, i + 1)
            k, v = (x[one, view.image] for x in (view.k, view.v))
            bias = torch.zeros(k.shape[1]) if i else None
            rows.append(view.attend_beside(one, view.q[one], k, v, bias))
        return torch.cat(rows)

    assert apart(draw(family, with_rule(family, rule), batch=2), draw(family, batch=2)) < 1e-4


@pytest.mark.parametrize("family", ["flux", "qwen"])
def test_a_styles_queries_ask_from_the_pictures_places(family):
    """Turned by position they would say where they were, and half of two of them nothing."""
    known = backbone(family)
    rotary = known.rotary
    assert rotary is not None
    shape = dits.latent_shape(family, 1, (8, 6))
    pictures = [_Picture(torch.zeros(shape), dits.conditioning(4, 0))]
    pictures.append(_Picture(torch.zeros(*shape[:-2], 12, 4), dits.conditioning(4, 0)))
    here, there = (known.coordinates((p.latent.shape[-2], p.latent.shape[-1]), 4) for p in pictures)
    axes, heads = len(rotary.axes), 2
    bare = torch.randn(1, 12, heads * rotary.head, generator=torch.Generator().manual_seed(0))

    def lying(x: Tensor, place: Any) -> Tensor:
        return turned(x, rotary.angles(place.positions(axes)), rotary.pairing, heads)

    content, seen = (
        Features(lying(bare, place), lying(bare, place), bare, place.grid)
        for place in (here, there)
    )
    view = LayerView(
        layer=(Block("d", 0), 0),
        cond=None,
        q=content.q,
        k=content.k,
        v=content.v,
        grid=here.grid,
        latent_size=(8, 6),
        heads=heads,
        attend=lambda q, k, v, bias: q,
        coordinates=here,
    )
    for placement in ("same", "aside"):
        places = PlacedPictures(placement, known, pictures[:1], pictures[1:])
        [kept], [moved] = places.place([content, seen], view)
        assert kept.q is content.q and kept.k is content.k
        expected = lying(resample_tokens(bare, there.grid, here.grid), here)
        torch.testing.assert_close(moved.q, expected, rtol=1e-4, atol=1e-4)
        if placement == "same":
            assert moved.k is seen.k
        else:
            beside = there.positions(axes)
            beside[:, 2] += here.origin[1] + here.grid[1] - there.origin[1]
            expected = turned(bare, rotary.angles(beside), rotary.pairing, heads)
            torch.testing.assert_close(moved.k, expected, rtol=1e-4, atol=1e-4)


@dataclasses.dataclass(frozen=True, eq=False)
class _Picture:
    latent: Tensor
    conditioning: list[Any]


# What must come out


@pytest.mark.parametrize("family", FAMILIES)
def test_content_alone_is_its_own_reconstruction(family):
    content = invert_picture(family, batch=2)
    options = {"alpha": 1.0, "beta": 0.0, "keys": "content", "adain": 0.0, "layers": "all"}
    patched = apply(family, content, style(family), **options)
    plain = sample(dits.random_transformer(family), content[1], content)
    close(run(family, patched, content), plain, 5e-3)
    assert apart(plain, latent(family, 2)) < 1e-2, "it is the picture that was inverted"


@pytest.mark.parametrize("keys", ["content+style", "style", "blend"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_style_acts_in_every_mode(family, keys):
    options = {"keys": keys, "alpha": 0.5, "beta": 0.25, "layers": "late"}
    patched = apply(family, styles=style(family, size=(10, 8)), **options)
    out = run(family, patched)
    assert out.isfinite().all() and out.shape == latent(family).shape
    assert not torch.equal(out, run(family, (dits.random_transformer(family), patched[1])))
    assert torch.equal(out, run(family, patched))


def test_positions_matter_where_a_model_turns_its_keys():
    for family, differ in (("flux", True), ("sd3", False)):
        drawn = [
            run(family, apply(family, positions=name))
            for name in ("same", "aside", "index", "attenuated")
        ]
        for other in drawn[1:]:
            assert torch.equal(other, drawn[0]) != differ


def test_a_prompt_of_another_length_moves_the_content_along():
    """Z-Image counts its text before its picture: what was inverted under 5 tokens lies elsewhere
    under 40. Told so, the content is as close as under its own prompt."""
    content = invert_picture("zimage")
    options = {"alpha": 1.0, "beta": 0.0, "keys": "content", "adain": 0.0, "layers": "late"}
    longer = dits.conditioning(40, 9)
    seen: list[bool] = []
    original = PlacedPictures.place

    def place(self: Any, features: Any, view: LayerView) -> Any:
        contents, styles = original(self, features, view)
        seen.append(contents[0].k is features[0].k)
        return contents, styles

    patched = apply("zimage", content, **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PlacedPictures, "place", place)
        run("zimage", patched, content)
        assert seen and all(seen)
        seen.clear()
        assert run("zimage", patched, content, positive=longer).isfinite().all()
        assert seen and not any(seen)


def test_each_half_takes_after_the_style_of_its_mask():
    left = torch.zeros(1, 64, 48)
    left[..., :24] = 1
    options = {"keys": "style", "alpha": 1.0, "beta": 0.0, "adain": 0.0}
    both = style("flux", mask=1 - left, seed=60, styles=style("flux", mask=left))
    mixed = run("flux", apply("flux", styles=both, **options))
    alone = [run("flux", apply("flux", styles=style("flux", seed=s), **options)) for s in (50, 60)]
    apart_from = [
        [float((mixed - one)[..., half].norm()) for half in (slice(0, 2), slice(4, 6))]
        for one in alone
    ]
    assert apart_from[0][0] < apart_from[1][0] and apart_from[1][1] < apart_from[0][1]
    nothing = style("flux", weight=0.0, seed=60, styles=style("flux"))
    close(run("flux", apply("flux", styles=nothing)), run("flux", apply("flux")), 1e-5)


def test_contents_of_a_batch_do_not_see_each_other():
    content = invert_picture("qwen", batch=2)
    together = run("qwen", apply("qwen", content), content)
    for i in range(2):
        alone = invert_picture("qwen", i)
        close(run("qwen", apply("qwen", alone), alone)[0], together[i], 5e-3)


@pytest.mark.parametrize("cfg", [1.0, 4.0])
def test_out_of_range_is_bit_identical_to_no_patch(cfg):
    patched = apply("flux", start=1.0, end=1.0, adain=0.0)
    content = invert_picture("flux")
    assert torch.equal(patched[1]["samples"], content[1]["samples"])
    plain = sample(dits.random_transformer("flux"), content[1], content, cfg=cfg)
    assert torch.equal(run("flux", patched, cfg=cfg), plain)


@pytest.mark.parametrize("family", ["flux", "qwen"])
def test_the_single_node_is_the_graph(family, monkeypatch):
    """Four steps without guidance, as a distilled model takes them."""
    vae: Any = SmallVae(family)
    vae.decode = lambda samples: torch.zeros(len(samples), 1, 8, 8, 3)
    made: list[Inversion] = []
    original = nodes.invert_with_cache

    def invert_with_cache(*args: Any, **more: Any) -> Any:
        made.append(original(*args, **more)[0])
        return made[-1], False

    monkeypatch.setattr(nodes, "invert_with_cache", invert_with_cache)
    model = dits.random_transformer(family)
    pictures = (
        torch.rand(1, 64, 48, 3, generator=torch.Generator().manual_seed(i)) for i in (0, 1)
    )
    out, image = MagicStyleSampler.execute(
        model=model,
        vae=vae,
        content=next(pictures),
        style=next(pictures),
        clip=random_clip_of(family),
        **{**defaults_of(MagicStyleSampler), "steps": 4, "cache_mb": 0},
    ).args
    assert image.shape == (1, 8, 8, 3)
    content, other = made
    assert content.method == "fireflow", "corrections do not converge in so few steps"
    assert (content.conditioning[0][1].get("guidance") == 1.0) == (family == "flux")
    styles = (magicstyle.Style(other, 1.0),)
    patched = apply(family, (content,), styles, preset="balanced")
    wired = (content, None, content.sigmas, sampler_for(model, content), content.conditioning)
    again = sample(patched[0], patched[1], wired)
    assert torch.equal(out["samples"], again) and again.isfinite().all()


# Features


def test_kept_features_give_the_same_picture_without_a_reference_pass(passes, monkeypatch):
    monkeypatch.setattr(nodes, "FeatureStore", functools.partial(FeatureStore, budget=1000))
    live = run("flux", apply("flux"))
    kept = apply("flux", keep_features="memory")
    passes.clear()
    for expected in (3, 0):
        assert torch.equal(run("flux", kept), live) and len(passes) == expected
        passes.clear()
    assert list(Path(folder_paths.get_temp_directory()).rglob("*.safetensors")), "some on disk"


def test_fireflow_is_shown_content_and_style_between_its_steps(passes):
    """Its sampler asks at the start and at the middle of each of three steps."""
    content, other = invert_picture("flux", method="fireflow"), style("flux", method="fireflow")
    patched = apply("flux", content, other, keep_features="memory")
    drawn = run("flux", patched, content)
    assert drawn.isfinite().all() and len(passes) == 4
    assert not torch.equal(
        drawn, run("flux", (dits.random_transformer("flux"), patched[1]), content)
    )
    assert torch.equal(run("flux", patched, content), drawn) and len(passes) == 4


def test_sparse_passes_are_fewer(passes):
    content, other = invert_picture("zimage", steps=8), style("zimage", steps=8)
    patched = apply("zimage", content, other, reference_passes="sparse")
    assert run("zimage", patched, content).isfinite().all()
    assert 0 < len(passes) < 8


def test_what_does_not_fit_is_refused_before_any_model_call(monkeypatch, model_calls):
    patched, kept = apply("flux"), apply("flux", keep_features="memory")
    model_calls.clear()
    with monkeypatch.context() as full:
        full.setattr(reference_memory, "DEFAULT_BUDGET", 0)
        full.setattr(reference_memory.shutil, "disk_usage", lambda _: _Disk(free=0))
        with pytest.raises(ValueError, match="keep_features: the references take"):
            run("flux", kept)
    import comfy.model_management as management

    with monkeypatch.context() as full:
        full.setattr(management, "get_free_memory", lambda *_, **__: 1000)
        full.setattr(management, "free_memory", lambda *_, **__: [])
        with pytest.raises(ValueError, match=r"the references take .* Take fewer layers"):
            run("flux", patched)
    assert not model_calls


@dataclasses.dataclass(frozen=True)
class _Disk:
    free: int


def test_what_a_step_takes_is_counted():
    """Queries, keys and values of the picture's tokens, of content and style, in all layers."""
    patched = apply("flux", layers="all")[0]
    [patch] = [
        wrapper.__self__
        for wrappers in patched.wrappers["outer_sample"].values()
        for wrapper in wrappers
    ]
    known, rows = backbone("flux"), (SIZE[0] // 2) * (SIZE[1] // 2)
    pictures = [magicstyle.InvertedPicture(invert_picture("flux")[0], 0)] * 2
    of_layer = 2 * rows * 3 * 64 * 4
    assert magicstyle.feature_bytes(pictures, patch.backbone, patch.blocks) == of_layer * len(
        known.layers
    )


# The start


def test_its_start_reaches_both_samplers_of_the_host():
    content = invert_picture("flux", method="euler")
    model, start, noise = apply("flux", content)
    assert not torch.equal(start["samples"], content[1]["samples"]), "the style's statistics"
    drawn = sample(model, start, content)
    for given in ({"samples": torch.zeros_like(latent("flux"))}, start):
        for sampler in (None, euler()):
            again = sample_advanced(model, noise, given, content, sampler)
            torch.testing.assert_close(again, drawn, rtol=1e-3, atol=1e-3)


def test_other_wirings_are_refused_before_any_model_call(model_calls):
    content = invert_picture("flux", method="euler")
    model, start, _ = apply("flux", content)
    model_calls.clear()
    with pytest.raises(ValueError, match=r"begins at sigma 1.000 of a flow model.* SAMPLER of Mag"):
        sample(model, start, content, euler())
    for sampler in (None, euler()):
        with pytest.raises(ValueError, match=r"the sampler adds noise, .* NOISE of MagicStyle App"):
            sample(model, start, content, sampler, add_noise=True)
    with pytest.raises(ValueError, match=r"the sampler adds noise"):
        # Without the style's statistics.
        sample_advanced(model, content[6], {"samples": latent("flux")}, content)
    with pytest.raises(ValueError, match="has a noise mask, but MagicStyle draws all"):
        sample(model, {**start, "noise_mask": torch.ones(1, 1, 64, 48)}, content)
    with pytest.raises(ValueError, match=r"starts at sigma .* connect all of the SIGMAS"):
        sample(model, start, content, sigmas=content[2][1:])
    assert not model_calls


def test_noise_of_the_same_node_reaches_a_unet_too():
    from magicportrait.nodes.magicstyle import MagicStyleApply
    from magicportrait.tests.host import test_magicstyle as unet

    content = unet.invert_picture(method="euler")
    options = {**defaults_of(MagicStyleApply), "preset": "balanced"}
    model, start, noise = MagicStyleApply.execute(
        unet.parts()[0], content[0], unet.style(), **options
    ).args
    drawn = sample(model, start, content)
    for given in (start, {"samples": torch.zeros_like(start["samples"])}, {"samples": latent_4()}):
        again = sample_advanced(model, noise, given, content)
        torch.testing.assert_close(again, drawn, rtol=1e-3, atol=1e-2)
    with pytest.raises(ValueError, match="the sampler adds noise"):
        sample(model, start, content, add_noise=True)


def latent_4() -> Tensor:
    return torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))


# What is refused


def test_layers_of_a_unet_mean_the_later_blocks():
    known = backbone_of(dits.random_transformer("flux"))
    assert known.parse_layers("decoder") == known.parse_layers("fine")
    with pytest.raises(ValueError, match="'o6' is not understood"):
        apply("flux", layers="o6")


def test_a_model_of_no_known_kind_is_refused(model_calls):
    model, content, styles = dits.random_transformer("ernie"), invert_picture("flux"), style("flux")
    model_calls.clear()
    with pytest.raises(ValueError, match="inverted with another model"):
        nodes.MagicStyleApply.execute(
            model, content[0], styles, **defaults_of(nodes.MagicStyleApply)
        )
    with pytest.raises(ValueError, match="ErnieImage is a model that this pack cannot work with"):
        MagicStyleSampler.execute(
            model=model,
            vae=SmallVae("flux"),
            content=torch.rand(1, 64, 64, 3),
            style=torch.rand(1, 64, 64, 3),
            **defaults_of(MagicStyleSampler),
        )
    assert not model_calls


def test_nothing_is_held_after_sampling():
    import weakref

    made: list[Any] = []
    original = magicstyle.Features

    def track(*parts: Any) -> Any:
        made.extend(weakref.ref(tensor) for tensor in parts[:3])
        return original(*parts)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(magicstyle, "Features", track)
        patched = apply("flux", positions="aside")
        run("flux", patched)
    gc.collect()
    assert made and not [ref for ref in made if ref() is not None]
