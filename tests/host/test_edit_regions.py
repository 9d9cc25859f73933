"""Reference pictures in the sequence of edit models, each in its own region: what is drawn is what
a naive joint softmax gives, family by family."""

from __future__ import annotations

import dataclasses
import gc
import logging
import math
import weakref
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from magicportrait.host.page import live_layout
from magicportrait.host.sampling.backbone import edit_model_of
from magicportrait.host.sampling.patch import patches_of
from magicportrait.host.systems import edit_regions
from magicportrait.nodes import edit
from magicportrait.nodes.declare import defaults_of
from magicportrait.nodes.edit import MagicEditReference, MagicEditRegions
from magicportrait.nodes.layout import MagicLayoutMasks
from magicportrait.nodes.magicface_apply import MagicFaceApply
from magicportrait.tests.host import dits, models
from magicportrait.tests.host.dit_nodes import (
    NEGATIVE,
    PROMPT,
    SIZE,
    SmallVae,
    concepts,
    encode,
)
from magicportrait.tests.host.dit_nodes import apply as magicface
from magicportrait.tests.host.dit_text import random_clip_of

OVERRIDE = "optimized_attention_override"
# Rows and columns of latents whose tokens have sides of two latent pixels.
GIVEN = ((8, 12), (12, 6), (6, 6))
LENGTHS = (9, 40, 5)
"""Of the texts that Z-Image-Omni has for each given picture."""
VIEW = (3, 2)


def patch_of(family: str) -> int:
    return 1 if family == "flux2" else 2


def grid(family: str, size: tuple[int, int]) -> tuple[int, int]:
    shape = dits.latent_shape(family, size=size)
    return tuple(-(-side // patch_of(family)) for side in shape[-2:])  # type: ignore[return-value]


def latents_and_texts(family: str, count: int = 3, **more: Any) -> dict[str, Any]:
    """Options of a conditioning with pictures."""
    generator = torch.Generator().manual_seed(7)
    latents = [
        torch.randn(dits.latent_shape(family, size=size), generator=generator)
        for size in GIVEN[:count]
    ]
    options: dict[str, Any] = {
        "reference_latents": latents,
        "reference_latents_method": "index",
        **more,
    }
    if family == "zimage_omni":
        options["reference_latents_text_embeds"] = [
            torch.randn(1, length, dits.WIDTH, generator=generator)
            for length in (*LENGTHS[:count], 7)
        ]
        options["clip_vision_outputs"] = [
            SimpleNamespace(
                image_sizes=[(3, VIEW[0] * 16, VIEW[1] * 16)],
                last_hidden_state=torch.randn(
                    1, VIEW[0] * VIEW[1], dits.WIDTH, generator=generator
                ),
            )
            for _ in range(count)
        ]
    return options


def with_pictures(family: str, conditioning: list[Any], **more: Any) -> list[Any]:
    return [
        [tensor, {**known, **latents_and_texts(family, **more)}] for tensor, known in conditioning
    ]


def regions(family: str) -> tuple[Tensor, Tensor]:
    """The upper half of the picture, and a quarter of it."""
    rows, columns = grid(family, SIZE)
    first, second = torch.zeros(2, 1, rows, columns)
    first[:, : rows // 2], second[:, rows // 2 :, columns // 2 :] = 1, 1
    return first, second


def references(*parts: dict[str, Any]) -> Any:
    chained: Any = ()
    for part in parts:
        settings = {**defaults_of(MagicEditReference), **part}
        chained = MagicEditReference.execute(references=chained, **settings).args[0]
    return chained


def apply(model: Any, positive: list[Any], chained: Any, **options: Any) -> tuple[Any, Any, Any]:
    settings = {**defaults_of(MagicEditRegions), **options}
    return MagicEditRegions.execute(model, positive, chained, **settings).args


def sample(
    family: str,
    model: Any,
    positive: list[Any],
    negative: list[Any] | None = None,
    batch: int = 1,
    cfg: float = 3.0,
    sigmas: tuple[float, ...] = (0.9, 0.0),
) -> Tensor:
    negative = negative or with_pictures(family, dits.conditioning(20, 1))
    if family == "zimage_omni":
        # The host gives a text that is left over to one row only.
        batch, cfg = 1, 1.0
    shape = dits.latent_shape(family, batch, SIZE)
    return dits.sample(model, shape, positive, negative, cfg, sigmas)


def apart(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


@dataclasses.dataclass(frozen=True)
class Naive:
    """An override that draws the positive rows with a softmax in float64 of its own.

    family: of the model; text: tokens of the prompt; logits: for the picture's places and each
    token of the given pictures, what is added; is_isolated: whether these do not see each other.
    """

    family: str
    text: int
    logits: Tensor
    is_isolated: bool = False

    def places(self) -> tuple[int, list[tuple[int, int]], int]:
        """Where the picture begins; where each given one begins, with its tokens; all tokens."""
        rows, columns = grid(self.family, SIZE)
        sizes = [a * b for a, b in (grid(self.family, size) for size in GIVEN)]
        if not self.family.startswith("zimage"):
            start = {"flux2": 512}.get(self.family, self.text)
            ends = [start + rows * columns + sum(sizes[:i]) for i in range(4)]
            return start, list(zip(ends[:3], sizes, strict=True)), ends[3]
        # Everything is padded to 32; without texts and views a pad is in their place.
        place = 32 * 4
        if self.family == "zimage_omni":
            place = 32 + 64 + 32 + 32 + 32 + 4 * 32
        begins = []
        for size in sizes:
            begins.append((place, size))
            place += -(-size // 32) * 32
        return place, begins, place + -(-rows * columns // 32) * 32

    def __call__(self, func: Any, *args: Any, **kwargs: Any) -> Tensor:
        out = func(*args, **kwargs)
        q, k, v = dits.heads_apart(args, kwargs)
        start, begins, total = self.places()
        if k.shape[2] != total:
            return out
        chunks = kwargs["transformer_options"]["cond_or_uncond"]
        size, out = q.shape[0] // len(chunks), out.clone()
        for row in range(q.shape[0]):
            if chunks[row // size] == 0:
                bias = self.bias(start, begins, q.shape[2], total)
                logits = q[row].double() @ k[row].double().transpose(1, 2) / q.shape[-1] ** 0.5
                drawn = ((logits + bias).softmax(-1) @ v[row].double()).transpose(0, 1).flatten(1)
                changed = (bias != 0).any(1)
                out[row, changed] = drawn[changed].to(out)
        return out

    def bias(self, start: int, begins: list[tuple[int, int]], rows: int, total: int) -> Tensor:
        bias, done = torch.zeros(total, total, dtype=torch.float64), 0
        for begin, size in begins:
            part = self.logits[:, done : done + size]
            bias[start : start + len(part), begin : begin + size] = part
            done += size
            for other, length in begins if self.is_isolated else ():
                if other != begin:
                    bias[begin : begin + size, other : other + length] = float("-inf")
        return bias[:rows]


MASK = torch.zeros(1, 120, 60)
MASK[:, :60, 15:] = 1
"""Of the second given picture."""


def logits(family: str, by_region: bool, outside: str) -> Tensor:
    """The first picture twice as strong, of the second what MASK shows at half, the third for all
    places."""
    sizes = [grid(family, size) for size in GIVEN]
    coverage = torch.nn.functional.interpolate(MASK[None], size=sizes[1], mode="area").flatten()
    first, second = (region.flatten() > 0 for region in regions(family))
    bias = torch.cat(
        [
            torch.full((sizes[0][0] * sizes[0][1],), 2.0).log(),
            (coverage * 0.5).log(),
            torch.zeros(sizes[2][0] * sizes[2][1]),
        ]
    )
    of = torch.cat([torch.full((a * b,), i) for i, (a, b) in enumerate(sizes)])
    out = bias.double().repeat(len(first), 1)
    for place in range(len(first)) if by_region else ():
        owner = 0 if first[place] else 1 if second[place] else None
        if owner is None and outside == "all":
            continue
        out[place, (of != 2) & (of != (-1 if owner is None else owner))] = float("-inf")
    return out


CASES = {
    "rsa": (False, "all", False),
    "rba": (True, "all", False),
    "none outside, isolated": (True, "none", True),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("family", dits.EDIT_FAMILIES)
def test_a_step_is_what_a_naive_joint_softmax_gives(family, case):
    by_region, outside, isolated = CASES[case]
    model, (first, second) = dits.random_transformer(family).clone(), regions(family)
    positive = with_pictures(family, dits.conditioning(20, 0))
    chained = references(
        {"strength": 2.0, "target_region": first},
        {"strength": 0.5, "mask": MASK, "target_region": second},
    )
    patched, conditioning, _ = apply(
        model,
        positive,
        chained,
        inject_at=0.0 if by_region else 1.0,
        outside=outside,
        isolate=isolated,
    )
    plain = sample(family, model, positive, batch=2)
    naive = Naive(family, 20, logits(family, by_region, outside), isolated)
    model.model_options["transformer_options"][OVERRIDE] = naive
    expected = sample(family, model, positive, batch=2)
    assert apart(plain, expected) > 1e-3
    assert apart(sample(family, patched, conditioning, batch=2), expected) < 1e-4


@pytest.mark.parametrize("family", dits.EDIT_FAMILIES)
def test_what_asks_for_nothing_leaves_the_picture_bit_for_bit(family):
    model, (first, second) = dits.random_transformer(family), regions(family)
    positive = with_pictures(family, dits.conditioning(20, 0))
    chained = references({"target_region": first}, {"target_region": second})
    patched, conditioning, _ = apply(model, positive, chained, inject_at=1.0)
    plain = sample(family, model, positive, batch=2, sigmas=(1.0, 0.5, 0.0))
    again = sample(family, patched, conditioning, batch=2, sigmas=(1.0, 0.5, 0.0))
    assert torch.equal(again, plain)


def prompt_with_pictures(family: str, count: int = 2) -> list[Any]:
    """The prompt by the family's text encoder, with pictures."""
    return with_pictures(family, encode(family, PROMPT), count=count)


def by_words(**more: Any) -> Any:
    return references({"phrase": "hat", **more}, {"phrase": "striped scarf", **more})


@pytest.mark.parametrize("family", ["flux", "flux2", "qwen", "krea2", "zimage"])
def test_phrases_find_their_regions(family):
    model, clip = dits.random_transformer(family), random_clip_of(family)
    positive, negative = prompt_with_pictures(family), encode(family, NEGATIVE)
    settings = {"clip": clip, "prompt": PROMPT}
    patched, conditioning, record = apply(model, positive, by_words(), **settings)
    steps = (1.0, 0.7, 0.4, 0.0)
    plain = sample(family, model, positive, negative, sigmas=steps)
    samples = sample(family, patched, conditioning, negative, sigmas=steps)
    assert samples.isfinite().all() and not torch.equal(samples, plain)
    assert torch.equal(sample(family, patched, conditioning, negative, sigmas=steps), samples)
    layout = record.run_of(samples).steps
    assert sorted(layout) == [0, 1, 2]
    assert layout[2].concepts.shape == (1, *grid(family, SIZE))
    masks = MagicLayoutMasks.execute(record, {"samples": samples}, -1).args[0]
    assert len(masks) == 2
    # Without anything to do it only watches.
    watched, conditioning, record = apply(model, positive, by_words(), **settings, inject_at=1.0)
    samples = sample(family, watched, conditioning, negative, sigmas=steps)
    assert torch.equal(samples, plain) and record.run_of(samples).steps


def test_at_cfg_one_and_when_the_negative_prompt_has_no_pictures():
    model, (first, second) = dits.random_transformer("qwen"), regions("qwen")
    positive = with_pictures("qwen", dits.conditioning(20, 0))
    chained = references({"target_region": first}, {"target_region": second})
    patched, conditioning, _ = apply(model, positive, chained)
    bare = dits.conditioning(20, 1)
    alone = sample("qwen", patched, conditioning, cfg=1.0)
    assert apart(alone, sample("qwen", model, positive, cfg=1.0)) > 1e-3
    both = sample("qwen", patched, conditioning, bare, batch=2)
    assert apart(both, sample("qwen", model, positive, bare, batch=2)) > 1e-3


def test_a_reference_of_strength_zero_is_not_seen():
    """By the picture's places: what text and other references have of it stays."""
    model = dits.random_transformer("flux")
    positive = with_pictures("flux", dits.conditioning(20, 0), count=1)
    patched, conditioning, _ = apply(model, positive, references({"strength": 0.0}))
    naive = Naive("flux", 20, torch.zeros(0, 0))
    seen: list[Tensor] = []
    model = model.clone()

    def hide(func, *args, **kwargs):
        out = func(*args, **kwargs).clone()
        q, k, v = dits.heads_apart(args, kwargs)
        start, begins, _ = naive.places()
        tokens = begins[0][0] - start
        without = func(
            q[:, :, start : start + tokens],
            k[:, :, : start + tokens],
            v[:, :, : start + tokens],
            *args[3:],
            **kwargs,
        )
        out[:, start : start + tokens] = without
        seen.append(out)
        return out

    model.model_options["transformer_options"][OVERRIDE] = hide
    expected = sample("flux", model, positive, cfg=1.0)
    assert seen and apart(sample("flux", patched, conditioning, cfg=1.0), expected) < 1e-5


@pytest.mark.parametrize("phrase", ["", "hat"])
def test_a_region_for_each_of_another_number_of_pictures_is_refused(phrase):
    region = torch.ones(2, 8, 8)
    positive = [
        [tensor, {**options, **latents_and_texts("flux", 1)}]
        for tensor, options in encode("flux", PROMPT)
    ]
    chained = references({"phrase": phrase, "target_region": region})
    patched, conditioning, _ = apply(
        dits.random_transformer("flux"),
        positive,
        chained,
        clip=random_clip_of("flux"),
        prompt=PROMPT,
    )
    whose = f"'{phrase}'" if phrase else "a reference"
    with pytest.raises(ValueError, match=f"{whose} has 2 target regions for a batch of 3"):
        sample("flux", patched, conditioning, batch=3)


def test_flux_kv_cache_draws_the_same_rule_in_every_step():
    pytest.importorskip("comfy_extras.nodes_flux")
    from comfy_extras import nodes_flux

    if not hasattr(nodes_flux, "FluxKVCache"):
        pytest.skip("this host has no Flux KV Cache")
    cached = nodes_flux.FluxKVCache.execute(dits.random_transformer("flux2")).args[0]
    first, second = regions("flux2")
    positive = with_pictures("flux2", dits.conditioning(20, 0))
    del positive[0][1]["reference_latents_method"]
    chained = references(
        {"strength": 2.0, "target_region": first},
        {"strength": 0.5, "mask": MASK, "target_region": second},
    )
    patched, conditioning, _ = apply(cached, positive, chained)
    steps = (0.9, 0.6, 0.3, 0.0)
    plain = sample("flux2", cached, positive, positive, 1, 1.0, steps)
    cached.model_options["transformer_options"][OVERRIDE] = Naive(
        "flux2", 20, logits("flux2", True, "all")
    )
    expected = sample("flux2", cached, positive, positive, 1, 1.0, steps)
    assert apart(plain, expected) > 1e-3
    found = sample("flux2", patched, conditioning, positive, 1, 1.0, steps)
    assert apart(found, expected) < 1e-4


def patches_on(model: Any) -> list[Any]:
    return [patch for *_, patch in patches_of(model)]


def see_pictures(monkeypatch: Any) -> None:
    """In place of an encoder of pictures."""
    import comfy.text_encoders.llama as llama
    import comfy.text_encoders.qwen_vl as qwen_vl

    def see(self: Any, embed: Any, device: Any) -> tuple[Tensor, Tensor]:
        grid = qwen_vl.process_qwen2vl_images(embed["data"])[1]
        count = int(grid.prod()) // 4
        return torch.randn(count, dits.WIDTH, generator=torch.Generator().manual_seed(1)), grid

    monkeypatch.setattr(llama.Qwen25_7BVLI, "preprocess_embed", see)


def test_words_are_found_behind_pictures_in_the_text(monkeypatch):
    clip = random_clip_of("qwen")
    see_pictures(monkeypatch)
    from comfy_extras import nodes_qwen

    if not hasattr(nodes_qwen, "TextEncodeQwenImageEditPlus"):
        pytest.skip("this host shows one picture at most")
    picture = torch.rand(1, 96, 128, 3)
    positive = nodes_qwen.TextEncodeQwenImageEditPlus.execute(
        clip, PROMPT, None, picture, picture
    ).args[0]
    positive = with_pictures("qwen", positive, count=2)
    patched, conditioning, _ = apply(
        dits.random_transformer("qwen"), positive, by_words(), clip=clip, prompt=PROMPT
    )
    (patch,) = patches_on(patched)
    hat, _ = patch.layout.prompt.spans
    # What comes after the hat: of the prompt, and the end of the template.
    after = clip.tokenize(PROMPT.split("hat", 1)[1])["qwen25_7b"][0]
    before = clip.tokenize("")["qwen25_7b"][0]
    end = next(i for i, (token, *_) in enumerate(reversed(before)) if token == 872)
    words = [token for token, *_ in after]
    head = len(before) - end + 1
    assert conditioning[0][0].shape[1] - hat[-1] - 1 == len(words) - head


def test_nothing_is_left_after_a_run_or_a_cancel(monkeypatch):
    kept: list[Any] = []
    original = edit_regions._EditRule.attend

    def spy(self: Any, view: Any) -> Tensor:
        kept.extend((weakref.ref(view.k), weakref.ref(self)))
        return original(self, view)

    monkeypatch.setattr(edit_regions._EditRule, "attend", spy)
    model, clip = dits.random_transformer("qwen"), random_clip_of("qwen")
    patched, conditioning, _ = apply(
        model, prompt_with_pictures("qwen"), by_words(), clip=clip, prompt=PROMPT
    )
    before = models.state_of(patched)
    sample("qwen", patched, conditioning, encode("qwen", NEGATIVE))
    assert models.state_of(patched) == before

    class Cancelled(Exception):
        pass

    def cancel(*args: Any, **kwargs: Any) -> Any:
        raise Cancelled

    monkeypatch.setattr(edit_regions._EditRule, "attend", cancel)
    with pytest.raises(Cancelled):
        sample("qwen", patched, conditioning, encode("qwen", NEGATIVE))
    assert models.state_of(patched) == before
    gc.collect()
    assert kept and not any(ref() is not None for ref in kept)


def test_the_log_says_which_steps_are_by_region(caplog):
    patched, conditioning, _ = apply(
        dits.random_transformer("qwen"),
        prompt_with_pictures("qwen"),
        by_words(),
        clip=random_clip_of("qwen"),
        prompt=PROMPT,
    )
    with caplog.at_level(logging.INFO):
        sample("qwen", patched, conditioning, encode("qwen", NEGATIVE), sigmas=(1.0, 0.5, 0.0))
    line = next(text for text in caplog.messages if text.startswith("Edit Regions: "))
    assert "steps 1 of 2 see all of them, steps 2 their region's own" in line


def test_what_cannot_be_is_refused_before_sampling():
    model, clip = dits.random_transformer("flux"), random_clip_of("flux")
    positive, settings = prompt_with_pictures("flux"), {"clip": clip, "prompt": PROMPT}
    with pytest.raises(ValueError, match=r"^SD3 takes no reference pictures in its sequence"):
        edit_model_of(dits.random_transformer("sd3"))
    with pytest.raises(ValueError, match=r"positive has no reference latents: put Reference Lat"):
        apply(model, encode("flux", PROMPT), by_words(), **settings)
    with pytest.raises(ValueError, match=r"3 Edit Reference nodes, but positive has 2 reference"):
        apply(model, positive, references({}, {}, {}), **settings)
    with pytest.raises(ValueError, match=r"phrase 'hat' is to be found in the prompt: conn"):
        apply(model, positive, by_words())
    with pytest.raises(ValueError, match=r"phrase 'hat' is not in the prompt"):
        apply(model, positive, by_words(), clip=clip, prompt="a man")
    with pytest.raises(ValueError, match=r"is longer than positive, which has 256 tokens"):
        apply(model, positive, by_words(), clip=clip, prompt="so " * 300 + PROMPT)
    with pytest.raises(ValueError, match=r"mask of reference 'hat' is empty"):
        by_words(mask=torch.zeros(1, 64, 64))
    speck = torch.zeros(1, 512, 512)
    speck[:, 0, 0] = 1
    with pytest.raises(ValueError, match=r"mask of reference 1 .* after scaling to 6x4"):
        apply(model, positive, by_words(mask=speck), **settings)
    with pytest.raises(ValueError, match=r"positive combines prompts with other words"):
        apply(model, positive + prompt_with_pictures("flux", 1), by_words(), **settings)
    patched, conditioning, _ = apply(model, positive, by_words(), **settings)
    with pytest.raises(ValueError, match=r"positive comes from another node of this pack"):
        apply(patched, conditioning, by_words(), **settings)


def test_pictures_that_the_model_leaves_out_are_told():
    """Krea 2 looks at them by a method that its edit fine-tunes name."""
    model, (first, _) = dits.random_transformer("krea2"), regions("krea2")
    positive = with_pictures("krea2", dits.conditioning(20, 0))
    del positive[0][1]["reference_latents_method"]
    patched, conditioning, _ = apply(model, positive, references({"target_region": first}))
    with pytest.raises(ValueError, match=r"is given 0 reference pictures of no tokens.*Method"):
        sample("krea2", patched, conditioning)


@pytest.fixture
def small_pictures(monkeypatch):
    """Edit models of 128 x 128 pixels."""

    def shrink(family: str) -> Any:
        model = dits.random_transformer(family)
        monkeypatch.setattr(type(model.model.model_config), "native_side", 128, raising=False)
        return model

    return shrink


@pytest.mark.parametrize("family", ["flux", "flux2", "qwen", "krea2"])
def test_magicface_gives_edit_models_the_concepts_pictures(family, monkeypatch, small_pictures):
    model, clip = small_pictures(family), random_clip_of(family)
    if family == "qwen":
        see_pictures(monkeypatch)
    if family == "krea2":
        # Its encoder of pictures is another's.
        monkeypatch.delattr(clip.tokenizer, "llama_template_images")
    chained = tuple(dataclasses.replace(concept, strength=0.0) for concept in concepts())
    settings = {"references": "in the sequence", "layers": "fine"}
    patched, positive, record = magicface(family, model, chained, **settings)
    if family == "krea2":
        positive = [[t, {**o, "reference_latents_method": "index"}] for t, o in positive]
    latents = positive[0][1]["reference_latents"]
    # 128 x 96 pixels have the area of 144 x 112, in steps of a token's side.
    side = 16 if family == "flux2" else 8
    assert [tuple(x.shape[-2:]) for x in latents] == [(112 // side, 144 // side)] * 2
    steps = (1.0, 0.7, 0.4, 0.0)
    plain = sample(family, model, positive, encode(family, NEGATIVE), sigmas=steps)
    samples = sample(family, patched, positive, encode(family, NEGATIVE), sigmas=steps)
    assert samples.isfinite().all() and apart(samples, plain) > 1e-4
    assert len(record.run_of(samples).steps) == 3
    # As trained: no mask, no strength, no regions.
    bare = tuple(dataclasses.replace(concept, mask=None) for concept in chained)
    inert, positive, _ = magicface(family, model, bare, **settings, inject_at=1.0)
    if family == "krea2":
        positive = [[t, {**o, "reference_latents_method": "index"}] for t, o in positive]
    again = sample(family, inert, positive, encode(family, NEGATIVE), sigmas=steps)
    assert torch.equal(again, plain)


def test_strengths_in_words_are_parts_of_what_was_trained(small_pictures):
    model = small_pictures("flux")
    patched, *_ = magicface("flux", model, concepts(preset="strong"), references="in the sequence")
    (patch,) = patches_on(patched)
    shown = patch.references[0].bias
    assert shown.max().item() == pytest.approx(math.log(2), abs=1e-6)
    assert shown.isneginf().any() and patch.blocks == patch.backbone.parse_layers("all")


def test_magicface_says_what_takes_no_pictures():
    with pytest.raises(ValueError, match=r"^SD3 takes no reference pictures"):
        magicface("sd3", references="in the sequence")
    with pytest.raises(ValueError, match=r"encode the prompt with TextEncodeZImageOmni and use"):
        magicface("zimage", references="in the sequence")
    with pytest.raises(ValueError, match=r"VAE makes latents of 128 channels, the model has 16"):
        MagicFaceApply.execute(
            dits.random_transformer("qwen"),
            random_clip_of("qwen"),
            SmallVae("flux2"),
            concepts(),
            **{**defaults_of(MagicFaceApply), "prompt": PROMPT, "references": "in the sequence"},
        )


def test_a_page_is_shown_the_layout_while_it_samples(monkeypatch):
    model, clip = dits.random_transformer("flux"), random_clip_of("flux")
    events: list[tuple[str, dict[str, Any]]] = []
    server = SimpleNamespace(prompt_queue=SimpleNamespace(currently_running={}))
    page = SimpleNamespace(server=server, send=lambda event, data: events.append((event, data)))
    monkeypatch.setattr(live_layout, "listening_page", lambda: page)
    monkeypatch.setattr(edit, "node_id", lambda node: "7")
    chained = references({"phrase": ""}, {"phrase": "hat"}, {"phrase": "striped scarf"})
    settings = {"clip": clip, "prompt": PROMPT}
    patched, conditioning, _ = apply(model, prompt_with_pictures("flux", 3), chained, **settings)
    sample("flux", patched, conditioning, encode("flux", NEGATIVE), sigmas=(1.0, 0.5, 0.0))
    (_, run), *layouts = events
    assert (run["node"], run["phrases"], run["steps"]) == ("7", ["hat", "striped scarf"], 2)
    assert sorted(step for _, data in layouts for step in data["layouts"]) == ["0", "1"]

    events.clear()
    monkeypatch.setattr(live_layout, "output_on_page", lambda page, name, value: {name: value})
    painted = references({"target_region": regions("flux")[0]}, {})
    settings = defaults_of(MagicEditRegions)
    output = MagicEditRegions.execute(model, prompt_with_pictures("flux"), painted, **settings)
    assert output.ui == {"magic_no_layout": [True]}
    sample("flux", *output.args[:2], encode("flux", NEGATIVE), sigmas=(1.0, 0.5, 0.0))
    assert events == []
