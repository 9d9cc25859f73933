"""MagiCapture's nodes: what they give is understood by core nodes, and the other way round."""

from __future__ import annotations

import math
import re
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import folder_paths
import numpy as np
import pytest
import torch
from PIL import Image

from magicportrait.demo import captures
from magicportrait.host.page.training_watch import TrainingWatch
from magicportrait.host.pictures.capture_folder import NO_FOLDER
from magicportrait.host.text.clip import encoder_tokenizers, word_width
from magicportrait.host.text.embedding_files import load_embedding, save_embedding
from magicportrait.host.text.learned_words import Embedding, with_learned_words
from magicportrait.host.training import run as capture_run
from magicportrait.host.training.run import CaptureTraining
from magicportrait.host.training.settings import CaptureSettings
from magicportrait.magic.capture_sets import StyleSet, Subject
from magicportrait.nodes import embeddings as embedding_nodes
from magicportrait.nodes import magicapture_train
from magicportrait.nodes.embeddings import MagicEmbeddingLoad, MagicEmbeddingSave
from magicportrait.nodes.identity import TOY_IDENTITY, MagicIdentityLoader
from magicportrait.nodes.magicapture_apply import MagiCaptureApply
from magicportrait.nodes.magicapture_sets import (
    STYLE_TEMPLATES,
    MagiCaptureStyle,
    MagiCaptureSubject,
)
from magicportrait.nodes.magicapture_train import MagiCaptureTrain
from magicportrait.nodes.toy import MagicToyCapture
from magicportrait.tests.host import models
from magicportrait.tests.host.models import call_node
from magicportrait.tests.host.sampling import Sampling
from magicportrait.tests.host.test_coexistence import core_node
from magicportrait.tests.host.test_magicapture import QUICK, models_of, sets

SIDE = 64
PROMPT = "a portrait of a <anna> woman in the style of <ink>"


@pytest.fixture(autouse=True)
def without_an_estimate(monkeypatch) -> None:
    """Of the memory, which takes longer than these trainings: test_training_memory.py has it, and
    test_flow_training.py what the node says of it."""
    monkeypatch.setattr(capture_run, "check_memory", lambda *_: None)


@pytest.fixture
def folders(tmp_path, monkeypatch) -> Path:
    for kind in ("output", "input", "temp"):
        (tmp_path / kind).mkdir()
        monkeypatch.setattr(
            folder_paths, f"get_{kind}_directory", lambda kind=kind: str(tmp_path / kind)
        )
    for kind in ("loras", "embeddings"):
        (tmp_path / kind).mkdir()
        monkeypatch.setitem(
            folder_paths.folder_names_and_paths, kind, ([str(tmp_path / kind)], {".safetensors"})
        )
        folder_paths.filename_list_cache.pop(kind, None)
    return tmp_path


def subject_and_style(count: int = 2) -> tuple[Any, Any]:
    subject, subject_faces, style, style_faces, _, word = MagicToyCapture.execute(
        3, "neon", count, SIDE
    ).args
    common = {"folder": [NO_FOLDER], "class_word": [word]}
    return (
        MagiCaptureSubject.execute(
            images=[subject],
            faces=[subject_faces],
            placeholder=["<anna>"],
            templates=["a photo of a {person}"],
            **common,
        ).args[0],
        MagiCaptureStyle.execute(
            images=[style],
            faces=[style_faces],
            placeholder=["<ink>"],
            templates=[STYLE_TEMPLATES],
            **common,
        ).args[0],
    )


TRAIN: dict[str, Any] = {
    "inversion_steps": 2,
    "lora_steps": 4,
    "rank": 2,
    "batch": 1,
    "seed": 1,
    "precision": "auto",
    "preview_every": 3,
    "checkpoint_every": 2,
    "inversion_rate": 0.01,
    "unet_rate": 0.01,
    "text_rate": 0.01,
    "embedding_rate": 0.01,
    "masked": True,
    "composed_prompts": True,
    "refocus_weight": 2.5,
    "style_weight": 2.0,
    "identity_weight": 0.5,
    "versions": 2,
    "resolution": SIDE,
    "gradient_checkpointing": False,
}


@cache
def run_training() -> Any:
    """(lora, embeddings, loss map, report) and the pictures that the node shows."""
    subject, style = subject_and_style()
    output = MagiCaptureTrain.execute(*models_of(), subject, style, **TRAIN)
    return output


def encode(clip: Any, text: str) -> torch.Tensor:
    return clip.encode_from_tokens_scheduled(clip.tokenize(text))[0][0]


def test_the_node_defaults_are_the_settings():
    """Every setting can be reached from the node, and starts as the settings do."""
    default = CaptureSettings()
    found = {
        item.id: item.default
        for item in MagiCaptureTrain.define_schema().inputs
        if hasattr(item, "default")
    }
    names = {"composed_prompts": "composed", "resolution": "side"}
    for name, value in found.items():
        if name not in ("precision", "preview_every", "checkpoint_every", "preset", "save_as"):
            assert getattr(default, names.get(name, name)) == value, name


def test_training_gives_the_hosts_own_types(folders):
    _, embeddings, loss_map, report = run_training().args
    assert len(loss_map["loss"]) == 6 and all(
        isinstance(value, float) for value in loss_map["loss"]
    )
    assert {embedding.placeholder for embedding in embeddings} == {"<anna>", "<ink>"}
    assert "LoRA: 4 steps" in report and "refocusing" in report
    assert len(run_training().ui.as_dict()["images"]) == 2
    assert not list((folders / "output").rglob("*.pt"))
    graph = core_node("nodes_train", "LossGraphNode")
    shown = (
        graph.execute(loss=loss_map, filename_prefix="loss").ui
        if hasattr(graph, "define_schema")
        else graph().plot_loss(loss_map, "loss")["ui"]
    )
    [picture] = (shown if isinstance(shown, dict) else shown.as_dict())["images"]
    assert (
        Path(folder_paths.get_directory_by_type(picture["type"]))
        / picture["subfolder"]
        / picture["filename"]
    ).is_file()


@pytest.mark.parametrize(("every", "is_kept"), [(1, True), (0, False)])
def test_a_training_that_is_cancelled_says_whether_it_can_go_on(
    folders, monkeypatch, every, is_kept
):
    said: list[bool] = []

    def cancel(watch: TrainingWatch, step: int, loss: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(TrainingWatch, "on_step", cancel)
    monkeypatch.setattr(TrainingWatch, "on_stop", lambda watch, is_kept: said.append(is_kept))
    settings = {**TRAIN, "checkpoint_every": every}
    with pytest.raises(KeyboardInterrupt):
        MagiCaptureTrain.execute(*models_of(), *subject_and_style(), **settings)
    assert said == [is_kept]


def test_a_training_that_goes_on_says_so_before_it_encodes_anything(folders, monkeypatch):
    told: list[tuple[str, Any]] = []
    last = 3

    def stepped(watch: TrainingWatch, step: int, loss: float) -> None:
        told.append(("stepped", step))
        if step == last:
            raise KeyboardInterrupt

    monkeypatch.setattr(
        TrainingWatch, "on_checkpoint", lambda watch, kept: told.append(("recognised", kept))
    )
    monkeypatch.setattr(TrainingWatch, "on_encoding", lambda watch: told.append(("encoded", None)))
    monkeypatch.setattr(
        TrainingWatch, "on_resume", lambda watch, step: told.append(("taken up", step))
    )
    monkeypatch.setattr(TrainingWatch, "on_step", stepped)
    inputs = (*models_of(), *subject_and_style())
    with pytest.raises(KeyboardInterrupt):
        magicapture_train.MagiCaptureTrain.execute(*inputs, **TRAIN)
    assert told[:2] == [("recognised", False), ("encoded", None)]
    assert told[-3:] == [("stepped", step) for step in (1, 2, 3)]

    told.clear()
    last = 0
    magicapture_train.MagiCaptureTrain.execute(*inputs, **TRAIN)
    assert told[:2] == [("recognised", True), ("encoded", None)]
    assert told[-4:] == [("taken up", 3), *(("stepped", step) for step in (4, 5, 6))]


def test_a_lora_of_another_model_is_refused_before_it_is_merged():
    model, clip, _ = models_of()
    lora, embeddings, *_ = run_training().args
    [key, *_] = [key for key in lora if key.endswith("lora_up.weight")]
    with pytest.raises(ValueError, match="has numbers that are none"):
        failed = {**lora, key: torch.full_like(lora[key], torch.nan)}
        MagiCaptureApply.execute(model, clip, embeddings, 0.6, 0.9, failed)
    wider = {**lora, key: torch.cat([lora[key], lora[key]])}
    with pytest.raises(ValueError, match=f"and the LoRA has {len(wider[key])}x"):
        MagiCaptureApply.execute(model, clip, embeddings, 0.6, 0.9, wider)
    del wider[key.replace("lora_up", "lora_down")]
    with pytest.raises(ValueError, match=r"it lacks '.*lora_down"):
        MagiCaptureApply.execute(model, clip, embeddings, 0.6, 0.9, wider)
    with pytest.raises(ValueError, match="has nothing for this model"):
        other = {"transformer.x.lora_up.weight": torch.ones(2, 2)}
        MagiCaptureApply.execute(model, clip, embeddings, 0.6, 0.9, other)


def test_apply_leaves_its_inputs_alone():
    model, clip, _ = models_of()
    lora, embeddings, *_ = run_training().args
    before = encode(clip, PROMPT)
    patched, words = MagiCaptureApply.execute(model, clip, embeddings, 0.6, 0.9, lora).args
    assert not torch.equal(encode(words, PROMPT), before)
    assert torch.equal(encode(clip, PROMPT), before)
    assert (
        not model.patches and not clip.patcher.patches and patched.patches and words.patcher.patches
    )


def test_strength_zero_is_the_model_that_came_in():
    model, clip, _ = models_of()
    lora, embeddings, *_ = run_training().args
    patched, words = MagiCaptureApply.execute(model, clip, embeddings, 0.0, 0.0, lora).args
    positive = words.encode_from_tokens_scheduled(words.tokenize("a woman"))
    sampling = Sampling(size=(8, 8), steps=2, negative=positive)
    assert torch.equal(sampling.run(patched, positive), sampling.run(model, positive))
    assert torch.equal(positive[0][0], encode(clip, "a woman"))


def test_saved_files_give_the_same_picture_with_core_nodes(folders):
    import nodes as core

    model, clip, _ = models_of()
    lora, embeddings, *_ = run_training().args
    call_node(core_node("nodes_train", "SaveLoRA"), lora=lora, prefix="loras/test", steps=6)
    [saved] = (folders / "output" / "loras").glob("*.safetensors")
    saved.rename(folders / "loras" / "test.safetensors")
    names = MagicEmbeddingSave.execute(embeddings, "test").args[0].split()
    assert names == ["embedding:test_anna", "embedding:test_ink"]

    ours, words = MagiCaptureApply.execute(model, clip, embeddings, 0.6, 0.9, lora).args
    theirs, plain = core.LoraLoader().load_lora(model, clip, "test.safetensors", 0.6, 0.9)
    plain.tokenizer.clip_l.embedding_directory, kept = (
        [str(folders / "embeddings")],
        plain.tokenizer.clip_l.embedding_directory,
    )
    try:
        prompt = PROMPT.replace("<anna>", names[0]).replace("<ink>", names[1])
        with_core = plain.encode_from_tokens_scheduled(plain.tokenize(prompt))
    finally:
        plain.tokenizer.clip_l.embedding_directory = kept
    with_ours = words.encode_from_tokens_scheduled(words.tokenize(PROMPT))
    assert torch.equal(with_ours[0][0], with_core[0][0])
    sampling = Sampling(size=(8, 8), steps=2, negative=with_core)
    one, two = sampling.run(ours, with_ours), sampling.run(theirs, with_core)
    assert torch.equal(one, two)
    assert not torch.equal(one, sampling.run(model, with_ours)), "the LoRA has no effect"


def test_saved_words_can_be_loaded_under_any_name(folders, monkeypatch):
    clip = models_of()[1]
    _, embeddings, *_ = run_training().args
    MagicEmbeddingSave.execute(embeddings, "test")
    folder_paths.filename_list_cache.pop("embeddings", None)
    said: list[str] = []
    monkeypatch.setattr(embedding_nodes, "say_on_node", said.append)
    same = MagicEmbeddingLoad.execute("test_anna.safetensors", "").args[0]
    assert same[0].placeholder == "<anna>"
    both = MagicEmbeddingLoad.execute("test_ink.safetensors", "charcoal", same).args[0]
    assert said == ["write in the prompt: <anna>"], "the user's own word is on the node already"
    again = with_learned_words(clip, both)
    expected = encode(with_learned_words(clip, embeddings), PROMPT)
    assert torch.equal(encode(again, PROMPT.replace("<ink>", "charcoal")), expected)
    MagicEmbeddingSave.execute(embeddings, "test")
    assert len(list((folders / "embeddings").iterdir())) == 4, "nothing is written over"


@pytest.mark.parametrize(
    "name", ["../test", "/etc/passwd", "missing.safetensors", "a/../b.safetensors"]
)
def test_only_files_of_the_embeddings_folder_are_read(folders, name):
    with pytest.raises(ValueError, match="is not among the safetensors files"):
        load_embedding(name, "")


@pytest.mark.parametrize("name", ["../escape", "a/b", "", "my face", "face\u3164"])
def test_only_plain_file_names_are_written(folders, name):
    with pytest.raises(ValueError, match="must consist of"):
        save_embedding(Embedding("<a>", {"clip_l": torch.zeros(1, 96)}), name)


@pytest.mark.parametrize("name", ["ที่รัก", "हिन्दी", "Jose\u0301", "می\u200cخواهم", "שָׁלוֹם"])
def test_letters_of_several_characters_are_letters(folders, name):
    path = save_embedding(Embedding("<a>", {"clip_l": torch.zeros(1, 96)}), name)
    assert path.stem == name and path.is_file()


# ---- placeholders in prompts ----


@pytest.mark.parametrize("shape", ["sd15", "sd21v", "sdxl"])
@pytest.mark.parametrize("count", [1, 3])
def test_a_placeholder_is_its_vectors_in_any_prompt(shape, count):
    clip = models.random_text_encoders(shape)
    generator = torch.Generator().manual_seed(0)
    widths = {name: word_width(clip, name) for name in encoder_tokenizers(clip.tokenizer)}
    learned = Embedding(
        "<anna>",
        {name: torch.randn(count, width, generator=generator) for name, width in widths.items()},
    )
    words = with_learned_words(clip, [learned])
    text = "a photo of (<anna>:1.3), smiling, and some more words " * 9 + "<anna>"
    found, plain = words.tokenize(text), clip.tokenize(text.replace("<anna>", "cat " * count))
    for name, chunks in found.items():
        assert len(chunks) == len(plain[name]) == 2
        vectors = [
            token for chunk in chunks for token in chunk if isinstance(token[0], torch.Tensor)
        ]
        assert len(vectors) == 10 * count
        assert [weight for _, weight in vectors] == [pytest.approx(1.3)] * 9 * count + [1.0] * count
        assert all(
            torch.equal(vectors[i][0], learned.vectors[f"clip_{name}"][i % count])
            for i in range(len(vectors))
        )
        assert [w for chunk in chunks for _, w in chunk] == pytest.approx(
            [w for chunk in plain[name] for _, w in chunk]
        )
    assert encode(words, text).isfinite().all()
    assert torch.equal(encode(words, "a cat"), encode(clip, "a cat"))


def test_words_of_two_trainings_go_together(folders):
    clip = models_of()[1]
    generator = torch.Generator().manual_seed(0)
    anna, ink, coal = (
        Embedding(word, {"clip_l": torch.randn(2, 96, generator=generator)})
        for word in ("<anna>", "<ink>", "<coal>")
    )
    both = with_learned_words(with_learned_words(clip, [anna]), [ink, coal])
    text = "a photo of <anna> in <ink>, (<coal>:1.2)"
    assert torch.equal(
        encode(both, text), encode(with_learned_words(clip, [anna, ink, coal]), text)
    )
    with pytest.raises(ValueError, match="'<anna>' is there twice"):
        with_learned_words(both, [anna])


def test_a_clip_with_learned_words_can_be_trained_again(folders):
    model, clip, vae = models_of()
    known = with_learned_words(clip, [Embedding("<other>", {"clip_l": torch.ones(1, 96)})])
    first, second = (
        CaptureTraining(model, each, vae, *sets(), None, QUICK) for each in (clip, known)
    )
    assert torch.equal(
        *(run.networks.text.prompt("a photo of <anna>").ids["clip_l"] for run in (first, second))
    )


def test_a_template_with_an_embedding_is_refused(folders, monkeypatch):
    save_embedding(Embedding("<a>", {"clip_l": torch.zeros(1, 96)}), "there")
    folder_paths.filename_list_cache.pop("embeddings", None)
    model, clip, vae = models_of()
    monkeypatch.setattr(clip.tokenizer.clip_l, "embedding_directory", [str(folders / "embeddings")])
    subject, style = sets()
    subject = replace(subject, templates=("a photo of a {person}, embedding:there",))
    with pytest.raises(ValueError, match="have no weights or embeddings"):
        CaptureTraining(model, clip, vae, subject, style, None, QUICK)


def test_a_files_name_keeps_the_marks_of_a_placeholder(folders):
    [saved] = MagicEmbeddingSave.execute(
        (Embedding("<मित्र>", {"clip_l": torch.ones(1, 96)}),), "word"
    ).args
    assert saved == "embedding:word_मित्र"


def test_a_name_with_a_space_is_one_that_prompts_can_use(folders, monkeypatch):
    [saved] = MagicEmbeddingSave.execute(
        (Embedding("<a>", {"clip_l": torch.ones(1, 96)}),), "my face"
    ).args
    assert saved == "embedding:my_face_a"
    clip = models_of()[1]
    monkeypatch.setattr(clip.tokenizer.clip_l, "embedding_directory", [str(folders / "embeddings")])
    assert any(isinstance(token[0], torch.Tensor) for token in clip.tokenize(saved)["l"][0])


def test_a_placeholder_is_no_part_of_other_words():
    clip = models_of()[1]
    words = with_learned_words(
        clip,
        [
            Embedding("sks", {"clip_l": torch.ones(1, 96)}),
            Embedding("sks2", {"clip_l": torch.zeros(1, 96)}),
        ],
    )
    tokens = words.tokenize("risks, sks, sks2, sksx and asks")["l"][0]
    assert [token[0].sum().item() for token in tokens if isinstance(token[0], torch.Tensor)] == [
        96,
        0,
    ]


def test_words_of_another_model_are_refused():
    with pytest.raises(
        ValueError,
        match=(
            "was made for another model: text encoder clip_l needs vectors of 96 numbers, it"
            " has 768"
        ),
    ):
        with_learned_words(models_of()[1], [Embedding("<a>", {"clip_l": torch.zeros(1, 768)})])


@pytest.mark.parametrize("placeholder", ["two words", "a,b", "(a)", "", "a:b"])
def test_bad_placeholders_are_refused_before_the_execution(placeholder):
    for node in (MagiCaptureSubject, MagiCaptureStyle):
        assert "must be one word" in str(node.validate_inputs([placeholder]))
        assert node.validate_inputs([None]) is True


@pytest.mark.parametrize(
    ("placeholder", "class_word", "where"),
    [
        ("woman", "woman", "class word 'woman'"),
        ("WOMAN", "a woman", "class word 'a woman'"),
        ("photo", "woman", "template 'a photo of a {person}"),
        ("style", "woman", "template 'a photo of a {person} in the style of"),
    ],
)
def test_a_placeholder_that_prompts_use_already_is_refused(placeholder, class_word, where):
    for template, made in (
        ("a photo of a {person} in the style of ink", Subject),
        ("a photo of a {person} in the style of {style}", StyleSet),
    ):
        with pytest.raises(ValueError, match=rf"{re.escape(where)}.* such as '<anna>'"):
            made((), placeholder, class_word, (template,))


def test_a_slot_s_name_is_no_word_of_a_template():
    slots = "a {person} in {style}"
    assert StyleSet((), "person", "woman", (slots,)).templates == (slots,)


@pytest.mark.parametrize(
    ("subject", "style", "message"),
    [
        ("<anna>", "<ANNA>", "have the same placeholder '<anna>'"),
        ("picture", "<ink>", "'picture' is a word of the template 'a picture of a"),
        ("<anna>", "one", "'one' is a word of the template 'one {person}'"),
    ],
)
def test_a_placeholder_is_no_word_of_the_other_set(subject, style, message):
    person, ink = sets()
    pictures = replace(person, placeholder=subject), replace(ink, placeholder=style)
    with pytest.raises(ValueError, match=re.escape(message)):
        CaptureTraining(*models_of(), *pictures, None, QUICK)


@pytest.mark.parametrize("templates", ["", "a photo", "{person} and {person}"])
def test_bad_templates_are_refused(templates):
    twice = templates + "{person} {style} {style}"
    for made, text in ((Subject, templates), (StyleSet, twice)):
        with pytest.raises(ValueError, match="template"):
            made((), "<a>", "woman", tuple(text.splitlines()))


def test_a_training_without_steps_is_refused():
    subject, style = subject_and_style()
    nothing = {**TRAIN, "inversion_steps": 0, "lora_steps": 0}
    with pytest.raises(ValueError, match="no steps: give inversion_steps or lora_steps some"):
        MagiCaptureTrain.execute(*models_of(), subject, style, **nothing)


# ---- folders ----


@pytest.mark.parametrize(
    ("node", "is_face_bright"), [(MagiCaptureSubject, True), (MagiCaptureStyle, False)]
)
def test_a_set_shows_dark_what_is_not_learned_of_it(folders, node, is_face_bright):
    face = torch.zeros(1, 64, 64)
    face[:, :32] = 1
    texts = {"placeholder": ["<it>"], "class_word": ["woman"], "templates": ["{person}"]}
    if node is MagiCaptureStyle:
        texts["templates"] = ["{person}, {style}"]
    shown = node.execute(
        folder=[NO_FOLDER], images=[torch.ones(1, 64, 64, 3)], faces=[face], **texts
    ).ui
    [image] = shown["images"]
    with Image.open(folders / "temp" / image["subfolder"] / image["filename"]) as picture:
        on_face, beside = (picture.convert("L").getpixel((128, y)) for y in (32, 224))
    assert (on_face > beside) == is_face_bright and shown["magic_masked"] == [True]


def test_pictures_and_masks_from_a_folder(folders):
    root = folders / "input" / "anna"
    (root / "mask").mkdir(parents=True)
    images, masks = captures.draw(captures.sample_capture(1, "neon", 2).subject, 64)
    for i, (image, mask) in enumerate(zip(images, masks)):
        Image.fromarray((image * 255).astype("uint8")).resize((64 + 8 * i, 64)).save(
            root / f"{i}.png"
        )
        Image.fromarray((mask * 255).astype("uint8")).resize((64 + 8 * i, 64)).save(
            root / "mask" / f"{i}.png"
        )
    output = MagiCaptureSubject.execute(["anna"], ["<anna>"], ["woman"], ["{person}"])
    subject = output.args[0]
    assert [picture.image.shape for picture in subject.pictures] == [(64, 64, 3), (64, 72, 3)]
    assert [picture.name for picture in subject.pictures] == ["0.png", "1.png"]
    assert len(output.ui["images"]) == 2 and output.ui["magic_masked"] == [True]
    before = MagiCaptureSubject.fingerprint_inputs(folder=["anna"])
    (root / "mask" / "1.png").unlink()
    assert MagiCaptureSubject.fingerprint_inputs(folder=["anna"]) != before
    with pytest.raises(ValueError, match=r"1\.png has no mask"):
        MagiCaptureSubject.execute(["anna"], ["<anna>"], ["woman"], ["{person}"])


def test_captions_lie_beside_their_pictures_or_come_as_lines(folders, caplog):
    root = folders / "input" / "anna"
    (root / "mask").mkdir(parents=True)
    for i in range(2):
        Image.new("RGB", (64, 64), (90, 60 * i, 0)).save(root / f"{i}.png")
        Image.new("L", (64, 64), 255).save(root / "mask" / f"{i}.png")
    texts = ["anna"], ["<anna>"], ["woman"], ["{person}"]
    before = MagiCaptureSubject.fingerprint_inputs(folder=["anna"])
    (root / "1.txt").write_text("a smiling {person}\n", "utf-8")
    assert MagiCaptureSubject.fingerprint_inputs(folder=["anna"]) != before
    subject = MagiCaptureSubject.execute(*texts).args[0]
    said = [subject.prompts_of(picture) for picture in subject.pictures]
    assert said == [("<anna> woman",), ("a smiling <anna> woman",)]
    assert "not read" not in caplog.text
    # An empty line leaves the templates.
    subject = MagiCaptureSubject.execute(*texts, captions=["in a red hat", ""]).args[0]
    said = [subject.prompts_of(picture) for picture in subject.pictures]
    assert said == [("<anna> woman, in a red hat",), ("<anna> woman",)]
    subject = MagiCaptureSubject.execute(*texts, captions=["in a red hat\n"]).args[0]
    assert said == [subject.prompts_of(picture) for picture in subject.pictures]
    with pytest.raises(ValueError, match="2 pictures but 3 captions"):
        MagiCaptureSubject.execute(*texts, captions=["a\nb\nc"])
    with pytest.raises(ValueError, match=r"caption of 0\.png: .*\{person\} in it exactly once"):
        MagiCaptureSubject.execute(*texts, captions=["{person} and {person}"])
    (root / "1.txt").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(ValueError, match=r"1\.txt cannot be read as text: save it in UTF-8"):
        MagiCaptureSubject.execute(*texts)


@pytest.mark.parametrize("name", ["../anna", "/etc", "link"])
def test_no_other_folder_is_read(folders, name):
    (folders / "elsewhere").mkdir()
    Image.new("RGB", (8, 8)).save(folders / "elsewhere" / "a.png")
    (folders / "input" / "link").symlink_to(folders / "elsewhere")
    with pytest.raises(ValueError, match="is not there"):
        MagiCaptureSubject.execute([name], ["<anna>"], ["woman"], ["{person}"])


def test_without_pictures():
    with pytest.raises(ValueError, match="no pictures: connect images, or choose a folder"):
        MagiCaptureSubject.execute([NO_FOLDER], ["<anna>"], ["woman"], ["{person}"])


def test_lists_of_pictures_of_different_sizes():
    images = [torch.rand(2, 64, 64, 3), torch.rand(1, 80, 64, 4)]
    faces = [torch.ones(2, 64, 64), torch.ones(1, 80, 64)]
    output = MagiCaptureStyle.execute(
        [NO_FOLDER], ["<ink>"], ["woman"], [STYLE_TEMPLATES], images, faces
    )
    assert [picture.image.shape for picture in output.args[0].pictures] == [(64, 64, 3)] * 2 + [
        (80, 64, 3)
    ]


# ---- faces found where masks are missing ----


class Detector:
    """In place of cv2.FaceDetectorYN: for each picture in turn, its faces as x, y, width,
    height."""

    def __init__(self, *faces: list[tuple[int, ...]]):
        self.answers = [
            np.array([[*face, *[0] * 10, 0.9] for face in found], np.float32) if found else None
            for found in faces
        ]

    def detect(self, image: np.ndarray) -> tuple[int, np.ndarray | None]:
        return 1, self.answers.pop(0)


@pytest.fixture
def detectors(folders, monkeypatch) -> Path:
    """The folder of face detectors, and no other place where one could be."""
    monkeypatch.setattr(folder_paths, "models_dir", str(folders / "models"))
    table = {
        name: entry
        for name, entry in folder_paths.folder_names_and_paths.items()
        if name not in ("face_detection", "detection")
    }
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", table)
    (folders / "models" / "face_detection").mkdir(parents=True)
    return folders / "models" / "face_detection"


@pytest.fixture
def detecting(detectors, monkeypatch):
    cv2 = pytest.importorskip("cv2", reason="tests/requirements.txt brings it")
    (detectors / "yunet.onnx").write_bytes(b"not read by the stand-in")

    def install(*faces: list[tuple[int, ...]]) -> None:
        detector = Detector(*faces)
        monkeypatch.setattr(cv2.FaceDetectorYN, "create", lambda *args, **options: detector)

    return install


def subject_of(*images: torch.Tensor, **inputs: Any) -> Any:
    common = {
        "folder": [NO_FOLDER],
        "placeholder": ["<anna>"],
        "class_word": ["woman"],
        "templates": ["a photo of a {person}"],
    }
    return MagiCaptureSubject.execute(images=list(images) or None, **{**common, **inputs}).args[0]


def test_the_largest_face_is_the_mask_and_a_picture_without_is_named(detecting, caplog):
    detecting([(4, 6, 10, 12), (20, 10, 24, 30)], [])
    first, second = subject_of(torch.rand(1, 64, 48, 3), torch.rand(1, 40, 40, 4)).pictures
    assert first.mask[25, 32] == 1 and not first.mask[:10].any() and not first.mask[:, :19].any()
    assert first.mask.sum().item() == pytest.approx(math.pi / 4 * 24 * 30, rel=0.05)
    assert second.mask.shape == (40, 40) and second.mask.all()
    [warning] = [record.getMessage() for record in caplog.records]
    assert "no face found in subject picture 2" in warning


def test_masks_that_come_are_not_searched_for(detecting, caplog):
    detecting()
    mask = torch.zeros(1, 32, 32)
    mask[:, 8:16, 8:16] = 1
    [picture] = subject_of(torch.rand(1, 32, 32, 3), faces=[mask]).pictures
    assert torch.equal(picture.mask, mask[0]) and not caplog.records


def test_pictures_of_a_folder_without_masks_are_searched_too(detecting, folders):
    (folders / "input" / "anna").mkdir()
    Image.new("RGB", (40, 30)).save(folders / "input" / "anna" / "one.png")
    detecting([(10, 5, 12, 20)])
    [picture] = subject_of(folder=["anna"]).pictures
    assert picture.mask[15, 16] == 1 and not picture.mask[:, :9].any()


def test_without_a_detector_the_warning_says_what_to_put_where(detectors, caplog):
    [picture] = subject_of(torch.rand(1, 32, 32, 3)).pictures
    assert picture.mask.all()
    [warning] = [record.getMessage() for record in caplog.records]
    for words in (
        "every picture counts as face",
        "face_detection_yunet_2023mar.onnx",
        str(detectors),
    ):
        assert words in warning


def test_without_opencv_the_warning_says_so(detectors, monkeypatch, caplog):
    (detectors / "yunet.onnx").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "cv2", None)
    [picture] = subject_of(torch.rand(1, 32, 32, 3)).pictures
    assert picture.mask.all() and "requirements-optional.txt" in caplog.text


def test_a_new_detector_counts_where_masks_are_missing(detectors, folders):
    (folders / "input" / "anna" / "mask").mkdir(parents=True)
    for path in ("one.png", "mask/one.png"):
        Image.new("RGB", (8, 8)).save(folders / "input" / "anna" / path)
    given = {
        "linked": {"faces": None, "folder": [NO_FOLDER]},
        "folder": {"folder": ["anna"]},
        "none": {"images": None, "folder": [NO_FOLDER]},
    }
    before = {name: MagiCaptureStyle.fingerprint_inputs(**inputs) for name, inputs in given.items()}
    (detectors / "yunet.onnx").write_bytes(b"")
    after = {name: MagiCaptureStyle.fingerprint_inputs(**inputs) for name, inputs in given.items()}
    assert [name for name in given if before[name] != after[name]] == ["none"]
    (detectors / "yunet.onnx").write_bytes(b"another of the same name")
    again = MagiCaptureStyle.fingerprint_inputs(**given["none"])
    assert again != after["none"], "the file behind a name has changed"


# ---- numbers, inputs that are missing, files behind names ----

NODES = [MagiCaptureSubject, MagiCaptureStyle]
NONE = [float("nan"), float("inf"), -float("inf")]


@pytest.mark.parametrize("node", NODES)
def test_a_missing_input_is_the_host_s_to_say(node):
    """It calls validate_inputs without what is missing."""
    assert node.validate_inputs() is True


@pytest.mark.parametrize("value", NONE)
@pytest.mark.parametrize(
    "name", ["unet_rate", "text_rate", "inversion_rate", "embedding_rate", "refocus_weight"]
)
def test_numbers_that_are_none_do_not_train(name, value):
    subject, style = subject_and_style()
    with pytest.raises(ValueError, match=f"^{name} is .*, expected 0 to"):
        MagiCaptureTrain.execute(*models_of(), subject, style, **{**TRAIN, name: value})


@pytest.mark.parametrize("value", NONE)
@pytest.mark.parametrize("name", ["strength_model", "strength_clip"])
def test_strengths_that_are_none_are_refused(name, value):
    model, clip, _ = models_of()
    strengths = {"strength_model": 1.0, "strength_clip": 1.0, name: value}
    with pytest.raises(ValueError, match=f"^{name} is .*, expected -10 to 10"):
        MagiCaptureApply.execute(model, clip, (), **strengths)


def test_pictures_of_no_numbers_are_named():
    broken = torch.rand(2, 32, 32, 3)
    broken[1, 3, 3, 0] = float("nan")
    with pytest.raises(ValueError, match="subject picture 2 has values in it that are no numbers"):
        subject_of(broken, faces=[torch.ones(2, 32, 32)])


@pytest.mark.parametrize("size", [(1, 1), (15, 64)])
def test_a_picture_of_a_few_pixels_is_named_before_the_training(size):
    with pytest.raises(ValueError, match=r"subject picture 2 has .* pixels, .* one of 16 or more"):
        subject_of(torch.rand(1, 64, 64, 3), torch.rand(1, *size, 3))
    with pytest.raises(ValueError, match=r"class picture 1 has .* pixels"):
        subject_of(torch.rand(1, 64, 64, 3), class_images=[torch.rand(1, *size, 3)])


def test_a_picture_that_is_a_stripe_is_named():
    subject, style = sets()
    stripe = replace(
        subject.pictures[0],
        name="stripe.png",
        image=torch.rand(1, 3000, 3),
        mask=torch.ones(1, 3000),
    )
    with pytest.raises(ValueError, match=r"stripe\.png is 3000x1: .* at most 8 times"):
        CaptureTraining(*models_of(), replace(subject, pictures=(stripe,)), style, None, QUICK)


def test_a_changed_identity_network_is_noticed(folders, monkeypatch):
    (folders / "models" / "face_identity").mkdir(parents=True)
    monkeypatch.setattr(folder_paths, "models_dir", str(folders / "models"))
    table = {
        name: entry
        for name, entry in folder_paths.folder_names_and_paths.items()
        if name != "face_identity"
    }
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", table)
    loader, path = MagicIdentityLoader, folders / "models" / "face_identity" / "arc.onnx"
    path.write_bytes(b"one")
    before = loader.fingerprint_inputs(file="arc.onnx")
    path.write_bytes(b"another")
    assert before and loader.fingerprint_inputs(file="arc.onnx") != before
    assert loader.fingerprint_inputs(file=TOY_IDENTITY) == ""
    assert loader.fingerprint_inputs() == ""


def test_the_preset_is_the_official_code_s(monkeypatch):
    settings: list[CaptureSettings] = []

    class Stop(Exception):
        pass

    def training(*args: Any, **options: Any) -> None:
        settings.append(args[6])
        raise Stop

    monkeypatch.setattr(magicapture_train, "CaptureTraining", training)
    subject, style = subject_and_style()
    for inputs in ({}, {"preset": "as set", "identity_until": 300}, {"preset": "official"}):
        with pytest.raises(Stop):
            MagiCaptureTrain.execute(*models_of(), subject, style, **TRAIN, **inputs)
    plain, ours, official = settings
    assert plain == replace(ours, identity_until=CaptureSettings().identity_until)
    assert ours.identity_until == 300 and not ours.is_official
    assert official == plain.as_official() != plain


def test_a_pack_that_changes_every_tokenizer_of_a_clip_finds_the_host_s(monkeypatch):
    """smZNodes and the like wrap `tokenize_with_weights` of every attribute of clip.tokenizer that
    has it, and read `embedding_key` of each."""
    clip = models.random_clip()
    word = Embedding("<anna>", {"clip_l": torch.randn(1, models.CONTEXT)})
    learned = with_learned_words(clip, [word])
    expected = learned.encode_from_tokens_scheduled(learned.tokenize("a photo of <anna>"))
    calls: list[str] = []
    for part in [
        part for part in vars(learned.tokenizer).values() if hasattr(part, "tokenize_with_weights")
    ]:
        original = part.tokenize_with_weights

        def wrap(*args, part=part, original=original, **kwargs):
            calls.append(part.embedding_key)
            return original(*args, **kwargs)

        monkeypatch.setattr(part, "tokenize_with_weights", wrap, raising=False)
    again = learned.encode_from_tokens_scheduled(learned.tokenize("a photo of <anna>"))
    assert calls == ["clip_l"] and torch.equal(again[0][0], expected[0][0])


@pytest.mark.parametrize("node", [MagiCaptureSubject, MagiCaptureStyle])
def test_face_masks_of_cut_outs_are_noticed_and_can_be_turned_round(node, caplog):
    face = torch.zeros(2, 32, 32)
    face[:, 8:24, 8:24] = 1
    inputs = {
        "folder": [NO_FOLDER],
        "placeholder": ["<a>"],
        "class_word": ["man"],
        "templates": ["{person} {style}" if node is MagiCaptureStyle else "{person}"],
        "images": [torch.rand(2, 32, 32, 3)],
    }
    node.execute(**inputs, faces=[1 - face])
    assert re.search("a face mask of the (subject|style) has the border of the pict", caplog.text)
    caplog.clear()
    pictures = node.execute(**inputs, faces=[1 - face], invert=[True]).args[0].pictures
    assert all(torch.equal(each.mask, face[0]) for each in pictures) and not caplog.text
