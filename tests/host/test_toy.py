"""The toy checkpoint as a model among others: what the host does with models that its own loaders made."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch

from magicportrait.demo import checkpoint
from magicportrait.nodes.toy import MagicToyCheckpoint
from magicportrait.tests.host.models import call_node
from magicportrait.tests.host.test_coexistence import core_node

OPTIONS: dict[str, Any] = {
    "batch_size": 2, "grad_accumulation_steps": 1, "steps": 1, "learning_rate": 1e-3, "rank": 2, "optimizer": "AdamW",
    "loss_function": "MSE", "seed": 0, "training_dtype": "fp32", "lora_dtype": "fp32", "quantized_backward": False, "algorithm": "LoRA",
    "gradient_checkpointing": False, "checkpoint_depth": 1, "offloading": False, "existing_lora": "[None]", "bucket_mode": False,
    "bypass_mode": False,
}  # fmt: skip


def test_the_hosts_own_trainer_trains_the_toy():
    model, clip, _ = MagicToyCheckpoint.execute().args
    trainer = core_node("nodes_train", "TrainLoraNode")
    is_new = hasattr(trainer, "execute")
    known = inspect.signature(trainer.execute if is_new else getattr(trainer, trainer.FUNCTION)).parameters
    positive = clip.encode_from_tokens_scheduled(clip.tokenize("a woman with red hair"))
    latents = {"samples": torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))}
    weight = model.model.diffusion_model.state_dict()["input_blocks.0.0.weight"].clone()

    inputs = {"model": model, "latents": latents} | {name: value for name, value in OPTIONS.items() if name in known}
    # Newer hosts take every input as a list.
    outputs = call_node(trainer, positive=[positive] if is_new else positive, **{n: [v] if is_new else v for n, v in inputs.items()})

    found = [output for output in outputs if isinstance(output, dict)]
    lora, losses = (next(output for output in found if ("loss" in output) == is_map) for is_map in (False, True))
    assert len(losses["loss"]) == 1 and 0 < losses["loss"][0] < 10
    assert any(name.endswith("lora_up.weight") and tensor.any() for name, tensor in lora.items()), "a step moves the LoRA off zero"
    assert torch.equal(model.model.diffusion_model.state_dict()["input_blocks.0.0.weight"], weight)


def test_a_copy_in_the_hosts_plain_patcher_is_the_same_model():
    import comfy.model_patcher

    model = checkpoint.load()[0]
    load, arguments = model.cached_patcher_init
    copy = load(*arguments, disable_dynamic=True)
    assert type(copy) is comfy.model_patcher.ModelPatcher and copy.model is not model.model
    weights, copied = model.model.state_dict(), copy.model.state_dict()
    assert weights.keys() == copied.keys() and all(torch.equal(weights[name], copied[name]) for name in weights)


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
