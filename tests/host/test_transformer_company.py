"""MagicFace on transformers beside what people use with it: LoRAs, ControlNets, quantised weights,
guidance, step caches, pictures that an edit model is given."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from magicportrait.host.models.patched_weights import patched_weights
from magicportrait.host.sampling.reference_pass import ReferencePass
from magicportrait.host.systems import magicface
from magicportrait.tests.host import dits
from magicportrait.tests.host.dit_nodes import apply, concepts, encode, sample
from magicportrait.tests.host.models import call_node, state_of

SIZE = (16, 12)
IDLE = {"start": 1.0, "end": 1.0, "semantic_cfg": False}
Change = Callable[[Any], Any]
"""What another node makes of a MODEL."""


def node(module: str, name: str, **inputs: Any) -> Change:
    """One of the host's. Skips the test on hosts that are older than it."""

    def change(model: Any) -> Any:
        try:
            found = getattr(importlib.import_module(f"comfy_extras.{module}"), name)
        except (ImportError, AttributeError):
            pytest.skip(f"this host has no {name}")
        return call_node(found, model=model, **inputs)[0]

    return change


def with_lora(model: Any) -> Any:
    """A file's LoRA on all linear layers of the blocks."""
    import comfy.sd

    state = {}
    for name, weight in model.model.state_dict().items():
        if (
            name.endswith(".weight")
            and weight.ndim == 2
            and ("blocks." in name or "layers." in name)
        ):
            layer, (rows, columns) = name.removesuffix(".weight"), weight.shape
            state[f"{layer}.lora_up.weight"] = torch.full((rows, 1), 0.05)
            state[f"{layer}.lora_down.weight"] = torch.linspace(-1, 1, columns)[None]
    return comfy.sd.load_lora_for_models(model, None, state, 1.0, 0.0)[0]


def with_lllite(model: Any) -> Any:
    """Anima's control, of random weights on the queries of the picture's own attention."""
    import comfy.model_patcher
    import comfy.ops

    lllite = pytest.importorskip("comfy.ldm.anima.lllite")
    made_with = {"operations": comfy.ops.disable_weight_init, "dtype": torch.float32}
    width = model.model.diffusion_model.model_channels
    parts = {
        "lllite_conditioning1": lllite.AnimaLLLiteConditioning(3, 16, 8, 1, (), **made_with),
        "lllite_dit_blocks_1_self_attn_q_proj": lllite.AnimaLLLiteModule(width, 8, 8, **made_with),
    }
    generator = torch.Generator().manual_seed(7)
    state = {
        f"{part}.{name}": torch.randn(weight.shape, generator=generator) * 0.3
        for part, network in parts.items()
        for name, weight in network.state_dict().items()
    }
    network = lllite.AnimaLLLite(state, {}, **made_with)
    network.load_state_dict(state)
    cpu = torch.device("cpu")
    patch = comfy.model_patcher.ModelPatcher(network.eval(), load_device=cpu, offload_device=cpu)
    hint = torch.rand(1, 128, 96, 3, generator=generator)
    whole = {"strength": 1.0, "start_percent": 0.0, "end_percent": 1.0}
    control = node("nodes_model_patch", "AnimaLLLiteApply", model_patch=patch, image=hint, **whole)
    return control(model)


SKIP = {"double_layers": "0", "single_layers": "0", "start_percent": 0.0, "end_percent": 1.0}
CACHE = {"reuse_threshold": 10.0, "start_percent": 0.1, "end_percent": 0.95, "verbose": False}
"""A threshold so high that steps are skipped for certain."""
COMPANY: dict[str, tuple[tuple[str, ...], Change]] = {
    "LoRA": (("flux", "qwen", "zimage"), with_lora),
    "LLLite": (("anima",), with_lllite),
    "NAG": (
        # Prompts of one length, which run together.
        ("flux",),
        node("nodes_nag", "NAGuidance", nag_scale=3.0, nag_alpha=0.5, nag_tau=1.5),
    ),
    "SLG": (
        ("flux", "qwen", "sd3"),
        node("nodes_slg", "SkipLayerGuidanceDiT", scale=2.0, rescaling_scale=0.0, **SKIP),
    ),
    "SLG of uncond": (
        ("flux", "sd3"),
        node("nodes_slg", "SkipLayerGuidanceDiTSimple", **SKIP),
    ),
    "EasyCache": (("flux", "zimage"), node("nodes_easycache", "EasyCacheNode", **CACHE)),
    "RescaleCFG": (("qwen",), node("nodes_model_advanced", "RescaleCFG", multiplier=0.7)),
}
SIGMAS = {"EasyCache": (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.2, 0.0)}


@pytest.mark.parametrize(
    ("name", "family"),
    [(name, family) for name, (families, _) in COMPANY.items() for family in families],
)
def test_references_act_beside_other_nodes_in_any_order(name, family):
    change, plain = COMPANY[name][1], dits.random_transformer(family)
    draw = partial(sample, family, size=SIZE, sigmas=SIGMAS.get(name, (1.0, 0.6, 0.0)))
    other = change(plain)
    before, positive, _ = apply(family, other)
    samples = draw(before, positive)
    assert samples.isfinite().all()
    alone = draw(other, positive)
    assert not torch.equal(samples, alone), "the references do nothing"
    idle, of_idle, _ = apply(family, other, **IDLE)
    assert torch.equal(draw(idle, of_idle), draw(other, of_idle)), "idle, it is not there"
    magic, of_magic, _ = apply(family)
    assert not torch.equal(samples, draw(magic, of_magic)), f"{name} does nothing"
    after = draw(change(magic), of_magic)
    torch.testing.assert_close(after, samples, rtol=1e-4, atol=1e-5)


def test_the_hosts_attention_backend_draws_what_is_not_ours(monkeypatch):
    import comfy.ldm.modules.attention as attention

    change = node("nodes_model_advanced", "ModelAttentionBackend", attention="pytorch attention")
    plain = change(dits.random_transformer("flux"))
    model, positive, _ = apply("flux", plain)
    expected, of_expected, _ = apply("flux")
    samples = sample("flux", model, positive)
    torch.testing.assert_close(samples, sample("flux", expected, of_expected))
    rows: list[int] = []

    def seen(q: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        rows.append(q.shape[0])
        return attention.attention_pytorch(q, *args, **kwargs)

    monkeypatch.setattr(attention, "get_attention_function", lambda *_: seen)
    watched, positive, _ = apply("flux", change(dits.random_transformer("flux")))
    rows.clear()
    torch.testing.assert_close(sample("flux", watched, positive), samples)
    assert rows, "the chosen backend is asked"


@pytest.mark.parametrize("family", ["sd3"])
def test_a_block_that_is_left_out_is_counted(family):
    """Its layers do not say which they are."""
    blocks: list[int] = []
    model, positive, _ = apply(family, layers="all", semantic_cfg=False)
    attend = magicface._ReferenceRule.attend

    def seen(self: Any, view: Any) -> Tensor:
        blocks.append(view.layer[0].index)
        return attend(self, view)

    skipping = COMPANY["SLG"][1](model)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(magicface._ReferenceRule, "attend", seen)
        sample(family, skipping, positive, size=SIZE, sigmas=(0.9, 0.0))
    assert blocks == [0, 1, 2, 1, 2]


def control_of(family: str) -> Any:
    """A ControlNet of the family with random weights."""
    import comfy.cldm.mmdit
    import comfy.controlnet
    import comfy.ldm.flux.controlnet
    import comfy.ldm.qwen_image.controlnet
    import comfy.ops

    options = {"dtype": torch.float32, "operations": comfy.ops.disable_weight_init}
    config = dict(dits.random_transformer(family).model.model_config.unet_config)
    for name in ("dtype", "image_model" if family == "qwen" else ""):
        config.pop(name, None)
    more: dict[str, Any] = {}
    if family == "flux":
        network = comfy.ldm.flux.controlnet.ControlNetFlux(**config, **options)
        more["extra_conds"] = ["y", "guidance"]
    elif family == "sd3":
        config.update(num_blocks=2, x_block_self_attn_layers=[])
        network = comfy.cldm.mmdit.ControlNet(control_latent_channels=16, **config, **options)
        more.update(
            compression_ratio=1, latent_format=dits.random_transformer(family).model.latent_format
        )
    else:
        network = comfy.ldm.qwen_image.controlnet.QwenImageControlNetModel(**config, **options)
        more.update(
            compression_ratio=1,
            latent_format=dits.random_transformer(family).model.latent_format,
            extra_conds=[],
        )
    generator = torch.Generator().manual_seed(1)
    for weight in network.parameters():
        weight.data = torch.randn(weight.shape, generator=generator) * 0.1
    for buffer in network.buffers():
        # Positions that a file brings along.
        buffer.zero_()
    return comfy.controlnet.ControlNet(network.eval(), load_device=torch.device("cpu"), **more)


class ControlVae:
    """Of hints that are latents. has_time: whether these have one."""

    def __init__(self, has_time: bool = True):
        self._has_time = has_time

    def encode(self, images: Tensor) -> Tensor:  # B H W 3
        means = torch.nn.functional.avg_pool2d(images.movedim(-1, 1), 8)
        latent = means.mean(1, keepdim=True).expand(-1, 16, -1, -1)
        return latent.unsqueeze(2) if self._has_time else latent

    def spacial_compression_encode(self) -> int:
        return 8


@pytest.mark.parametrize("family", ["flux", "qwen", "sd3"])
def test_references_act_under_a_controlnet_of_the_family(family):
    import nodes

    model, ours, _ = apply(family)
    hint = torch.rand(1, 128, 96, 3, generator=torch.Generator().manual_seed(0))
    control = control_of(family)

    def with_control(positive: list[Any]) -> Any:
        return nodes.ControlNetApplyAdvanced().apply_controlnet(
            *(positive, encode(family, "bad"), control, hint, 1.0, 0.0, 1.0),
            vae=ControlVae(family != "sd3"),
        )

    def draw(which: Any, conds: Any) -> Tensor:
        shape = dits.latent_shape(family, 2, SIZE)
        return dits.sample(which, shape, *conds, sigmas=(0.9, 0.4, 0.0))

    conds = with_control(ours)
    samples, plain = draw(model, conds), draw(dits.random_transformer(family), conds)
    assert samples.isfinite().all() and not torch.equal(samples, plain)
    assert not torch.equal(samples, draw(model, (ours, encode(family, "bad")))), "no control"
    idle, of_idle, _ = apply(family, **IDLE)
    conds = with_control(of_idle)
    assert torch.equal(draw(idle, conds), draw(dits.random_transformer(family), conds))


def test_references_act_under_z_images_control_which_is_a_patch():
    """Its blocks are as many tokens as the model's own, and are not taken for these."""
    import comfy.model_patcher
    import comfy.ops

    patches = pytest.importorskip("comfy_extras.nodes_model_patch")
    control = pytest.importorskip("comfy.ldm.lumina.controlnet")
    if not hasattr(patches, "ZImageFunControlnet"):
        pytest.skip("this host has no ZImageFunControlnet")
    network = control.ZImage_Control(
        *(256, 8, 8, 32, 2.0),
        n_control_layers=15,
        dtype=torch.float32,
        operations=comfy.ops.disable_weight_init,
    )
    generator = torch.Generator().manual_seed(1)
    for weight in network.parameters():
        weight.data = torch.randn(weight.shape, generator=generator) * 0.05
    cpu = torch.device("cpu")
    patch = comfy.model_patcher.ModelPatcher(network.eval(), load_device=cpu, offload_device=cpu)
    hint = torch.rand(1, 128, 96, 3, generator=generator)

    def with_control(model: Any) -> Any:
        node = patches.ZImageFunControlnet()
        return node.diffsynth_controlnet(model, patch, ControlVae(False), image=hint)[0]

    layers: list[int] = []
    attend = magicface._ReferenceRule.attend

    def seen(self: Any, view: Any) -> Tensor:
        layers.append(view.layer[0].index)
        return attend(self, view)

    magic, positive, _ = apply("zimage", layers="all", semantic_cfg=False)
    plain = with_control(dits.random_transformer("zimage"))
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(magicface._ReferenceRule, "attend", seen)
        samples = sample("zimage", with_control(magic), positive, size=SIZE, sigmas=(0.9, 0.0))
    assert layers == [0, 1, 2]
    drawn = partial(sample, "zimage", size=SIZE, sigmas=(0.9, 0.0))
    assert samples.isfinite().all() and not torch.equal(samples, drawn(plain, positive))
    assert not torch.equal(samples, drawn(magic, positive)), "no control"
    before, of_before, _ = apply("zimage", plain, layers="all", semantic_cfg=False)
    torch.testing.assert_close(drawn(before, of_before), samples, rtol=1e-4, atol=1e-5)
    idle, of_idle, _ = apply("zimage", plain, **IDLE)
    assert torch.equal(drawn(idle, of_idle), drawn(plain, of_idle))


# ---- weights in other forms ----


@pytest.mark.parametrize("family", ["flux", "qwen", "zimage"])
def test_weights_in_fp8_are_cast_as_the_host_does(family):
    model = copy_of(family, torch.float8_e4m3fn, torch.bfloat16)
    kinds = {weight.dtype for weight in model.model.state_dict().values() if weight.ndim == 2}
    assert torch.float8_e4m3fn in kinds
    magic, positive, _ = apply(family, model)
    samples = sample(family, magic, positive, size=SIZE, sigmas=(0.9, 0.4, 0.0))
    plain = sample(family, model, positive, size=SIZE, sigmas=(0.9, 0.4, 0.0))
    assert samples.isfinite().all() and not torch.equal(samples, plain)
    idle, of_idle, _ = apply(family, model, **IDLE)
    drawn = (sample(family, m, of_idle, size=SIZE, sigmas=(0.9, 0.0)) for m in (idle, model))
    assert torch.equal(*drawn)


def copy_of(family: str, *dtypes: torch.dtype | None) -> Any:
    """The family's model again. dtypes: of its weights, and what a layer casts them to."""
    import comfy.model_patcher

    whole = dits.random_transformer(family)
    config = type(whole.model.model_config)(dict(whole.model.model_config.unet_config))
    config.set_inference_dtype(*dtypes)
    device = torch.device("cpu")
    model = config.get_model({}, device=device)
    model.diffusion_model.load_state_dict(whole.model.diffusion_model.state_dict())
    patcher = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)
    return patcher(model.eval(), load_device=device, offload_device=device)


class Packed(nn.Module):
    """A linear layer as packs for quantised files have it: what it keeps is no weight, and whoever
    asks for one is told so."""

    def __init__(self, layer: nn.Linear):
        super().__init__()
        self._scale = float(layer.weight.abs().max()) / 127
        self._numbers = (layer.weight / self._scale).round().to(torch.int8)
        self._bias = layer.bias
        self.in_features, self.out_features = layer.in_features, layer.out_features

    @property
    def weight(self) -> Tensor:
        raise AssertionError("a packed weight was read")

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self._bias is None else self._bias.to(x)
        return nn.functional.linear(x, self._numbers.to(x) * self._scale, bias)


@pytest.mark.parametrize("keep", ["off", "memory"])
def test_no_weight_is_ever_read(keep):
    model = copy_of("flux", torch.float32, None)
    network = model.model.diffusion_model
    packed = [
        (owner, name, layer)
        for owner in network.modules()
        for name, layer in owner.named_children()
        if isinstance(layer, nn.Linear)
    ]
    for owner, name, layer in packed:
        setattr(owner, name, Packed(layer))
    magic, positive, _ = apply("flux", model, keep_features=keep)
    first, again = (sample("flux", magic, positive, size=SIZE) for _ in range(2))
    assert first.isfinite().all() and torch.equal(first, again)
    assert not torch.equal(first, sample("flux", model, positive, size=SIZE))


TURNED = "convrot_w4a4", "asym_w4a8_int8"
"""Quantised layers whose columns are turned first."""


def quantise(family: str, kind: str) -> Any:
    """The family's model as the host loads one of its quantised files. Skips the test on hosts that
    do not know the kind, and machines that cannot run it."""
    import comfy.model_patcher

    quant = pytest.importorskip("comfy.quant_ops")
    layout = getattr(quant, "QUANT_ALGOS", {}).get(kind)
    if layout is None:
        pytest.skip(f"this host has no {kind}")
    whole = dits.random_transformer(family)
    state = dict(whole.model.diffusion_model.state_dict())
    # These turn their columns in groups, of 256 if not told otherwise: more than a small layer has.
    groups = {"convrot_groupsize": 64} if kind in TURNED else {}
    told = torch.tensor(list(json.dumps({"format": kind, **groups}).encode()), dtype=torch.uint8)
    for name, weight in list(state.items()):
        owner = name.removesuffix(".weight")
        if weight.ndim != 2 or owner == name or "blocks." not in name or min(weight.shape) < 64:
            continue
        packed = quant.QuantizedTensor.from_float(weight, layout["comfy_tensor_layout"], **groups)
        state.update(packed.state_dict(name))
        state[f"{owner}.comfy_quant"] = told
    config = type(whole.model.model_config)(dict(whole.model.model_config.unet_config))
    config.quant_config = {"mixed_ops": True}
    config.set_inference_dtype(torch.float32, torch.float32)
    device = torch.device("cpu")
    model = config.get_model({}, device=device)
    model.diffusion_model.load_state_dict(state, strict=False)
    patcher = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)
    return patcher(model.eval(), load_device=device, offload_device=device)


@pytest.mark.parametrize("kind", ["int8_tensorwise", "float8_e4m3fn", "nvfp4", "mxfp8", *TURNED])
def test_the_hosts_own_quantised_layers_are_as_they_were_beside_references(kind):
    model = quantise("flux", kind)
    kinds = [type(weight.data).__name__ for weight in model.model.diffusion_model.parameters()]
    assert "QuantizedTensor" in kinds
    magic, positive, _ = apply("flux", model)
    plain = sample("flux", model, positive, size=SIZE)
    samples = sample("flux", magic, positive, size=SIZE)
    assert samples.isfinite().all() and not torch.equal(samples, plain)
    idle, of_idle, _ = apply("flux", model, **IDLE)
    assert torch.equal(*(sample("flux", m, of_idle, size=SIZE) for m in (idle, model)))
    # Nearly what the whole weights draw: these were quantised, and no others.
    whole, of_whole, _ = apply("flux")
    expected = sample("flux", whole, of_whole, size=SIZE)
    apart = (samples - expected).norm() / expected.norm()
    assert 0 < apart < 0.5


def test_a_training_reads_quantised_layers_as_the_numbers_that_they_hold():
    model = quantise("flux", "int8_tensorwise")
    weights = dict(patched_weights(model, "diffusion_model."))
    expected = dits.random_transformer("flux").model.diffusion_model.state_dict()
    assert weights.keys() == expected.keys()
    for name, value in weights.items():
        assert value.dtype == torch.float32
        apart = (value - expected[name]).norm() / expected[name].norm().clamp(min=1e-6)
        assert apart < 0.02, name
    assert any(not torch.equal(value, expected[name]) for name, value in weights.items())


# ---- pictures that an edit model is given ----


@pytest.mark.parametrize("family", ["flux", "flux2", "qwen", "krea2"])
def test_references_act_on_the_picture_only_beside_given_pictures(family, monkeypatch):
    import node_helpers

    if dits.is_old_host():
        pytest.skip("this host does not say how many tokens they have")
    model, positive, record = apply(family)
    given = torch.randn(
        dits.latent_shape(family, size=(8, 12)), generator=torch.Generator().manual_seed(6)
    )

    def with_pictures(conditioning: list[Any]) -> list[Any]:
        return node_helpers.conditioning_set_values(
            conditioning, {"reference_latents": [given]}, append=True
        )

    grids: set[tuple[int, int]] = set()
    attend = magicface._ReferenceRule.attend

    def seen(self: Any, view: Any) -> Tensor:
        grids.add((view.q.shape[1], view.grid[0] * view.grid[1]))
        return attend(self, view)

    monkeypatch.setattr(magicface._ReferenceRule, "attend", seen)
    shape = dits.latent_shape(family, 1, SIZE)
    negative = with_pictures(encode(family, "bad"))
    samples = dits.sample(model, shape, with_pictures(positive), negative)
    plain = dits.sample(dits.random_transformer(family), shape, with_pictures(positive), negative)
    tokens = SIZE[0] // 2 * SIZE[1] // 2
    assert grids == {(tokens, tokens)}
    assert samples.isfinite().all() and not torch.equal(samples, plain)
    layout = record.run_of(samples).steps[1].concepts
    assert layout.shape == (1, SIZE[0] // 2, SIZE[1] // 2)
    idle, of_idle, _ = apply(family, **IDLE)
    drawn = (
        dits.sample(which, shape, with_pictures(of_idle), negative)
        for which in (idle, dits.random_transformer(family))
    )
    assert torch.equal(*drawn)


# ---- sparse reference passes ----


@pytest.mark.parametrize("family", ["flux", "zimage"])
def test_sparse_passes_are_those_of_every_step_at_their_own_steps(family, monkeypatch):
    sigmas = tuple(1 - i / 25 for i in range(26))
    banks: list[tuple[float, list[Tensor]]] = []
    run = ReferencePass.run

    def keep(self: Any, model: Any, sigma: Tensor, options: Any, look: Any, *rest: Any) -> None:
        found: list[Tensor] = []

        def looked(index: int, view: Any, row: int) -> Any:
            found.append(view.k[row].clone())
            return look(index, view, row)

        run(self, model, sigma, options, looked, *rest)
        banks.append((float(sigma.flatten()[0]), found))

    monkeypatch.setattr(ReferencePass, "run", keep)

    def passes(choice: str) -> tuple[Tensor, list[tuple[float, list[Tensor]]]]:
        model, positive, _ = apply(family, None, concepts(1), reference_passes=choice)
        banks.clear()
        return sample(family, model, positive, 1.0, size=(8, 8), sigmas=sigmas), list(banks)

    every, whole = passes("every step")
    few, sparse = passes("sparse")
    assert len(whole) == 25 and 8 <= len(sparse) <= 14
    assert not torch.equal(every, few) and few.isfinite().all()
    of_sigma = dict(whole)
    for sigma, found in sparse:
        assert len(found) == len(of_sigma[sigma]) > 0
        assert all(map(torch.equal, found, of_sigma[sigma])), sigma


@pytest.mark.parametrize("name", ["LoRA", "SLG", "NAG"])
def test_the_model_that_came_in_stays_as_it_was(name):
    model = COMPANY[name][1](dits.random_transformer("flux"))
    magic, positive, _ = apply("flux", model)
    sample("flux", model, positive, size=SIZE, sigmas=(0.9, 0.0))
    before = state_of(model)
    sample("flux", magic, positive, size=SIZE, sigmas=(0.9, 0.0))
    assert state_of(model) == before
