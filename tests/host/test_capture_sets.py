"""MagiCapture's training of several subjects, and of others of their class beside them: that what
belongs together goes together."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from magicportrait.host.pictures.capture_folder import NO_FOLDER
from magicportrait.host.training import run as capture_run
from magicportrait.host.training.checkpoint import training_fingerprint
from magicportrait.host.training.draw import PreparedSubject, TrainingData, training_prompts
from magicportrait.host.training.losses import loss_terms
from magicportrait.host.training.memory import training_mode
from magicportrait.host.training.pictures import PreparedPicture
from magicportrait.host.training.rules import OURS
from magicportrait.host.training.run import CaptureTraining
from magicportrait.host.training.settings import Phase
from magicportrait.magic import capture_losses
from magicportrait.magic.capture_sets import (
    CapturePicture,
    StyleSet,
    Subject,
    capture_pictures,
    check_sets,
)
from magicportrait.nodes.declare import defaults_of
from magicportrait.nodes.magicapture_sets import MagiCaptureSubject
from magicportrait.tests.host import test_flow_training as flows
from magicportrait.tests.host.test_magicapture import QUICK, SIDE, ignore, models_of


def pictures(name: str, count: int, level: float, height: int = SIDE) -> Any:
    """Pictures of one grey, with a mask of `level` on the left half."""
    mask = torch.zeros(height, SIDE)
    mask[:, : SIDE // 2] = 1
    return capture_pictures(
        [torch.full((height, SIDE, 3), level)] * count,
        [mask] * count,
        [f"{name} {i}" for i in range(count)],
    )


ANNA = Subject(
    pictures("anna", 1, 0.2), "<anna>", "woman", ("a photo of a {person}", "one {person}")
)
BEN = Subject(
    pictures("ben", 3, 0.6),
    "<ben>",
    "man",
    ("a picture of a {person}",),
    class_weight=0.5,
    class_pictures=capture_pictures([torch.rand(SIDE, SIDE, 3)] * 2, None, ["other 0", "other 1"]),
    before=(ANNA,),
)
INK = StyleSet(pictures("ink", 2, 0.9), "<ink>", "woman", ("a {person} in the style of {style}",))


@dataclass(frozen=True)
class Plain:
    text: str


class PlainText:
    """A text side that keeps what was written."""

    def prompt(self, text: str) -> Plain:
        return Plain(text)


def prepare(picture: CapturePicture, person: float | None = None) -> PreparedPicture:
    """person: who a face network sees on it."""
    who = None if person is None else torch.full((1, 2), person)
    return PreparedPicture(
        picture, torch.zeros(1, 4, 8, 8), picture.mask[None, ::8, ::8], torch.zeros(1, 3), who
    )


def data_of(*subjects: Subject, style: StyleSet | None = INK) -> TrainingData:
    parts = [
        PreparedSubject(
            [prepare(each, float(number)) for each in subject.pictures],
            [prepare(each) for each in subject.class_pictures],
            training_prompts(subject, style, OURS),
            subject.class_weight,
        )
        for number, subject in enumerate(subjects)
    ]
    shown = [prepare(each) for each in style.pictures] if style else []
    text: Any = PlainText()
    return TrainingData(parts, shown, text)


def draw_samples(data: TrainingData, kinds: Any, count: int) -> list[Any]:
    batch = data.draw_batch(
        kinds, count, lambda size: torch.zeros(count), torch.Generator().manual_seed(0)
    )
    return batch.samples


def test_each_subject_goes_with_its_own_word_pictures_and_face():
    samples = draw_samples(data_of(ANNA, BEN), ("subject", "style", "composed", "class"), 400)
    seen: Counter[tuple[str, str]] = Counter()
    for sample in samples:
        text, name = sample.prompt.text, sample.picture.name.split()[0]
        words = [word for word in ("<anna>", "<ben>", "<ink>") if word in text]
        who = None if sample.identity is None else int(sample.identity[0])
        seen[sample.kind, name if sample.kind != "composed" else words[0]] += 1
        if sample.kind == "subject":
            assert words == [f"<{name}>"] and who == ("anna", "ben").index(name)
            assert ("woman" in text) == (name == "anna")
        elif sample.kind == "composed":
            assert name == "ink" and words in (["<anna>", "<ink>"], ["<ben>", "<ink>"])
            assert who == ("<anna>", "<ben>").index(words[0])
        elif sample.kind == "style":
            assert name == "ink" and words == ["<ink>"] and who is None
        else:
            assert (text, name, who) == ("a picture of a man", "other", None)
        assert sample.weight == (0.5 if sample.kind == "class" else 1.0)
    # Subjects are alike, however many pictures they have.
    assert min(seen["subject", "anna"], seen["subject", "ben"]) > 35
    assert min(seen["composed", "<anna>"], seen["composed", "<ben>"]) > 35
    assert min(seen["style", "ink"], seen["class", "other"]) > 70


def test_a_chain_of_nodes_is_one_training():
    chosen = {**defaults_of(MagiCaptureSubject), "folder": NO_FOLDER}
    plain = {name: [value] for name, value in chosen.items()}
    image, mask = torch.rand(1, SIDE, SIDE, 3), torch.ones(1, SIDE, SIDE)
    chain: Any = None
    for word in ("<a>", "<b>", "<c>"):
        given = {**plain, "placeholder": [word], "images": [image], "faces": [mask]}
        others = [torch.rand(2, SIDE, SIDE, 3), torch.rand(1, 32, 48, 3)] if word == "<b>" else None
        chain = MagiCaptureSubject.execute(
            **given, class_images=others, subjects=None if chain is None else [chain]
        ).args[0]
    assert [each.placeholder for each in chain.all] == ["<a>", "<b>", "<c>"]
    assert [len(each.class_pictures) for each in chain.all] == [0, 3, 0]
    assert all(bool(each.mask.all()) for each in chain.all[1].class_pictures)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"placeholder": "<ANNA>"}, "two subjects have the same placeholder '<anna>'"),
        ({"templates": ("{person} and <anna>",)}, "'<anna>' is a word of the template"),
        (
            {"pictures": tuple(replace(x, caption="with <Anna>") for x in BEN.pictures)},
            "caption of ben 0 has the placeholder '<anna>' of another subject",
        ),
    ],
)
def test_a_word_is_one_subject_s(change, message):
    with pytest.raises(ValueError, match=message):
        check_sets(replace(BEN, **change), INK)
    with pytest.raises(ValueError, match="subject and style have the same placeholder"):
        check_sets(BEN, replace(INK, placeholder="<anna>"))


@pytest.fixture(scope="module")
def together() -> CaptureTraining:
    """Two subjects, others of the class of one of them, and a style, on the small UNet."""
    settings = replace(QUICK, inversion_steps=1, lora_steps=1, versions=1, batch=2, ema=0.5)
    return CaptureTraining(*models_of(), BEN, INK, None, settings)


def test_a_word_looks_where_its_own_prompt_has_it(together):
    networks = together.networks
    assert networks.text.placeholders == ("<anna>", "<ben>", "<ink>")
    size = networks.text.encoders["clip_l"].vocabulary_size
    prompts = [
        networks.text.prompt(text)
        for text in ("one <ben> man", "a <ben> man, <ink>", "<anna> woman", "a man")
    ]
    with torch.no_grad():
        columns = networks.condition(prompts, (8, 8)).columns
    ids = [
        [int(prompt.ids["clip_l"][place]) - size for place in row]
        for prompt, row in zip(prompts[:3], columns.tolist(), strict=False)
    ]
    assert ids == [[1, 1], [1, 2], [0, 0]]


def of_kinds(run: CaptureTraining, *kinds: str) -> Any:
    run.enter(Phase.LORA)
    batch = run.draw_batch()
    while tuple(sample.kind for sample in batch.samples) != kinds:
        batch = run.draw_batch()
    return batch


def test_others_of_the_class_are_learned_plainly(together):
    """All of each picture counts at the weight, no word is in the prompt, and the samples beside
    them have their own terms."""
    settings = together.settings
    with training_mode():
        batch = of_kinds(together, "class", "subject")
        assert not any(
            word in batch.samples[0].prompt.text for word in ("<anna>", "<ben>", "<ink>")
        )
        terms = loss_terms(together.networks, settings, batch, Phase.LORA, 0.0)
        denoiser = together.networks.denoiser
        condition = together.networks.condition([each.prompt for each in batch.samples], (8, 8))
        noisy = denoiser.noisy(batch.latents, batch.noise, batch.timesteps)
        output, maps = denoiser.predict(noisy, batch.timesteps, condition, watched=True)
        weights = capture_losses.loss_weights(batch.faces, (8, 8))
        plain = (output - denoiser.target(batch.latents, batch.noise, batch.timesteps))[:1]
        target = denoiser.target(batch.latents, batch.noise, batch.timesteps)
        subject = capture_losses.masked_reconstruction(output, target, weights)[1]
        expected = (0.5 * plain.square().mean() + subject) / 2
        torch.testing.assert_close(terms["reconstruction"], expected)
        targets = capture_losses.refocusing_targets(weights[1:], torch.tensor([False]))
        present = torch.tensor([[True, False]])
        alone = capture_losses.refocusing(maps[1:], targets, present)
        torch.testing.assert_close(terms["refocusing"], settings.refocus_weight * alone[0] / 2)
        only = of_kinds(together, "class", "class")
        assert "refocusing" not in loss_terms(together.networks, settings, only, Phase.LORA, 0.0)


def test_others_of_the_class_teach_no_words(together):
    together.enter(Phase.INVERSION)
    kinds = {sample.kind for _ in range(40) for sample in together.draw_batch().samples}
    assert kinds == {"subject", "style"}


def test_transformers_learn_several_subjects_and_others_of_their_class(monkeypatch):
    asked: list[str] = []

    def sample(networks: Any, vae: Any, prompt: str, size: Any, seed: int) -> torch.Tensor:
        asked.append(prompt)
        return torch.zeros(1, SIDE, SIDE, 3)

    monkeypatch.setattr(capture_run, "sample_picture", sample)
    settings = replace(flows.QUICK, lora_steps=2, versions=1, batch=2, seed=1)
    run = CaptureTraining(*flows.parts("zimage"), BEN, INK, None, settings)
    pictures: list[torch.Tensor] = []
    trained = run.run(ignore, None, lambda _, image: pictures.append(image), preview_every=2)
    assert asked == ["a <anna> woman in the style of <ink>", "a <ben> man in the style of <ink>"]
    assert [picture.shape for picture in pictures] == [(1, SIDE, 2 * SIDE, 3)]
    assert "subject '<anna>' (1 pictures), subject '<ben>' (3 pictures and 2 of others of the" in (
        trained.report
    )
    assert "write '<anna>' and '<ben>' and '<ink>' as trigger words" in trained.report
    with training_mode():
        batch = of_kinds(run, "class", "composed")
        terms = loss_terms(run.networks, run.settings, batch, Phase.LORA, 0.0)
        assert terms["refocusing"] > 0 and terms["refocusing"].isfinite()


def test_each_subject_and_each_other_is_part_of_what_a_training_is(together):
    networks, vae = together.networks, models_of()[2]

    def fingerprint(subject: Subject) -> str:
        return training_fingerprint(networks, vae, subject, None, QUICK, SIDE)

    bright = replace(ANNA, pictures=pictures("anna", 1, 0.3))
    changes = (
        BEN,
        replace(BEN, before=()),
        replace(BEN, before=(bright,)),
        replace(BEN, class_pictures=BEN.class_pictures[:1]),
        replace(BEN, class_weight=1.0),
    )
    assert len({fingerprint(subject) for subject in changes}) == len(changes)


def test_a_phase_has_the_average_of_what_it_learns(together):
    for phase in (Phase.INVERSION, Phase.LORA):
        together.enter(phase)
        averages = together._averages
        assert averages is not None
        words = list(together.networks.text.rows)
        expected = words if phase == Phase.INVERSION else together.networks.learned
        assert [*map(id, averages.parameters)] == [*map(id, expected)] and words
