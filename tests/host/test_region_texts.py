"""Layout Conditioning: what a region reads against attention written out, nothing where there is no
region."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from magicportrait.host.sampling.patch import patches_of
from magicportrait.magic.concepts import Concept
from magicportrait.nodes.concept_lora import NO_LORA, REGIONS, MagicConceptLora
from magicportrait.nodes.layout_conditioning import MagicLayoutConditioning
from magicportrait.tests.host import dit_nodes, dits, models, sampling
from magicportrait.tests.host.loras import random_lora

TEXT, NOT = "a large green hat of felt", "snow"
SOFT = torch.cat([torch.ones(1, 8, 3), torch.full((1, 8, 1), 0.5), torch.zeros(1, 8, 4)], dim=2)
LEFT = torch.cat([torch.ones(1, 8, 4), torch.zeros(1, 8, 4)], dim=2)
FAMILIES = ("flux", "qwen", "sd3", "krea2")
SIDE = (16, 16)


def concept(text: str = TEXT, phrase: str = "hat", **more: Any) -> tuple[Concept, ...]:
    settings = {"strength": 1.0, **more}
    concepts: tuple[Concept, ...] = MagicLayoutConditioning.execute(phrase, text, **settings).args[
        0
    ]
    return concepts


def apply(kind: str, chained: tuple[Concept, ...], **options: Any) -> tuple[Any, Any]:
    """MODEL and CONDITIONING."""
    if kind == "unet":
        model = sampling.parts()[0]
        return sampling.apply(model, chained=chained, semantic_cfg=False, **options)[:2]
    return dit_nodes.apply(kind, None, chained, semantic_cfg=False, **options)[:2]


def plain_model(kind: str) -> Any:
    return sampling.parts()[0] if kind == "unet" else dits.random_transformer(kind)


def draw(kind: str, model: Any, positive: Any, steps: int = 1, batch: int = 1) -> Tensor:
    if kind == "unet":
        return sampling.Sampling(batch, (8, 8), steps=steps).run(model, positive)
    sigmas = (1.0, 0.6, 0.3, 0.0)[: steps + 1]
    return dit_nodes.sample(kind, model, positive, batch=batch, size=SIDE, sigmas=sigmas)


def encode(kind: str, text: str) -> Tensor:
    [(context, _), *_] = sampling.encode(text) if kind == "unet" else dit_nodes.encode(kind, text)
    return context


def attention(q: Tensor, k: Tensor, v: Tensor, logits: Tensor | float = 0.0) -> Tensor:
    """heads N D."""
    scores = torch.einsum("hnd,hmd->hnm", q, k) / math.sqrt(q.shape[-1]) + logits
    return torch.einsum("hnm,hmd->hnd", scores.softmax(-1), v)


def share_on(grid: tuple[int, int], share: Tensor) -> Tensor:
    """N, by means over cells or by lines between them."""
    mode = "area" if grid[0] <= share.shape[1] else "bilinear"
    return torch.nn.functional.interpolate(share[None], size=grid, mode=mode).flatten()


@contextmanager
def naive_unet(model: Any, positive: Any, share: Tensor, negative: str) -> Iterator[None]:
    """Every layer that reads the prompt, written out. share: 1 H W."""
    texts = {True: encode("unet", TEXT), False: encode("unet", negative)}
    network = model.model.diffusion_model
    layers = [m for name, m in network.named_modules() if name.endswith("attn2")]

    def forward_of(layer: Any) -> Any:
        def split(x: Tensor) -> Tensor:
            return x.unflatten(-1, (layer.heads, -1)).movedim(1, 0)

        def forward(x: Tensor, context: Tensor, **_: Any) -> Tensor:
            side = math.isqrt(x.shape[1])
            weight, rows = share_on((side, side), share)[None, :, None], []
            for row, words in zip(x, context, strict=True):
                q, k, v = split(layer.to_q(row)), split(layer.to_k(words)), split(layer.to_v(words))
                text = texts[torch.equal(words, positive[0][0][0])][0]
                own = attention(q, split(layer.to_k(text)), split(layer.to_v(text)))
                out = attention(q, k, v) * (1 - weight) + own * weight
                rows.append(out.movedim(0, 1).flatten(1))
            return layer.to_out(torch.stack(rows))

        return forward

    for layer in layers:
        layer.forward = forward_of(layer)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def test_a_region_of_a_unet_reads_its_text() -> None:
    chained = concept(target_region=SOFT, strength=0.75, negative_text=NOT)
    patched, positive = apply("unet", chained)
    samples, model = draw("unet", patched, positive), plain_model("unet")
    with naive_unet(model, positive, SOFT * 0.75, NOT):
        expected = draw("unet", model, positive)
    torch.testing.assert_close(samples, expected, rtol=1e-3, atol=1e-3)
    assert (samples - draw("unet", model, positive)).abs().max() > 0.05


def naive_transformer(kind: str, positive: Any, share: Tensor) -> Any:
    """MODEL whose attentions of text and picture are written out over all pairs of tokens."""
    import comfy.patcher_extension as extension

    model = dits.random_transformer(kind).clone()
    prompt, text = positive[0][0], encode(kind, TEXT)
    of_image = share_on((8, 8), share)

    def longer(executor: Any, x: Tensor, t: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        args_list = list(args)
        context = args_list[1]
        rows = [torch.equal(row, prompt[0]) for row in context[:, : prompt.shape[1]]]
        options = {**args_list[3], "is_ours": rows, "prompt": context.shape[1]}
        behind = torch.stack([text[0] * is_ours for is_ours in rows])
        args_list[1], args_list[3] = torch.cat([context, behind], dim=1), options
        return executor(x, t, *args_list, **kwargs)

    def override(func: Any, *args: Any, **kwargs: Any) -> Tensor:
        options = kwargs.get("transformer_options") or {}
        q, k, v = dits.heads_apart(args, kwargs)
        first, count, image = options.get("prompt", 0), text.shape[1], len(of_image)
        own = slice(first, first + count)
        tokens, is_told = q.shape[2], "is_ours" in options
        if not is_told or tokens not in (first + count, first + count + image):
            return func(*args, **kwargs)
        if tokens == first + count and kind != "krea2":
            return func(*args, **kwargs)
        rows = []
        for row, is_ours in enumerate(options["is_ours"]):
            apart = torch.zeros(tokens, tokens)
            apart[:, own] = -torch.inf
            apart[own] = -torch.inf
            apart[own, own] = 0
            by_text = apart.clone()
            weight = torch.zeros(1, tokens, 1)
            if tokens > first + count and is_ours:
                picture = slice(first + count, tokens)
                apart[own, picture] = of_image.log()
                by_text[picture, own] = 0
                by_text[picture, :first] = -torch.inf
                weight[0, picture, 0] = of_image
            out = attention(q[row], k[row], v[row], apart) * (1 - weight)
            out = out + attention(q[row], k[row], v[row], by_text) * weight
            rows.append(out.movedim(0, 1).flatten(1))
        return torch.stack(rows)

    model.add_wrapper_with_key(extension.WrappersMP.APPLY_MODEL, "naive", longer)
    model.model_options["transformer_options"]["optimized_attention_override"] = override
    return model


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_region_of_a_transformer_reads_its_text(kind: str) -> None:
    patched, positive = apply(kind, concept(target_region=SOFT))
    samples = draw(kind, patched, positive)
    expected = draw(kind, naive_transformer(kind, positive, SOFT), positive)
    largest = float(expected.abs().max())
    torch.testing.assert_close(samples, expected, rtol=1e-3, atol=1e-3 * largest)
    plain = draw(kind, plain_model(kind), positive)
    assert (samples - plain).abs().max() > 3e-3 * largest


@pytest.mark.parametrize("kind", ["unet", "flux"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"target_region": LEFT, "region": REGIONS[1]},
        {"target_region": LEFT, "strength": 0.0},
        {"target_region": LEFT, "strength_curve": "0: 0"},
        {"target_region": LEFT, "start": 0.6},
    ],
)
def test_where_and_when_it_is_not_read_nothing_changes_bit_for_bit(
    kind: str, settings: dict[str, Any]
) -> None:
    # One step, before which there is no layout.
    patched, positive = apply(kind, concept(negative_text=NOT, **settings))
    assert torch.equal(draw(kind, patched, positive), draw(kind, plain_model(kind), positive))


@pytest.mark.parametrize("kind", ["unet", "flux"])
def test_it_is_read_by_the_layout_of_the_step_before(kind: str) -> None:
    patched, positive = apply(kind, concept())
    before = models.state_of(patched)
    later = draw(kind, patched, positive, steps=2)
    assert not torch.equal(later, draw(kind, plain_model(kind), positive, steps=2))
    assert models.state_of(patched) == before


def test_pictures_without_the_region_stay_as_they_are() -> None:
    region = torch.stack([torch.ones(8, 8), torch.zeros(8, 8)])
    patched, positive = apply("unet", concept(target_region=region))
    changed, plain = (
        draw("unet", model, positive, batch=2) for model in (patched, plain_model("unet"))
    )
    torch.testing.assert_close(changed[1], plain[1], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(changed[0], plain[0], atol=1e-2)


@pytest.mark.parametrize("kind", ["unet", "flux", "flux2", "qwen", "sd3", "krea2"])
def test_beside_references_and_loras(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    model = plain_model(kind)
    named = dict(model.model.diffusion_model.named_modules())
    layers = [
        name
        for name, module in named.items()
        if isinstance(module, torch.nn.Linear)
        and module.weight.ndim == 2
        and any(part in name for part in ("attn2.to_k", "blocks.1.", "single_blocks.0."))
    ]
    references = sampling.concepts(1, size=(64, 64)) if kind == "unet" else dit_nodes.concepts(1)
    from comfy import weight_adapter

    if hasattr(weight_adapter, "BypassForwardHook"):
        lora = random_lora(model, layers, size=0.02)
        references = MagicConceptLora.execute("hat", NO_LORA, 1.0, lora, None, references).args[0]
    both = {}
    for strength in (0.0, 1.0):
        more = concept(target_region=LEFT, strength=strength, concepts=references)
        patched, positive = apply(kind, (*more, *concept("a blue scarf", "striped scarf")))
        both[strength] = draw(kind, patched, positive, steps=2)
        assert both[strength].isfinite().all()
    assert not torch.equal(both[0.0], both[1.0])
    assert "it is not known where the tokens" not in caplog.text


def test_what_a_text_takes_of_its_phrases_lora() -> None:
    from comfy import weight_adapter

    if not hasattr(weight_adapter, "BypassForwardHook"):
        pytest.skip("this host can only merge LoRAs")
    model = plain_model("unet")
    name = "input_blocks.1.1.transformer_blocks.0.attn2.to_k"
    lora = random_lora(model, [name])
    keys: dict[str, Tensor] = {}

    layer = dict(model.model.diffusion_model.named_modules())[name]
    network, handles = model.model.diffusion_model, []

    def look_at(kind: str) -> Any:
        def look(_: Any, __: Any, output: Tensor) -> None:
            keys[kind] = output.detach().clone()

        # Behind the LoRA's own, which is there once the model runs.
        return lambda *_: handles.append(layer.register_forward_hook(look))

    for kind in ("none", "phrase"):
        own = MagicConceptLora.execute("hat", NO_LORA, 1.0, lora, LEFT, text=kind).args[0]
        chained = concept("a scarf", "striped scarf", target_region=LEFT, concepts=own)
        patched, positive = apply("unet", concept(target_region=LEFT, concepts=chained))
        handles.append(network.register_forward_pre_hook(look_at(kind)))
        try:
            draw("unet", patched, positive)
        finally:
            while handles:
                handles.pop().remove()
    change = (keys["phrase"] - keys["none"]).abs().amax(-1).amax(0)
    # The prompt's 77, the hat's text, the scarf's.
    assert len(change) == 3 * 77
    assert 0 < (change[:77] > 0).sum() < 10
    assert (change[77:154] > 0).all() and (change[154:] == 0).all()


@pytest.mark.parametrize("kind", ["zimage", "hidream", "anima"])
def test_where_texts_have_no_place_it_says_so(kind: str) -> None:
    with pytest.raises(ValueError, match="texts of regions do not work on"):
        apply(kind, concept())


def test_a_reference_of_the_second_man_is_of_a_man() -> None:
    [reference] = sampling.concepts(1)
    own = dataclasses.replace(reference, phrase="man#2")
    patched, _ = apply("unet", (own,), prompt="a man with a hat and a man")
    [patch] = [patch for *_, patch in patches_of(patched)]
    assert patch.phrases == ("man#2",)
    [shown] = [of.conditioning[0][0] for of in patch.references]
    assert torch.equal(shown, encode("unet", "man"))


def test_two_texts_of_a_phrase_are_refused() -> None:
    with pytest.raises(ValueError, match="phrase 'hat' has two texts of its own"):
        apply("unet", concept(concepts=concept()))


def test_an_empty_text_is_refused() -> None:
    with pytest.raises(ValueError, match="text is empty"):
        concept(" ")


def test_edit_models_sequences_have_no_such_texts() -> None:
    from magicportrait.nodes.magicface_apply import IN_THE_SEQUENCE

    with pytest.raises(ValueError, match="read beside a reference pass only"):
        apply("flux", concept(), references=IN_THE_SEQUENCE)
