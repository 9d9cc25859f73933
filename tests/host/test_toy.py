"""The toy checkpoint as a model among others: what the host does with models that its own loaders
made."""

from __future__ import annotations

import inspect
import itertools
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from magicportrait.demo import checkpoint, portraits
from magicportrait.nodes import toy
from magicportrait.nodes.declare import defaults_of
from magicportrait.nodes.magicface_apply import MagicFaceApply
from magicportrait.nodes.toy import MagicToyCheckpoint, MagicToyPortrait
from magicportrait.tests.host.models import call_node, lora_file
from magicportrait.tests.host.sampling import PROMPT, Sampling, concepts
from magicportrait.tests.host.test_coexistence import core_node

OPTIONS: dict[str, Any] = {
    "batch_size": 2,
    "grad_accumulation_steps": 1,
    "steps": 1,
    "learning_rate": 1e-3,
    "rank": 2,
    "optimizer": "AdamW",
    "loss_function": "MSE",
    "seed": 0,
    "training_dtype": "fp32",
    "lora_dtype": "fp32",
    "quantized_backward": False,
    "algorithm": "LoRA",
    "gradient_checkpointing": False,
    "checkpoint_depth": 1,
    "offloading": False,
    "existing_lora": "[None]",
    "bucket_mode": False,
    "bypass_mode": False,
}


def test_the_hosts_own_trainer_trains_the_toy():
    model, clip, _ = MagicToyCheckpoint.execute().args
    trainer = core_node("nodes_train", "TrainLoraNode")
    is_new = hasattr(trainer, "execute")
    known = inspect.signature(
        trainer.execute if is_new else getattr(trainer, trainer.FUNCTION)
    ).parameters
    positive = clip.encode_from_tokens_scheduled(clip.tokenize("a woman with red hair"))
    latents = {"samples": torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))}
    weight = model.model.diffusion_model.state_dict()["input_blocks.0.0.weight"].clone()

    inputs = {"model": model, "latents": latents} | {
        name: value for name, value in OPTIONS.items() if name in known
    }
    # Newer hosts take every input as a list.
    outputs = call_node(
        trainer,
        positive=[positive] if is_new else positive,
        **{n: [v] if is_new else v for n, v in inputs.items()},
    )

    found = [output for output in outputs if isinstance(output, dict)]
    lora, losses = (
        next(output for output in found if ("loss" in output) == is_map) for is_map in (False, True)
    )
    assert len(losses["loss"]) == 1 and 0 < losses["loss"][0] < 10
    assert any(name.endswith("lora_up.weight") and tensor.any() for name, tensor in lora.items()), (
        "a step moves the LoRA off zero"
    )
    assert torch.equal(model.model.diffusion_model.state_dict()["input_blocks.0.0.weight"], weight)


def test_a_copy_in_the_hosts_plain_patcher_is_the_same_model():
    import comfy.model_patcher

    model = checkpoint.load()[0]
    load, arguments = model.cached_patcher_init
    copy = load(*arguments, disable_dynamic=True)
    assert type(copy) is comfy.model_patcher.ModelPatcher and copy.model is not model.model
    weights, copied = model.model.state_dict(), copy.model.state_dict()
    assert weights.keys() == copied.keys() and all(
        torch.equal(weights[name], copied[name]) for name in weights
    )


def merge(model: Any) -> Any:
    other = checkpoint.load()[0].clone()
    other.add_patches(
        {"diffusion_model.out.2.weight": ("diff", (torch.full((4, 64, 3, 3), 0.05),))}, 1.0
    )
    return call_node(
        core_node("nodes_model_merging", "ModelMergeSimple"), model1=model, model2=other, ratio=0.5
    )[0]


def with_lora(model: Any) -> Any:
    import comfy.sd

    return comfy.sd.load_lora_for_models(
        model, None, lora_file(model, "output_blocks.5.1", 0.02), 1.0, 0.0
    )[0]


CHANGES: dict[str, Any] = {
    "LoRA": with_lora,
    "merge": merge,
    "FreeU": lambda model: call_node(
        core_node("nodes_freelunch", "FreeU_V2"), model=model, b1=1.3, b2=1.4, s1=0.9, s2=0.2
    )[0],
    "PAG": lambda model: call_node(
        core_node("nodes_pag", "PerturbedAttentionGuidance"), model=model, scale=3.0
    )[0],
}


def without_and_with(model: Any, clip: Any, vae: Any) -> list[torch.Tensor]:
    """What a model draws alone, and with MagicFace."""
    sampling = Sampling(steps=2, negative=clip.encode_from_tokens_scheduled(clip.tokenize("")))
    plain = clip.encode_from_tokens_scheduled(clip.tokenize(PROMPT))
    options = {**defaults_of(MagicFaceApply), "prompt": PROMPT}
    patched, positive, _ = MagicFaceApply.execute(model, clip, vae, concepts(), **options).args
    return [sampling.run(model, plain), sampling.run(patched, positive)]


@cache
def weights_before() -> list[torch.Tensor]:
    return without_and_with(*checkpoint.load())


@pytest.mark.parametrize("name", CHANGES)
def test_the_hosts_nodes_change_the_toy_and_magicface_acts_on_what_they_make(name):
    model, clip, vae = checkpoint.load()
    pictures = [*weights_before(), *without_and_with(CHANGES[name](model), clip, vae)]
    assert all(picture.isfinite().all() for picture in pictures)
    assert all(not torch.equal(one, other) for one, other in itertools.combinations(pictures, 2))


CROWD = "it will draw several people, or one in pieces"
PART = "it will draw only a part of a person"


@pytest.mark.parametrize(
    ("kind", "size", "denoise", "said"),
    [
        ("unet", (16, 16), 1.0, None),
        ("unet", (16, 32), 1.0, None),
        ("unet", (64, 64), 1.0, f"512 x 512 px, and this model was trained on 128 x 128: {CROWD}"),
        ("unet", (32, 32), 0.5, None),
        ("unet", (8, 8), 1.0, f"64 x 64 px, and this model was trained on 128 x 128: {PART}"),
        ("transformer", (48, 48), 1.0, f"trained on 256 x 256: {CROWD}"),
    ],
)
def test_the_toy_says_when_a_latent_is_far_from_its_own_size(
    monkeypatch, kind, size, denoise, said
):
    import comfy.sample

    told: list[str] = []
    monkeypatch.setattr(toy, "notice", told.append)
    model, clip, _ = MagicToyCheckpoint.execute(kind).args
    cond = clip.encode_from_tokens_scheduled(clip.tokenize("a man"))
    noise = Sampling(size=size).noise()

    def sample(model: Any) -> torch.Tensor:
        how = (1, 1.0, "euler", "normal", cond, cond, torch.ones_like(noise))
        options = {"denoise": denoise, "disable_pbar": True, "seed": 0}
        return comfy.sample.sample(model, noise, *how, **options)

    samples = sample(model)

    assert [said in sentence for sentence in told] == [True] * (said is not None)
    without = model.clone()
    without.wrappers = {}
    assert torch.equal(samples, sample(without))
    assert len(told) == (said is not None)


@pytest.mark.parametrize("patched", [False, True])
def test_a_deep_copy_owns_its_weights(patched):
    """As SelectModelDevice and the trainer of ComfyUI 0.33 make it."""
    model = checkpoint.load()[0]
    if "force_deepcopy" not in inspect.signature(model.clone).parameters:
        pytest.skip("this host copies models without loading them again")
    if patched:
        model = model.clone()
        model.set_model_sampler_cfg_function(lambda args: args["cond"])
    copy = model.clone(force_deepcopy=True)
    assert copy.model is not model.model and copy.model_options.keys() == model.model_options.keys()


@pytest.mark.parametrize("part", portraits.PARTS)
def test_every_toy_portrait_has_the_part_that_its_mask_shows(part: str) -> None:
    drawn = [MagicToyPortrait.execute(seed, part, "cartoon", 64).args for seed in range(12)]

    assert all(mask.any() for _, mask, _ in drawn)
    captions = [caption for *_, caption in drawn]
    assert len(set(captions)) == len(captions), "a portrait without the part is not its neighbour"


def test_a_toy_portrait_that_has_the_part_is_the_seeds_own() -> None:
    with_hat = [seed for seed in range(12) if portraits.sample_portrait(seed).hat]
    assert 0 < len(with_hat) < 12
    for seed in with_hat:
        caption = MagicToyPortrait.execute(seed, "hat", "by seed", 64).args[2]
        assert caption == portraits.caption(portraits.sample_portrait(seed))


def test_a_file_keeps_matrices_and_convolutions_of_a_part_as_bytes(tmp_path: Path) -> None:
    weights = {"conv": torch.randn(4, 8, 3, 3), "matrix": torch.randn(4, 8), "bias": torch.randn(4)}
    path = tmp_path / "toy.safetensors"
    parts = {"unet": weights, "text": weights}
    checkpoint.write_parts(parts, {}, path, byte_parts=("unet",))
    read = checkpoint.read_parts(path)
    assert read["unet"].keys() == read["text"].keys() == weights.keys()
    for name, weight in weights.items():
        assert torch.equal(read["text"][name], weight.half())
        off = (read["unet"][name].float() - weight).flatten(1 if weight.ndim > 1 else 0).abs()
        if weight.ndim == 1:
            assert torch.equal(read["unet"][name], weight.half())
        else:
            # Half of one of the 127 steps up to the largest of an output's weights.
            step = weight.flatten(1).abs().amax(1, keepdim=True) / 127
            assert (off <= 0.52 * step).all() and off.max() > 0
