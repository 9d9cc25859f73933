"""MagiCapture's training of transformers that predict a flow: that it sees what the host samples
with, what moves, and what comes out."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import folder_paths
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from magicportrait.host.models.patched_weights import patched_weights
from magicportrait.host.training import flow, networks
from magicportrait.host.training.checkpoint import CheckpointFile
from magicportrait.host.training.draw import Batch
from magicportrait.host.training.float8 import Float8Linear
from magicportrait.host.training.losses import loss_terms
from magicportrait.host.training.memory import training_mode
from magicportrait.host.training.pictures import DifferentiableDecoder
from magicportrait.host.training.run import CaptureTraining
from magicportrait.host.training.settings import CaptureSettings, Phase
from magicportrait.nodes.magicapture_apply import MagiCaptureApply
from magicportrait.nodes.magicapture_train import MagiCaptureTrain
from magicportrait.tests.host import dits
from magicportrait.tests.host.dit_nodes import SmallVae
from magicportrait.tests.host.dit_text import random_clip_of
from magicportrait.tests.host.models import call_node
from magicportrait.tests.host.test_coexistence import core_node
from magicportrait.tests.host.test_magicapture import SIDE, ignore, models_of, recogniser, sets
from magicportrait.tests.host.test_transformer_company import copy_of, quantise
from magicportrait.tests.unit import naive_magicapture as naive

FAMILIES = ("zimage", "qwen", "flux", "krea2", "sd3", "hidream")
QUICK = CaptureSettings(
    lora_steps=3,
    unet_rate=1e-2,
    rank=2,
    versions=2,
    side=SIDE,
    identity_until=1000,
)


class WholeVae(SmallVae):
    """A `SmallVae` that gives pictures back: the means of the channels."""

    def get_sd(self) -> dict[str, Tensor]:
        return {}

    def decode(self, latents: Tensor) -> Tensor:
        grey = latents.flatten(2, -3).mean(2) if latents.ndim == 5 else latents
        small = grey.mean(1, keepdim=True).sigmoid()
        return F.interpolate(small, scale_factor=self._cell).expand(-1, 3, -1, -1).movedim(1, -1)


@cache
def parts(family: str) -> tuple[Any, Any, Any]:
    return dits.random_transformer(family), random_clip_of(family), WholeVae(family)


def training(family: str, identity: Any = None, **settings: Any) -> CaptureTraining:
    return CaptureTraining(*parts(family), *sets(), identity, replace(QUICK, **settings))


def step(run: CaptureTraining) -> float:
    with training_mode():
        return run.train_step()


def lora_of(run: CaptureTraining) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in run.networks.lora().items()}


def changes(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


def batch_of(run: CaptureTraining, kind: str) -> Batch:
    run.enter(Phase.LORA)
    batch = run.draw_batch()
    while batch.samples[0].kind != kind:
        batch = run.draw_batch()
    return batch


# ---- what the network is shown and says ----


@pytest.mark.parametrize("family", [name for name in dits.FAMILIES if name != "anima"])
def test_the_clean_latent_is_the_host_s(family):
    """Whatever sign a family's network has: one Euler step of the host's sampler ends at it."""
    if family == "chroma":
        pytest.skip("its 57 blocks are Flux's")
    model, clip, _ = parts(family)
    shape, sigma = dits.latent_shape(family, size=(8, 8)), 0.6
    noise = torch.randn(*shape, generator=torch.Generator().manual_seed(5))
    text = "a photo of a woman"
    conditioning = clip.encode_from_tokens_scheduled(clip.tokenize(text))
    guided = [[tensor, {**options, "guidance": 1.0}] for tensor, options in conditioning]
    expected = dits.sample(model, shape, guided, guided, 1.0, (sigma, 0.0), noise)
    run = training(family)
    denoiser = run.networks.denoiser
    with training_mode(), torch.no_grad():
        latents = torch.zeros(1, shape[1], *shape[-2:])
        noise = noise.reshape(latents.shape)
        times = torch.tensor([sigma])
        noisy = denoiser.noisy(latents, noise, times)
        told = run.networks.condition([run.networks.text.prompt(text)], shape[-2:])
        output, maps = denoiser.predict(noisy, times, told)
        clean = denoiser.process_out(denoiser.clean(noisy, output, times))
    assert maps is None
    torch.testing.assert_close(clean, expected, rtol=1e-3, atol=1e-3 * expected.std().item())
    torch.testing.assert_close(denoiser.target(latents, noise, times), noise)


@pytest.mark.parametrize("family", FAMILIES)
def test_maps_are_columns_of_the_joint_softmax_with_their_gradients(family, monkeypatch):
    """Against float64 softmax of the queries and keys that the host's layers attend with."""
    run = training(family, inversion_steps=0)
    denoiser: Any = run.networks.denoiser
    seen: list[tuple[Tensor, Tensor]] = []
    plain = flow._attention

    def record(function: Any, *args: Any, **kwargs: Any) -> Tensor:
        options = kwargs.get("transformer_options") or {}
        block = options.get("block_type"), options.get("block_index")
        # Not the maps' own calls.
        if not asked and block[1] is not None and (family, *block) not in done:
            done.add((family, *block))
            q, k, _ = dits.heads_apart(args, kwargs)
            seen.append((q.double(), k.double()))
        return plain(function, *args, **kwargs)

    asked: list[bool] = []
    done: set[Any] = set()
    shares = type(denoiser._backbone).word_attention

    def asking(*args: Any) -> Tensor:
        asked.append(True)
        try:
            return shares(*args)
        finally:
            asked.pop()

    monkeypatch.setattr(flow, "_attention", record)
    monkeypatch.setattr(type(denoiser._backbone), "word_attention", asking)
    with training_mode():
        batch = batch_of(run, "composed")
        # Otherwise all is zero at first.
        for adapter in denoiser.adapters.values():
            torch.nn.init.normal_(adapter.up, std=0.1, generator=run.generator)
        told = run.networks.condition([batch.samples[0].prompt], (8, 8))
        noisy = denoiser.noisy(batch.latents, batch.noise, batch.timesteps)
        _, maps = denoiser.predict(noisy, batch.timesteps, told, watched=True)
        # The recorded layers in the order of the blocks, those that the layout is read from.
        order = [layer.block for layer in denoiser._backbone.layers]
        chosen = [order.index(block) for block in denoiser._backbone.layout_blocks((8, 8))]
        rows, columns = maps.shape[-2:]
        spans, length = batch.samples[0].prompt.spans, batch.samples[0].prompt.context.shape[1]
        assert len(spans) == 2 and all(spans)
        expected = []
        for index in chosen:
            q, k = seen[index]
            backbone = denoiser._backbone
            # Flux.2 pads on the left, and is not among these; Z-Image's picture begins behind
            # padding.
            first = backbone.tokens.with_padding(told.inputs[0]["c_crossattn"].shape[1])
            assert length <= first
            # HiDream's text comes behind the picture.
            text, first = (rows * columns, 0) if family == "hidream" else (0, first)
            image = q[:, :, first : first + rows * columns]
            joint = (image @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)
            words = torch.stack([joint[..., [text + i for i in span]].sum(-1) for span in spans], 2)
            expected.append(words.unflatten(-1, (rows, columns)))
        expected_maps = torch.cat(expected, 1)
        torch.testing.assert_close(maps.double(), expected_maps, rtol=1e-4, atol=1e-7)
        targets = [batch.faces[0], 1 - batch.faces[0]]
        parameters = [adapter.up for adapter in denoiser.adapters.values()]
        gradients = [
            torch.autograd.grad(
                naive.refocusing(each[0].float(), targets),
                parameters,
                allow_unused=True,
                retain_graph=True,
            )
            for each in (maps, expected_maps)
        ]
    largest = 0.0
    for ours, theirs in zip(*gradients, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None and theirs is not None:
            largest = max(largest, theirs.abs().max().item())
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3 * largest + 1e-8)
    assert largest > 0


# ---- what a step changes ----


@pytest.mark.parametrize("family", FAMILIES)
def test_exactly_the_chosen_parameters_move(family):
    run = training(family)
    network = run.networks.denoiser.network
    weights = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    came_in = {name: x.clone() for name, x in parts(family)[0].model.state_dict().items()}
    before = lora_of(run)
    assert step(run) > 0
    step(run)
    assert not changes(weights, network.state_dict())
    assert not changes(came_in, parts(family)[0].model.state_dict())
    learned = {name for name in before if not name.endswith(".alpha")}
    # What Qwen's last block makes of the text is not used.
    unused = ("blocks.2.attn.to_add_out", "blocks.2.attn.add_q_proj.lora_up")
    expected = {name for name in learned if not any(part in name for part in unused)}
    assert changes(before, lora_of(run)) == expected and len(expected) >= 12
    names = {name.rsplit(".lora_", 1)[0] for name in learned}
    assert not any("mod" in name.split(".")[-1] or ".mlp." in name for name in names)


def test_blocks_and_mlps_are_chosen():
    some = training("flux", lora_blocks="d1,s0").networks.denoiser.adapters
    assert {name.split(".")[1] + name.split(".")[2] for name in some} == {
        "double_blocks1",
        "single_blocks0",
    }
    assert not any("mlp" in name for name in some)
    more = training("flux", lora_blocks="d1,s0", lora_mlp=True).networks.denoiser.adapters
    assert {name.split(".", 3)[3] for name in set(more) - set(some)} == {
        f"{side}_mlp.{layer}" for side in ("img", "txt") for layer in (0, 2)
    }
    with pytest.raises(ValueError, match="d7"):
        training("flux", lora_blocks="d7")


@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_that_are_computed_twice_give_the_same(family):
    plain, saving = (
        training(family, lora_steps=2, gradient_checkpointing=on).run(ignore) for on in (0, 1)
    )
    assert plain.history == pytest.approx(saving.history, rel=1e-4)
    assert plain.lora.keys() == saving.lora.keys()


# ---- how a training runs ----


@pytest.fixture
def faces(monkeypatch) -> None:
    """A decoder that shows three channels of a latent: the VAE of these tests has no weights."""

    class Decoder:
        def __init__(self, vae: Any, process_out: Any, device: torch.device):
            self._process_out = process_out

        def __call__(self, latents: Tensor) -> Tensor:
            out = self._process_out(latents)
            out = out[:, :, 0] if out.ndim == 5 else out
            return F.interpolate(out[:, :3].sigmoid(), scale_factor=8)

    monkeypatch.setattr(networks, "DifferentiableDecoder", Decoder)


@pytest.mark.parametrize(("family", "forward"), [("zimage", "own"), ("qwen", "shared")])
def test_a_cancelled_training_ends_as_an_uninterrupted_one(tmp_path, faces, family, forward):
    import comfy.model_management as management

    def cancel(done: int, loss: float) -> None:
        if done == 2:
            raise management.InterruptProcessingException()

    options = {"identity": recogniser(), "identity_forward": forward, "seed": 3}
    whole = training(family, **options).run(ignore)
    file = CheckpointFile(tmp_path / "state.pt", 100)
    with pytest.raises(management.InterruptProcessingException):
        training(family, **options).run(cancel, file)
    assert not management.in_training if hasattr(management, "in_training") else True
    pictures: list[Tensor] = []
    resumed = training(family, **options).run(
        ignore, file, lambda _, images: pictures.append(images), preview_every=2
    )
    assert resumed.history == whole.history and len(whole.history) == QUICK.lora_steps
    assert not changes(whole.lora, resumed.lora)
    assert [picture.shape for picture in pictures] == [(1, SIDE, SIDE, 3)]
    assert "identity" in whole.report and "refocusing" in whole.report
    assert "write '<anna>' and '<ink>' as trigger words" in whole.report
    assert whole.embeddings == ()


@pytest.mark.parametrize("kind", ["subject", "style", "composed"])
def test_the_losses_are_those_of_the_official_code(faces, kind):
    """With the velocity in place of eps, and x0 = x - sigma v in place of Tweedie's estimate."""
    run = training("flux", identity=recogniser())
    denoiser, settings = run.networks.denoiser, run.settings
    with training_mode():
        batch = batch_of(run, kind)
        terms = loss_terms(run.networks, settings, batch, Phase.LORA, 0.0)
        told = run.networks.condition([batch.samples[0].prompt], (8, 8))
        noisy = denoiser.noisy(batch.latents, batch.noise, batch.timesteps)
        sigma = batch.timesteps.item()
        torch.testing.assert_close(noisy, sigma * batch.noise + (1 - sigma) * batch.latents)
        output, _ = denoiser.predict(noisy, batch.timesteps, told)
        mask = batch.faces[0] if kind == "subject" else 1 - batch.faces[0]
        velocity = batch.noise - batch.latents
        expected = naive.reconstruction(output[0], velocity[0], naive.mask_weights(mask))
        weight = 1.0 if kind == "subject" else settings.style_weight
        assert terms["reconstruction"].item() == pytest.approx(weight * expected.item(), rel=1e-4)
        assert torch.allclose(
            denoiser.clean(noisy, output, batch.timesteps), noisy - sigma * output
        )
        assert ("identity" in terms) == (kind != "style")
        parameter = next(iter(denoiser.adapters.values())).up
        if "identity" in terms:
            [gradient] = torch.autograd.grad(terms["identity"], parameter, retain_graph=True)
            assert gradient.abs().max() > 0
        [gradient] = torch.autograd.grad(terms["refocusing"], parameter)
        assert gradient.abs().max() > 0


def test_noise_is_drawn_as_the_family_trains():
    """The median of sigma is that of the host's schedule at the size that the model was trained
    on, and lower at smaller ones; half of all logits are within .674 of it."""
    import comfy.model_sampling as rules

    for family, smaller in (("flux", 1.15 - 0.65 * 3072 / 3840), ("zimage", None)):
        run = training(family)
        denoiser: Any = run.networks.denoiser
        assert denoiser.native_side == 1024
        sampling = denoiser._sampling
        middle = float(sampling.percent_to_sigma(0.5))
        generator = torch.Generator().manual_seed(0)
        drawn = denoiser.draw_times(20000, (128, 128), True, generator)
        assert drawn.median().item() == pytest.approx(middle, abs=0.01)
        near = (drawn.logit() - math.log(middle / (1 - middle))).abs() < 0.674
        assert near.float().mean().item() == pytest.approx(0.5, abs=0.02)
        shift = float(sampling.shift)
        expected = smaller if smaller is not None else math.log(shift) + math.log(1 / 4) / 2
        assert denoiser.shift((64, 64)) == pytest.approx(expected)
        early = denoiser.draw_early_times(1000, 300, generator)
        assert early.min() > 0 and early.max() < 0.3 and denoiser.is_early(early, 300).all()
    model = parts("zimage")[0].clone()
    patched = rules.ModelSamplingDiscreteFlow(model.model.model_config)
    patched.__class__ = type("Set", (rules.ModelSamplingDiscreteFlow, rules.CONST), {})
    patched.set_parameters(shift=5.0, multiplier=1.0)
    model.add_object_patch("model_sampling", patched)
    run = CaptureTraining(model, *parts("zimage")[1:], *sets(), None, QUICK)
    for size in ((64, 64), (128, 128)):
        assert run.networks.denoiser.shift(size) == pytest.approx(math.log(5.0))


def test_the_text_encoder_is_not_asked_again(monkeypatch):
    model, clip, vae = parts("zimage")
    calls: list[str] = []
    changed = clip.clone()
    encode = changed.encode_from_tokens_scheduled
    changed.encode_from_tokens_scheduled = lambda *a: (calls.append("asked"), encode(*a))[1]
    run = CaptureTraining(model, changed, vae, *sets(), None, QUICK)
    # Two of the subject, one of the style, one composed, and the empty one of previews.
    assert len(calls) == 5
    run.run(ignore, on_preview=ignore, preview_every=2)
    assert len(calls) == 5


@pytest.mark.parametrize("precision", ["bf16"])
@pytest.mark.parametrize("family", ["zimage", "krea2"])
def test_half_precision(family, precision):
    exact, half = (training(family, seed=4, precision=p).run(ignore) for p in ("fp32", precision))
    assert half.history[0] == pytest.approx(exact.history[0], rel=0.1)
    assert all(x.dtype == torch.float32 and x.isfinite().all() for x in half.lora.values())


# ---- what comes out ----


@pytest.fixture
def loras(tmp_path, monkeypatch) -> Path:
    """The folder of the LoRAs that are saved and loaded."""
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    places = ([str(tmp_path / "loras")], {".safetensors"})
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", places)
    folder_paths.filename_list_cache.pop("loras", None)
    return tmp_path / "loras"


def check_a_saved_lora_is_what_apply_applies(
    family: str, model: Any, trained: Any, loras: Path
) -> None:
    """On a model, through the host's own nodes."""
    import nodes as core

    clip = parts(family)[1]
    call_node(core_node("nodes_train", "SaveLoRA"), lora=trained.lora, prefix="loras/flow", steps=2)
    [saved] = loras.glob("*.safetensors")
    ours, words = MagiCaptureApply.execute(
        model, clip, trained.embeddings, 0.6, 0.9, trained.lora
    ).args
    theirs, _ = core.LoraLoader().load_lora(model, clip, saved.name, 0.6, 0.9)
    assert set(ours.patches) == {
        f"{name.removesuffix('.alpha')}.weight" for name in trained.lora if name.endswith(".alpha")
    }
    shape = dits.latent_shape(family, size=(8, 8))
    positive = words.encode_from_tokens_scheduled(words.tokenize("<anna> woman"))
    pictures = [dits.sample(m, shape, positive, positive, 1.0) for m in (ours, theirs, model)]
    assert torch.equal(pictures[0], pictures[1])
    assert not torch.equal(pictures[0], pictures[2]), "the LoRA has no effect"


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_lora_is_what_apply_applies(family, loras):
    trained = training(family, lora_steps=2).run(ignore)
    check_a_saved_lora_is_what_apply_applies(family, parts(family)[0], trained, loras)


@pytest.mark.parametrize("kind", ["int8_tensorwise", "float8_e4m3fn"])
def test_quantised_layers_are_trained_on_and_take_the_lora(kind, loras):
    """As the host loads such files: beside the LoRA nothing moves, and the host's loader puts it on
    the quantised model."""
    model = quantise("flux", kind)
    came_in = dict(patched_weights(model, "diffusion_model."))
    run = CaptureTraining(model, *parts("flux")[1:], *sets(), None, replace(QUICK, lora_steps=2))
    frozen = run.networks.denoiser.network.state_dict()
    assert frozen.keys() == came_in.keys() and not changes(came_in, frozen)
    whole = parts("flux")[0].model.diffusion_model.state_dict()
    assert changes(whole, frozen), "these are no quantised weights"
    before = lora_of(run)
    trained = run.run(ignore)
    assert not changes(came_in, run.networks.denoiser.network.state_dict())
    assert not changes(came_in, dict(patched_weights(model, "diffusion_model.")))
    assert changes(before, trained.lora) == {name for name in before if not name.endswith(".alpha")}
    check_a_saved_lora_is_what_apply_applies("flux", model, trained, loras)


# ---- what is refused ----


NODE = {
    "inversion_steps": 2,
    "lora_steps": 2,
    "preview_every": 0,
    "checkpoint_every": 0,
    "precision": "fp32",
    "composed_prompts": True,
    "resolution": SIDE,
    "versions": 1,
}


@pytest.mark.parametrize(("family", "name"), [("anima", "Anima"), ("ernie", "ERNIE-Image")])
def test_models_without_gradients_are_refused_by_name_before_anything_is_loaded(
    family, name, monkeypatch
):
    import comfy.model_management as management

    model = dits.random_transformer(family)
    monkeypatch.setattr(management, "unload_all_models", lambda: pytest.fail("too late"))
    with pytest.raises(ValueError, match=f"{name} cannot be trained: .* pass no gradients"):
        MagiCaptureTrain.execute(model, object(), object(), *sets(), **NODE)


def test_the_node_trains_a_transformer():
    lora, embeddings, losses, report = MagiCaptureTrain.execute(
        *parts("zimage"), *sets(), **NODE, lora_blocks="d0", lora_mlp=True
    ).args
    assert len(losses["loss"]) == 2 and embeddings == () and "textual inversion" not in report
    assert "memory: about " in report and "frozen weights (float32) " in report
    assert {name.split(".")[2] for name in lora} == {"0"}
    assert any("feed_forward.w1" in name for name in lora)


def test_lora_is_all_that_there_is_to_learn():
    with pytest.raises(ValueError, match="of this transformer no words are learned"):
        training("zimage", lora_steps=0)


def test_another_way_of_sampling_is_refused():
    import comfy.model_sampling as rules

    model = parts("zimage")[0].clone()
    kind = type("Other", (rules.ModelSamplingDiscreteFlow, rules.X0), {})
    model.add_object_patch("model_sampling", kind(model.model.model_config))
    with pytest.raises(ValueError, match="that predict a flow, got Other"):
        CaptureTraining(model, *parts("zimage")[1:], *sets(), None, QUICK)


def test_weights_in_fp8_are_trained_on_as_they_are():
    model = copy_of("zimage", torch.float8_e4m3fn, torch.bfloat16)
    stored = model.model.diffusion_model.state_dict()
    run = CaptureTraining(model, *parts("zimage")[1:], *sets(), None, QUICK)
    frozen = run.networks.denoiser.network.state_dict()
    eighths = [name for name, weight in stored.items() if weight.dtype == torch.float8_e4m3fn]
    assert eighths and all(
        frozen[name].dtype == torch.float32 and torch.equal(frozen[name], stored[name].float())
        for name in eighths
    )
    before = lora_of(run)
    assert math.isfinite(step(run)) and changes(before, lora_of(run))


def test_a_copy_in_fp8_keeps_what_was_in_fp8():
    model = copy_of("zimage", torch.float8_e4m3fn, torch.bfloat16)
    stored = model.model.diffusion_model.state_dict()
    settings = replace(QUICK, precision="fp8")
    run = CaptureTraining(model, *parts("zimage")[1:], *sets(), None, settings)
    layers = {
        name: layer
        for name, layer in run.networks.denoiser.network.named_modules()
        if isinstance(layer, Float8Linear)
    }
    kept = {name for name, layer in layers.items() if layer.weight.dtype == torch.float8_e4m3fn}
    assert kept and all("layers." in name or "refiner." in name for name in kept)
    for name, layer in layers.items():
        assert torch.equal(layer.numbers(), stored[f"{name}.weight"].float()), name


@pytest.mark.parametrize(("family", "adapter"), [("zimage", "LoRA"), ("flux", "LoKr")])
def test_a_copy_in_fp8_is_trained_on_as_its_numbers_in_bf16_are(family, adapter):
    run, other = (
        training(family, precision=precision, adapter=adapter, seed=2, lora_steps=4)
        for precision in ("fp8", "bf16")
    )
    network = other.networks.denoiser.network
    exact = {name: value.clone() for name, value in network.state_dict().items()}
    for name, layer in run.networks.denoiser.network.named_modules():
        if isinstance(layer, Float8Linear):
            weight = network.get_submodule(name).weight
            apart = (weight.float() - layer.numbers()).norm() / weight.float().norm()
            assert apart < 0.04
            weight.data.copy_(layer.numbers())
    assert changes(exact, network.state_dict()), "nothing was rounded"
    ours, theirs = (each.run(ignore) for each in (run, other))
    assert ours.history == pytest.approx(theirs.history, rel=0.01)
    assert len(ours.lora) == len(theirs.lora) and all(
        x.isfinite().all() for x in ours.lora.values()
    )


def test_fp8_is_refused_for_a_unet_before_anything_is_loaded():
    model, clip, _ = models_of()
    with pytest.raises(ValueError, match=r"fp8 is for transformers, .* take bf16"):
        networks.settings_for(model, clip, replace(QUICK, precision="fp8"))


def test_likeness_is_seen_through_a_decoder_of_videos():
    """Qwen-Image's VAE: the clean latent has a time in it."""
    import comfy.sd
    from comfy.ldm.wan.vae import WanVAE

    if dits.is_old_host():
        pytest.skip("this host knows Wan's VAE at its own size only")
    network = WanVAE(
        dim=8, z_dim=16, dim_mult=[1, 2, 4, 4], temperal_downsample=[False, True, True]
    )
    generator = torch.Generator().manual_seed(0)
    for name, weight in network.named_parameters():
        noise = torch.randn(weight.shape, generator=generator) * 0.1
        weight.data = torch.ones_like(weight) if "gamma" in name else noise
    vae = comfy.sd.VAE(sd=network.state_dict())
    latents = torch.randn(1, 16, 4, 4, generator=generator)
    with torch.inference_mode():
        theirs = vae.decode(latents[:, :, None])
    with training_mode():
        decode = DifferentiableDecoder(vae, lambda x: x[:, :, None], torch.device("cpu"))
        shown = latents.clone().requires_grad_()
        pictures = decode(shown)  # 1 3 H W
        expected = theirs.clone().reshape(1, 32, 32, 3)
        torch.testing.assert_close(pictures.movedim(1, -1).detach(), expected)
        weights = torch.randn(pictures.shape, generator=generator)
        [gradient] = torch.autograd.grad(pictures, shown, weights)
        # Against the slope along the gradient.
        along = gradient / gradient.norm()
        ends = [(decode(latents + e * along) * weights).sum().item() for e in (1e-2, -1e-2)]
    slope = (ends[0] - ends[1]) / 2e-2
    assert slope == pytest.approx(gradient.norm().item(), rel=0.1)
