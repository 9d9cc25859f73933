"""A MODEL that nobody holds any more is gone at once, not when the garbage collector comes: the
host asks at its next loading what is left of what was loaded, warns of a leak where it finds the
weights without their MODEL, and in some of its nodes ends in an error of its own."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from magicportrait.host.training.run import CaptureTraining
from magicportrait.tests.host import (
    dit_nodes,
    dits,
    flow,
    sampling,
    test_concept_lora,
    test_concept_options,
    test_edit_regions,
    test_flow_style,
    test_flow_training,
    test_magicstyle,
    test_style_prompt,
)
from magicportrait.tests.host.loras import random_lora
from magicportrait.tests.host.test_magicapture import sets

Run = Callable[[], Any]
"""Runs a patched MODEL and returns it."""


def magicface() -> Any:
    model, positive, _ = sampling.apply(sampling.parts()[0])
    sampling.Sampling(size=(8, 8), steps=2).run(model, positive)
    return model


def magicface_on_a_transformer() -> Any:
    model, positive, _ = dit_nodes.apply("flux")
    dit_nodes.sample("flux", model, positive)
    return model


def led_away() -> Any:
    [away] = test_concept_options.with_options(sampling.concepts(1), direction="away")
    model, positive, _ = sampling.apply(sampling.parts()[0], chained=(away,))
    sampling.Sampling(size=(8, 8), steps=2).run(model, positive)
    return model


def layout() -> Any:
    model, positive, _ = sampling.watch(sampling.parts()[0])
    sampling.Sampling(size=(8, 8), steps=2).run(model, positive)
    return model


def concept_lora(kind: str) -> Any:
    from comfy import weight_adapter

    if not hasattr(weight_adapter, "BypassForwardHook"):
        pytest.skip("this host can only merge LoRAs")
    plain, layers = test_concept_lora.family(kind)
    lora = random_lora(plain, layers)
    chained = test_concept_lora.concept(lora, target_region=test_concept_lora.EVERYWHERE)
    model, positive = test_concept_lora.apply(kind, plain, chained)
    test_concept_lora.draw(kind, model, positive, steps=1)
    return model


def lora_of_a_unet() -> Any:
    return concept_lora("unet")


def lora_of_a_transformer() -> Any:
    return concept_lora("flux")


def magicstyle() -> Any:
    model, noise = test_magicstyle.apply()
    test_magicstyle.run((model, noise))
    return model


def magicstyle_on_a_transformer() -> Any:
    patched = flow.apply("flux")
    test_flow_style.run("flux", patched)
    return patched[0]


def new_picture_in_a_style() -> Any:
    model = test_style_prompt.with_style("flux", test_style_prompt.picture())
    test_style_prompt.draw("flux", model, test_style_prompt.noise_of("flux"))
    return model


def edit_by_a_prompt() -> Any:
    content = test_style_prompt.invert_picture("flux")
    model, latent, noise = test_style_prompt.edit_content("flux", content)
    test_style_prompt.sample("flux", (model, latent, noise), content)
    return model


def edit_regions() -> Any:
    positive = test_edit_regions.with_pictures("flux", dit_nodes.encode("flux", "a hat"))
    first, second = test_edit_regions.regions("flux")
    chained = test_edit_regions.references({"target_region": first}, {"target_region": second})
    model, positive, _ = test_edit_regions.apply(dits.random_transformer("flux"), positive, chained)
    dit_nodes.sample("flux", model, positive)
    return model


def training_of_a_transformer() -> Any:
    plain, clip, vae = test_flow_training.parts("flux")
    model = plain.clone()
    settings = test_flow_training.QUICK
    training = CaptureTraining(model, clip, vae, *sets(), None, settings)
    test_flow_training.step(training)
    return model


RUNS: tuple[Run, ...] = (
    magicface,
    magicface_on_a_transformer,
    led_away,
    layout,
    lora_of_a_unet,
    lora_of_a_transformer,
    magicstyle,
    magicstyle_on_a_transformer,
    new_picture_in_a_style,
    edit_by_a_prompt,
    edit_regions,
    training_of_a_transformer,
)


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.__name__)
def test_a_model_is_gone_with_its_last_holder(run: Run) -> None:
    run()
    gc.collect()
    gc.disable()
    try:
        model = weakref.ref(run())
        assert model() is None
    finally:
        gc.enable()
