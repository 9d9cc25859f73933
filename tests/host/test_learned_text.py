"""Words that are learned for the text encoders of transformers."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cache
from typing import Any

import folder_paths
import pytest
import torch
from safetensors.torch import save_file

from magicportrait.demo import transformer_checkpoint
from magicportrait.host.sampling.backbone import backbone_of
from magicportrait.host.text.clip import list_name, loaded_encoders, word_width
from magicportrait.host.text.context import ContextTokens
from magicportrait.host.text.embedding_files import load_embedding, save_embedding
from magicportrait.host.text.learned_words import Embedding, with_learned_words
from magicportrait.host.training.checkpoint import TrainingState
from magicportrait.host.training.learned_text import LearnedText
from magicportrait.host.training.memory import training_mode
from magicportrait.host.training.networks import learns_words
from magicportrait.host.training.run import CaptureTraining
from magicportrait.host.training.settings import WORDS as WORDS_OF
from magicportrait.host.training.settings import CaptureSettings
from magicportrait.tests.host import dits
from magicportrait.tests.host.dit_text import random_clip_of
from magicportrait.tests.host.dits import WIDTH
from magicportrait.tests.host.test_flow_training import QUICK, parts
from magicportrait.tests.host.test_magicapture import sets

FAMILIES = ("flux", "chroma", "qwen", "lumina2", "hidream")
"""CLIP with T5, T5 alone, Qwen, Gemma, and CLIP, T5 and Llama."""
WORDS = ("<anna>", "<ink>")
PROMPT = "a <anna> woman, in <ink> style"


def learned_text(family: str) -> LearnedText:
    model = {"klein": "flux2"}.get(family, family)
    context = backbone_of(dits.random_transformer(model)).context or ContextTokens()
    text = LearnedText(random_clip_of(family), WORDS, context, torch.device("cpu"), torch.float32)
    norms = text.typical_norms(["woman", "person"])
    text.initialise(["woman", ""], norms, torch.Generator().manual_seed(0))
    return text


@pytest.mark.parametrize("family", FAMILIES)
def test_a_learned_word_is_what_its_vectors_are_to_the_host(family):
    with torch.inference_mode():
        random_clip_of(family)
    with training_mode():
        text = learned_text(family)
        text.check_against("a woman, in a plain style")
        [ours] = text.encode([text.prompt(PROMPT)])
        assert [len(span) > 0 for span in ours.spans] == [True, True]
        outputs = [ours.context, *ours.options.values()]
        told = [each for each in outputs if isinstance(each, torch.Tensor) and each.requires_grad]
        # Weighed, since the sum of what a norm gives is a constant.
        generator = torch.Generator().manual_seed(1)
        weights = [torch.randn(each.shape, generator=generator) for each in told]
        gradients = torch.autograd.grad(told, text.rows, weights)
    assert all((rows.abs().amax(1) > 0).all() for rows in gradients)
    with torch.inference_mode():
        clip = with_learned_words(random_clip_of(family), text.learned())
        theirs, options = clip.encode_from_tokens_scheduled(clip.tokenize(PROMPT))[0]
    pairs = [(ours.context, theirs)]
    pairs += [
        (value, options[name])
        for name, value in ours.options.items()
        if isinstance(value, torch.Tensor) and value.is_floating_point()
    ]
    assert len(pairs) == {"hidream": 3, "chroma": 1, "qwen": 1, "lumina2": 1}.get(family, 2)
    for mine, other in pairs:
        torch.testing.assert_close(mine.detach(), other.clone(), rtol=2e-3, atol=2e-3)


# ---- among the tokens of a prompt ----


TEXTS = (
    "a <anna> woman, in plain style",
    "<anna>",
    "<anna>\n<anna>",
    "two  <anna> , <anna>'s hat",
    "a\n<anna>.",
    "<anna>女",
    "a photo\n\nof <anna>",
)


@cache
def with_words(family: str, words: tuple[str, ...] = WORDS, count: int = 1) -> Any:
    """A CLIP in which words have `count` vectors each, for every encoder that is there."""
    with torch.inference_mode():
        clip = random_clip_of(family)
        encoders = {name: word_width(clip, name) for name in loaded_encoders(clip)}
        return with_learned_words(
            clip,
            [
                Embedding(
                    word, {name: torch.randn(count, width) for name, width in encoders.items()}
                )
                for word in words
            ],
        )


def ids_of(clip: Any, text: str) -> dict[str, list[int | None]]:
    """For each text encoder the ids, None for a vector."""
    return {
        name: [first if isinstance(first, int) else None for chunk in chunks for first, *_ in chunk]
        for name, chunks in clip.tokenize(text).items()
    }


@pytest.mark.parametrize("family", [*FAMILIES, "anima"])
def test_all_else_of_a_prompt_is_what_it_is_beside_an_ordinary_word(family):
    """The template around it, too."""
    clip, plain = with_words(family), random_clip_of(family)
    lists = [list_name(encoder) for encoder in loaded_encoders(clip)]
    for text in TEXTS:
        ids, beside = (
            ids_of(*each) for each in ((clip, text), (plain, text.replace("<anna>", "cat")))
        )
        for name in lists:
            assert ids[name].count(None) == text.count("<anna>")
            assert ids[name] == [
                None if mine is None else other
                for mine, other in zip(ids[name], beside[name], strict=True)
            ]


def test_a_word_of_several_vectors_is_one_beside_the_other_to_both_encoders():
    clip = with_words("flux", count=3)
    for ids in ids_of(clip, "a <anna> woman").values():
        assert ids[ids.index(None) :][:4].count(None) == 3 and ids.count(None) == 3


def test_an_encoder_without_vectors_reads_the_letters_of_a_word():
    """Anima's T5 is a list of ids, which the model itself turns into vectors."""
    clip, plain = with_words("anima"), random_clip_of("anima")
    read = ids_of(clip, "a <anna> woman")["t5xxl"]
    assert read == ids_of(plain, "a anna woman")["t5xxl"]


@pytest.mark.parametrize("family", ["flux", "qwen", "lumina2"])
def test_a_word_behind_the_mark_of_the_hosts_files_is_the_word(family):
    clip = with_words(family)
    for text in ("embedding:<anna>", "a embedding:<ANNA>, b", "(embedding:<anna>) b"):
        assert ids_of(clip, text) == ids_of(clip, text.replace("embedding:", ""))


def test_a_file_whose_name_begins_with_a_learned_word_is_still_a_file(tmp_path):
    """And one of just that name is the learned word."""
    for name in ("sks-2", "sks"):
        save_embedding_file(tmp_path / f"{name}.safetensors")
    clip = copy.copy(with_words("flux", ("sks",)))
    clip.tokenizer = copy.copy(clip.tokenizer)
    for part in ("clip_l", "t5xxl"):
        own = copy.copy(getattr(clip.tokenizer, part))
        own.embedding_directory = [str(tmp_path)]
        setattr(clip.tokenizer, part, own)

    def vectors(text: str) -> list[float]:
        return [
            float((first["data"] if isinstance(first, dict) else first).abs().sum())
            for chunks in clip.tokenize(text).values()
            for chunk in chunks
            for first, *_ in chunk
            if not isinstance(first, int)
        ]

    of_file, of_word = vectors("a embedding:sks-2 b"), vectors("a embedding:sks b")
    assert of_file == [7.0 * WIDTH] * 2
    assert of_word == vectors("a sks b") and len(of_word) == 2 and of_word != of_file


def save_embedding_file(path: Any) -> None:
    save_file({"emb_params": torch.full((1, WIDTH), 7.0)}, path)


@pytest.mark.parametrize("family", ["flux", "qwen"])
def test_words_that_touch_are_found_apart(family):
    clip = with_words(family)
    kind = ContextTokens("t5xxl") if family == "flux" else ContextTokens()
    for text in ("a <anna><ink> b", "a <anna>,<ink> b", "a <anna> <ink> b", "a (<anna>)<ink>"):
        ids = ids_of(clip, text)[kind.tokens or "qwen25_7b"]
        vectors = tuple((place,) for place, id in enumerate(ids) if id is None)
        assert kind.places(clip, text, WORDS, len(ids)).spans == vectors


def test_unequal_numbers_of_vectors_are_a_sentence_before_anything_is_encoded():
    clip = random_clip_of("flux")
    vectors = {"clip_l": torch.ones(2, WIDTH), "t5xxl": torch.ones(3, WIDTH)}
    with pytest.raises(ValueError, match=r"'<anna>' has unequal .* 2 for clip_l and 3 for t5xxl"):
        with_learned_words(clip, [Embedding("<anna>", vectors)])
    vectors["another"] = torch.ones(4, WIDTH)
    vectors["t5xxl"] = torch.ones(2, WIDTH)
    changed = with_learned_words(clip, [Embedding("<anna>", vectors)])
    assert [ids.count(None) for ids in ids_of(changed, "a <anna>").values()] == [2, 2]


def test_a_class_word_without_tokens_is_a_sentence_that_says_what_to_write():
    text = learned_text("chroma")
    with pytest.raises(ValueError, match=r"class_word '' is nothing to .* t5xxl.* such as 'woman'"):
        text.typical_norms([""])


def training(checks_memory: bool = False, family: str = "flux") -> CaptureTraining:
    changes: dict[str, Any] = {"words": "learned", "inversion_steps": 2, "lora_steps": 2}
    settings = replace(QUICK, **changes, inversion_rate=0.1)
    return CaptureTraining(*parts(family), *sets(), None, settings, checks_memory=checks_memory)


def test_both_phases_teach_words_to_clip_and_t5_and_go_on_bit_for_bit(tmp_path, monkeypatch):
    places = ([str(tmp_path)], {".safetensors"})
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "embeddings", places)
    folder_paths.filename_list_cache.pop("embeddings", None)
    run = training(checks_memory=True)
    assert run.need is not None and run.need.text > 0
    before = [rows.detach().clone() for rows in run.networks.text.rows]
    kept: list[TrainingState] = []

    def keep(step: int, loss: float) -> None:
        if step == 3:
            kept.append(copy.deepcopy(run.state()))

    whole = run.run(keep)
    assert all(
        (now.detach() != then).any(1).all()
        for now, then in zip(run.networks.text.rows, before, strict=True)
    )
    assert any(tensor.any() for name, tensor in whole.lora.items() if "lora_up" in name)
    assert [word.placeholder for word in whole.embeddings] == ["<anna>", "<ink>"]
    assert {*whole.embeddings[0].vectors} == {"clip_l", "t5xxl"}
    second = training()
    assert second.fingerprint == run.fingerprint
    second.take_up(kept[0], tmp_path)
    with training_mode():
        second.train_step()
    assert second.history.losses == whole.history
    assert all(map(torch.equal, second.networks.learned, run.networks.learned))
    # In a file, and from it.
    [path] = [save_embedding(whole.embeddings[0], "anna")]
    assert {*load_embedding(path.name, "").vectors} == {"clip_l", "t5xxl"}


def test_the_words_of_a_language_model_that_is_read_beside_the_context_are_taught_too():
    run = training(family="hidream")
    before = [rows.detach().clone() for rows in run.networks.text.rows]
    with training_mode():
        run.train_step()
    moved = [
        (now.detach() != then).any()
        for now, then in zip(run.networks.text.rows, before, strict=True)
    ]
    [word, _] = run.networks.text.learned()
    assert {*word.vectors} == {"clip_l", "clip_g", "t5xxl", "llama"} and all(moved)


def test_words_are_learned_where_there_is_clip_alone_or_where_it_is_asked_for():
    settings = CaptureSettings()
    model, clip, _ = parts("flux")
    asked = [learns_words(model, clip, replace(settings, words=words)) for words in WORDS_OF]
    assert asked == [False, True, False]
    toy = transformer_checkpoint.load()
    asked = [learns_words(*toy[:2], replace(settings, words=words)) for words in WORDS_OF]
    assert asked == [True, True, False]
