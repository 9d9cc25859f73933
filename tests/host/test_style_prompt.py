"""A style in a new picture, one look for a batch, and an edit by another prompt: on a UNet and on
transformers."""

from __future__ import annotations

import gc
import weakref
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from magicportrait.host.layout.masks import layout_masks
from magicportrait.host.sampling.patch import patches_of
from magicportrait.host.systems import new_style, prompt_edit
from magicportrait.host.systems.new_style import NewStylePatch
from magicportrait.magic.feature_fusion import Features
from magicportrait.nodes.declare import defaults_of
from magicportrait.nodes.layout import MagicLayoutMasks, MagicSemanticLayout
from magicportrait.nodes.magicstyle import MagicStyleReference
from magicportrait.nodes.magicstyle_prompt import MagicStyleEdit, MagicStyleNewPicture
from magicportrait.tests.host import dits, flow, inverting
from magicportrait.tests.host import sampling as unet
from magicportrait.tests.host.dit_nodes import SmallVae
from magicportrait.tests.host.dit_text import random_clip_of
from magicportrait.tests.host.models import state_of
from magicportrait.tests.host.test_magicstyle import invert_picture as unet_inverted
from magicportrait.tests.host.test_transformers import apart

UNET = "unet"
KINDS = (UNET, "flux", "qwen")
FEW = ("flux",)
SIGMAS = (0.9, 0.4, 0.0)


@cache
def load(kind: str) -> tuple[Any, Any, Any]:
    """MODEL, CLIP and VAE."""
    if kind == UNET:
        return unet.parts()
    return dits.random_transformer(kind), random_clip_of(kind), SmallVae(kind)


@cache
def words(kind: str, seed: int = 7) -> list[Any]:
    """A prompt; another seed, other words of another length."""
    if kind == UNET:
        return unet.encode("a man with a hat" if seed == 7 else "a dog")
    return dits.conditioning(flow.TOKENS if seed == 7 else 9, seed)


def shape_of(kind: str, batch: int = 1) -> tuple[int, ...]:
    return (batch, 4, 8, 8) if kind == UNET else dits.latent_shape(kind, batch, flow.SIZE)


def noise_of(kind: str, batch: int = 1, seed: int = 3) -> Tensor:
    one = shape_of(kind)
    return torch.cat(
        [torch.randn(one, generator=torch.Generator().manual_seed(seed + i)) for i in range(batch)]
    )


def draw(
    kind: str,
    model: Any,
    noise: Tensor,
    cfg: float = 3.0,
    positive: Any = None,
    sigmas: tuple[float, ...] = (),
) -> Tensor:
    """Pictures of a prompt, from noise."""
    sigmas = sigmas or ((5.0, 1.0, 0.0) if kind == UNET else SIGMAS)
    prompts = (positive or words(kind), words(kind, 11))
    return dits.sample(model, noise.shape, *prompts, cfg=cfg, sigmas=sigmas, noise=noise)


def picture(seed: int = 0, batch: int = 1) -> Tensor:
    return torch.rand(batch, 64, 80, 3, generator=torch.Generator().manual_seed(seed))


def with_style(kind: str, image: Tensor | None = None, **options: Any) -> Any:
    """MODEL of MagicStyle New Picture."""
    model, clip, vae = load(kind)
    given = {} if image is None else {"image": image, "vae": vae, "clip": clip}
    chosen = {"preset": "custom", "layers": "all"}
    inputs = {**defaults_of(MagicStyleNewPicture), **chosen, **given, **options}
    return MagicStyleNewPicture.execute(model=model, **inputs).args[0]


def invert_picture(kind: str, seed: int = 0, **options: Any) -> tuple[Any, ...]:
    """The outputs of MagicStyle Invert."""
    if kind == UNET:
        return unet_inverted(seed, **options)
    return flow.invert_picture(kind, seed, **options)


def edit_content(kind: str, content: tuple[Any, ...], **options: Any) -> tuple[Any, ...]:
    """MODEL, LATENT and NOISE of MagicStyle Edit."""
    inputs = {**defaults_of(MagicStyleEdit), "layers": "all", **options}
    return MagicStyleEdit.execute(load(kind)[0], content[0], **inputs).args


def patch_of(model: Any) -> Any:
    """What our only node has put on a MODEL."""
    [(_, _, patch)] = patches_of(model)
    return patch


def sample(
    kind: str, edit: tuple[Any, ...], content: tuple[Any, ...], seed: int = 11, cfg: float = 1.0
) -> Tensor:
    """SamplerCustom under a prompt."""
    outputs = (*content[:4], words(kind, seed))
    return flow.sample(edit[0], edit[1], outputs, cfg=cfg)


# A style in a new picture


@pytest.mark.parametrize("kind", KINDS)
def test_a_style_picture_changes_a_new_one(kind):
    plain = draw(kind, load(kind)[0], noise_of(kind, 2))
    model = with_style(kind, picture())
    out = draw(kind, model, noise_of(kind, 2))
    assert out.isfinite().all() and out.shape == plain.shape and apart(out, plain) > 1e-3
    assert torch.equal(draw(kind, model, noise_of(kind, 2)), out)
    alone = draw(kind, model, noise_of(kind, 2)[1:])
    assert apart(alone, out[1:]) < 1e-3, "pictures of a batch do not see each other"


def test_each_input_of_a_new_picture_counts():
    before, noise = state_of(load("flux")[0]), noise_of("flux")
    out = draw("flux", with_style("flux", picture()), noise)
    for options in ({"strength": 3.0}, {"colour": 0.0}, {"start": 0.4}, {"layers": "late"}):
        assert apart(draw("flux", with_style("flux", picture(), **options), noise), out) > 1e-4
    for preset, strength in (("subtle", -1.5), ("normal", 0.0), ("strong", 1.5)):
        own = draw("flux", with_style("flux", picture(), strength=strength), noise)
        assert torch.equal(draw("flux", with_style("flux", picture(), preset=preset), noise), own)
    usual = draw("flux", with_style("flux", picture(), layers="usual"), noise)
    assert torch.equal(draw("flux", with_style("flux", picture(), layers="late"), noise), usual)
    assert state_of(load("flux")[0]) == before


def test_a_style_that_is_the_picture_itself_changes_nothing():
    """Twice the same keys give each value the same weight."""
    noise = noise_of(UNET).expand(2, -1, -1, -1)
    plain = draw(UNET, load(UNET)[0], noise)
    out = draw(UNET, with_style(UNET, strength=0.0), noise)
    assert apart(out, plain) < 1e-4


@pytest.mark.parametrize("kind", ("flux", "sd3"))
def test_a_batch_takes_the_look_of_its_first_picture(kind):
    noise = noise_of(kind, 3)
    plain, out = (draw(kind, model, noise) for model in (load(kind)[0], with_style(kind)))
    assert apart(out[:1], plain[:1]) < 1e-4
    for i in (1, 2):
        assert apart(out[i : i + 1], plain[i : i + 1]) > 1e-3
    pair = draw(kind, with_style(kind), noise[[0, 2]])
    assert apart(pair[1:], out[2:]) < 1e-3, "only of the first"
    other = draw(kind, with_style(kind), noise[[1, 2]])
    assert apart(other[1:], out[2:]) > 1e-3


def test_the_first_pictures_keys_lie_where_a_style_would():
    noise = noise_of("flux", 2)
    drawn = [
        draw("flux", with_style("flux", positions=name), noise)
        for name in ("same", "aside", "index", "attenuated")
    ]
    for other in drawn[1:]:
        assert apart(other[1:], drawn[0][1:]) > 1e-4


@pytest.mark.parametrize("kind", FEW)
def test_styles_of_inversions_have_weights_and_masks(kind):
    noise, plain = noise_of(kind), draw(kind, load(kind)[0], noise_of(kind))

    def out(weight: float, mask: Tensor | None = None) -> Tensor:
        styles = MagicStyleReference.execute(invert_picture(kind)[0], weight, mask).args[0]
        return draw(kind, with_style(kind, styles=styles), noise)

    assert apart(out(0.0), plain) < 1e-4
    assert apart(out(0.3), plain) < apart(out(1.0), plain)
    left = torch.zeros(1, 64, 64)
    left[..., :32] = 1
    both = out(1.0, left)
    assert apart(both, plain) > 1e-3 and apart(both, out(1.0)) > 1e-3
    styles = MagicStyleReference.execute(invert_picture(kind)[0], 1.0).args[0]
    assert apart(draw(kind, with_style(kind, picture(), styles=styles), noise), out(1.0)) > 1e-4


@pytest.mark.parametrize("kind", FEW)
def test_out_of_range_a_style_is_bit_identical_to_none(kind):
    plain = draw(kind, load(kind)[0], noise_of(kind))
    assert torch.equal(
        draw(kind, with_style(kind, picture(), start=1.0, end=1.0), noise_of(kind)), plain
    )


@pytest.fixture
def passes(monkeypatch) -> list[float]:
    """The noise level of every reference pass."""
    levels: list[float] = []
    original = new_style.ReferencePass.run

    def count_pass(self: Any, model: Any, sigma: Tensor, *rest: Any) -> None:
        levels.append(float(sigma[0]))
        original(self, model, sigma, *rest)

    monkeypatch.setattr(new_style.ReferencePass, "run", count_pass)
    return levels


def test_what_a_style_picture_showed_is_kept_for_the_next_run(passes):
    noise, given = noise_of("flux"), {"image": picture()}
    live = draw("flux", with_style("flux", **given), noise)
    model = with_style("flux", **given, keep_features="memory")
    passes.clear()
    assert torch.equal(draw("flux", model, noise), live)
    assert passes == pytest.approx(SIGMAS[:-1])
    assert torch.equal(draw("flux", model, noise), live)
    draw("flux", model, noise_of("flux", 2, seed=9))
    assert len(passes) == len(SIGMAS) - 1, "none for another seed, or more pictures"


def test_sparse_passes_serve_several_steps_of_a_new_picture(passes):
    noise, given = noise_of("flux"), {"image": picture()}
    near = (0.5, 0.49, 0.48, 0.0)
    live = draw("flux", with_style("flux", **given), noise, sigmas=near)
    assert passes == pytest.approx(near[:-1])
    passes.clear()
    sparse = with_style("flux", **given, reference_passes="sparse")
    out = draw("flux", sparse, noise, sigmas=near)
    assert passes == pytest.approx(near[:1])
    assert apart(out, live) > 1e-6 and out.isfinite().all()
    far = draw("flux", with_style("flux", **given), noise)
    assert torch.equal(draw("flux", sparse, noise), far), "steps far apart have a pass each"


def test_a_batch_that_takes_the_look_of_its_first_has_nothing_to_keep(passes):
    noise = noise_of("flux", 2)
    live = draw("flux", with_style("flux"), noise)
    model = with_style("flux", keep_features="memory", reference_passes="sparse")
    assert torch.equal(draw("flux", model, noise), live) and not passes


@pytest.mark.parametrize("kind", FEW)
def test_the_negative_prompt_does_not_see_the_style(kind, monkeypatch):
    seen: list[int] = []
    original = new_style.NewStyleRun._style

    def count_rows(self: Any, bank: Any, view: Any) -> Tensor:
        seen.append(len(view.q))
        return original(self, bank, view)

    monkeypatch.setattr(new_style.NewStyleRun, "_style", count_rows)
    rows = []
    for cfg in (1.0, 3.0):
        draw(kind, with_style(kind, picture()), noise_of(kind), cfg)
        rows.append(sum(seen))
        seen.clear()
    assert rows[0] == rows[1] > 0


def test_what_a_new_picture_cannot_have_is_refused(model_calls):
    with pytest.raises(ValueError, match="image needs the VAE of the model"):
        with_style("flux", vae=None, image=picture())
    with pytest.raises(ValueError, match="image has 1x1 pixels, which is too small to show"):
        with_style("flux", picture()[:, :1, :1])
    with pytest.raises(ValueError, match="needs its own empty prompt: connect clip"):
        with_style("flux", picture(), clip=None)
    with pytest.raises(ValueError, match="style 1 was inverted with another model"):
        with_style(UNET, styles=MagicStyleReference.execute(invert_picture("flux")[0], 1.0).args[0])
    two = MagicStyleReference.execute(invert_picture("flux", batch=2)[0], 1.0).args[0]
    with pytest.raises(ValueError, match="style 1 holds 2 pictures"):
        with_style("flux", styles=two)
    model_calls.clear()
    with pytest.raises(ValueError, match=r"one picture and no style: connect image and vae"):
        draw("flux", with_style("flux"), noise_of("flux"))
    assert not model_calls


def test_a_mask_and_a_prompt_for_an_area_do_not_go_together():
    mask = torch.ones(1, 64, 64)
    styles = MagicStyleReference.execute(invert_picture(UNET)[0], 1.0, mask).args[0]
    part = [[words(UNET)[0][0], {**words(UNET)[0][1], "area": (8, 4, 0, 0), "strength": 1.0}]]
    with pytest.raises(ValueError, match="a style has a mask, which lies over the whole picture"):
        draw(UNET, with_style(UNET, styles=styles), noise_of(UNET), positive=part)
    plain = draw(UNET, load(UNET)[0], noise_of(UNET), positive=part)
    assert (
        apart(draw(UNET, with_style(UNET, picture()), noise_of(UNET), positive=part), plain) > 1e-3
    )


@pytest.mark.parametrize("module", [new_style, prompt_edit])
def test_nothing_is_held_after_sampling(module, monkeypatch):
    made: list[Any] = []

    def track(*parts: Any) -> Features:
        made.extend(weakref.ref(tensor) for tensor in parts[:3])
        return Features(*parts)

    monkeypatch.setattr("magicportrait.host.systems.magicstyle.Features", track)
    if module is new_style:
        draw("flux", with_style("flux", picture()), noise_of("flux"))
    else:
        content = invert_picture("flux")
        sample("flux", edit_content("flux", content), content)
    gc.collect()
    assert made and not [ref for ref in made if ref() is not None]


# An edit


@pytest.mark.parametrize("kind", (UNET, "flux", "zimage"))
def test_held_all_the_time_under_its_own_words_it_is_the_picture(kind):
    content = invert_picture(kind, batch=2)
    plain = flow.sample(load(kind)[0], content[1], content)
    edit = edit_content(kind, content, until=1.0)
    again = flow.sample(edit[0], edit[1], content)
    assert apart(again, plain) < 5e-3


@pytest.mark.parametrize("kind", ("flux", "sd3"))
def test_other_words_edit_what_is_not_held(kind):
    content, cfg = invert_picture(kind), 3.0
    plain = sample(kind, (load(kind)[0], content[1]), content, cfg=cfg)
    off = edit_content(kind, content, until=0.0)
    assert torch.equal(sample(kind, off, content, cfg=cfg), plain)
    held = sample(kind, edit_content(kind, content, until=1.0), content, cfg=cfg)
    assert held.isfinite().all() and apart(held, plain) > 1e-4
    half = sample(kind, edit_content(kind, content, until=1.0, structure=0.5), content, cfg=cfg)
    assert apart(half, held) > 1e-5 and apart(half, plain) > 1e-5
    look = sample(
        kind, edit_content(kind, content, until=1.0, hold="structure and look"), content, cfg=cfg
    )
    assert apart(look, held) > 1e-5
    shorter = sample(kind, edit_content(kind, content, until=0.5), content, cfg=cfg)
    assert apart(shorter, held) > 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_kept_comes_out_as_it_was(kind):
    content = invert_picture(kind, method="euler")
    was = load(kind)[0].model.process_latent_out(content[0].latents[-1])
    keep = torch.zeros(1, 64, 64)
    keep[..., :32] = 1
    middle = was.shape[-1] // 2
    for options, side in (({}, slice(0, middle)), ({"invert": True}, slice(middle, None))):
        out = sample(kind, edit_content(kind, content, keep=keep, **options), content, cfg=3.0)
        other = [slice(middle, None), slice(0, middle)][side.start != 0]
        torch.testing.assert_close(out[..., side], was[..., side], rtol=1e-4, atol=1e-4)
        assert apart(out[..., other], was[..., other]) > 1e-2


def test_all_around_a_thing_may_be_kept(caplog):
    keep = torch.ones(1, 64, 64)
    keep[:, 16:48, 16:48] = 0
    edit_content("flux", invert_picture("flux", method="euler"), keep=keep)
    assert "leaves out its middle" not in caplog.text


def test_what_o_belm_has_inverted_is_not_kept():
    content = invert_picture("flux")
    with pytest.raises(ValueError, match="what o-belm has inverted cannot be kept"):
        edit_content("flux", content, keep=torch.ones(1, 64, 64))
    edit_content("flux", content)


def test_each_picture_keeps_by_its_own_mask():
    content = invert_picture("flux", batch=2, method="euler")
    was = content[0].latents[-1]
    keep = torch.zeros(2, 64, 48)
    keep[0] = 1
    keep[1, :, 24:] = 1
    out = sample("flux", edit_content("flux", content, keep=keep), content, cfg=3.0)
    out = load("flux")[0].model.process_latent_in(out)
    torch.testing.assert_close(out[0], was[0], rtol=1e-4, atol=1e-4)
    assert apart(out[1], was[1]) > 1e-2


# What must not change, by a phrase

WORDS = "a man with a red hat and a striped scarf"


def watch(
    kind: str, batch: int = 1, seed: int = 0, phrases: str = "hat, scarf"
) -> tuple[tuple[Any, ...], Any]:
    """The outputs of MagicStyle Invert with a Semantic Layout before it, and its layout."""
    model, positive, layout = MagicSemanticLayout.execute(
        load(kind)[0], load(kind)[1], WORDS, phrases, 0.6
    ).args
    latent = (
        inverting.latent(batch, seed=seed) if kind == UNET else flow.latent(kind, batch, seed=seed)
    )
    samples = {"samples": latent}
    inputs = {"positive": positive, "latent": samples, "method": "euler", "measure": False}
    if kind == UNET:
        return inverting.invert(model, samples["samples"], **inputs), layout
    return flow.invert(kind, model, **inputs), layout


@pytest.mark.parametrize("kind", FEW)
def test_a_phrase_of_the_layout_says_what_is_kept(kind):
    content, layout = watch(kind, batch=2)
    run = layout.run_of(content[0].latents[-1])
    size = layout.picture_size(content[0].latents.shape)
    step = run.steps[max(run.steps)]
    # The first picture's hat above, the second's on the left.
    step.concepts[:], step.concepts[0, 0], step.concepts[1, :, 0] = 1, 0, 0
    hat, scarf = layout_masks(step, 2, size).phrases
    assert hat.shape[0] == 2 and not torch.equal(hat[0], hat[1])

    def keep(**options: Any) -> Tensor:
        return patch_of(edit_content(kind, content, layout=layout, **options)[0]).keep

    assert torch.equal(keep(keep_phrase="hat"), hat)
    assert torch.equal(keep(keep_phrase="hat", invert=True), 1 - hat)
    assert torch.equal(keep(keep_phrase=" scarf,Hat "), torch.maximum(hat, scarf))
    painted = torch.zeros(1, 64, 64)
    painted[:, :32] = 1
    both = keep(keep_phrase="hat", keep=painted)
    assert torch.equal(both[:, : size[0] // 2], torch.ones_like(both[:, : size[0] // 2]))
    assert torch.equal(both[:, -1], hat[:, -1])
    assert torch.equal(keep(keep=painted), painted), "an unnamed phrase keeps nothing"
    assert torch.equal(keep(keep_phrase="HAT ,\n Scarf"), torch.maximum(hat, scarf))
    assert keep() is None


@pytest.mark.parametrize("commas", [",", " ，, ", "、\n;"])
def test_commas_alone_name_nothing(commas):
    """So no layout is asked for, and invert turns the mask."""
    content = invert_picture("flux", method="euler")
    assert patch_of(edit_content("flux", content, keep_phrase=commas)[0]).keep is None
    painted = torch.zeros(1, 64, 48)
    painted[..., :20] = 1
    turned = edit_content("flux", content, keep_phrase=commas, keep=painted, invert=True)
    assert torch.equal(patch_of(turned[0]).keep, 1 - painted)


def test_a_phrase_that_several_share_is_all_of_them():
    """In any spelling: the layout's second 'red hat' is in capitals, with two blanks."""
    content, layout = watch("flux", phrases="red hat, Red  HAT, scarf")
    run = layout.run_of(content[0].latents[-1])
    size = layout.picture_size(content[0].latents.shape)
    step = run.steps[max(run.steps)]
    step.concepts[:], step.concepts[:, 0], step.concepts[:, 1] = 2, 0, 1
    first, second, _ = layout_masks(step, 3, size).phrases
    assert first.any() and second.any() and not torch.equal(first, second)
    keep = patch_of(edit_content("flux", content, layout=layout, keep_phrase="RED hat")[0]).keep
    assert torch.equal(keep, torch.maximum(first, second))


def test_a_picture_of_a_batch_that_lacks_the_phrase_is_named(model_calls):
    """Or all of it would change, because another picture has it."""
    content, layout = watch("flux", batch=2, seed=4)
    run = layout.run_of(content[0].latents[-1])
    concepts = run.steps[max(run.steps)].concepts
    concepts[0], concepts[1] = 0, 1
    model_calls.clear()
    for phrase, number in (("hat", 2), ("scarf", 1)):
        message = f"'{phrase}' is nowhere in picture {number} of the content.* by themselves"
        with pytest.raises(ValueError, match=message):
            edit_content("flux", content, layout=layout, keep_phrase=phrase)
    assert not model_calls


def test_each_picture_of_a_batch_is_watched_by_itself():
    content, layout = watch("flux", batch=2)
    together = layout.run_of(content[0].latents[-1])
    for i in range(2):
        alone, own = watch("flux", seed=i)
        run = own.run_of(alone[0].latents[-1])
        for step, seen in run.steps.items():
            close = together.steps[step].phrase_maps[i : i + 1] - seen.phrase_maps
            assert abs(close).max() < 2e-2


def test_where_a_phrase_keeps_the_picture_comes_out_as_it_was():
    content, layout = watch("flux")
    was = content[0].latents[-1]
    edit = edit_content("flux", content, layout=layout, keep_phrase="hat")
    share = F.interpolate(patch_of(edit[0]).keep[:, None], size=was.shape[-2:], mode="area")
    out = load("flux")[0].model.process_latent_in(sample("flux", edit, content, cfg=3.0))
    kept = (share == 1).expand_as(was)
    assert kept.any() and not kept.all()
    torch.testing.assert_close(out[kept], was[kept], rtol=1e-4, atol=1e-4)
    assert apart(out[share.expand_as(was) == 0], was[share.expand_as(was) == 0]) > 1e-2


@pytest.mark.parametrize("kind", KINDS)
def test_an_inversion_is_watched_as_it_is_and_found_by_its_picture(kind):
    content, layout = watch(kind)
    latent = inverting.latent() if kind == UNET else flow.latent(kind)
    run = layout.run_that_made(content[0].latents[-1])
    assert run is not None and run is layout.run_that_made(latent)
    assert run.last_sigma == 0, "no run goes on from there"
    assert sorted(run.steps) == [0, 1]
    masks = MagicLayoutMasks.execute(layout, {"samples": latent}, -1).args[0]
    assert [mask.shape for mask in masks] == [(1, *layout.picture_size(latent.shape))] * 2
    if kind != UNET:
        plain = flow.invert(kind, positive=content[4], method="euler")
        assert torch.equal(content[0].latents, plain[0].latents)


def test_phrases_that_nobody_has_looked_for_are_refused(model_calls):
    content, layout = watch("flux")
    other = watch("flux", seed=1)[1]
    model_calls.clear()
    for options, message in (
        ({}, "connect layout of a Semantic Layout whose MODEL and positive go into MagicStyle"),
        ({"layout": layout, "keep_phrase": "cat"}, r"'cat' is none of the layout's phrases \(hat,"),
        ({"layout": other}, "the layout has not seen the content: connect"),
    ):
        with pytest.raises(ValueError, match=message):
            edit_content("flux", content, **{"keep_phrase": "hat", **options})
    assert not model_calls
    run = layout.run_of(content[0].latents[-1])
    run.steps[max(run.steps)].concepts[:] = -1
    with pytest.raises(ValueError, match="'hat' is nowhere in the picture, as the layout shows"):
        edit_content("flux", content, layout=layout, keep_phrase="hat")


def test_edits_that_begin_elsewhere_are_refused(model_calls):
    content = invert_picture("flux")
    model, start, noise = edit_content("flux", content)
    outputs = (*content[:4], words("flux", 11))
    with pytest.raises(ValueError, match="content was inverted with another model"):
        edit_content(UNET, content)
    with pytest.raises(ValueError, match="keep has 3 masks, the content 1 pictures"):
        edit_content("flux", content, keep=torch.ones(3, 8, 8))
    model_calls.clear()
    with pytest.raises(ValueError, match="adds noise, but the LATENT of MagicStyle Edit is noise"):
        flow.sample(model, start, outputs, add_noise=True)
    with pytest.raises(ValueError, match="with SamplerCustomAdvanced the NOISE of MagicStyle Edit"):
        flow.sample(model, start, outputs, flow.euler())
    with pytest.raises(ValueError, match="what must not change to keep of MagicStyle Edit"):
        flow.sample(model, {**start, "noise_mask": torch.ones(1, 1, 64, 48)}, outputs)
    assert not model_calls
    drawn = flow.sample(model, start, outputs, flow.invert_picture("flux", method="euler")[3])
    again = flow.sample_advanced(
        model, noise, {"samples": flow.latent("flux")}, outputs, flow.euler()
    )
    torch.testing.assert_close(again, drawn, rtol=1e-3, atol=1e-3)


def test_each_new_style_is_a_patch_of_its_own():
    first, second = (with_style("flux", picture(i)).wrappers["outer_sample"] for i in (0, 1))
    [key], [other] = first, second
    assert key != other
    assert isinstance(first[key][0].__self__, NewStylePatch)
