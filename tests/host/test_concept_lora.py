"""Concept LoRA: nothing where its concept is nowhere, the host's LoRA where it is everywhere."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from magicportrait.host.models.lora_patches import check_lora, lora_patches
from magicportrait.host.sampling.adapters import adapters_of
from magicportrait.host.sampling.backbone import CallSize, LayerTokens, backbone_of
from magicportrait.host.sampling.backbone.interface import GivenPictures
from magicportrait.host.sampling.backbone.unet import plain_attention
from magicportrait.host.sampling.patch import patches_of
from magicportrait.host.text.prompts import tagged_prompt
from magicportrait.magic.concepts import Concept
from magicportrait.nodes.analysis import MagicCorrespondence, MagicCorrespondenceMap
from magicportrait.nodes.concept_lora import NO_LORA, REGIONS, MagicConceptLora
from magicportrait.nodes.magicface_concept import MagicFaceConcept
from magicportrait.tests.host import dit_nodes, dits, sampling, test_transformer_company
from magicportrait.tests.host.loras import KINDS, random_lora

UNET_LAYERS = (
    "time_embed.0",
    "input_blocks.0.0",
    "input_blocks.1.0.in_layers.2",
    "input_blocks.1.0.emb_layers.1",
    "input_blocks.1.1.proj_in",
    "input_blocks.1.1.transformer_blocks.0.attn1.to_q",
    "input_blocks.1.1.transformer_blocks.0.attn2.to_k",
    "input_blocks.3.0.op",
    "output_blocks.5.1.transformer_blocks.0.attn2.to_v",
    "output_blocks.5.1.transformer_blocks.0.ff.net.0.proj",
)
NORMS = (
    "input_blocks.1.0.in_layers.0",
    "input_blocks.1.1.transformer_blocks.0.norm1",
    "out.0",
)
FLUX_LAYERS = (
    "img_in",
    "txt_in",
    "time_in.in_layer",
    "double_blocks.0.img_attn.qkv",
    "double_blocks.0.txt_attn.proj",
    "double_blocks.1.img_mlp.0",
    "single_blocks.0.linear1",
    "single_blocks.1.linear2",
    "final_layer.linear",
)
EVERYWHERE = torch.ones(1, 8, 8)
LEFT = torch.cat([torch.ones(1, 8, 4), torch.zeros(1, 8, 4)], dim=2)


@pytest.fixture(autouse=True)
def host_with_bypass_mode() -> None:
    from comfy import weight_adapter

    if not hasattr(weight_adapter, "BypassForwardHook"):
        pytest.skip("this host can only merge LoRAs")


def concept(
    lora: dict[str, Tensor], phrase: str = "hat", strength: float = 1.0, **more: Any
) -> tuple[Concept, ...]:
    concepts: tuple[Concept, ...] = MagicConceptLora.execute(
        phrase, NO_LORA, strength, lora, **more
    ).args[0]
    return concepts


def family(kind: str) -> tuple[Any, tuple[str, ...]]:
    """MODEL and names of layers."""
    if kind == "unet":
        return sampling.parts()[0], UNET_LAYERS
    return dits.random_transformer("flux"), FLUX_LAYERS


def draw(kind: str, model: Any, positive: Any, steps: int = 2, batch: int = 1) -> Tensor:
    if kind == "unet":
        return sampling.Sampling(batch, (8, 8), steps=steps).run(model, positive)
    sigmas = (1.0, 0.6, 0.3, 0.0)[: steps + 1]
    return dit_nodes.sample(kind, model, positive, batch=batch, sigmas=sigmas)


def apply(kind: str, model: Any, chained: tuple[Concept, ...]) -> tuple[Any, Any]:
    """MODEL and CONDITIONING."""
    if kind == "unet":
        return sampling.apply(model, chained=chained, semantic_cfg=False)[:2]
    return dit_nodes.apply(kind, model, chained, semantic_cfg=False)[:2]


def merge(model: Any, lora: dict[str, Tensor], strength: float) -> Any:
    import comfy.sd

    return comfy.sd.load_lora_for_models(model, None, lora, strength, 0)[0]


def hooks_of(model: Any) -> int:
    modules: list[nn.Module] = list(model.model.diffusion_model.modules())
    return sum(len(module._forward_hooks) for module in modules)


@contextmanager
def nothing_left(model: Any) -> Iterator[None]:
    forwards = {m: "forward" in vars(m) for m in model.model.diffusion_model.modules()}
    yield
    assert hooks_of(model) == 0
    assert {m: "forward" in vars(m) for m in model.model.diffusion_model.modules()} == forwards


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("network", ["unet", "flux"])
def test_everywhere_it_is_the_hosts_own_lora(network: str, kind: str) -> None:
    model, layers = family(network)
    if kind == "difference" and network == "unet":
        layers = (*layers, *NORMS)
    if kind == "old glora":
        submodule = model.model.diffusion_model.get_submodule
        layers = tuple(each for each in layers if submodule(each).weight[0, 0].numel() == 1)
    lora = random_lora(model, layers, kind, size=0.05 if kind == "difference" else 0.2)
    strength = 1.0 if kind == "boft" else 0.8
    chained = concept(
        lora, strength=strength, target_region=EVERYWHERE, text="all", global_layers=True
    )
    patched, positive = apply(network, model, chained)
    with nothing_left(patched):
        samples = draw(network, patched, positive, steps=1)
    expected = draw(network, merge(model, lora, strength), positive, steps=1)
    assert (samples - expected).abs().max() <= 1e-5 * expected.abs().max()
    plain = draw(network, model, positive, steps=1)
    assert (plain - expected).abs().max() > 1e-3 * expected.abs().max()


@pytest.mark.parametrize("network", ["unet", "flux"])
def test_before_there_is_a_layout_it_is_off_bit_for_bit(network: str) -> None:
    model, layers = family(network)
    chained = concept(random_lora(model, layers), text="all", global_layers=True)
    patched, positive = apply(network, model, chained)
    plain = draw(network, model, positive, steps=1)
    assert torch.equal(draw(network, patched, positive, steps=1), plain)
    later = draw(network, patched, positive, steps=2)
    assert not torch.equal(later, draw(network, model, positive, steps=2))


def test_pictures_without_the_concept_stay_as_they_are() -> None:
    model, layers = family("unet")
    region = torch.stack([torch.ones(8, 8), torch.zeros(8, 8)])
    patched, positive = apply(
        "unet", model, concept(random_lora(model, layers), target_region=region, text="all")
    )
    with_lora, plain = (draw("unet", m, positive, steps=1, batch=2) for m in (patched, model))
    assert torch.equal(with_lora[1], plain[1])
    assert not torch.allclose(with_lora[0], plain[0])


def test_it_acts_in_its_region_only() -> None:
    model, _ = family("unet")
    # The last layer, behind which nothing mixes places.
    lora = random_lora(model, ["out.2"])
    patched, positive = apply("unet", model, concept(lora, target_region=LEFT))
    sampled, plain = (draw("unet", m, positive, steps=1) for m in (patched, model))
    change = (sampled - plain).abs().amax((0, 1))
    assert (change[:, :4] > 0).all() and (change[:, 4:] == 0).all()
    whole = draw("unet", merge(model, lora, 1.0), positive, steps=1)
    torch.testing.assert_close(sampled[..., :4], whole[..., :4], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("text", ["phrase", "all", "none"])
def test_tokens_of_the_text_that_take_it(text: str) -> None:
    model, _ = family("unet")
    lora = random_lora(model, ["input_blocks.1.1.transformer_blocks.0.attn2.to_k"])
    patched, positive = apply("unet", model, concept(lora, target_region=EVERYWHERE, text=text))
    keys: list[Tensor] = []

    def look(q: Tensor, k: Tensor, v: Tensor, extra: Any) -> Tensor:
        keys.append(k)
        return plain_attention(q, k, v, extra)

    watched = [m.clone() for m in (patched, model)]
    for m in watched:
        m.set_model_attn2_replace(look, "input", 1)
        draw("unet", m, positive, steps=1)
    change = (keys[0] - keys[-1]).abs().amax(-1)  # rows x tokens: the negative prompt first
    clip = sampling.parts()[1]
    span = list(tagged_prompt(clip, sampling.PROMPT, ["hat"], "x").spans[0])
    expected = torch.full_like(change, text == "all", dtype=torch.bool)
    if text == "phrase":
        ours = int((keys[-1] - keys[-1][:1]).abs().amax((1, 2)).argmax())
        is_first = torch.equal(change[0] > 0, torch.zeros(77, dtype=torch.bool))
        expected[1 if is_first else 0, span] = True
        assert ours == 1
    assert torch.equal(change > 0, expected)


@pytest.mark.parametrize("network", ["unet", "flux"])
def test_a_cancelled_run_leaves_nothing(network: str) -> None:
    import comfy.model_management as management

    model, layers = family(network)
    chained = concept(random_lora(model, layers), target_region=EVERYWHERE)
    patched, positive = apply(network, model, chained)
    inside: list[int] = []

    def cancel(*_: Any) -> None:
        inside.append(hooks_of(model))
        raise management.InterruptProcessingException

    handle = model.model.diffusion_model.register_forward_pre_hook(cancel)
    try:
        with pytest.raises(management.InterruptProcessingException):
            draw(network, patched, positive)
    finally:
        handle.remove()
    assert inside[0] > 0
    assert hooks_of(model) == 0 and not patched.injections


def test_runs_of_one_queue_do_not_know_of_each_other() -> None:
    model, layers = family("unet")
    first, positive = apply("unet", model, concept(random_lora(model, layers), target_region=LEFT))
    second, _ = apply(
        "unet", model, concept(random_lora(model, layers, seed=1), target_region=LEFT)
    )
    alone = draw("unet", first, positive)
    with nothing_left(model):
        other = draw("unet", second, _)
    assert not torch.equal(alone, other)
    assert torch.equal(draw("unet", first, positive), alone)


def test_dora_and_glora_know_the_weight_that_another_lora_has_changed() -> None:
    model, layers = family("unet")
    styled = merge(model, random_lora(model, layers, size=0.05), 1.0)
    for kind in ("dora", "glora"):
        own = random_lora(model, layers, kind, seed=1)
        chained = concept(own, target_region=EVERYWHERE, text="all", global_layers=True)
        patched, positive = apply("unet", styled, chained)
        samples = draw("unet", patched, positive, steps=1)
        expected = draw("unet", merge(styled, own, 1.0), positive, steps=1)
        assert (samples - expected).abs().max() <= 2e-5 * expected.abs().max()


@pytest.mark.parametrize("kind", ["lora", "dora", "glora"])
def test_quantised_layers_take_it(kind: str) -> None:
    import comfy.sd

    model = test_transformer_company.quantise("flux", "int8_tensorwise")
    whole, layers = family("flux")
    lora = random_lora(whole, layers, kind)
    chained = concept(lora, target_region=EVERYWHERE, text="all", global_layers=True)
    patched, positive = apply("flux", model, chained)
    samples = draw("flux", patched, positive, steps=1)
    # Nearly what the whole weights draw.
    expected = draw("flux", merge(whole, lora, 1.0), positive, steps=1)
    change = (expected - draw("flux", whole, positive, steps=1)).norm()
    assert 0 < (samples - expected).norm() < 0.5 * change
    if kind == "lora":
        beside = comfy.sd.load_bypass_lora_for_models(model, None, lora, 1.0, 0)[0]
        expected = draw("flux", beside, positive, steps=1)
        assert (samples - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("is_bypassed", [False, True], ids=["merged", "bypass mode"])
def test_it_stacks_with_the_hosts_lora(is_bypassed: bool) -> None:
    import comfy.sd

    model, layers = family("unet")
    style, own = random_lora(model, layers, size=0.05), random_lora(model, layers, seed=1, size=0.1)
    load = comfy.sd.load_bypass_lora_for_models if is_bypassed else comfy.sd.load_lora_for_models
    styled = load(model, None, style, 1.0, 0)[0]
    chained = concept(own, target_region=EVERYWHERE, text="all", global_layers=True)
    patched, positive = apply("unet", styled, chained)
    samples = draw("unet", patched, positive, steps=1)
    expected = draw("unet", merge(merge(model, style, 1.0), own, 1.0), positive, steps=1)
    assert (samples - expected).abs().max() <= 2e-5 * expected.abs().max()
    assert bool(patched.injections) == is_bypassed and hooks_of(model) == 0


def test_a_painted_region_limits_the_layout() -> None:
    model, layers = family("unet")
    lora = random_lora(model, layers)
    patched, positive = apply(
        "unet", model, concept(lora, target_region=LEFT, region=REGIONS[1], text="all")
    )
    # No layout yet: nowhere, although an area is painted.
    assert torch.equal(
        draw("unet", patched, positive, steps=1), draw("unet", model, positive, steps=1)
    )


def test_a_concept_may_have_a_reference_and_a_lora() -> None:
    model, layers = family("unet")
    lora = random_lora(model, layers)
    reference = sampling.concepts(1, size=(64, 64))
    both = MagicConceptLora.execute("Hat", NO_LORA, 1.0, lora, None, reference).args[0]
    other_order = MagicFaceConcept.execute(
        reference[0].images, "hat", 2.0, reference[0].mask, "", None, concept(lora)
    ).args[0]
    alone = draw("unet", *apply("unet", model, reference))
    patched, positive = apply("unet", model, both)
    assert [patch.layout.ca_scale for *_, patch in patches_of(patched)] == [0.9]
    together = draw("unet", patched, positive)
    assert not torch.equal(alone, together)
    assert torch.equal(draw("unet", *apply("unet", model, other_order)), together)
    # The only hat is the first one.
    numbered = MagicConceptLora.execute("hat#1", NO_LORA, 1.0, lora, None, reference).args[0]
    patched, positive = apply("unet", model, numbered)
    assert [patch.phrases for *_, patch in patches_of(patched)] == [("hat",)]


@pytest.mark.parametrize("network", ["unet", "flux"])
def test_concepts_of_loras_alone_stand_beside_others(network: str) -> None:
    model, layers = family(network)
    lora = random_lora(model, layers, size=0.05)
    hat, scarf = (
        MagicFaceConcept.execute(torch.rand(1, *size, 3), phrase).args[0]
        for phrase, size in (("hat", (64, 64)), ("striped scarf", (64, 96)))
    )
    chained = (*concept(lora, "striped scarf"), *hat, *scarf, *concept(lora, "man"))
    patched, positive = apply(network, model, chained)
    watched, record = MagicCorrespondence.execute(patched, "1,1", 0.0, 1.0).args
    samples = draw(network, watched, positive)
    assert samples.isfinite().all() and hooks_of(model) == 0
    assert record.run_of(samples).concepts == (0, 1)
    # The scarf comes with its LoRA, which is the first.
    pictures, _ = MagicCorrespondenceMap.execute(record, {"samples": samples}, 0.8, chained).args
    assert [tuple(picture.shape[1:3]) for picture in pictures] == [(64, 96), (64, 64)]


def test_where_there_are_no_references_nobody_looks_at_them() -> None:
    model, layers = family("unet")
    patched, positive = apply("unet", model, concept(random_lora(model, layers)))
    watched, _ = MagicCorrespondence.execute(patched, "1,1", 0.0, 1.0).args
    with nothing_left(model), pytest.raises(ValueError, match="are LoRAs alone"):
        draw("unet", watched, positive, steps=1)


def test_features_are_kept_beside_a_lora(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    model, layers = family("unet")
    chained = concept(random_lora(model, layers), concepts=sampling.concepts(1, size=(64, 64)))
    patched, positive, _ = sampling.apply(model, chained=chained, keep_features="memory")
    first, second = (draw("unet", patched, positive, steps=1) for _ in range(2))
    assert torch.equal(first, second)
    assert "0 reference passes for 1 model calls, 1 kept" in caplog.text


def test_pictures_that_a_model_leaves_out_have_no_tokens() -> None:
    backbone, text = backbone_of(dits.random_transformer("flux")), 7
    call = CallSize((16, 16), text, GivenPictures(((16, 16),)))
    for behind in (0, 64):
        where = backbone.tokens_of("single_blocks.0.linear1", text + 64 + behind, call)
        assert where == LayerTokens((0, text), (text, text + 64), (8, 8))


def test_pictures_that_stand_before_the_one_that_is_made_are_left_alone() -> None:
    backbone = backbone_of(dits.random_transformer("zimage"))
    call = CallSize((16, 16), 7, GivenPictures(((16, 16),)))
    # Padded to 32 each: a text in the place of the picture's, the prompt's, both pictures.
    where = backbone.tokens_of("layers.0.feed_forward.w1", 192, call)
    assert where == LayerTokens((32, 64), (128, 192), (8, 8))
    assert backbone.tokens_of("x_embedder", 64, call) is None


def test_text_of_several_encoders_is_where_all_of_it_is() -> None:
    """What sees the tokens of one encoder alone, or an expert's, is left alone."""
    backbone = backbone_of(dits.random_transformer("hidream"))
    call = CallSize((16, 16), 20, behind=44)
    double, single = "double_stream_blocks.0.block.", "single_stream_blocks.0.block."
    text = LayerTokens((0, 64), (0, 0), (0, 0))
    assert backbone.tokens_of(f"{double}attn1.to_k_t", 64, call) == text
    assert backbone.tokens_of(f"{double}ff_t.w1", 64, call) == text
    image = LayerTokens((0, 0), (0, 64), (8, 8))
    assert backbone.tokens_of(f"{double}attn1.to_k", 64, call) == image
    both = LayerTokens((64, 128), (0, 64), (8, 8))
    assert backbone.tokens_of(f"{single}attn1.to_k", 128, call) == both
    assert backbone.tokens_of("caption_projection.0", 20, call) is None
    assert backbone.places_in_text((3, 25, 47), 20, 64) == [3, 25, 47]


ANIMA_LAYERS = (
    "x_embedder.proj.1",
    "blocks.0.self_attn.q_proj",
    "blocks.0.cross_attn.q_proj",
    "blocks.1.cross_attn.v_proj",
    "blocks.1.mlp.layer1",
    "final_layer.linear",
)


def test_layers_that_have_rows_and_columns_apart_take_it_as_all_others() -> None:
    model = dits.random_transformer("anima")
    lora = random_lora(model, ANIMA_LAYERS)
    everywhere = concept(lora, target_region=EVERYWHERE, text="all")
    patched, positive = apply("anima", model, everywhere)
    samples = draw("anima", patched, positive, steps=1)
    expected = draw("anima", merge(model, lora, 1.0), positive, steps=1)
    assert (samples - expected).abs().max() <= 1e-5 * expected.abs().max()
    left, positive = apply("anima", model, concept(lora, target_region=LEFT, text="none"))
    assert not torch.equal(draw("anima", left, positive, steps=1), expected)


OUTSIDE = ("txtfusion", "llm_adapter", "experts.", "caption_projection")
"""Layers of the text before it is a prompt's context, and of tokens that a gate picks out."""


@pytest.mark.parametrize(
    "network", ["flux2", "qwen", "zimage", "lumina2", "sd3", "krea2", "anima", "hidream"]
)
def test_other_transformers_know_where_their_tokens_are(
    network: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = dits.random_transformer(network)
    layers = [
        name
        for name, module in model.model.diffusion_model.named_modules()
        if isinstance(module, nn.Linear)
        and module.weight.ndim == 2
        and not any(part in name for part in OUTSIDE)
    ]
    lora = random_lora(model, layers, size=0.02)
    patched, positive = apply(network, model, concept(lora, target_region=EVERYWHERE, text="all"))
    samples = draw(network, patched, positive, steps=1)
    assert samples.isfinite().all()
    assert not torch.equal(samples, draw(network, model, positive, steps=1))
    assert "it is not known where the tokens" not in caplog.text
    if network == "hidream":
        experts = random_lora(model, ["double_stream_blocks.0.block.ff_i.experts.0.w1"])
        alone = concept(experts, target_region=EVERYWHERE, text="all", global_layers=True)
        patched, positive = apply(network, model, alone)
        draw(network, patched, positive, steps=1)
        assert "such as diffusion_model.double_stream_blocks.0.block.ff_i.experts" in caplog.text


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ({"start": 0.6}, 0.0),
        ({"strength_curve": "0: 0"}, 0.0),
        ({"strength": 5.0, "strength_curve": "0.9: 0.5, 1: 9"}, 0.5),
        ({"strength": 5.0, "strength_curve": "0: 0.5"}, 0.5),
        ({"strength": 0.5, "end": 0.6}, 0.5),
    ],
)
def test_it_acts_when_and_as_strongly_as_it_should(times: Any, expected: float) -> None:
    model, layers = family("unet")
    lora = random_lora(model, layers)
    # One step, at the beginning of sampling.
    sampled, own = (
        apply("unet", model, concept(lora, target_region=LEFT, **settings))
        for settings in (times, {"strength": expected})
    )
    first, second = (draw("unet", *each, steps=1) for each in (sampled, own))
    torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-4 * float(second.abs().max()))
    plain = draw("unet", model, own[1], steps=1)
    assert torch.equal(first, plain) == (not expected)


def test_a_lora_of_another_model_is_refused_before_sampling() -> None:
    model, _ = family("unet")
    lora = random_lora(dits.random_transformer("flux"), FLUX_LAYERS)
    with pytest.raises(ValueError, match="made for another kind of model"):
        apply("unet", model, concept(lora))


def test_layers_that_only_others_of_a_kind_have_are_left_out() -> None:
    """The host knows Flux's names for Chroma, which lacks some of these layers."""
    model = dits.random_transformer("chroma")
    modulation, attention = "norm1.linear", "attn.to_out.0"
    lora = {
        f"transformer.transformer_blocks.0.{layer}.{part}": torch.ones(shape)
        for layer in (modulation, attention)
        for part, shape in (("lora_B.weight", (64, 2)), ("lora_A.weight", (2, 64)))
    }
    adapters = adapters_of(model, "x", lora, 1.0)
    assert [layer.layer for layer in adapters.layers] == [
        "diffusion_model.double_blocks.0.img_attn.proj"
    ]
    assert adapters.left_out == ("diffusion_model.double_blocks.0.img_mod.lin.weight",)
    # As the host, which merges what there is.
    check_lora("x", lora, model, sampling.parts()[1])


@pytest.mark.parametrize(
    ("kind", "more", "complaint"),
    [
        ("oft", {"dora_scale": torch.ones(32, 1)}, "cannot act in a part of the picture"),
        ("lora", {"reshape_weight": torch.tensor([48, 32])}, "cannot act in a part of the picture"),
        ("glora", {"dora_scale": torch.ones(32, 1)}, "in a form that is not known"),
        ("old glora", {}, "in a form that is not known"),
    ],
)
def test_what_cannot_act_in_a_part_is_refused(
    kind: str, more: dict[str, Tensor], complaint: str
) -> None:
    model, _ = family("unet")
    layer = _ATTENTION if more else _CONVOLUTION
    lora = random_lora(model, [layer], kind)
    lora |= {f"diffusion_model.{layer}.{name}": tensor for name, tensor in more.items()}
    with pytest.raises(ValueError, match=complaint):
        apply("unet", model, concept(lora))


_ATTENTION, _CONVOLUTION, _NORM = UNET_LAYERS[5], UNET_LAYERS[2], NORMS[0]
_PROJECTION, _CONTEXT = UNET_LAYERS[4], UNET_LAYERS[6]


@pytest.mark.parametrize(
    ("layer", "kind", "more", "complaint"),
    [
        # For a wider layer, and for one alone of its sides.
        (
            _ATTENTION,
            "lora",
            {"lora_up.weight": torch.ones(48, 2), "lora_down.weight": torch.ones(2, 48)},
            "is 32x32, and the LoRA has 48x2 and 2x48 for it",
        ),
        (_ATTENTION, "lora", {"lora_up.weight": torch.ones(1, 2)}, "has 1x2 and 2x32"),
        (_ATTENTION, "lora", {"lora_down.weight": torch.ones(3, 32)}, "has 32x2 and 3x32"),
        (_ATTENTION, "lora", {"lora_up.weight": torch.tensor(1.0)}, "has a single number and"),
        (_CONVOLUTION, "lora", {"lora_down.weight": torch.ones(2, 32, 1, 1)}, "is 32x32x3x3, and"),
        (_CONVOLUTION, "lora", {"lora_up.weight": torch.ones(32, 2, 1, 1, 1)}, "has 32x2x1x1x1 "),
        (
            _PROJECTION,
            "lora",
            {"lora_down.weight": torch.ones(1, 32), "lora_mid.weight": torch.ones(2, 1, 1, 1)},
            "and 2x1x1x1 for it",
        ),
        (_ATTENTION, "lora", {"lora_down.weight": None}, "not whole: it lacks '.*lora_down"),
        (_ATTENTION, "lora", {"alpha": torch.ones(3)}, "alpha' is to be one number, and is .* 3"),
        (_ATTENTION, "loha", {"hada_w2_b": torch.ones(2, 8)}, "and 2x8 for it"),
        (_ATTENTION, "loha", {"hada_w2_b": None}, "lacks '.*hada_w2_b'"),
        (_ATTENTION, "lokr", {"lokr_w1": torch.ones(3, 3)}, "has 3x3 and 16x16"),
        (_ATTENTION, "lokr", {"lokr_w2": None}, "has 2x2 for it"),
        (_ATTENTION, "oft", {"oft_blocks": torch.ones(3, 4, 4)}, "has 3x4x4 for it"),
        (_ATTENTION, "boft", {"oft_blocks": torch.ones(5, 8, 4, 4)}, "has 5x8x4x4 for it"),
        (_ATTENTION, "glora", {"a1.weight": torch.ones(3, 7)}, "has 3x7 and 2x32 and 32x2"),
        (_ATTENTION, "glora", {"a1.weight": torch.tensor(1.0)}, "has a single number and"),
        (_ATTENTION, "glora", {"b1.weight": None}, "lacks '.*b1.weight'"),
        (_ATTENTION, "dora", {"dora_scale": torch.ones(48, 1)}, "and 48x1 for it"),
        (_ATTENTION, "dora", {"dora_scale": torch.tensor(1.0)}, "and a single number for it"),
        (_CONVOLUTION, "difference", {"diff": torch.ones(32, 32)}, "is 32x32x3x3, and .* 32x32 "),
        (_NORM, "difference", {"diff_b": torch.ones(48)}, "bias' of this model is 32, and"),
    ],
)
def test_what_does_not_fit_a_layer_is_refused_before_sampling(
    layer: str, kind: str, more: dict[str, Tensor | None], complaint: str
) -> None:
    """Though the others fit."""
    model, _ = family("unet")
    other = UNET_LAYERS[9]
    lora = random_lora(model, [other, layer], kind) | {
        f"diffusion_model.{layer}.{name}": tensor for name, tensor in more.items()
    }
    whole = {key: tensor for key, tensor in lora.items() if tensor is not None}
    with pytest.raises(ValueError, match=rf"LoRA 'lora_model' .*{complaint}") as refusal:
        adapters_of(model, "lora_model", whole, 1.0)
    assert layer in str(refusal.value)


def test_numbers_that_adapters_of_others_leave_out_do_not_matter() -> None:
    model, _ = family("unet")
    for kind in ("lokr", "boft"):
        lora = random_lora(model, [_ATTENTION], kind)
        changed, key = dict(lora), f"diffusion_model.{_ATTENTION}.alpha"
        if changed.pop(key, None) is None:
            changed[key] = torch.tensor(0.0)
        x = torch.randn(1, 32, generator=torch.Generator().manual_seed(1))
        added = [
            adapters_of(model, "x", weights, 1.0).layers[0].added(x, x + 1)
            for weights in (lora, changed)
        ]
        assert torch.equal(*added) and added[0].any()


_CORE = (2, 2, 1, 1)


def _glora_shapes(
    rows: int, columns: int, rank: int, is_old: bool = False
) -> dict[str, tuple[int, ...]]:
    order = [(columns, rank), (rank, columns), (rows, rank), (rank, columns)]
    names = ("a2", "a1", "b2", "b1") if is_old else ("a1", "a2", "b1", "b2")
    return {f"{name}.weight": shape for name, shape in zip(names, order, strict=True)}


@pytest.mark.parametrize(
    ("layer", "shapes"),
    [
        (_ATTENTION, {"lora_up.weight": (32, 2, 1, 1), "lora_down.weight": (2, 32, 1, 1)}),
        (_ATTENTION, {"lokr_w1": (2, 2), "lokr_w2": (16, 16, 1, 1)}),
        (
            _ATTENTION,
            {"lokr_w1_a": (2, 1), "lokr_w1_b": (1, 2), "lokr_w2_a": (16, 4), "lokr_w2_b": (4, 16)},
        ),
        (_PROJECTION, {"lokr_w1": (2, 2), "lokr_w2": (16, 16)}),
        (_CONVOLUTION, {"lokr_w1": (2, 2), "lokr_w2_a": (16, 2), "lokr_w2_b": (2, 144)}),
        (_CONVOLUTION, {"lora_up.weight": (32, 2), "lora_down.weight": (2, 288)}),
        # Cores of one cell, and one of a kernel between matrices.
        (
            _ATTENTION,
            {
                "lora_up.weight": (32, 2),
                "lora_down.weight": (2, 32),
                "lora_mid.weight": _CORE,
            },
        ),
        (
            _ATTENTION,
            {
                "lora_up.weight": (32, 2, 1, 1),
                "lora_down.weight": (2, 32, 1, 1),
                "lora_mid.weight": _CORE,
            },
        ),
        (
            _CONVOLUTION,
            {
                "lora_up.weight": (32, 2),
                "lora_down.weight": (2, 32),
                "lora_mid.weight": (2, 2, 3, 3),
            },
        ),
        (
            _ATTENTION,
            {f"hada_w{i}_{side}": (4, 32) for i in (1, 2) for side in "ab"}
            | {f"hada_t{i}": (4, 4, 1, 1) for i in (1, 2)},
        ),
        # GLoRA of the rank of a side: of both, of what goes in, of what comes out.
        (_ATTENTION, _glora_shapes(32, 32, 32)),
        (_PROJECTION, _glora_shapes(32, 32, 32)),
        (_CONTEXT, _glora_shapes(32, 96, 96)),
        (_CONTEXT, _glora_shapes(32, 96, 32)),
        (_CONTEXT, _glora_shapes(32, 96, 2)),
        # The older order, on a convolution of one cell and beside a side of its rank.
        (_PROJECTION, _glora_shapes(32, 32, 2, is_old=True)),
        (_CONTEXT, _glora_shapes(32, 96, 32, is_old=True)),
    ],
)
def test_forms_of_others_that_the_host_merges_are_added_as_it_merges_them(
    layer: str, shapes: dict[str, tuple[int, ...]]
) -> None:
    model, _ = family("unet")
    generator = torch.Generator().manual_seed(1)
    prefix = f"diffusion_model.{layer}"
    lora = {
        f"{prefix}.{name}": torch.randn(shape, generator=generator)
        for name, shape in shapes.items()
    } | {f"{prefix}.alpha": torch.tensor(3.0)}
    module = model.model.diffusion_model.get_submodule(layer)
    weight = module.weight.detach().float()
    [patch] = lora_patches("x", lora, {prefix: "it"}).values()
    change = patch.calculate_weight(weight.clone(), "it", 1.0, 1.0, None, lambda x: x) - weight
    x = torch.randn(1, weight.shape[1], *[5] * (weight.ndim - 2), generator=generator)
    expected = (
        F.linear(x, change)
        if weight.ndim == 2
        else F.conv2d(x, change, None, module.stride, module.padding)
    )
    added = adapters_of(model, "x", lora, 1.0).layers[0].added(x, module(x))
    assert (added - expected).abs().max() <= 1e-4 * expected.abs().max()
    assert expected.any()


@pytest.mark.parametrize("core", [False, True])
@pytest.mark.parametrize("layer", [_CONVOLUTION, _PROJECTION, _ATTENTION])
def test_a_lokr_of_products_acts_on_layers_of_each_form(layer: str, core: bool) -> None:
    """As LyCORIS writes it: the kernel's cells are columns of the product, or a tensor between."""
    model, _ = family("unet")
    module = model.model.diffusion_model.get_submodule(layer)
    kernel = getattr(module, "kernel_size", (1, 1))
    generator = torch.Generator().manual_seed(2)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    w1_a, w1_b = random(4, 3), random(3, 2)
    if core:
        parts = {"lokr_w2_a": random(2, 8), "lokr_w2_b": random(2, 16)}
        parts["lokr_t2"] = random(2, 2, *kernel)
        whole = torch.einsum(
            "ijkl,ip,jr->prkl", parts["lokr_t2"], parts["lokr_w2_a"], parts["lokr_w2_b"]
        )
    else:
        parts = {"lokr_w2_a": random(8, 2), "lokr_w2_b": random(2, 16 * kernel[0] * kernel[1])}
        whole = (parts["lokr_w2_a"] @ parts["lokr_w2_b"]).unflatten(1, (16, *kernel))
    # Alpha of 3 at the rank 2 of the second product.
    product = {"lokr_w1_a": w1_a, "lokr_w1_b": w1_b, "alpha": torch.tensor(3.0), **parts}
    expected = {"lokr_w1": w1_a @ w1_b, "lokr_w2": (whole * 1.5).contiguous()}
    x = random(1, 32, *[6] * (module.weight.ndim - 2))
    for scales in ({}, {"dora_scale": random(32, *[1] * (module.weight.ndim - 1)).abs()}):
        added = []
        for lora in (product, expected):
            named = {
                f"diffusion_model.{layer}.{name}": tensor
                for name, tensor in (lora | scales).items()
            }
            [it] = adapters_of(model, "x", named, 0.5).layers
            added.append(it.added(x, torch.zeros_like(x)))
        torch.testing.assert_close(*added, rtol=1e-4, atol=1e-4)
    named[f"diffusion_model.{layer}.lokr_w2"] = torch.ones(8, 15, *kernel)
    with pytest.raises(ValueError, match=r"does not fit: .* and 8x15x"):
        adapters_of(model, "x", named, 0.5)


def test_a_boft_scales_the_rows_of_a_convolution() -> None:
    model, _ = family("unet")
    key = f"diffusion_model.{_CONVOLUTION}"
    lora = random_lora(model, [_CONVOLUTION], "boft") | {
        f"{key}.rescale": torch.linspace(0.5, 2, 32).view(32, 1, 1, 1)
    }
    layer = adapters_of(model, "x", lora, 1.0).layers[0]
    module: Any = layer.module
    x = torch.randn(1, 32, 6, 6, generator=torch.Generator().manual_seed(3))
    weight = layer.adapter.calculate_weight(
        module.weight.clone(), key, 1.0, 1.0, None, lambda change: change
    )
    expected = module._conv_forward(x, weight, module.bias)
    torch.testing.assert_close(module(x) + layer.added(x, module(x)), expected)
    with pytest.raises(ValueError, match=r"does not fit: .* 48x1x1x1 for it"):
        adapters_of(model, "x", lora | {f"{key}.rescale": torch.ones(48, 1, 1, 1)}, 1.0)


def test_a_lora_for_a_norm_is_left_out() -> None:
    model, _ = family("unet")
    lora = random_lora(model, [_ATTENTION]) | {
        f"diffusion_model.{_NORM}.lora_up.weight": torch.ones(32, 2),
        f"diffusion_model.{_NORM}.lora_down.weight": torch.ones(2, 1),
    }
    left_out = adapters_of(model, "x", lora, 1.0).left_out
    assert left_out == (f"diffusion_model.{_NORM}.weight",)


def test_without_a_lora_it_says_so() -> None:
    with pytest.raises(ValueError, match="has no LoRA"):
        MagicConceptLora.execute("hat")


def test_a_lora_with_numbers_that_are_none_is_refused() -> None:
    with pytest.raises(ValueError, match="its training has failed"):
        concept({"x.lora_up.weight": torch.tensor([[float("nan")]])})


def test_a_host_that_can_only_merge_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from comfy import weight_adapter

    monkeypatch.delattr(weight_adapter, "BypassForwardHook")
    with pytest.raises(ValueError, match="update ComfyUI to use MagicFace Concept LoRA"):
        concept({"x.lora_up.weight": torch.ones(1, 1)})


def test_what_a_lora_has_for_the_text_encoder_changes_the_phrases_tokens_only() -> None:
    model, _ = family("unet")
    clip = sampling.parts()[1]
    name, encoder = next(
        (name, module)
        for name, module in clip.cond_stage_model.named_modules()
        if name.endswith("encoder.layers.0.mlp.fc1")
    )
    rows, columns = encoder.weight.shape
    generator = torch.Generator().manual_seed(5)
    key = "lora_te_text_model_encoder_layers_0_mlp_fc1"
    lora = random_lora(model, ["out.2"]) | {
        f"{key}.lora_up.weight": torch.randn(rows, 2, generator=generator),
        f"{key}.lora_down.weight": torch.randn(2, columns, generator=generator),
    }
    assert name
    [(plain, _)] = sampling.encode(sampling.PROMPT)
    span = list(tagged_prompt(clip, sampling.PROMPT, ["hat"], "x").spans[0])
    is_changed = {}
    for text in ("phrase", "all", "none"):
        _, [(tensor, _)] = apply("unet", model, concept(lora, text=text))
        is_changed[text] = [i for i in range(77) if not torch.equal(tensor[0, i], plain[0, i])]
    assert is_changed["phrase"] == span and is_changed["none"] == []
    wider = lora | {f"{key}.lora_up.weight": torch.ones(rows + 1, 2)}
    with pytest.raises(ValueError, match=rf"mlp.fc1.weight' .* has {rows + 1}x2 and 2x{columns}"):
        apply("unet", model, concept(wider))
    _, [(twice, _)] = apply("unet", model, concept(lora, concepts=concept(lora)))
    _, [(doubled, _)] = apply("unet", model, concept(lora, strength=2.0))
    torch.testing.assert_close(twice, doubled)
    assert len(is_changed["all"]) > len(span)
    assert torch.equal(sampling.encode(sampling.PROMPT)[0][0], plain)
