"""Transformers whose text and picture share one attention, family by family: what the backbone
shows is what the layers see, and what a rule draws is what a naive joint softmax gives."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from magicportrait.host.sampling.backbone import LayerView, Watch, backbone_of, unet_of
from magicportrait.host.sampling.backbone.joint import JointTransformer
from magicportrait.host.sampling.patch import PatchRun, SamplingPatch, SamplingStart
from magicportrait.host.sampling.reference_pass import ReferencePass, SeededNoise
from magicportrait.host.sampling.references import Reference
from magicportrait.magic.reference_attention import (
    ReferenceTokens,
    RegionTokens,
    reference_attention,
    region_attention,
)
from magicportrait.tests.host import dits

OVERRIDE = "optimized_attention_override"
SIZE = (15, 13)
POSITIVE, NEGATIVE = dits.conditioning(20, 0), dits.conditioning(20, 1)
Change = Callable[[Any, Any, Tensor, Any], Any]


def backbone(family: str) -> JointTransformer:
    found = JointTransformer.read(dits.random_transformer(family))
    assert found is not None
    return found


@dataclass(frozen=True, eq=False)
class Changed(SamplingPatch["ChangedRun"]):
    """change: (options, ids of the positive conds, latent, guider) -> options of a model call."""

    change: Change
    key: str = "changed"

    def open_run(self, start: SamplingStart) -> ChangedRun:
        return ChangedRun(self.change, start)


class ChangedRun(PatchRun):
    def __init__(self, change: Change, start: SamplingStart):
        self._change, self._guider = change, start.guider

    def predict(self, executor, x, timestep, model_options, *args, **kwargs):
        conds = {cond["uuid"] for cond in self._guider.conds["positive"]}
        options = self._change(model_options, conds, x, self._guider)
        return executor(x, timestep, options, *args, **kwargs)

    def release(self) -> None:
        del self._change, self._guider


def draw(family: str, change: Change | None = None, override: Any = None, **options: Any) -> Tensor:
    model = dits.random_transformer(family).clone()
    if override is not None:
        model.model_options["transformer_options"][OVERRIDE] = override
    if change is not None:
        model = Changed(change).add_to(model)
    shape = dits.latent_shape(family, options.pop("batch", 1), options.pop("size", SIZE))
    negative = options.pop("negative", NEGATIVE)
    positive = options.pop("positive", POSITIVE)
    return dits.sample(model, shape, positive, negative, **options)


def apart(a: Tensor, b: Tensor) -> float:
    """The largest difference, in parts of the largest value."""
    return float((a - b).abs().max() / b.abs().max())


def with_rule(family: str, rule: Any, layers: str = "all") -> Change:
    known = backbone(family)

    def change(options, conds, x, guider):
        return known.with_rule(options, known.parse_layers(layers), conds, x.shape[0], rule)

    return change


def with_watch(family: str, image: Any = None, text: Any = None) -> Change:
    known = backbone(family)

    def change(options, conds, x, guider):
        watch = Watch(known.parse_layers("all"), conds, x.shape[0], image, text)
        return known.with_watch(options, watch)

    return change


def references_of(layer: Any, channels: int, bias: float) -> list[ReferenceTokens]:
    """Two concepts of random tokens, the same for a layer whenever it is asked."""
    generator = torch.Generator().manual_seed(hash((layer[0].index, ord(layer[0].kind))) % 2**31)
    return [
        ReferenceTokens(
            torch.randn(count, channels, generator=generator) * 2,
            torch.randn(count, channels, generator=generator),
            torch.full((count,), bias),
        )
        for count in (5, 3)
    ]


def regions_of(view_or_batch: int, tokens: int) -> list[RegionTokens]:
    """Thirds of every picture: of the first concept, of the second, of none."""
    parts = torch.arange(tokens).chunk(3)
    owners = (0, 1, None)
    return [
        RegionTokens(image, owner, part)
        for image in range(view_or_batch)
        for owner, part in zip(owners, parts, strict=True)
    ]


class Oracle:
    """A joint attention of our rows in float64, written apart from the backbone: the picture's
    queries also meet the references, by region or all of them."""

    def __init__(self, family: str, text: int, tokens: int, bias: float, by_region: bool):
        self.family, self.text, self.tokens = family, text, tokens
        self.bias, self.by_region = bias, by_region
        self.blocks = [layer.block for layer in backbone(family).layers]
        self.first = 0 if family == "hidream" else text
        self.seen = 0

    def __call__(self, func, *args, **kwargs):
        out = func(*args, **kwargs)
        options, (q, k, v) = kwargs["transformer_options"], dits.heads_apart(args, kwargs)
        if min(q.shape[2], k.shape[2]) < self.text + self.tokens:
            return out
        # Every model call goes through all of them, in order.
        layer = (self.blocks[self.seen % len(self.blocks)], 0)
        self.seen += 1
        out, chunks = out.clone(), options["cond_or_uncond"]
        size = q.shape[0] // len(chunks)
        for place, which in enumerate(chunks):
            for picture in range(size if which == 0 else 0):
                row = place * size + picture
                out[row, self.first : self.first + self.tokens] = self.row(
                    layer, q[row].double(), k[row].double(), v[row].double()
                ).to(out)
        return out

    def row(self, layer, q, k, v):  # H N D
        heads, _, depth = q.shape
        references = references_of(layer, heads * depth, self.bias)
        own = k.shape[1]
        rk, rv = (
            torch.cat([getattr(r, name) for r in references]).unflatten(-1, (heads, depth))
            for name in ("k", "v")
        )
        keys = torch.cat([k, rk.double().transpose(0, 1)], 1)
        values = torch.cat([v, rv.double().transpose(0, 1)], 1)
        queries = q[:, self.first : self.first + self.tokens]
        logits = queries @ keys.transpose(1, 2) / depth**0.5
        logits[..., own:] += self.bias
        if self.by_region:
            owner = torch.full((self.tokens,), -1)
            for i, part in enumerate(torch.arange(self.tokens).chunk(3)):
                owner[part] = (0, 1, -1)[i]
            of = torch.tensor([0] * 5 + [1] * 3)
            logits[..., own:].masked_fill_(owner[:, None] != of, float("-inf"))
        return (logits.softmax(-1) @ values).transpose(0, 1).flatten(1)


def text_tokens(family: str, tokens: int = 20) -> int:
    """In a joint attention, with the padding. Anima's is apart."""
    known = {"flux2": 512, "zimage": 32, "anima": 0}
    return known.get(family, tokens + 2 * dits.LLAMA_TOKENS * (family == "hidream"))


def image_tokens(family: str, size: tuple[int, int] = SIZE) -> int:
    shape = dits.latent_shape(family, size=size)
    patch = backbone(family).tokens.patch
    return -(-shape[-2] // patch) * -(-shape[-1] // patch)


@pytest.mark.parametrize("family", dits.FAMILIES)
def test_watching_leaves_the_picture_as_it_is(family):
    seen: dict[Any, list[LayerView]] = {}

    def look(view):
        seen.setdefault(view.layer[0], []).append(view)

    plain = draw(family)
    assert plain.isfinite().all()
    assert torch.equal(draw(family, with_watch(family, look, look)), plain)
    known = backbone(family)
    assert tuple(seen) == known.parse_layers("all")
    for views in seen.values():
        for view in views:
            assert view.grid[0] * view.grid[1] == view.q.shape[1] == image_tokens(family)
            if family == "anima":
                own, text = image_tokens(family), 20
                assert view.k.shape[1] in (own, text)
                assert view.image == slice(0, own if view.k.shape[1] == own else 0)
                assert view.text == slice(0, text if view.k.shape[1] == text else 0)
                continue
            assert view.image.stop - view.image.start == image_tokens(family)
            assert view.text.stop - view.text.start == text_tokens(family)
        if family == "anima":
            # The picture by itself, then the text: of each prompt row that is ours, in each step.
            assert [len(view.k[0]) for view in views] == [image_tokens(family), 20] * 2


@pytest.mark.parametrize("family", dits.FAMILIES)
def test_references_that_weigh_nothing_change_nothing(family):
    def rule(view):
        references = references_of(view.layer, view.q.shape[-1], -1e9)
        return reference_attention(view.q, view.k, view.v, references, view.attend)

    assert apart(draw(family, with_rule(family, rule)), draw(family)) < 1e-5


@pytest.mark.parametrize("by_region", [False, True], ids=["rsa", "rba"])
@pytest.mark.parametrize("family", dits.FAMILIES)
def test_rules_draw_what_a_naive_joint_softmax_gives(family, by_region):
    tokens = image_tokens(family)

    def rule(view):
        references = references_of(view.layer, view.q.shape[-1], 1.0)
        if not by_region:
            return reference_attention(view.q, view.k, view.v, references, view.attend)
        regions = regions_of(view.q.shape[0], view.q.shape[1])
        return region_attention(view.q, view.k, view.v, references, regions, view.attend)

    oracle = Oracle(family, text_tokens(family), tokens, 1.0, by_region)
    expected = draw(family, override=oracle, batch=2)
    out = draw(family, with_rule(family, rule), batch=2)
    assert apart(draw(family, batch=2), expected) > 1e-3
    assert apart(out, expected) < 1e-4


@pytest.mark.parametrize("cfg", [1.0, 3.0])
@pytest.mark.parametrize("family", ["flux", "zimage"])
def test_prompts_of_other_lengths_run_apart(family, cfg):
    def rule(view):
        references = references_of(view.layer, view.q.shape[-1], 1.0)
        return reference_attention(view.q, view.k, view.v, references, view.attend)

    options = {"negative": dits.conditioning(45, 2), "batch": 2, "cfg": cfg}
    oracle = Oracle(family, text_tokens(family), image_tokens(family), 1.0, False)
    # The negative prompt's rows are never ours: its length does not matter.
    expected = draw(family, override=oracle, **options)
    assert apart(draw(family, with_rule(family, rule), **options), expected) < 1e-4


def test_who_stood_there_before_draws_all_that_is_not_ours():
    calls: list[tuple[Any, ...]] = []

    def foreign(func, *args, **kwargs):
        options = kwargs["transformer_options"]
        calls.append((args[0].shape[0], args[0].shape[-2], tuple(options["cond_or_uncond"])))
        return func(*args, **kwargs) * 0.5

    def rule(view):
        return view.attend(view.q, view.k, view.v, None)

    tokens = image_tokens("flux")
    expected = draw("flux", override=foreign)
    calls.clear()
    out = draw("flux", with_rule("flux", rule, "d0"), override=foreign)
    assert apart(out, expected) < 1e-5
    # In d0: the other prompt's rows whole, our text's, and our picture's in `attend`.
    assert [call[:2] for call in calls[:3]] == [(1, tokens + 20), (1, 20), (1, tokens)]
    assert [call[2] for call in calls[:2]] == [(1,), (0,)]
    biased: list[int] = []

    def no_bias(func, *args, **kwargs):
        mask = kwargs.get("mask")
        biased.append(mask is not None)
        return func(*args, **kwargs)

    def with_bias(view):
        references = references_of(view.layer, view.q.shape[-1], 0.0)
        return reference_attention(view.q, view.k, view.v, references, view.attend)

    draw("flux", with_rule("flux", with_bias), override=no_bias)
    assert biased and not any(biased)


def test_rules_and_watches_go_through_each_other():
    def rule(view):
        references = references_of(view.layer, view.q.shape[-1], 1.0)
        return reference_attention(view.q, view.k, view.v, references, view.attend)

    one, seen = with_rule("flux", rule, "single"), []
    look = with_watch("flux", text=lambda view: seen.append(view.layer))
    expected = draw("flux", one)

    def both(options, conds, x, guider):
        return look(one(options, conds, x, guider), conds, x, guider)

    def inside(options, conds, x, guider):
        return one(look(options, conds, x, guider), conds, x, guider)

    assert torch.equal(draw("flux", both), expected)
    assert len(seen) == 2 * 4
    assert torch.equal(draw("flux", inside), expected)


@pytest.mark.parametrize("family", ["flux", "qwen"])
def test_hosts_that_do_not_name_their_blocks_are_counted_along(family):
    """As older hosts do."""

    known, seen = backbone(family), []

    def change(options, conds, x, guider):
        watch = Watch(known.parse_layers("all"), conds, x.shape[0], lambda v: seen.append(v.layer))
        out = known.with_watch(known.with_watch(options, watch), watch)
        inner = out["transformer_options"]
        named = inner[OVERRIDE]

        def without_names(func, *args, **kwargs):
            hidden = ("block_index", "block_type")
            options = kwargs["transformer_options"]
            kwargs["transformer_options"] = {k: options[k] for k in options if k not in hidden}
            return named(func, *args, **kwargs)

        inner[OVERRIDE] = without_names
        return out

    plain = draw(family)
    assert torch.equal(draw(family, change), plain)
    blocks = [(block, 0) for block in known.parse_layers("all")]
    assert seen == [block for block in blocks for _ in range(2)] * 2


@pytest.mark.parametrize("family", [name for name in dits.FAMILIES if name != "anima"])
def test_maps_are_those_of_the_joint_softmax_renormalised(family):
    known, maps = backbone(family), []

    def look(view):
        maps.append((view, known.text_attention(view, 20), known.image_attention(view)))

    draw(family, with_watch(family, text=look), sigmas=(0.9, 0.0))
    assert len(maps) == len(known.layers)
    view, text, image = maps[-1]
    heads, tokens, count = view.heads, image_tokens(family), text_tokens(family)
    first, place = (tokens, 0) if family == "hidream" else (0, count)
    q, k = (x.double().unflatten(-1, (heads, -1)).transpose(1, 2) for x in (view.q, view.k))
    joint = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
    words = joint[..., first : first + count]
    words = (words / words.sum(-1, keepdim=True)).mean(1)
    # Flux.2 pads on the left; HiDream has words of both encoders.
    own = {"flux2": words[..., count - 20 :], "hidream": words}.get(family, words[..., :20])
    places = joint[..., place : place + tokens]
    places = (places / places.sum(-1, keepdim=True)).mean(1)
    assert (text - own).abs().max() < 1e-5
    assert (image - places).abs().max() < 1e-5


@pytest.mark.parametrize(
    "family",
    [name for name in dits.FAMILIES if name not in ("sd3", "anima")],
)
def test_a_reference_pass_sees_the_picture_where_the_model_places_it(family, monkeypatch):
    if family == "hidream":
        from comfy.ldm.hidream.model import EmbedND
    else:
        from comfy.ldm.flux.layers import EmbedND
    known, ids = backbone(family), []
    forward = EmbedND.forward

    def record(self, positions):
        ids.append(positions)
        return forward(self, positions)

    monkeypatch.setattr(EmbedND, "forward", record)
    latent = torch.randn(
        dits.latent_shape(family, size=(12, 16)), generator=torch.Generator().manual_seed(5)
    )
    reference = Reference(0, latent, None, 1.0, dits.conditioning(9, 4))
    views: dict[Any, LayerView] = {}
    positions: list[Tensor] = []

    def change(options, conds, x, guider):
        everything = known.parse_layers("all")
        references = ReferencePass([reference], SeededNoise(0, False), known, everything)
        references.run(
            guider.inner_model,
            torch.tensor([0.7]),
            options,
            lambda index, view, row: views.setdefault(view.layer[0], view),
        )
        positions.append(ids[-1])
        return options

    foreign: list[int] = []

    def other(func, *args, **kwargs):
        foreign.append(args[0].shape[2])
        return func(*args, **kwargs)

    draw(family, change, override=other, sigmas=(0.9, 0.0))
    assert tuple(views) == known.parse_layers("all")
    # What is meant for the picture's attention does not see the references.
    assert image_tokens(family, (12, 16)) + text_tokens(family, 9) not in foreign
    view, of_model = views[known.layers[-1].block], positions[0][0]
    assert view.cond is None
    assert view.coordinates is not None
    tokens = image_tokens(family, (12, 16))
    assert view.grid[0] * view.grid[1] == tokens == view.image.stop - view.image.start
    # Lumina2 and Z-Image turn the text apart.
    start = 0 if family in ("lumina2", "zimage") else view.image.start
    placed = view.coordinates.positions(len(known.rotary.axes))
    assert torch.equal(of_model[start : start + tokens].double(), placed)
    assert view.k.shape[-1] == view.heads * known.rotary.head


@pytest.mark.parametrize("size", [(15, 13), (10, 8)], ids=["other", "as many"])
def test_maps_of_text_that_stands_apart_are_those_of_its_own_softmax(size):
    """In the second case the text has as many tokens as the picture."""
    known, maps, between = backbone("anima"), [], []

    def look(view):
        maps.append((view, known.text_attention(view, 5)))

    def change(options, conds, x, guider):
        watch = Watch(known.parse_layers("all"), conds, 1, between.append, look)
        # Two of ours, one inside the other.
        return known.with_watch(known.with_watch(options, watch), watch)

    draw("anima", change, sigmas=(0.9, 0.0), size=size)
    assert len(maps) == len(between) == 2 * len(known.layers)
    for view, text in maps:
        q, k = (
            x.double().unflatten(-1, (view.heads, -1)).transpose(1, 2) for x in (view.q, view.k)
        )
        expected = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1).mean(1)
        assert text.shape[-1] == 20 and (text - expected).abs().max() < 1e-5
    own = {view.layer[0]: view.k for view in between}
    assert all(not torch.equal(own[view.layer[0]], view.k) for view, _ in maps)


def test_a_reference_pass_turns_keys_as_the_model_with_halves_does():
    """Anima's embedder says the angles themselves: its own rotation of the keys, and ours."""
    from magicportrait.magic.positions import turned

    known = backbone("anima")
    embedder = dits.random_transformer("anima").model.diffusion_model.pos_embedder
    angles = embedder(torch.zeros(1, 1, 6, 8, 1), fps=None, device=torch.device("cpu"))
    x = torch.randn(48, known.rotary.head, generator=torch.Generator().manual_seed(0))
    first, second = x.chunk(2, dim=-1)  # N D/2
    by_model = torch.cat(
        [
            angles[..., 0, 0] * first + angles[..., 0, 1] * second,
            angles[..., 1, 0] * first + angles[..., 1, 1] * second,
        ],
        dim=-1,
    )
    placed = known.coordinates((12, 16), 20).positions(len(known.rotary.axes))
    ours = turned(x, known.rotary.angles(placed), known.rotary.pairing)
    assert (ours - by_model).abs().max() < 1e-5


def test_an_edit_of_hidream_is_refused():
    given = with_options(POSITIVE, concat_latent_image=torch.zeros(dits.latent_shape("hidream")))
    with pytest.raises(ValueError, match=r"HiDream-E1.*take HiDream-I1"):
        draw("hidream", with_watch("hidream", text=lambda view: None), positive=given)


def test_nothing_is_held_after_a_run():
    kept: list[Any] = []

    def rule(view):
        kept.append(weakref.ref(view.k))
        references = references_of(view.layer, view.q.shape[-1], 1.0)
        return reference_attention(view.q, view.k, view.v, references, view.attend)

    model = dits.random_transformer("flux")
    before = dict(model.model_options["transformer_options"])
    draw("flux", with_rule("flux", rule))
    gc.collect()
    assert kept and not any(ref() is not None for ref in kept)
    assert model.model_options["transformer_options"] == before


@pytest.mark.parametrize("family", dits.FAMILIES)
def test_nodes_take_every_family(family):
    assert isinstance(backbone_of(dits.random_transformer(family)), JointTransformer)


def test_other_transformers_are_refused_with_their_class_and_where_to_read_on():
    stranger = dits.random_transformer("flux").clone()
    stranger.model = copy.copy(stranger.model)
    stranger.model.__class__ = type("Stranger", (type(stranger.model),), {})
    with pytest.raises(ValueError, match=r"^Stranger is a kind of model .*docs/model_families\.md"):
        backbone_of(stranger)
    with pytest.raises(ValueError, match=r"^ErnieImage .* do not pass the host's transformer opt"):
        backbone_of(dits.random_transformer("ernie"))
    page = Path(__file__).resolve().parents[2] / "docs" / "model_families.md"
    assert "How to add a model family" in page.read_text("utf-8")


def test_what_works_on_unets_only_says_so():
    with pytest.raises(ValueError, match=r"needs a UNet model .* got Flux$"):
        unet_of(dits.random_transformer("flux"))


def test_layers_are_named_by_depth_and_kind():
    known = backbone("chroma")
    assert [len(known.parse_layers(name)) for name in ("early", "middle", "late")] == [19, 19, 19]
    assert len(known.parse_layers("double")) == 19
    assert [str(b) for b in known.parse_layers("s2-3,d1")] == ["d1", "s2", "s3"]
    layout = [str(block) for block in known.layout_blocks((128, 128))]
    assert layout == ["s0", "s5", "s11", "s16", "s21", "s26", "s32", "s37"]
    with pytest.raises(ValueError, match=r"'o3' is not understood.*'d0-3,s0-3'"):
        known.parse_layers("o3")


def with_options(conditioning: list[Any], **options: Any) -> list[Any]:
    return [[tensor, {**known, **options}] for tensor, known in conditioning]


def drawn_with_references(view: LayerView) -> Tensor:
    references = references_of(view.layer, view.q.shape[-1], 1.0)
    return reference_attention(view.q, view.k, view.v, references, view.attend)


@pytest.mark.parametrize("family", ["flux", "flux2", "qwen", "krea2"])
def test_pictures_that_an_edit_model_is_given_keep_their_own_attention(family):
    latent = torch.randn(
        dits.latent_shape(family, size=(8, 12)), generator=torch.Generator().manual_seed(6)
    )
    given = {"reference_latents": [latent], "reference_latents_method": "index"}
    options = {
        "positive": with_options(POSITIVE, **given),
        "negative": with_options(NEGATIVE, **given),
    }
    plain = draw(family, **options)
    if dits.is_old_host():
        pytest.skip("this host does not say how many tokens they have")
    assert apart(draw(family), plain) > 1e-3
    seen: list[LayerView] = []
    assert torch.equal(draw(family, with_watch(family, text=seen.append), **options), plain)
    tokens = image_tokens(family)
    assert {view.q.shape[1] for view in seen} == {tokens}
    more = image_tokens(family, (8, 12))
    assert {view.k.shape[1] for view in seen} == {text_tokens(family) + tokens + more}
    oracle = Oracle(family, text_tokens(family), tokens, 1.0, False)
    expected = draw(family, override=oracle, **options)
    assert apart(draw(family, with_rule(family, drawn_with_references), **options), expected) < 1e-4


def test_words_that_are_masked_out_stay_masked_for_the_picture_and_its_references():
    mask = torch.ones(1, 20, dtype=torch.long)
    mask[:, 12:] = 0
    options = {"positive": with_options(POSITIVE, attention_mask=mask)}
    plain = draw("qwen", **options)
    if not dits.is_old_host():  # which does not hand the mask to the model
        assert apart(draw("qwen"), plain) > 1e-3

    def again(view):
        none = [ReferenceTokens(view.k[0, :0], view.v[0, :0], view.k.new_zeros(0))]
        return reference_attention(view.q, view.k, view.v, none, view.attend)

    assert apart(draw("qwen", with_rule("qwen", again), **options), plain) < 1e-5

    def by_region(view):
        regions = regions_of(view.q.shape[0], view.q.shape[1])
        weightless = references_of(view.layer, view.q.shape[-1], -1e9)
        return region_attention(view.q, view.k, view.v, weightless, regions, view.attend)

    assert apart(draw("qwen", with_rule("qwen", by_region), **options), plain) < 1e-5
