"""MagiCapture's rules: the official code's as a preset, what is done without face masks, and what
the identity loss looks at."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from magicportrait.host.training.draw import Batch, training_prompts
from magicportrait.host.training.losses import loss_terms
from magicportrait.host.training.memory import training_mode
from magicportrait.host.training.rules import OFFICIAL, OURS
from magicportrait.host.training.run import CaptureTraining
from magicportrait.host.training.settings import CaptureSettings, Phase
from magicportrait.magic.capture_sets import StyleSet, Subject
from magicportrait.tests.host.test_magicapture import (
    QUICK,
    ignore,
    models_of,
    recogniser,
    sets,
    step,
    training,
)
from magicportrait.tests.unit import naive_magicapture as naive


def without_masks() -> tuple[Subject, StyleSet]:
    subject, style = sets()
    whole = (replace(part, mask=torch.ones_like(part.mask)) for part in style.pictures)
    return subject, replace(style, pictures=tuple(whole))


def draw_of_kind(run: CaptureTraining, kind: str) -> Batch:
    """The next batch of one sample that is of a kind."""
    with training_mode():
        run.enter(Phase.LORA)
        while True:
            batch = run.draw_batch()
            if batch.samples[0].kind == kind:
                return batch


def terms_of(run: CaptureTraining, batch: Batch) -> dict[str, torch.Tensor]:
    with training_mode():
        return loss_terms(run.networks, run.settings, batch, Phase.LORA, 0.0)


# ---- without face masks ----


def test_without_a_place_for_the_style_composed_prompts_are_not_refocused():
    """With the face everywhere the subject's target is nowhere: its word would be driven out of
    the whole picture."""
    with_masks, without = (
        CaptureTraining(*models_of(), *pictures, None, replace(QUICK, inversion_steps=0))
        for pictures in (sets(), without_masks())
    )
    value = {
        name: terms_of(run, draw_of_kind(run, "composed"))["refocusing"]
        for name, run in (("with", with_masks), ("without", without))
    }
    assert value["with"] > 0 and value["without"] == 0
    up = without.networks.adapters[0].up
    [gradient] = torch.autograd.grad(value["without"], up, allow_unused=True)
    assert gradient is None or not gradient.any()


def test_a_subject_without_masks_takes_no_refocusing_from_composed_prompts():
    subject, style = sets()
    whole = tuple(replace(part, mask=torch.ones_like(part.mask)) for part in subject.pictures)
    settings = replace(QUICK, inversion_steps=0)
    run = CaptureTraining(*models_of(), replace(subject, pictures=whole), style, None, settings)
    assert terms_of(run, draw_of_kind(run, "composed"))["refocusing"] > 0


def test_the_report_names_what_is_trained_without_refocusing():
    settings = replace(QUICK, inversion_steps=1, lora_steps=1)
    run = CaptureTraining(*models_of(), *without_masks(), None, settings)
    assert "2 of 2 style pictures have no face mask (style 0, style 1)" in run.run(ignore).report
    for unconcerned in (
        training(inversion_steps=1, lora_steps=1),
        CaptureTraining(*models_of(), *without_masks(), None, replace(settings, composed=False)),
    ):
        assert "face mask" not in unconcerned.run(ignore).report


# ---- what the identity loss looks at ----


@pytest.fixture
def predictions(monkeypatch) -> list[torch.Tensor]:
    """The timesteps of every forward of the UNet."""
    from magicportrait.host.training.unet import TrainableUNet

    seen: list[torch.Tensor] = []
    predict = TrainableUNet.predict

    def watch(self: Any, noisy: Any, timesteps: torch.Tensor, *args: Any) -> Any:
        seen.append(timesteps)
        return predict(self, noisy, timesteps, *args)

    monkeypatch.setattr(TrainableUNet, "predict", watch)
    return seen


@pytest.mark.parametrize("kind", ["subject", "style", "composed"])
def test_a_forward_of_its_own_is_at_a_timestep_of_its_own(predictions, kind):
    own = {"identity_forward": "own", "identity_until": 300, "inversion_steps": 0}
    run = training(identity=recogniser(), **own)
    batch = draw_of_kind(run, kind)
    assert batch.identity_timesteps is not None and (batch.identity_timesteps < 300).all()
    predictions.clear()
    terms = terms_of(run, batch)
    timesteps = [batch.timesteps, *([] if kind == "style" else [batch.identity_timesteps])]
    assert [t.tolist() for t in predictions] == [t.tolist() for t in timesteps]
    assert ("identity" in terms) == (kind != "style")


def test_a_shared_forward_is_the_only_one(predictions):
    run = training(identity=recogniser(), inversion_steps=0)
    batch = draw_of_kind(run, "subject")
    assert batch.identity_timesteps is None
    predictions.clear()
    assert "identity" in terms_of(run, batch)
    assert len(predictions) == 1


def test_a_forward_of_its_own_at_the_timestep_of_the_step_is_the_shared_one():
    runs = {
        forward: training(
            identity=recogniser(), inversion_steps=0, identity_forward=forward, refocus_weight=0.0
        )
        for forward in ("shared", "own")
    }
    batch = draw_of_kind(runs["shared"], "composed")
    same = replace(batch, identity_timesteps=batch.timesteps)
    shared, own = (terms_of(runs["shared"], part)["identity"] for part in (batch, same))
    torch.testing.assert_close(own, shared, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("settings", [{"identity_until": 0}, {"identity_weight": 0.0}])
def test_an_identity_network_without_a_task_is_not_asked(settings):
    identity = recogniser()
    for forward in ("shared", "own"):
        run = training(identity=identity, identity_forward=forward, **settings)
        step(run)
    assert not identity.network.calls


# ---- the official code's rules ----


def official(**settings: Any) -> CaptureTraining:
    chosen = replace(QUICK, inversion_steps=4, lora_steps=5, **settings).as_official()
    return CaptureTraining(*models_of(), *sets(), recogniser(), chosen)


def groups_of(run: CaptureTraining) -> list[tuple[torch.nn.Parameter, float, float]]:
    """Everything that the phase trains, with its first rate and its decay."""
    networks, settings = run.networks, run.settings
    phase, _ = settings.phase_at(run.step)
    if phase == Phase.INVERSION:
        return [(rows, settings.inversion_rate, 0.0) for rows in networks.text.rows]
    matrices = [
        (matrix, rate, 1e-3)
        for adapters, rate in (
            (list(networks.denoiser.adapters.values()), settings.unet_rate),
            (networks.text_adapters, settings.text_rate),
        )
        for adapter in adapters
        for matrix in (adapter.down, adapter.up)
    ]
    return [*matrices, *((rows, settings.embedding_rate, 1e-3) for rows in networks.text.rows)]


def test_the_preset_moves_every_parameter_as_the_official_code_does():
    """Both phases, each step from where ours stood: clipping, decay, rates, pulled norms."""
    # Rates that are large enough for a decay of a thousandth to show, and for gradients to be cut.
    run = official(embedding_rate=0.5, unet_rate=0.01, text_rate=0.01, refocus_weight=100.0)
    moments: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    clipped = 0
    with training_mode():
        while run.step < run.settings.steps:
            phase, number = run.settings.phase_at(run.step)
            steps = run.settings.steps_of(phase)
            if number == 0:
                moments = {}
            run.enter(phase)
            drawn = run.generator.get_state()
            terms = loss_terms(run.networks, run.settings, run.draw_batch(), phase, number / steps)
            run.generator.set_state(drawn)
            groups = groups_of(run)
            parameters = [parameter for parameter, _, _ in groups]
            gradients = torch.autograd.grad(
                torch.stack(list(terms.values())).sum(), parameters, allow_unused=True
            )
            used = [i for i, gradient in enumerate(gradients) if gradient is not None]
            cut = [gradients[i] for i in used]
            if phase == Phase.LORA:
                cut = naive.clip(cut)
                clipped += not torch.equal(cut[-1], gradients[used[-1]])
            expected = {}
            for gradient, i in zip(cut, used, strict=True):
                parameter, first, decay = groups[i]
                zero = torch.zeros_like(parameter)
                value, moments[i] = naive.adamw(
                    parameter.detach(),
                    gradient,
                    moments.get(i, (zero, zero)),
                    number + 1,
                    naive.rate(number, steps, first),
                    decay,
                )
                if phase == Phase.INVERSION:
                    rate = naive.rate(number, steps, first)
                    value = torch.stack([naive.pull(row, rate) for row in value])
                expected[i] = value
            run.train_step()
            for i, value in expected.items():
                torch.testing.assert_close(
                    parameters[i].detach(), value, rtol=1e-4, atol=1e-6, msg=f"{phase!r} {i}"
                )
    assert clipped, "no gradient was long enough for the test to say something"


def test_the_preset_composes_the_prompts_of_the_official_code():
    subject, style = sets()
    prompts = training_prompts(subject, style, OFFICIAL)
    composed = tuple(
        naive.composed_prompt(template.replace("{person}", "{}"), "<anna>", "woman", "<ink>")
        for template in subject.templates
    )
    assert prompts["composed"] == {picture: composed for picture in style.pictures}
    ours = training_prompts(subject, style, OURS)
    composed = ("a picture of a <anna> woman in the style of <ink>",)
    assert ours["composed"] == {picture: composed for picture in style.pictures}
    for kind in ("subject", "style"):
        assert ours[kind] == prompts[kind]


def test_a_caption_is_all_that_is_said_of_its_picture():
    subject, style = (
        replace(part, pictures=(replace(part.pictures[0], caption=text), part.pictures[1]))
        for part, text in zip(sets(), ("<anna> woman at sea", "a woman at sea"), strict=True)
    )
    run = CaptureTraining(*models_of(), subject, style, None, replace(QUICK, lora_steps=60))
    said: dict[tuple[str, str], set[str]] = {}
    with training_mode():
        run.enter(Phase.LORA)
        for _ in range(60):
            [sample] = run.draw_batch().samples
            said.setdefault((sample.kind, sample.picture.name), set()).add(sample.prompt.text)
    assert said["subject", "subject 0"] == {"<anna> woman at sea"}
    assert said["subject", "subject 1"] == {"a photo of a <anna> woman", "one <anna> woman"}
    assert said["style", "style 0"] == {"a woman at sea, in the style of <ink>"}
    assert said["composed", "style 0"] == {"a <anna> woman at sea, in the style of <ink>"}
    assert said["style", "style 1"] == {"a picture of a woman in the style of <ink>"}


def test_a_caption_is_part_of_what_a_training_is():
    subject, style = sets()
    other = replace(subject.pictures[0], caption="at sea")
    changed = replace(subject, pictures=(other, *subject.pictures[1:]))
    runs = (CaptureTraining(*models_of(), each, style, None, QUICK) for each in (subject, changed))
    assert len({run.fingerprint for run in runs}) == 2


def test_a_subject_is_learned_without_a_style():
    run = CaptureTraining(*models_of(), sets()[0], None, recogniser(), QUICK)
    pictures: list[torch.Tensor] = []
    trained = run.run(ignore, on_preview=lambda _, x: pictures.append(x), preview_every=100)
    assert [embedding.placeholder for embedding in trained.embeddings] == ["<anna>"]
    assert len(pictures) == 1 and all(torch.tensor(trained.history).isfinite())
    assert "style" not in trained.report and "subject '<anna>' (2 pictures)" in trained.report


def test_the_preset_scales_masks_and_starts_words_as_the_official_code_does():
    run = official(versions=1)
    for picture, prepared in zip(run.subject.pictures, run.data.subject_pictures, strict=True):
        assert torch.equal(prepared.faces[0], naive.latent_mask(picture.mask, 8))
    [rows] = run.networks.text.rows
    ours = training().networks.text.rows[0]
    noise = rows[1] / ours[1]
    assert noise.std() / noise.mean() < 1e-3, "the same noise, of another size"
    width = rows.shape[1]
    assert 0.5 < rows[1].norm().item() / (0.017 * width**0.5) < 2
    assert run.networks.word_norms == [0.4]


def test_the_preset_judges_likeness_in_a_second_forward(predictions):
    run = official()
    assert (run.settings.identity_forward, run.settings.identity_until) == ("own", 800)
    batch = draw_of_kind(run, "subject")
    predictions.clear()
    terms_of(run, batch)
    assert len(predictions) == 2


def test_the_preset_is_off_by_default():
    assert CaptureSettings().rules == OURS and CaptureSettings().as_official().rules == OFFICIAL
