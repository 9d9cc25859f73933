"""MagicFace in all the ways in which a host may run it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from magicportrait.host.sampling.backbone import backbone_of
from magicportrait.host.systems import magicface
from magicportrait.tests.host.sampling import Sampling, apply, concepts, parts

COMBINATIONS = [
    # shape, dtype, batch, cfg, latent size, reference size, sampler
    ("sd15", torch.float32, 1, 7.0, (16, 16), (128, 128), "euler"),
    ("sd15", torch.float32, 2, 1.0, (16, 24), (96, 160), "dpmpp_2m"),
    ("sd15", torch.float32, 3, 7.0, (9, 13), (72, 104), "heun"),
    ("sd15", torch.bfloat16, 2, 7.0, (16, 16), (128, 64), "euler_ancestral"),
    ("sd15", torch.float16, 1, 7.0, (11, 8), (128, 128), "ddim"),
    ("sd21v", torch.float32, 2, 7.0, (16, 16), (64, 128), "uni_pc"),
    ("sd21v", torch.bfloat16, 3, 1.0, (8, 15), (128, 128), "euler"),
    ("sdxl", torch.float32, 1, 7.0, (16, 16), (128, 128), "euler"),
    ("sdxl", torch.float32, 3, 1.0, (24, 17), (80, 128), "lcm"),
    ("sdxl", torch.float16, 2, 7.0, (16, 16), (128, 128), "dpmpp_sde"),
    ("sdxl", torch.bfloat16, 1, 7.0, (32, 8), (200, 72), "euler"),
]


@pytest.mark.parametrize(
    ("shape", "dtype", "batch", "cfg", "size", "reference_size", "sampler"), COMBINATIONS
)
def test_runs_and_is_finite(shape, dtype, batch, cfg, size, reference_size, sampler):
    model = parts(shape, dtype)[0]
    patched, positive, record = apply(model, shape, concepts(2, reference_size))
    sampling = Sampling(batch, size, cfg, 3, sampler)
    samples = sampling.run(patched, positive)
    assert samples.shape == (batch, 4, *size) and samples.isfinite().all()
    assert not torch.equal(samples, sampling.run(model, positive))
    steps = record.run_of(samples).steps
    assert steps[max(steps)].concepts.shape[0] == batch


@pytest.mark.parametrize("shape", ["sd15", "sdxl"])
@pytest.mark.parametrize("cfg", [1.0, 7.0])
def test_images_of_a_batch_do_not_see_each_other(shape, cfg):
    patched, positive, _ = apply(parts(shape)[0], shape)
    sampling = Sampling(batch=2, cfg=cfg, steps=3)
    together, noise = sampling.run(patched, positive), sampling.noise()
    for i in range(2):
        alone = sampling.run(patched, positive, noise[i : i + 1])
        torch.testing.assert_close(
            alone[0], together[i], rtol=2e-3, atol=2e-3 * together.std().item()
        )


@pytest.mark.parametrize("shape", ["sd15", "sdxl"])
def test_low_memory_splitting_changes_nothing(shape, monkeypatch):
    patched, positive, _ = apply(parts(shape)[0], shape)
    sampling = Sampling(batch=2, steps=3)
    joined = sampling.run(patched, positive)
    calls: list[int] = []
    original = type(patched.model).apply_model
    monkeypatch.setattr(
        type(patched.model),
        "apply_model",
        lambda self, x, *args, **kwargs: (calls.append(len(x)), original(self, x, *args, **kwargs))[
            1
        ],
    )
    monkeypatch.setattr(type(patched.model), "memory_required", lambda *args, **kwargs: 1e30)
    split = sampling.run(patched, positive)
    assert set(calls) == {
        1,
        2,
    }, "two rows of the batch, conditional and unconditional apart, and each reference alone"
    torch.testing.assert_close(split, joined, rtol=2e-3, atol=2e-3 * joined.std().item())


def test_long_prompts_and_weights():
    prompt = "a man, " + "portrait, " * 40 + "(striped scarf:1.3) and a (red hat)"
    patched, positive, record = apply(parts()[0], prompt=prompt)
    assert positive[0][0].shape[1] == 154
    samples = Sampling(batch=2, steps=3).run(patched, positive)
    assert samples.isfinite().all() and record.run_of(samples)


def test_several_images_of_one_concept_count_together(monkeypatch):
    from magicportrait.nodes.magicface_concept import MagicFaceConcept

    images = torch.rand(3, 64, 64, 3, generator=torch.Generator().manual_seed(0))
    one = MagicFaceConcept.execute(images[:1], "hat", 2.0).args[0]
    three = MagicFaceConcept.execute(images, "hat", 2.0).args[0]
    sampling, model = Sampling(steps=2), parts()[0]
    counts: list[dict[Any, int]] = []
    original = magicface._ConceptTokens.bank

    def spy(self: Any) -> Any:
        bank = original(self)
        counts.append({layer: len(tokens.k) for layer, [tokens] in bank.items()})
        return bank

    monkeypatch.setattr(magicface._ConceptTokens, "bank", spy)
    results = []
    for chained in (one, three):
        patched, positive, _ = apply(model, chained=chained)
        results.append(sampling.run(patched, positive))
    assert not torch.equal(*results)
    assert counts[-1] == {layer: 3 * count for layer, count in counts[0].items()}


@pytest.mark.parametrize("layers", ["m0", "o6-8", "all"])
def test_layers_by_name_act_alone(layers, monkeypatch):
    acting: set[str] = set()
    original = magicface._ReferenceRule.attend
    monkeypatch.setattr(
        magicface._ReferenceRule,
        "attend",
        lambda self, view: (acting.add(str(view.layer[0])), original(self, view))[1],
    )
    model, sampling = parts()[0], Sampling(steps=2)
    patched, positive, _ = apply(model, layers=layers, semantic_cfg=False)
    samples = sampling.run(patched, positive)
    assert acting == {str(block) for block in backbone_of(model).parse_layers(layers)}
    assert not torch.equal(samples, sampling.run(model, positive))
