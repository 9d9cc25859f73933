"""The page's own reading of phrases (js/) beside the server's: which nodes of a chain name the same
thing."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from devkit.pack import ROOT
from magicportrait.magic.concepts import Concept, ConceptLora, with_loras_joined

NODE = shutil.which("node")
SCRIPT = """
import { CONCEPTS, phrasesOf } from "./js/graph.js";

const chain = (nodes) => {
  const made = [];
  for (const [type, phrase] of [...nodes, ["MagicFaceApply", ""]]) {
    const before = made.at(-1);
    const inputs = before ? [{ name: "concepts", link: 1 }] : [];
    const graph = { getNodeById: () => before };
    const widgets = [{ name: "phrase", value: phrase }];
    made.push({ type, inputs, graph, widgets, getInputLink: () => ({ origin_id: 1 }) });
  }
  return made.at(-1);
};
const cases = JSON.parse(process.argv[2]);
const read = ([prompt, nodes]) => phrasesOf(chain(nodes), CONCEPTS, prompt);
console.log(JSON.stringify(cases.map(read)));
"""
REFERENCE, LORA = "MagicFaceConcept", "MagicConceptLora"
PROMPT, TWICE = "a man with a hat", "a man and a man"
CASES = [
    # prompt, the chain, words that stand in the prompt once, and are named with a number
    (PROMPT, [(REFERENCE, "man"), (LORA, "man#1")], ("man",)),
    (PROMPT, [(LORA, "man ＃ 1"), (REFERENCE, "(Man:1.2)")], ("man",)),
    (PROMPT, [(REFERENCE, "(man#1:1.2)"), (LORA, "man"), (LORA, "hat#1")], ("man", "hat")),
    (TWICE, [(REFERENCE, "man"), (LORA, "man#1")], ()),
    (TWICE, [(REFERENCE, "man#2"), (LORA, "man #２"), (LORA, "man")], ()),
    (PROMPT, [(REFERENCE, "man"), (REFERENCE, "man#1")], ("man",)),
]


def join(nodes: list[tuple[str, str]], once: tuple[str, ...]) -> list[str]:
    """The phrases that the server has of a chain."""
    concepts = [
        Concept(phrase, torch.rand(1, 8, 8, 3), None, "", 1.0)
        if kind == REFERENCE
        else Concept(phrase, None, None, "", 0.0, None, loras=(ConceptLora(phrase, {}, 1.0),))
        for kind, phrase in nodes
    ]
    return [concept.phrase for concept in with_loras_joined(concepts, once)]


@pytest.mark.skipif(NODE is None, reason="node.js is not there")
def test_the_page_joins_what_the_server_joins(tmp_path: Path) -> None:
    pack = tmp_path / "custom_nodes" / "pack"
    shutil.copytree(ROOT / "js", pack / "js", ignore=shutil.ignore_patterns("docs"))
    scripts = tmp_path / "custom_nodes" / "scripts"
    scripts.mkdir()
    (scripts / "app.js").write_text("export const app = { graph: { nodes: [] } };")
    (tmp_path / "package.json").write_text('{"type": "module"}')
    (pack / "run.js").write_text(SCRIPT, encoding="utf-8")
    given = json.dumps([(prompt, nodes) for prompt, nodes, _ in CASES])
    command = [str(NODE), "run.js", given]
    said = subprocess.run(command, cwd=pack, capture_output=True, check=True).stdout
    assert json.loads(said) == [join(nodes, once) for _, nodes, once in CASES]
