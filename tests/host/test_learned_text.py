"""Words that are learned for the text encoders of transformers."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import folder_paths
import pytest
import torch

from magicportrait.demo import transformer_checkpoint
from magicportrait.host.sampling.backbone import backbone_of
from magicportrait.host.text.context import ContextTokens
from magicportrait.host.text.embedding_files import load_embedding, save_embedding
from magicportrait.host.text.learned_words import with_learned_words
from magicportrait.host.training.checkpoint import TrainingState
from magicportrait.host.training.learned_text import LearnedText
from magicportrait.host.training.memory import training_mode
from magicportrait.host.training.networks import learns_words
from magicportrait.host.training.run import CaptureTraining
from magicportrait.host.training.settings import WORDS as WORDS_OF
from magicportrait.host.training.settings import CaptureSettings
from magicportrait.tests.host import dits
from magicportrait.tests.host.dit_text import random_clip_of
from magicportrait.tests.host.test_flow_training import QUICK, parts
from magicportrait.tests.host.test_magicapture import sets

FAMILIES = ("flux", "chroma", "qwen", "lumina2")
"""CLIP with T5, T5 alone, Qwen, Gemma."""
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
        outputs = [ours.context, ours.options["pooled_output"]]
        told = [each for each in outputs if each is not None and each.requires_grad]
        # Weighed, since the sum of what a norm gives is a constant.
        generator = torch.Generator().manual_seed(1)
        weights = [torch.randn(each.shape, generator=generator) for each in told]
        gradients = torch.autograd.grad(told, text.rows, weights)
    assert all((rows.abs().amax(1) > 0).all() for rows in gradients)
    with torch.inference_mode():
        clip = with_learned_words(random_clip_of(family), text.learned())
        theirs, _ = clip.encode_from_tokens_scheduled(clip.tokenize(PROMPT))[0]
    torch.testing.assert_close(ours.context.detach(), theirs.clone(), rtol=2e-3, atol=2e-3)


def training(checks_memory: bool = False) -> CaptureTraining:
    changes: dict[str, Any] = {"words": "learned", "inversion_steps": 2, "lora_steps": 2}
    settings = replace(QUICK, **changes, inversion_rate=0.1)
    return CaptureTraining(*parts("flux"), *sets(), None, settings, checks_memory=checks_memory)


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


def test_words_are_learned_where_there_is_clip_alone_or_where_it_is_asked_for():
    settings = CaptureSettings()
    model, clip, _ = parts("flux")
    asked = [learns_words(model, clip, replace(settings, words=words)) for words in WORDS_OF]
    assert asked == [False, True, False]
    toy = transformer_checkpoint.load()
    asked = [learns_words(*toy[:2], replace(settings, words=words)) for words in WORDS_OF]
    assert asked == [True, True, False]
