"""Every word of every node, in every language: nothing missing, nothing left over."""

from __future__ import annotations

import json
import os
import re
from typing import Any

import pytest

from devkit.pack import ROOT
from magicportrait.nodes import NODES

LOCALES = ROOT / "locales"
TRANSLATED = ("zh", "ja", "ko")
UPDATE = "MAGICPORTRAIT_UPDATE_LOCALES"
RULE = (
    f"locales/ differs from the nodes. Run this once with {UPDATE}=1, translate what it wrote in"
    " English, and commit."
)
# What vue-i18n takes for its own syntax.
SYNTAX = re.compile(r"[{}|]|@[:.]")
ASIAN = re.compile(r"[\u3040-\u30ff\u4e00-\u9fff\uac00-\ud7af]")
Words = dict[str, Any]


def words_of(schema: Any) -> Words:
    inputs = {
        declared.id: {"name": declared.id, "tooltip": declared.tooltip}
        for declared in schema.inputs or ()
    }
    outputs = {
        str(i): {"name": declared.display_name or declared.io_type, "tooltip": declared.tooltip}
        for i, declared in enumerate(schema.outputs)
    }
    words: Words = {"display_name": schema.display_name, "description": schema.description}
    return words | ({"inputs": inputs} if inputs else {}) | {"outputs": outputs}


def read(language: str) -> Words:
    words: Words = json.loads((LOCALES / language / "nodeDefs.json").read_text(encoding="utf-8"))
    return words


def flat(words: Any, path: str = "") -> dict[str, str]:
    if not isinstance(words, dict):
        return {path: words}
    return {
        key: text
        for name, part in words.items()
        for key, text in flat(part, f"{path}.{name}" if path else name).items()
    }


def fit(words: Any, english: Any) -> Any:
    """`english` with the texts that `words` has for the same places."""
    if not isinstance(english, dict):
        return words if isinstance(words, str) else english
    return {
        name: fit(words.get(name) if isinstance(words, dict) else None, part)
        for name, part in english.items()
    }


@pytest.fixture(scope="module")
def english() -> Words:
    words = {
        node.define_schema().node_id: words_of(node.define_schema())
        for node in sorted(NODES, key=lambda node: node.__name__)
    }
    if os.environ.get(UPDATE) == "1":
        for language in ("en", *TRANSLATED):
            text = json.dumps(
                words if language == "en" else fit(read(language), words),
                ensure_ascii=False,
                indent=2,
            )
            (LOCALES / language / "nodeDefs.json").write_text(text + "\n", encoding="utf-8")
    return words


def test_english_is_what_the_nodes_say(english: Words) -> None:
    assert read("en") == english, RULE


@pytest.mark.parametrize("language", TRANSLATED)
def test_nothing_is_missing_or_left_over(english: Words, language: str) -> None:
    assert flat(read(language)).keys() == flat(english).keys(), RULE


@pytest.mark.parametrize("language", TRANSLATED)
def test_sentences_are_translated(english: Words, language: str) -> None:
    translated = flat(read(language))
    left = [
        key
        for key, text in flat(english).items()
        if key.endswith(("tooltip", "description")) and not ASIAN.search(translated[key])
    ]
    left += [node for node in english if not ASIAN.search(translated[f"{node}.display_name"])]
    assert left == []


@pytest.mark.parametrize("language", ["en", *TRANSLATED])
def test_nothing_reads_as_syntax(language: str) -> None:
    assert [key for key, text in flat(read(language)).items() if SYNTAX.search(text)] == []


@pytest.mark.parametrize("language", ["en", *TRANSLATED])
def test_no_node_has_the_name_of_the_pack_behind_its_own(language: str) -> None:
    """The page shows it as a badge."""
    names = [words["display_name"] for words in read(language).values()]
    assert [name for name in names if "MagicPortrait" in name] == []


def test_nodes_are_found_by_the_words_people_type() -> None:
    aliases = {
        alias
        for node in NODES
        for alias in getattr(node.define_schema(), "search_aliases", None) or ()
    }
    if not aliases:
        pytest.skip("this host has no search aliases")
    assert aliases >= {"face", "identity", "style transfer", "unsample", "inversion", "mask"}
    assert any(node.__name__.startswith("MagiCapture") for node in NODES) <= (
        "dreambooth" in aliases
    )
