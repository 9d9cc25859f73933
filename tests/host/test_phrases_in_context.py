"""Where phrases are in the context that a transformer gets: the host's real tokenizers and
templates, with tiny text encoders."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import comfy.lora
import comfy.utils
import pytest
import torch

from magicportrait.host.text.context import ContextTokens, WordPlaces
from magicportrait.host.text.prompts import (
    tagged_conditioning,
    tagged_prompt,
    with_lora_text,
    words_of_phrases,
    words_that_stand_once,
)
from magicportrait.magic.concepts import ConceptLora
from magicportrait.tests.host import sampling
from magicportrait.tests.host.dit_text import ENCODERS, random_clip_of

CAUSAL = ("flux2", "klein", "qwen", "zimage", "lumina2", "krea2")
"""A word changes what comes from there on."""
T5 = ("flux", "chroma", "anima")
PROMPT = "a man with a green hat and a white scarf"


def kind(encoder: str) -> ContextTokens:
    return ContextTokens(
        "t5xxl" if encoder in (*T5, "sd3", "hidream") else None,
        encoder == "sd3",
        behind="llama" if encoder == "hidream" else None,
        is_inside=encoder == "anima",
    )


def context_of(encoder: str, text: str) -> torch.Tensor:
    clip = random_clip_of(encoder)
    if encoder == "anima":
        # As the model will make it, a token for each of T5's.
        return torch.zeros(1, len(clip.tokenize(text)["t5xxl"][0]), 1)
    tensor: torch.Tensor = clip.encode_from_tokens_scheduled(clip.tokenize(text))[0][0]
    return tensor


def places(encoder: str, text: str, *phrases: str) -> WordPlaces:
    clip = random_clip_of(encoder)
    return kind(encoder).places(clip, text, phrases, context_of(encoder, text).shape[1])


def spelt(encoder: str, text: str, *phrases: str) -> list[str]:
    """The tokens of each phrase as the tokenizer writes them, read by their place in the
    context."""
    clip, found = random_clip_of(encoder), places(encoder, text, *phrases)
    lists = clip.tokenize(text)
    name = kind(encoder).tokens or next(iter(lists))
    owner = clip.tokenizer
    inner = getattr(owner, name, None) or getattr(owner, owner.clip)
    ids = [token for chunk in lists[name] for token, *_ in chunk]
    context = ids[len(ids) - context_of(encoder, text).shape[1] :]
    return [
        "".join(inner.inv_vocab[context[position]] for position in span)
        .replace("\u2581", " ")
        .replace("\u0120", " ")
        for span in found.spans
    ]


LISTS = tuple(encoder for encoder in ENCODERS if encoder != "sd3")
"""Those with one list of tokens."""


@pytest.mark.parametrize("encoder", LISTS)
@pytest.mark.parametrize(
    ("text", "phrases", "expected"),
    [
        (PROMPT, ["hat", "green hat", "white scarf"], [" hat", " green hat", " white scarf"]),
        # The first word and the last.
        ("hats on a shelf", ["hats", "shelf"], ["hats", " shelf"]),
        ("scarf", ["scarf"], ["scarf"]),
        # Twice: one concept owns both places, two share them.
        ("a hat and a hat", ["hat"], [" hat hat"]),
        ("a hat and a hat", ["hat", "hat"], [" hat", " hat"]),
        ("two hats and that hat", ["hat", "hats"], [" hat", " hats"]),
        ('a "red" hat, a scarf.', ["hat", "scarf"], [" hat", " scarf"]),
        # Longer than what CLIP reads at once.
        ("a man, " + "portrait, " * 90 + "a red hat", ["man", "red hat"], [" man", " red hat"]),
        ("A MAN WITH A HAT", ["man"], [" MAN"]),
    ],
)
def test_phrases_are_found_where_they_stand(encoder, text, phrases, expected):
    first = " " if encoder in (*T5, "lumina2") else ""
    found = spelt(encoder, text, *phrases)
    if text.startswith(phrases[0]):
        expected = [first + expected[0], *expected[1:]]
    assert found == expected


@pytest.mark.parametrize("encoder", ENCODERS)
def test_phrases_are_looked_for_without_an_encoding(encoder, monkeypatch):
    clip = random_clip_of(encoder)
    monkeypatch.setattr(clip, "encode_from_tokens_scheduled", lambda *_: pytest.fail("encoded"))
    kind(encoder).check(clip, PROMPT, ["man", "scarf"])
    with pytest.raises(ValueError, match="phrase 'dog' is not in the prompt"):
        kind(encoder).check(clip, PROMPT, ["man", "dog"])


@pytest.mark.parametrize("encoder", ["flux", "qwen"])
def test_letters_that_are_two_in_other_cases_are_found(encoder):
    text = "a man with a weiße Mütze"
    assert places(encoder, text, "Weiße Mütze").spans == places(encoder, text, "weiße Mütze").spans
    assert len(places(encoder, text, "weiße").spans[0]) > 1


@pytest.mark.parametrize("encoder", LISTS)
def test_weights_are_no_words(encoder):
    text = "a man with a (green hat:1.3) and a (white:0.8) scarf"
    found = spelt(encoder, text, "green hat", "white scarf")
    assert [words.strip() for words in found] == ["green hat", "white scarf"]


@pytest.mark.parametrize("encoder", CAUSAL)
@pytest.mark.parametrize("text", [PROMPT, "hat, scarf, " * 30 + "a green hat", "戴绿色帽子的男人"])
def test_a_word_changes_the_context_from_its_place_on(encoder, text):
    phrase = "帽子" if "帽" in text else "green"
    (span,) = places(encoder, text, phrase).spans
    before, after = (context_of(encoder, t) for t in (text, text.replace(phrase, "Q")))
    shared = min(before.shape[1], after.shape[1])
    apart = (before[0, :shared] - after[0, :shared]).abs().amax(-1)
    changed = (apart > 1e-3).nonzero().flatten()
    assert span[0] == int(changed[0])


@pytest.mark.parametrize("encoder", CAUSAL)
def test_chinese_is_found_in_the_middle_of_its_neighbours(encoder):
    text = "一个戴红帽子的人，白色围巾"
    assert spelt(encoder, text, "帽子", "围巾")
    first, second = places(encoder, text, "帽子", "围巾").spans
    assert len(first) <= 6 and len(second) <= 6
    assert max(first) < min(second)


@pytest.mark.parametrize("encoder", T5)
def test_what_a_text_encoder_cannot_read_is_told(encoder):
    with pytest.raises(ValueError, match=r"'帽子' is nothing to this model.*in English"):
        places(encoder, "一个戴红帽子的人，白色围巾", "帽子")


@pytest.mark.parametrize("encoder", ENCODERS)
def test_a_phrase_that_is_not_there_is_an_error_with_the_words_that_are(encoder):
    with pytest.raises(ValueError, match=r"phrase 'hat' is not in the prompt.*there: a, man, hats"):
        places(encoder, "a man, hats", "hat")


@pytest.mark.parametrize("encoder", ["clip", "sd3", "qwen"])
def test_a_number_names_one_of_several_like_words(encoder):
    if encoder == "clip":
        clip, context = sampling.parts()[1], None
    else:
        clip, context = random_clip_of(encoder), kind(encoder)

    def spans(text, *phrases):
        return tagged_prompt(clip, text, phrases, "x", context).spans

    text = "a man, a man and a man"
    first, second, third = spans(text, "man", "man", "man")
    assert spans(text, "man#2", "man#1") == (second, first)
    [rest, own] = spans(text, "man", "man #2")
    assert set(rest) == {*first, *third} and own == second
    with pytest.raises(ValueError, match=r"phrase 'man#4'.*'man' stands 3 times.*from 1 to 3"):
        spans(text, "man#4")
    with pytest.raises(ValueError, match=r"phrase 'man # 0'.*'man' stands 3 times.*from 1 to 3"):
        spans(text, "man # 0")
    assert spans(text, "man # 3") == (third,)
    with pytest.raises(ValueError, match="'man' stands once: name it without a number, or add it"):
        spans("a man", "man#2")
    with pytest.raises(ValueError, match=r"phrase 'hat' is not in the prompt\. Words that"):
        spans(text, "hat#2")
    with pytest.raises(ValueError, match=r"nobody sees \(U\+200B\): type it anew"):
        spans("a h\u200bat", "hat")
    assert words_of_phrases(clip, text, ["man#2", "a man"], context) == ("man", "a man")
    assert words_that_stand_once(clip, "a man", ["Man#1", "man"], context) == {"man"}
    assert not words_that_stand_once(clip, text, ["man#1", "man", "a man"], context)
    # What is written so is meant so.
    written = "a room#2 and a room"
    assert not words_that_stand_once(clip, written, ["room#2"], context)
    assert words_of_phrases(clip, written, ["room#2"], context) == ("room#2",)
    assert min(spans(written, "room#2")[0]) == min(spans(written, "room#1")[0])


@pytest.mark.parametrize("encoder", LISTS)
def test_words_are_what_was_written(encoder):
    found = places(encoder, PROMPT, "a man", "scarf")
    assert found.words == tuple(range(found.words[0], found.words[-1] + 1))
    assert found.words[0] == found.spans[0][0] and found.words[-1] == found.spans[1][-1]
    assert len(found.words) < context_of(encoder, PROMPT).shape[1]


def test_a_prompt_is_tagged_by_its_kind():
    clip = random_clip_of("zimage")
    tagged = tagged_prompt(clip, PROMPT, ["green hat"], "tag", ContextTokens())
    assert tagged.spans == places("zimage", PROMPT, "green hat").spans
    assert tagged.words == places("zimage", PROMPT, "green hat").words


def test_a_wrong_text_encoder_is_told():
    clip: Any = random_clip_of("zimage")
    with pytest.raises(ValueError, match="has no 't5xxl', which this model reads"):
        tagged_prompt(clip, PROMPT, ["hat"], "tag", ContextTokens("t5xxl"))


def test_anima_finds_words_by_the_tokens_of_which_it_makes_its_context():
    """Its conditioning is what another encoder says, in other tokens."""
    clip, text = random_clip_of("anima"), "a man with a counterclockwise hat"
    tagged = tagged_prompt(clip, text, ["hat"], "tag", kind("anima"))
    ids = [token for token, *_ in clip.tokenize(text)["t5xxl"][0]]
    context = tagged.conditioning[0][0].shape[1]
    # Its two tokens stand before the end.
    assert tagged.spans == ((len(ids) - 3, len(ids) - 2),)
    assert context <= tagged.spans[0][0]
    again = tagged_conditioning(tagged.conditioning, clip, text, ["hat"], "tag", kind("anima"))
    assert again.spans == tagged.spans


@pytest.mark.parametrize("missing", [None, "t5xxl", "llama"])
def test_hidream_has_every_word_of_t5_and_twice_of_llama(missing, monkeypatch):
    clip = random_clip_of("hidream")
    if missing is not None:
        monkeypatch.setitem(clip.cond_stage_model._modules, missing, None)
    lists = clip.tokenize(PROMPT)
    found = kind("hidream").places(clip, PROMPT, ["green hat", "man"], 128)
    parts = {"t5xxl": 1, "llama": 2}
    ids = [t for name, n in parts.items() for t, *_ in lists[name][0] * n]
    inner = {name: getattr(clip.tokenizer, name).inv_vocab for name in parts}
    for span, expected in zip(found.spans, ("green hat", "man"), strict=True):
        words = ["", "", ""]
        for position in span:
            words[position // 128] += inner["t5xxl" if position < 128 else "llama"][ids[position]]
        seen = [word.replace("\u2581", " ").replace("\u0120", " ").strip() for word in words]
        t5, llama = ("" if missing == name else expected for name in parts)
        assert seen == [t5, llama, llama]
    assert set(found.words) >= {position for span in found.spans for position in span}


def test_what_t5_cuts_off_or_cannot_read_is_found_with_llama():
    clip = random_clip_of("hidream")
    for text, phrase in (
        ("portrait, " * 90 + "a red hat", "red hat"),
        ("戴绿色帽子的男人", "帽子"),
    ):
        (span,) = kind("hidream").places(clip, text, [phrase], 128).spans
        length = kind("hidream").length(clip, text)
        llama = sum(len(chunk) for chunk in clip.tokenize(text)["llama"])
        assert length == 128 <= llama and 128 <= min(span) < 128 + llama <= max(span)


@pytest.mark.parametrize("encoder", ["anima", "hidream"])
def test_a_lora_of_the_words_alone_is_refused_where_these_are_not_the_conditionings(encoder):
    clip = random_clip_of(encoder)
    names = comfy.lora.model_lora_keys_clip(clip.cond_stage_model, {})
    name = next(key for key in sorted(names) if "llama" in names[key] or "qwen3" in names[key])
    rows, columns = comfy.utils.get_attr(clip.cond_stage_model, names[name]).shape
    weights = {
        f"{name}.lora_up.weight": torch.ones(rows, 1),
        f"{name}.lora_down.weight": torch.ones(1, columns),
    }
    tagged = tagged_prompt(clip, PROMPT, ["green hat"], "tag", kind(encoder))
    lora = ConceptLora("", weights, 1.0)
    with pytest.raises(ValueError, match=r"LoRA of 'green hat' .* set its text to 'all' or 'none'"):
        with_lora_text(clip, tagged, [(0, lora)], kind(encoder))
    whole = with_lora_text(clip, tagged, [(0, replace(lora, text="all"))], kind(encoder))
    parts = [prompt.conditioning[0] for prompt in (tagged, whole)]
    if encoder == "anima":
        assert not torch.equal(parts[0][0], parts[1][0])
    else:
        one, other = (options["conditioning_llama3"] for _, options in parts)
        assert not torch.equal(one, other)


def test_sd3_has_every_word_of_clip_and_of_t5():
    text = "a man, " + "portrait, " * 45 + "with a (green hat:1.2)"
    clip = random_clip_of("sd3")
    found = places("sd3", text, "green hat", "man")
    lists = clip.tokenize(text)
    ids = [token for name in ("l", "t5xxl") for chunk in lists[name] for token, *_ in chunk]
    assert context_of("sd3", text).shape[1] == len(ids) == 154 + len(lists["t5xxl"][0])
    hat = [ids[place] for place in found.spans[0]]
    words = {"l": clip.tokenizer.clip_l, "t5xxl": clip.tokenizer.t5xxl}
    assert [words["l"].inv_vocab[token] for token in hat[:2]] == ["green</w>", "hat</w>"]
    spelt = "".join(words["t5xxl"].inv_vocab[token] for token in hat[2:])
    assert spelt.replace("\u2581", " ") == " green hat"
    assert len(found.spans[1]) == 2 and set(found.spans[0]) < set(found.words)


@pytest.mark.parametrize(("missing", "first"), [("t5xxl", 0), ("clip", 77)])
def test_sd3_without_one_of_its_text_encoders_has_the_other_ones_words(missing, first, monkeypatch):
    clip = random_clip_of("sd3")
    whole = places("sd3", PROMPT, "scarf").spans[0]
    for name in ("clip_l", "clip_g") if missing == "clip" else ("t5xxl",):
        monkeypatch.setitem(clip.cond_stage_model._modules, name, None)
    assert context_of("sd3", PROMPT).shape[1] == 77
    own = [place for place in whole if (place < 77) == (missing == "t5xxl")]
    assert places("sd3", PROMPT, "scarf").spans[0] == tuple(place - first for place in own)
