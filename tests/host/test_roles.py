"""Which conditionings are ours: the prompt where it is the positive one, not every copy of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from magicportrait.demo import checkpoint
from magicportrait.nodes.analysis import MagicAttentionMap
from magicportrait.nodes.declare import defaults_of
from magicportrait.nodes.layout import MagicSemanticLayout
from magicportrait.tests.host.models import call_node, lora_file
from magicportrait.tests.host.sampling import (
    PROMPT,
    Sampling,
    apply,
    concepts,
    encode,
    parts,
    watch,
)


def with_zeros(conditioning: list[Any]) -> list[Any]:
    import nodes

    return call_node(nodes.ConditioningZeroOut, conditioning=conditioning)[0]


def test_a_negative_made_of_ours_is_not_ours():
    """The usual wiring of turbo models: ConditioningZeroOut of the positive as the negative."""
    patched, positive, _ = apply(parts()[0])
    plain = with_zeros(encode(PROMPT))
    expected = Sampling(steps=2, negative=plain).run(patched, positive)
    again = Sampling(steps=2, negative=with_zeros(positive)).run(patched, positive)
    assert torch.equal(again, expected)


def test_ours_as_the_negative_too_takes_the_references_only_once():
    patched, positive, _ = apply(parts()[0])
    expected = Sampling(steps=2, negative=encode(PROMPT)).run(patched, positive)
    again = Sampling(steps=2, negative=positive).run(patched, positive)
    assert torch.equal(again, expected)


def test_attention_shares_do_not_count_copies():
    model, clip, _ = parts()
    options = {**defaults_of(MagicAttentionMap), "prompt": PROMPT}
    patched, positive, record = MagicAttentionMap.execute(model, clip, **options).args
    maps = []
    for negative in (with_zeros(encode(PROMPT)), with_zeros(positive)):
        samples = Sampling(steps=2, negative=negative).run(patched, positive)
        maps.append(record.run_of(samples).maps)
    assert torch.equal(*maps)


@pytest.mark.parametrize("connect", ["negative only", "zeros"])
def test_without_ours_in_the_positive_the_message_says_what_to_connect(connect):
    patched, positive, _ = apply(parts()[0])
    with pytest.raises(ValueError, match=r"connect the output positive of that node.*ours comes"):
        if connect == "zeros":
            Sampling().run(patched, with_zeros(positive))
        else:
            Sampling(negative=positive).run(patched, encode(PROMPT))


def with_lora(conditioning: list[Any], lora: dict[str, Tensor]) -> list[Any]:
    """The conditioning under a hook that puts the LoRA on the model."""
    import comfy.hooks

    hooks = comfy.hooks.create_hook_lora(lora, 1.0, 0.0)
    return comfy.hooks.set_hooks_for_conditioning(conditioning, hooks)


def test_a_lora_on_our_prompt_reaches_the_references():
    import comfy.sd

    model = parts()[0]
    lora = lora_file(model, "output_blocks.8.1", 0.5)
    loaded, _ = comfy.sd.load_lora_for_models(model, None, lora, 1.0, 0.0)
    whole, positive, _ = apply(loaded, semantic_cfg=False)
    expected = Sampling(steps=3).run(whole, positive)
    hooked, positive, _ = apply(model, semantic_cfg=False)
    sampling = Sampling(steps=3)
    sampling.negative = with_lora(sampling.negative, lora)
    samples = sampling.run(hooked, with_lora(positive, lora))
    # A hook adds the LoRA to weights in another order.
    torch.testing.assert_close(samples, expected, rtol=5e-3, atol=5e-3)
    assert not torch.allclose(Sampling(steps=3).run(hooked, positive), expected, atol=1e-2)


def test_kept_features_are_those_of_the_hooks():
    model = parts()[0]
    lora = lora_file(model, "output_blocks.8.1", 0.5)
    live, positive, _ = apply(model, semantic_cfg=False)
    kept, kept_positive, _ = apply(model, semantic_cfg=False, keep_features="memory")
    Sampling(steps=2).run(kept, kept_positive)
    expected = Sampling(steps=2).run(live, with_lora(positive, lora))
    samples = Sampling(steps=2).run(kept, with_lora(kept_positive, lora))
    torch.testing.assert_close(samples, expected, rtol=1e-4, atol=1e-4)


def test_a_region_for_each_picture():
    """Two pictures of one batch with a target region each are those of two runs."""
    model = parts()[0]
    regions = torch.zeros(2, 64, 64)
    regions[0, :, :32], regions[1, :, 32:] = 1, 1
    sampling = Sampling(batch=2, steps=2)
    together = sampling.run(*apply(model, chained=concepts(1, region=regions), inject_at=0.0)[:2])
    for i in range(2):
        chained = concepts(1, region=regions[i : i + 1])
        alone = sampling.run(*apply(model, chained=chained, inject_at=0.0)[:2])
        torch.testing.assert_close(together[i], alone[i], rtol=1e-3, atol=1e-3)
    assert not torch.allclose(together[0], together[1])
    patched, positive, _ = apply(model, chained=concepts(1, region=regions))
    with pytest.raises(ValueError, match="'hat' has 2 target regions for a batch of 3"):
        Sampling(batch=3).run(patched, positive)


def test_without_guidance_the_words_lie_where_they_do_with_it():
    """At CFG 1 there is no unconditional row to tell the background by. The prompt names one."""
    model, clip, _ = checkpoint.load()
    prompt = "a man with black hair wearing a green hat and a white scarf, pink background"
    patched, positive, record = MagicSemanticLayout.execute(
        model, clip, prompt, "hat, scarf", 0.6
    ).args
    empty = clip.encode_from_tokens_scheduled(clip.tokenize(""))
    layouts = []
    for cfg in (1.0, 1.01):
        sampling = Sampling(batch=2, cfg=cfg, steps=8, negative=empty)
        samples = sampling.run(patched, positive)
        layouts.append(record.run_of(samples).steps[7].concepts)
    for phrase in (0, 1):
        alone, guided = (layout == phrase for layout in layouts)
        assert (alone & guided).sum() / (alone | guided).sum() > 0.6


def test_guidance_that_pauses_leaves_the_last_foreground():
    """CFG Override 1 for the last steps."""
    patched, positive, record = watch(parts()[0])
    steps = 4
    samples = Sampling(steps=steps).run(patched, positive)
    guided = record.run_of(samples).steps

    paused = patched.clone()

    def calc(args: dict[str, Any]) -> Any:
        import comfy.samplers

        conds = list(args["conds"])
        if float(args["sigma"].flatten()[0]) < 1.0:
            conds[1] = None
        return comfy.samplers.calc_cond_batch(
            args["model"], conds, args["input"], args["sigma"], args["model_options"]
        )

    paused.set_model_sampler_calc_cond_batch_function(calc)
    samples = Sampling(steps=steps).run(paused, positive)
    seen = record.run_of(samples).steps
    assert (seen[0].foreground == guided[0].foreground).all()
    assert (seen[steps - 1].foreground == seen[steps - 2].foreground).all()
