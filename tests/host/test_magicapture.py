"""MagiCapture's training in the real ComfyUI: what changes, what does not, and that it can be
stopped, resumed, saved and loaded."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from magicportrait.demo import captures, checkpoint
from magicportrait.host.faces.identity import Identity
from magicportrait.host.training import run as capture_run
from magicportrait.host.training import unet as capture_unet
from magicportrait.host.training.checkpoint import CheckpointFile
from magicportrait.host.training.losses import around_faces, loss_terms
from magicportrait.host.training.map_list import MapList
from magicportrait.host.training.memory import training_mode
from magicportrait.host.training.pictures import DifferentiableDecoder
from magicportrait.host.training.run import CaptureTraining, Trained
from magicportrait.host.training.settings import CaptureSettings, Phase
from magicportrait.magic import capture_losses
from magicportrait.magic.capture_sets import StyleSet, Subject, capture_pictures
from magicportrait.tests.host import models

SIDE = 64
QUICK = CaptureSettings(
    inversion_steps=3,
    lora_steps=4,
    identity_until=1000,
    unet_rate=1e-3,
    text_rate=1e-3,
    rank=2,
    versions=2,
    side=SIDE,
)
FEW: dict[str, Any] = {"inversion_steps": 1, "lora_steps": 2}
"""Of both phases as little as shows them."""


@cache
def models_of(shape: str = "sd15") -> tuple[Any, Any, Any]:
    return (
        models.random_model(shape, pooled=models.POOLED),
        models.random_text_encoders(shape),
        models.random_vae(),
    )


@cache
def sets(count: int = 2, size: int = SIDE) -> tuple[Subject, StyleSet]:
    capture = captures.sample_capture(3, "neon", count)
    subject, style = (
        capture_pictures(
            [*map(torch.from_numpy, images)],
            [*map(torch.from_numpy, masks)],
            [f"{name} {i}" for i in range(count)],
        )
        for name, (images, masks) in (
            ("subject", captures.draw(capture.subject, size)),
            ("style", captures.draw(capture.style, size)),
        )
    )
    return (
        Subject(subject, "<anna>", "woman", ("a photo of a {person}", "one {person}")),
        StyleSet(style, "<ink>", "woman", ("a picture of a {person} in the style of {style}",)),
    )


def training(
    shape: str = "sd15", identity: Identity | None = None, **settings: Any
) -> CaptureTraining:
    return CaptureTraining(*models_of(shape), *sets(), identity, replace(QUICK, **settings))


@cache
def train_in_one_go(with_identity: bool = False) -> Trained:
    """What the settings of most tests give in one go."""
    return training(identity=recogniser() if with_identity else None).run(ignore)


def step(run: CaptureTraining) -> float:
    with training_mode():
        return run.train_step()


def ignore(*_: Any) -> None:
    pass


def state(run: CaptureTraining) -> dict[str, torch.Tensor]:
    """Everything that a step could change, under the name of the kind of thing it is."""
    tensors = {
        f"unet.{name}": tensor
        for name, tensor in run.networks.denoiser.network.state_dict().items()
    }
    for name, encoder in run.networks.text.encoders.items():
        tensors |= {
            f"text.{key}": tensor
            for key, tensor in encoder.model.state_dict().items()
            if not key.endswith("rows")
        }
        tensors |= {
            f"words.{name}": encoder.vocabulary.rows,
            f"table.{name}": encoder.vocabulary.weight,
        }
        tensors |= {
            f"text_lora.{key}.{part}": getattr(lora, part)
            for key, lora in encoder.adapters.items()
            for part in ("up", "down")
        }
    tensors |= {
        f"unet_lora.{key}.{part}": getattr(lora, part)
        for key, lora in run.networks.denoiser.adapters.items()
        for part in ("up", "down")
    }
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def changes(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


def checksum(module: torch.nn.Module) -> list[tuple[str, float]]:
    return [(name, tensor.double().sum().item()) for name, tensor in module.state_dict().items()]


class Recognise(torch.nn.Module):
    """A face network that is no more than it needs to be: some random features."""

    def __init__(self) -> None:
        super().__init__()
        weight = torch.randn(6, 3, 5, 5, generator=torch.Generator().manual_seed(0))
        self.weight = torch.nn.Parameter(weight, requires_grad=False)
        self.calls: list[int] = []

    def forward(self, crops: torch.Tensor) -> torch.Tensor:
        self.calls.append(len(crops))
        return torch.nn.functional.conv2d(crops, self.weight, stride=3).flatten(1)


def recogniser() -> Identity:
    with torch.inference_mode(False):
        return Identity("test", Recognise(), 32, 1.2)


# ---- what a step changes ----


@pytest.mark.parametrize("shape", ["sd15", "sd21v", "sdxl"])
def test_each_phase_changes_exactly_what_it_should(shape):
    run = training(shape, inversion_steps=1, lora_steps=1)
    start = state(run)
    assert step(run) > 0
    after_words = state(run)
    words = {name for name in start if name.startswith("words.")}
    assert changes(start, after_words) == words and len(words) == (2 if shape == "sdxl" else 1)
    step(run)
    after_lora = state(run)
    learned = changes(after_words, after_lora)
    adapters = {name for name in start if "_lora." in name}
    assert words < learned <= adapters | words
    # The downs get no gradient while the ups are zero; weight decay moves them in the first step.
    assert adapters - learned == names_of_no_use(run, adapters)


def names_of_no_use(run: CaptureTraining, names: set[str]) -> set[str]:
    """Text layers behind the one that the model takes its conditioning from: no gradient, so not
    even decay."""
    behind = [
        name
        for name, encoder in run.networks.text.encoders.items()
        if encoder.layer is not None and name != "clip_g"
    ]
    return {
        name
        for name in names
        for encoder in behind
        if f"{encoder}." in name and ".layers.2." in name
    }


def test_the_models_that_came_in_are_left_alone():
    model, clip, vae = models_of()
    before = [
        checksum(part) for part in (model.model, clip.cond_stage_model, vae.first_stage_model)
    ]
    patches = (
        dict(model.patches),
        dict(clip.patcher.patches),
        dict(model.model_options["transformer_options"]),
    )
    run = training(identity=recogniser())
    run.run(ignore)
    assert [
        checksum(part) for part in (model.model, clip.cond_stage_model, vae.first_stage_model)
    ] == before
    assert (
        dict(model.patches),
        dict(clip.patcher.patches),
        dict(model.model_options["transformer_options"]),
    ) == patches


def test_patches_of_the_model_are_part_of_what_is_trained_on():
    model, clip, vae = models_of()
    name = "diffusion_model.output_blocks.8.1.transformer_blocks.0.attn1.to_v.weight"
    patched = model.clone()
    patched.add_patches({name: ("diff", (torch.ones_like(model.model.state_dict()[name]),))}, 0.5)
    run = CaptureTraining(patched, clip, vae, *sets(), None, QUICK)
    difference = (
        run.networks.denoiser.network.state_dict()[name.removeprefix("diffusion_model.")]
        - model.model.state_dict()[name]
    )
    torch.testing.assert_close(difference, torch.full_like(difference, 0.5))


@pytest.mark.parametrize("shape", ["sd15", "sd21v", "sdxl"])
def test_the_trainable_model_is_the_hosts(shape):
    """The text encoders are checked by every training itself; here the UNet, against the host's own
    forward."""
    model = models_of(shape)[0]
    run = training(shape)
    noisy, timesteps = torch.randn(2, 4, 8, 8), torch.tensor([10, 700])
    with training_mode(), torch.no_grad():
        prompts = [run.networks.text.prompt("a photo of a woman")] * 2
        told = run.networks.condition(prompts, (SIDE // 8, SIDE // 8))
        told = replace(told, columns=torch.tensor([[1, 2]] * 2))
        output, maps = run.networks.denoiser.predict(noisy, timesteps, told, watched=True)
    sigma = model.model.model_sampling.sigmas[timesteps]
    scale = (1 + sigma**2).sqrt()[:, None, None, None]
    extra = {} if told.vector is None else {"y": told.vector}
    expected = model.model.apply_model(noisy * scale, sigma, c_crossattn=told.context, **extra)
    ours = run.networks.denoiser.clean(noisy, output, timesteps)
    torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-3)
    assert maps is not None and maps.shape[2] == 2 and maps.sum(2).max() <= 1


@pytest.mark.parametrize(("rule", "predicts_v"), [("eps", False), ("v_prediction", True)])
def test_a_node_says_what_the_model_predicts(rule, predicts_v):
    """ModelSamplingDiscrete, for checkpoints that do not say it themselves."""
    for shape in ("sd15", "sd21v"):
        model, clip, vae = models_of(shape)
        patched = resample(model, rule)
        run = CaptureTraining(patched, clip, vae, *sets(), None, QUICK)
        assert run.networks.denoiser.v_prediction == predicts_v
        assert torch.equal(
            run.networks.denoiser.alpha_bars, training(shape).networks.denoiser.alpha_bars
        )


@pytest.mark.parametrize(("rule", "name"), [("x0", "X0"), ("lcm", "LCM")])
def test_other_rules_are_refused(rule, name):
    model, clip, vae = models_of()
    with pytest.raises(ValueError, match=f"predict eps or v over 1000 timesteps.*got {name}"):
        CaptureTraining(resample(model, rule), clip, vae, *sets(), None, QUICK)


def resample(model: Any, rule: str) -> Any:
    from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete

    return ModelSamplingDiscrete().patch(model, rule, False)[0]


def test_watched_attention_does_not_overflow_in_half_precision():
    generator = torch.Generator().manual_seed(0)
    q, k = (100 * torch.randn(1, count, 64, generator=generator).sign() for count in (4, 7))
    k[:, 0] = q[:, 0]
    options = {"n_heads": 1, "activations_shape": (1, 64, 2, 2), "block": ("output", 0)}
    results = []
    for dtype in (torch.float32, torch.float16):
        maps = MapList()
        v = torch.eye(7, 64, dtype=dtype)[None]
        out = capture_unet._watched_attention(
            q.to(dtype), k.to(dtype), v, options, torch.tensor([[0, 1]]), maps
        )
        results.append((out.float(), maps.read()))
    assert results[1][0].isfinite().all() and results[1][1][0, 0, 0, 0, 0] == 1
    torch.testing.assert_close(results[1], results[0])


# ---- reproducible, resumable, cancellable ----


def test_the_same_seed_gives_the_same_training():
    one, two, other = (training(seed=seed, **FEW).run(ignore) for seed in (1, 1, 2))
    assert one.history == two.history != other.history
    assert all(torch.equal(one.lora[name], two.lora[name]) for name in one.lora)


@pytest.mark.parametrize("cancel_after", [2, 3, 5])
@pytest.mark.parametrize("with_identity", [False, True])
def test_a_cancelled_training_ends_as_an_uninterrupted_one(tmp_path, cancel_after, with_identity):
    import comfy.model_management as management

    def cancel(done: int, loss: float) -> None:
        if done == cancel_after:
            raise management.InterruptProcessingException()

    identity = recogniser() if with_identity else None
    whole = train_in_one_go(with_identity)
    path = tmp_path / "state.pt"
    with pytest.raises(management.InterruptProcessingException):
        training(identity=identity).run(cancel, CheckpointFile(path, 100))
    second = training(identity=identity)
    resumed = second.run(ignore, CheckpointFile(path, 100))
    assert resumed.history == whole.history
    assert all(torch.equal(resumed.lora[name], whole.lora[name]) for name in whole.lora)
    for ours, theirs in zip(resumed.embeddings, whole.embeddings, strict=True):
        assert all(torch.equal(ours.vectors[name], theirs.vectors[name]) for name in theirs.vectors)
    assert not path.exists(), "a finished training leaves no checkpoint"


def test_an_error_in_mid_step_loses_only_that_step(tmp_path, monkeypatch):
    whole = train_in_one_go()
    path = tmp_path / "state.pt"
    run = training()

    def fails(*args: Any) -> Any:
        if run.step == 5:
            raise MemoryError
        return loss_terms(*args)

    monkeypatch.setattr(capture_run, "loss_terms", fails)
    with pytest.raises(MemoryError):
        run.run(ignore, CheckpointFile(path, 100))
    monkeypatch.setattr(capture_run, "loss_terms", loss_terms)
    assert training().run(ignore, CheckpointFile(path, 100)).history == whole.history


def test_a_gradient_that_is_not_finite_is_an_error_before_any_weight_takes_it():
    run = training(inversion_steps=0)
    with training_mode():
        run.train_step()
        before = state(run)
        run.networks.adapters[0].up.register_hook(lambda gradient: gradient * float("nan"))
        with pytest.raises(
            FloatingPointError, match="the gradient is not finite at step 2: lower the rates"
        ):
            run.train_step()
    assert not changes(before, state(run)) and run.step == 1


def test_previews_do_not_change_the_training():
    pictures: list[torch.Tensor] = []
    watched = training().run(
        ignore, on_preview=lambda done, images: pictures.append(images), preview_every=3
    )
    assert watched.history == train_in_one_go().history
    assert [image.shape for image in pictures] == [(1, SIDE, SIDE, 3)] * 3 and all(
        image.isfinite().all() for image in pictures
    )


def test_a_step_is_reported_before_its_preview():
    calls: list[tuple[str, int]] = []
    training(**FEW).run(
        lambda done, _: calls.append(("report", done)),
        on_preview=lambda done, _: calls.append(("preview", done)),
        preview_every=100,
    )
    steps = calls[-1][1]
    assert calls == [*(("report", done) for done in range(1, steps + 1)), ("preview", steps)]


def test_a_checkpoint_of_another_training_is_refused(tmp_path):
    run = training()
    step(run)
    file = CheckpointFile(tmp_path / "state.pt", 1)
    assert file.write(run.state())
    with pytest.raises(
        ValueError, match="belongs to a training with other pictures, settings or models"
    ):
        file.read(training(rank=3).fingerprint)


@pytest.mark.parametrize("damage", ["cut", "empty", "a picture", "a pickle", "a folder"])
def test_a_checkpoint_that_is_none_says_what_to_do_in_our_words(tmp_path, damage):
    file = CheckpointFile(tmp_path / "state.pt", 1)
    if damage == "a folder":
        file.path.mkdir()
    elif damage == "a pickle":
        torch.save({"fingerprint": TrainingProblem()}, file.path)
    else:
        torch.save({"fingerprint": "0" * 999}, file.path)
        whole = file.path.read_bytes()
        contents = {
            "cut": whole[:1000],
            "empty": b"",
            "a picture": b"\x89PNG\r\n\x1a\n" + b"x" * 99,
        }
        file.path.write_bytes(contents[damage])
    reason = "is no checkpoint of MagiCapture or is damaged"
    if damage == "a folder":
        reason = "cannot be read (Is a directory)"
    with pytest.raises(ValueError) as refusal:
        file.read("0")
    assert str(refusal.value) == f"checkpoint {file.path} {reason}: remove it to start anew"


class TrainingProblem:
    """What weights_only does not read."""


def test_the_decoder_takes_weights_only(monkeypatch):
    """The host's layers hold handles of GPU memory: a copy of one would give the same memory back
    twice."""

    class Handle:
        def __deepcopy__(self, memo: Any) -> None:
            raise AssertionError("a handle was copied")

    vae = models_of("sd15")[2]
    for module in vae.first_stage_model.modules():
        monkeypatch.setattr(module, "handle", Handle(), raising=False)
    run = training(identity=recogniser())
    faces = run.networks.faces
    assert faces is not None
    latents = torch.randn(1, 4, 8, 8)
    with torch.inference_mode():
        expected = vae.decode(run.networks.denoiser.process_out(latents)).movedim(-1, 1)
    torch.testing.assert_close(faces.decode(latents), expected, rtol=1e-4, atol=1e-4)


def test_the_identity_network_goes_back_when_encoding_is_cancelled(monkeypatch):
    places: list[str] = []
    network = recogniser()
    monkeypatch.setattr(network.network, "to", lambda place: places.append(str(place)))

    def cancel() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        CaptureTraining(*models_of("sd15"), *sets(), network, QUICK, cancel)
    assert len(places) == 2 and places[-1] == "cpu"


def test_nothing_is_held_after_a_cancel(monkeypatch):
    made: list[weakref.ref] = []
    original = capture_unet.TrainableUNet.__init__

    def track(self: Any, *args: Any) -> None:
        original(self, *args)
        made.append(weakref.ref(self.network))

    monkeypatch.setattr(capture_unet.TrainableUNet, "__init__", track)

    def cancel(done: int, loss: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        training().run(cancel)
    gc.collect()
    assert made and made[0]() is None
    assert torch.is_inference_mode_enabled(), "the host's mode is as it was"


# ---- options ----


def test_gradient_checkpointing_gives_the_same_loss():
    saving = training(gradient_checkpointing=True).run(ignore)
    assert train_in_one_go().history == pytest.approx(saving.history, rel=1e-3)


@cache
def exact() -> Trained:
    return training(seed=4, **FEW).run(ignore)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision(precision):
    options = {"precision": precision, "identity": recogniser(), "inversion_steps": 1}
    half = training(seed=4, **options).run(ignore)
    assert half.history[0] == pytest.approx(exact().history[0], rel=0.1)
    assert all(
        tensor.dtype == torch.float32 and tensor.isfinite().all() for tensor in half.lora.values()
    )


def test_the_identity_network_runs_only_where_its_loss_is_used():
    identity = recogniser()
    run = training(identity=identity, inversion_steps=4, lora_steps=12)
    encoded = len(identity.network.calls)
    for _ in range(4):
        step(run)
    assert len(identity.network.calls) == encoded, "textual inversion does not need it"
    kinds: list[str] = []
    draw = run.draw_batch
    run.draw_batch = lambda: (
        batch := draw(),
        kinds.extend(sample.kind for sample in batch.samples),
    )[0]
    for _ in range(12):
        step(run)
    assert len(identity.network.calls) - encoded == len(kinds) - kinds.count("style") > 0
    assert kinds.count("style") > 0


def test_the_identity_loss_looks_at_small_noise_only():
    identity = recogniser()
    run = training(identity=identity, inversion_steps=0, identity_until=0)
    encoded = len(identity.network.calls)
    for _ in range(4):
        step(run)
    assert len(identity.network.calls) == encoded


def test_the_identity_loss_reaches_the_lora():
    with_it = training(identity=recogniser(), inversion_steps=0, lora_steps=1, seed=2)
    with training_mode():
        with_it.enter(Phase.LORA)
        batch = with_it.draw_batch()
        while batch.samples[0].kind == "style":
            batch = with_it.draw_batch()
        terms = terms_of(with_it, batch)
        terms["identity"].backward()
    assert (
        max(adapter.up.grad.abs().max() for adapter in with_it.networks.denoiser.adapters.values())
        > 0
    )


def test_decoding_the_face_only_shows_the_same_face():
    vae = checkpoint.load()[2]
    images, _ = captures.draw(captures.sample_capture(1, "neon", 2).subject, 192)
    boxes = torch.tensor([[90.0, 90.0, 30.0], [150.0, 40.0, 34.0]])
    with training_mode(), torch.no_grad():
        latents = vae.encode(torch.from_numpy(images)).clone()
        parts, moved = around_faces(latents, boxes, 8)
        decode = DifferentiableDecoder(vae, lambda latent: latent, torch.device("cpu"))
        whole = capture_losses.face_crops(decode(latents), boxes, 32)
        cut = capture_losses.face_crops(decode(parts), moved, 32)
    assert parts.shape[-1] < latents.shape[-1] / 1.5
    assert whole.std() > 0.1
    torch.testing.assert_close(cut, whole, rtol=0, atol=0.05)


def terms_of(run: CaptureTraining, batch: Any) -> dict[str, torch.Tensor]:
    return loss_terms(run.networks, run.settings, batch, Phase.LORA, 0.0)


def test_a_batch_costs_the_mean_of_its_samples():
    run = training(batch=3, inversion_steps=0, identity=None, seed=5)
    with training_mode(), torch.no_grad():
        run.enter(Phase.LORA)
        batch = run.draw_batch()
        together = terms_of(run, batch)
        alone = []
        for i in range(3):
            single = replace(
                batch,
                samples=[batch.samples[i]],
                latents=batch.latents[i : i + 1],
                faces=batch.faces[i : i + 1],
                noise=batch.noise[i : i + 1],
                timesteps=batch.timesteps[i : i + 1],
            )
            alone.append(terms_of(run, single))
    for name, value in together.items():
        assert value.item() == pytest.approx(
            sum(terms[name].item() for terms in alone) / 3, rel=1e-4
        )


# ---- pictures of all kinds ----


def picture_sets(
    images: list[torch.Tensor], masks: list[torch.Tensor] | None
) -> tuple[Subject, StyleSet]:
    pictures = capture_pictures(images, masks, [f"picture {i}" for i in range(len(images))])
    subject, style = sets()
    return replace(subject, pictures=pictures), style


def portrait(height: int, width: int, channels: int = 3) -> torch.Tensor:
    return torch.rand(height, width, channels, generator=torch.Generator().manual_seed(height))


@pytest.mark.parametrize(
    "images",
    [
        [portrait(64, 64)],
        [portrait(64 + i, 80) for i in range(30)],
        [portrait(4000, 3000)],
        [portrait(64, 64, 1), portrait(64, 64, 4)],
        [portrait(40, 200), portrait(200, 40), portrait(33, 77)],
    ],
    ids=["one", "thirty", "large", "gray and alpha", "mixed aspects"],
)
def test_pictures_of_all_kinds(images):
    masks = [torch.zeros(image.shape[:2]) for image in images]
    for mask in masks:
        mask[: mask.shape[0] // 2] = 1
    run = CaptureTraining(
        *models_of(), *picture_sets(images, masks), None, replace(QUICK, versions=1, batch=2, **FEW)
    )
    areas = [
        picture.latents.shape[-1] * picture.latents.shape[-2] * 64
        for picture in run.data.subject_pictures
    ]
    assert all(0.5 * SIDE**2 <= area <= 2.5 * SIDE**2 for area in areas)
    assert all(torch.tensor(run.run(ignore).history).isfinite())


def test_pictures_without_masks():
    pictures = picture_sets([portrait(64, 64)], None)
    run = CaptureTraining(*models_of(), *pictures, None, replace(QUICK, **FEW))
    assert torch.equal(
        run.data.subject_pictures[0].faces, torch.ones_like(run.data.subject_pictures[0].faces)
    )
    assert torch.tensor(run.run(ignore).history).isfinite().all()


def test_an_empty_mask_names_its_picture():
    masks = [torch.ones(64, 64), torch.zeros(64, 64)]
    with pytest.raises(ValueError, match="face mask of picture 1 is empty"):
        picture_sets([portrait(64, 64)] * 2, masks)


# ---- refusals before any training ----


def test_equal_placeholders_are_refused():
    subject, style = sets()
    with pytest.raises(ValueError, match="same placeholder '<anna>'"):
        CaptureTraining(*models_of(), subject, replace(style, placeholder="<anna>"), None, QUICK)


def test_a_template_that_is_too_long_is_refused():
    subject, style = sets()
    with pytest.raises(ValueError, match="must fit into 77 tokens"):
        CaptureTraining(
            *models_of(),
            replace(subject, templates=("{person} " + "very " * 80,)),
            style,
            None,
            QUICK,
        )


def test_a_model_for_inpainting_is_refused(monkeypatch):
    model, clip, vae = models_of()
    config = {**model.model.model_config.unet_config, "in_channels": 9}
    monkeypatch.setattr(model.model.model_config, "unet_config", config)
    with pytest.raises(ValueError, match="4 latent channels, this one takes 9"):
        CaptureTraining(model, clip, vae, *sets(), None, QUICK)


def test_a_checkpoint_is_one_file(tmp_path):
    run = training()
    step(run)
    CheckpointFile(tmp_path / "deep" / "state.pt", 1).write(run.state())
    assert [path.name for path in Path(tmp_path / "deep").iterdir()] == ["state.pt"]
