"""MagicFace, layout, attention maps and correspondence on every family of transformers."""

from __future__ import annotations

import dataclasses
import gc
import json
import logging
import weakref
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from magicportrait.host.systems import magicface
from magicportrait.nodes.analysis import (
    MagicAttentionMap,
    MagicCorrespondence,
    MagicCorrespondenceMap,
)
from magicportrait.nodes.layout import MagicLayoutMasks
from magicportrait.tests.host import dits, models
from magicportrait.tests.host.dit_nodes import (
    PROMPT,
    SIZE,
    SmallVae,
    apply,
    concepts,
    encode,
    sample,
    watch,
)
from magicportrait.tests.host.dit_text import random_clip_of

OVERRIDE = "optimized_attention_override"


def tokens(family: str, size: tuple[int, int] = SIZE) -> tuple[int, int]:
    shape = dits.latent_shape(family, size=size)
    patch = 1 if family == "flux2" else 2
    return -(-shape[-2] // patch), -(-shape[-1] // patch)


@pytest.mark.parametrize("family", dits.FAMILIES)
def test_magicface_draws_with_references(family):
    model, positive, record = apply(family)
    plain = sample(family, dits.random_transformer(family), positive)
    samples = sample(family, model, positive)
    assert samples.isfinite().all() and samples.shape == plain.shape
    assert not torch.equal(samples, plain)
    assert torch.equal(sample(family, model, positive), samples)
    steps = record.run_of(samples).steps
    assert sorted(steps) == [0, 1, 2]
    assert steps[2].concepts.shape == (1, *tokens(family))
    assert set(steps[2].concepts.flatten().tolist()) <= {-1, 0, 1}


@pytest.mark.parametrize(
    ("dtype", "batch", "cfg", "size"),
    [(torch.bfloat16, 2, 1.0, (16, 24)), (torch.float16, 1, 4.0, (9, 16))],
    ids=["bf16", "fp16"],
)
@pytest.mark.parametrize("family", dits.FAMILIES)
def test_magicface_draws_in_half_precision(family, dtype, batch, cfg, size):
    if dtype == torch.float16 and family in ("qwen", "lumina2", "zimage"):
        pytest.skip("the host does not run this class in float16")
    model, positive, record = apply(family, dits.random_transformer(family, dtype))
    samples = sample(family, model, positive, cfg, batch, size, (1.0, 0.5, 0.0))
    assert samples.isfinite().all()
    assert record.run_of(samples).steps[1].concepts.shape == (batch, *tokens(family, size))


@pytest.mark.parametrize("cfg", [1.0, 4.0])
@pytest.mark.parametrize("family", ["flux", "qwen", "zimage"])
def test_pictures_of_a_batch_do_not_see_each_other(family, cfg):
    model, positive, _ = apply(family)
    together = sample(family, model, positive, cfg, batch=2)
    noise = torch.randn(
        *dits.latent_shape(family, 2, SIZE), generator=torch.Generator().manual_seed(3)
    )
    for i in range(2):
        alone = dits.sample(
            model,
            noise[i : i + 1].shape,
            positive,
            encode(family, "blurry"),
            cfg,
            (1.0, 0.7, 0.4, 0.0),
            noise[i : i + 1],
        )
        scale = together.std().item()
        torch.testing.assert_close(alone[0], together[i], rtol=2e-3, atol=2e-3 * scale)


@pytest.mark.parametrize("family", ["flux", "zimage"])
def test_low_memory_splitting_changes_nothing(family, monkeypatch, model_calls):
    model, positive, _ = apply(family)
    joined = sample(family, model, positive, batch=2)
    model_calls.clear()
    monkeypatch.setattr(type(model.model), "memory_required", lambda *args, **kwargs: 1e30)
    split = sample(family, model, positive, batch=2)
    assert set(model_calls) == {1, 2}
    torch.testing.assert_close(split, joined, rtol=2e-3, atol=2e-3 * joined.std().item())


@pytest.mark.parametrize("family", dits.FAMILIES)
def test_watching_the_layout_leaves_the_picture_as_it_is(family):
    model, positive, record = watch(family)
    samples = sample(family, model, positive, batch=2)
    assert torch.equal(samples, sample(family, dits.random_transformer(family), positive, batch=2))
    steps = record.run_of(samples).steps
    layout = steps[max(steps)]
    assert layout.concepts.shape == (2, *tokens(family))
    masks, *_ = MagicLayoutMasks.execute(record, {"samples": samples}, -1).args
    pixels = 16 if family == "flux2" else 8
    assert masks[0].shape == (2, samples.shape[-2] * pixels, samples.shape[-1] * pixels)


@pytest.mark.parametrize("family", dits.FAMILIES)
def test_attention_maps_and_correspondence_of_a_run(family):
    model, positive, _ = apply(family)
    plain = sample(family, model, positive)
    watched, record = MagicCorrespondence.execute(model, "30,30", 0.0, 1.0).args
    clip = random_clip_of(family)
    seen, conditioning, attention = MagicAttentionMap.execute(
        watched, clip, PROMPT, "hat, man", "all", 0.0, 1.0, positive
    ).args
    samples = sample(family, seen, conditioning)
    assert torch.equal(samples, plain)
    maps = attention.run_of(samples).maps
    assert maps.shape == (1, 2, *tokens(family)) and maps.isfinite().all()
    assert float(maps.sum(1).max()) <= 1 and float(maps.min()) >= 0
    text = MagicCorrespondenceMap.execute(record, {"samples": samples}, 0.8, concepts()).args[1]
    shares = [entry["share"] for entry in json.loads(text)[0]]
    assert len(shares) == 2 and 0 < sum(shares) < 1


@pytest.mark.parametrize("family", dits.FAMILIES)
def test_references_that_never_act_leave_the_picture_bit_for_bit(family):
    model, positive, _ = apply(family, start=1.0, semantic_cfg=False)
    sigmas = (1.0, 0.5, 0.2)
    plain = sample(family, dits.random_transformer(family), positive, sigmas=sigmas)
    assert torch.equal(sample(family, model, positive, sigmas=sigmas), plain)


def test_without_concepts_the_model_is_the_plain_one():
    model = dits.random_transformer("flux")
    assert apply("flux", model, ())[0] is model


@pytest.mark.parametrize("family", dits.FAMILIES)
def test_other_overrides_draw_what_is_not_the_references(family):
    halves: list[int] = []

    def other(func, *args, **kwargs):
        halves.append(args[0].shape[0])
        return func(*args, **kwargs) * 0.9

    model, positive, _ = apply(family)
    alone = sample(family, model, positive)
    model.model_options["transformer_options"][OVERRIDE] = other
    with_other = sample(family, model, positive)
    assert halves and with_other.isfinite().all() and not torch.equal(with_other, alone)
    assert model.model_options["transformer_options"][OVERRIDE] is other


class Naive:
    """What MagicFace draws in one step, by an override of its own: the picture's places look at all
    references in one joint softmax, or each at its region's own.

    text, tokens: of the call that runs, before the picture and of it; owners: whose each place is,
    None for all.
    """

    def __init__(self, text: int, tokens: int, owners: Tensor | None):
        self.text, self.tokens, self.owners = text, tokens, owners
        self.references: list[list[tuple[Tensor, Tensor]]] = []
        self.seen = 0

    def _joint(self, args: Any, kwargs: Any) -> tuple[Tensor, ...] | None:
        q, k, v = dits.heads_apart(args, kwargs)
        # Refiners and encoders of the text have fewer; what looks at the text alone has other keys.
        is_joint = q.shape[2] >= self.text + self.tokens and q.shape[2] == k.shape[2]
        return (q, k, v) if is_joint else None

    def record(self, visible: Tensor) -> Any:
        """An override that takes the visible tokens of one more reference, layer by layer."""
        bank: list[tuple[Tensor, Tensor]] = []
        self.references.append(bank)

        def override(func, *args, **kwargs):
            if (joint := self._joint(args, kwargs)) is not None:
                k, v = (x[0, :, self.text + visible].double() for x in joint[1:])
                bank.append((k, v))
            return func(*args, **kwargs)

        return override

    def draw(self, func, *args, **kwargs):
        """An override."""
        out = func(*args, **kwargs)
        if (joint := self._joint(args, kwargs)) is None:
            return out
        q, k, v = (x[0].double() for x in joint)  # H N D
        parts = [bank[self.seen] for bank in self.references]
        self.seen += 1
        keys, values = (torch.cat([own, *(p[i] for p in parts)], 1) for i, own in enumerate((k, v)))
        sizes = [part[0].shape[1] for part in parts]
        of = torch.cat([torch.full((n,), i - 1) for i, n in enumerate([k.shape[1], *sizes])])
        ours = slice(self.text, self.text + self.tokens)
        logits = q[:, ours] @ keys.transpose(1, 2) / q.shape[-1] ** 0.5 + 1.0 * (of >= 0)
        if self.owners is not None:
            is_foreign = (of[None] >= 0) & (of[None] != self.owners[:, None])
            logits = logits.masked_fill(is_foreign, float("-inf"))
        out = out.clone()
        out[0, ours] = (logits.softmax(-1) @ values).transpose(0, 1).flatten(1).to(out)
        return out


def context(family: str, conditioning: list[Any]) -> int:
    """Tokens of a prompt, with what the model adds, that stand before the picture."""
    length: int = conditioning[0][0].shape[1]
    known = {"flux2": 512, "zimage": -(-length // 32) * 32, "hidream": 0, "anima": 0}
    return known.get(family, length)


def predict(family: str, model: Any, x: Tensor, sigma: float, conditioning: list[Any]) -> None:
    """A model call on one picture."""
    import comfy.sampler_helpers
    import comfy.samplers

    model.pre_run()
    conds = {"positive": comfy.sampler_helpers.convert_cond(conditioning)}
    conds = comfy.samplers.process_conds(
        model.model, x, conds, torch.device("cpu"), latent_image=x, seed=0
    )
    comfy.samplers.calc_cond_batch(
        model.model, [conds["positive"]], x, torch.tensor([sigma]), model.model_options
    )


@pytest.mark.parametrize("by_region", [False, True], ids=["rsa", "rba"])
@pytest.mark.parametrize("family", dits.FAMILIES)
def test_a_step_is_what_a_naive_joint_softmax_with_the_references_gives(family, by_region):
    sigma, (rows, columns) = 0.9, tokens(family)
    regions = torch.zeros(2, 1, rows, columns)
    regions[0, :, : rows // 2], regions[1, :, rows // 2 :, columns // 2 :] = 1, 1
    owners = None
    # A prompt of another length would lie elsewhere in some families.
    chained = tuple(
        dataclasses.replace(concept, prompt=PROMPT, target_region=region if by_region else None)
        for concept, region in zip(concepts(), regions, strict=True)
    )
    if by_region:
        owners = regions[0].flatten() - 1 + regions[1].flatten() * 2
    plain, override = dits.random_transformer(family).clone(), "transformer_options"
    model, positive, _ = apply(
        family, None, chained, positions="same", layers="all", semantic_cfg=False
    )
    naive = Naive(0, 0, owners)
    grid = tokens(family, (12, 16))
    for i, concept in enumerate(chained):
        conditioning = encode(family, concept.prompt)
        if family in ("flux", "flux2"):
            conditioning = [[conditioning[0][0], {**conditioning[0][1], "guidance": 1.0}]]
        latent = plain.model.process_latent_in(SmallVae(family).encode(concept.images))
        noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(i))
        mask = F.interpolate(concept.mask[None], size=grid, mode="area").flatten()
        assert set(mask.tolist()) == {0.0, 1.0}
        naive.text, naive.tokens = context(family, conditioning), grid[0] * grid[1]
        plain.model_options[override][OVERRIDE] = naive.record(mask.nonzero().flatten())
        predict(family, plain, (1 - sigma) * latent + sigma * noise, sigma, conditioning)
    naive.text, naive.tokens = context(family, positive), rows * columns
    plain.model_options[override][OVERRIDE] = naive.draw
    shape = dits.latent_shape(family, 1, SIZE)

    def draw(which: Any) -> Tensor:
        return dits.sample(which, shape, positive, encode(family, "a"), 1.0, (sigma, 0.0))

    expected, found = draw(plain), draw(model)
    del plain.model_options[override][OVERRIDE]
    untouched = draw(plain)
    assert apart(untouched, expected) > 1e-3
    assert apart(found, expected) < 1e-4


def apart(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


@pytest.mark.parametrize("placement", ["aside", "index", "attenuated", "region"])
@pytest.mark.parametrize("family", ["flux2", "qwen", "zimage"])
def test_placements_draw_other_pictures(family, placement):
    painted = torch.zeros(1, 16, 16)
    painted[:, 8:, 4:8] = 1
    chained = concepts(1, region=painted)
    model, positive, _ = apply(family, None, chained, positions=placement)
    same, plain_positive, _ = apply(family, None, chained, positions="same")
    other = sample(family, model, positive)
    assert other.isfinite().all()
    assert apart(other, sample(family, same, plain_positive)) > 1e-4


def test_few_steps_and_what_the_log_says_of_them(caplog):
    model, positive, record = apply("zimage", inject_at=0.4, semantic_cfg=True, end=0.9)
    with caplog.at_level(logging.INFO):
        samples = sample("zimage", model, positive, 1.0, sigmas=(1.0, 0.9, 0.5, 0.3, 0.05, 0.0))
    assert record.run_of(samples)
    line = next(text for text in caplog.messages if text.startswith("MagicFace: 2 references"))
    assert "in 2 of 3 layers, " in line and "KB a step" in line
    # The model's shift of 3 moves a share of .4 to sigma .82, and .9 to .25.
    assert "steps 1-2 of 5 look at all" in line and "steps 3-4 at their" in line, line
    assert "semantic_cfg idles" in line


def test_settings_of_unets_are_named(caplog):
    strong = tuple(dataclasses.replace(concept, strength=3.5) for concept in concepts())
    with caplog.at_level(logging.INFO):
        apply("flux", None, strong, inject_at=0.2)
        assert any("strength of 3.5 is much" in text for text in caplog.messages)
        assert any("inject_at is 0.2" in text for text in caplog.messages)
        caplog.clear()
        apply("flux")
    assert not any(text.startswith("MagicFace: ") for text in caplog.messages)


def test_a_strength_in_words_is_the_models():
    from magicportrait.host.sampling.backbone import backbone_of
    from magicportrait.host.sampling.references import prepare_references
    from magicportrait.tests.host import sampling

    strong = concepts(preset="strong")
    assert strong[0].level == "strong"
    flux = backbone_of(dits.random_transformer("flux"))
    found = prepare_references(strong, random_clip_of("flux"), SmallVae("flux"), flux)
    assert [reference.strength for reference in found] == [2.0, 2.0]
    model, clip, vae = sampling.parts()
    found = prepare_references(strong, clip, vae, backbone_of(model))
    assert [reference.strength for reference in found] == [4.0, 4.0]


def test_references_that_do_not_fit_are_refused_before_the_first_step(monkeypatch):
    import comfy.model_management as management

    model, positive, _ = apply("flux")
    monkeypatch.setattr(management, "get_free_memory", lambda *args, **kwargs: 1000)
    monkeypatch.setattr(management, "free_memory", lambda *args, **kwargs: [])
    with pytest.raises(ValueError, match=r"references take \d+ KB .* 1 KB are free.*fewer layers"):
        sample("flux", model, positive)


def test_what_cannot_be_kept_is_refused(monkeypatch):
    from magicportrait.host.sampling import reference_memory

    monkeypatch.setattr(reference_memory, "DEFAULT_BUDGET", -1e30)
    model, positive, _ = apply("flux", keep_features="memory")
    with pytest.raises(ValueError, match="keep_features: the references take"):
        sample("flux", model, positive)


def test_kept_features_draw_the_same_picture():
    model, positive, _ = apply("zimage", keep_features="memory")
    live, of_live, _ = apply("zimage")
    first, second = (sample("zimage", model, positive) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(sample("zimage", live, of_live), first)


def test_a_vae_of_another_model_is_told(monkeypatch):
    with pytest.raises(ValueError, match=r"VAE makes latents of 128 channels, the model has 16"):
        import magicportrait.tests.host.dit_nodes as nodes

        monkeypatch.setattr(nodes, "SmallVae", lambda family: SmallVae("flux2"))
        apply("flux")


@pytest.mark.parametrize("family", ["flux", "qwen"])
def test_what_cannot_be_followed_is_refused(family):
    import comfy.patcher_extension as extension

    model, positive, _ = apply(family)
    compiled = model.clone()
    compiled.add_wrapper_with_key(
        extension.WrappersMP.APPLY_MODEL, "torch.compile", lambda executor, *args: executor(*args)
    )
    with pytest.raises(ValueError, match="remove the node that compiles"):
        sample(family, compiled, positive)
    spread = model.clone()
    spread.set_additional_models("multigpu", [dits.random_transformer(family)])
    with pytest.raises(ValueError, match="spreads it over GPUs"):
        sample(family, spread, positive)
    windows = model.clone()
    windows.model_options["context_handler"] = object()
    with pytest.raises(ValueError, match="context windows"):
        sample(family, windows, positive)


def test_videos_are_refused():
    model, positive, _ = apply("qwen")
    shape = (1, 16, 3, 16, 16)
    with pytest.raises(ValueError, match="has 3 frames"):
        dits.sample(model, shape, positive, encode("qwen", "a"))


@pytest.mark.parametrize("family", ["flux", "qwen", "zimage"])
def test_nothing_is_left_after_a_run_or_a_cancel(family, monkeypatch):
    kept: list[Any] = []
    original = magicface._ConceptTokens.bank

    def spy(self: Any) -> Any:
        bank = original(self)
        kept.extend(weakref.ref(entry.k) for entries in bank.values() for entry in entries)
        return bank

    monkeypatch.setattr(magicface._ConceptTokens, "bank", spy)
    model, positive, _ = apply(family)
    before = models.state_of(model)
    sample(family, model, positive)
    assert models.state_of(model) == before

    class Cancelled(Exception):
        pass

    def cancel(*args: Any, **kwargs: Any) -> Any:
        raise Cancelled

    monkeypatch.setattr(magicface._ReferenceRule, "attend", cancel)
    with pytest.raises(Cancelled):
        sample(family, model, positive)
    assert models.state_of(model) == before
    gc.collect()
    assert kept and not any(ref() is not None for ref in kept)


REAL = {
    "flux": (
        "Flux",
        {
            "image_model": "flux",
            "in_channels": 16,
            "out_channels": 16,
            "vec_in_dim": 768,
            "context_in_dim": 4096,
            "hidden_size": 3072,
            "mlp_ratio": 4.0,
            "num_heads": 24,
            "depth": 19,
            "depth_single_blocks": 38,
            "axes_dim": [16, 56, 56],
            "theta": 10000,
            "patch_size": 2,
            "qkv_bias": True,
            "guidance_embed": True,
            "txt_ids_dims": [],
        },
        38 * 3072,
    ),
    "zimage": (
        "ZImage",
        {
            "image_model": "lumina2",
            "patch_size": 2,
            "in_channels": 16,
            "qk_norm": True,
            "cap_feat_dim": 2560,
            "dim": 3840,
            "n_layers": 30,
            "n_refiner_layers": 2,
            "n_heads": 30,
            "n_kv_heads": 30,
            "axes_dims": [32, 48, 48],
            "axes_lens": [1536, 512, 512],
            "rope_theta": 256.0,
            "ffn_dim_multiplier": 8 / 3,
            "multiple_of": 256,
            "z_image_modulation": True,
            "time_scale": 1000.0,
            "pad_tokens_multiple": 32,
        },
        20 * 3840,
    ),
}
"""The host's class, the shape of the published model, and layers x width of 'fine'."""


@pytest.mark.parametrize("family", REAL)
def test_what_a_reference_takes_at_the_published_size(family):
    """Without weights: on no device."""
    import comfy.model_patcher
    import comfy.supported_models

    from magicportrait.host.sampling.backbone import backbone_of
    from magicportrait.host.sampling.reference_memory import feature_bytes
    from magicportrait.host.sampling.references import Reference

    name, shape, size = REAL[family]
    if (parent := getattr(comfy.supported_models, name, None)) is None:
        pytest.skip(f"this host has no {name}")
    parts = {"unet_config": {}, "unet_extra_config": {}}
    config = type("Real", (parent,), parts)(dits.known_here(family, shape))
    config.set_inference_dtype(torch.bfloat16, None)
    nowhere = torch.device("meta")
    model = config.get_model({}, device=nowhere)
    patcher = comfy.model_patcher.ModelPatcher(model, load_device=nowhere, offload_device=nowhere)
    backbone = backbone_of(patcher)
    reference = Reference(0, torch.zeros(1, 16, 128, 128), None, 1.0, [])
    # 1024 px: 64 x 64 tokens, a key and a value, two bytes each.
    expected = 64 * 64 * size * 2 * 2
    assert feature_bytes([reference], backbone, backbone.parse_layers("fine")) == expected
    half = torch.zeros(64, 64)
    half[:32] = 1
    masked = dataclasses.replace(reference, mask=half)
    assert feature_bytes([masked], backbone, backbone.parse_layers("fine")) == expected // 2
