"""Our conversion of saved workflows against the page's own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

import workflow_files
from comfy_server import ComfyServer
from devkit.pack import ROOT
from devkit.workflow_format import to_api_prompt

BLUEPRINTS = {
    path.stem: json.loads(path.read_text(encoding="utf-8"))
    for path in sorted((ROOT / "subgraphs").glob("*.json"))
}
READY = (
    "!!window.LiteGraph?.registered_node_types?.MagicFaceApply &&"
    " !!window.app?.extensionManager?.workflow?.activeWorkflow"
)
LOAD = "async workflow => { await app.loadGraphData(workflow) }"
PROMPT = "async () => JSON.stringify((await app.graphToPrompt()).output)"
SAVED = "() => JSON.stringify(app.graph.serialize())"
# Connects the graph's only subgraph to the toy world, and turns all of its widgets.
JOIN_AND_TURN = """() => {
    const add = type => {
        const node = LiteGraph.createNode(type);
        app.graph.add(node);
        return node;
    };
    const blueprint = app.graph.nodes.find(node => node.subgraph);
    const [model, portrait, preview] = ['MagicToyCheckpoint', 'MagicToyPortrait', 'PreviewImage']
        .map(add);
    const sources = {
        MODEL: [model, 0], CLIP: [model, 1], VAE: [model, 2],
        IMAGE: [portrait, 0], MASK: [portrait, 1], STRING: [portrait, 2],
    };
    blueprint.inputs.forEach((input, index) => {
        const [source, slot] = sources[input.type] ?? [];
        if (source && !input.name.includes('folder')) source.connect(slot, blueprint, index);
    });
    for (const widget of blueprint.widgets)
        if (typeof widget.value == 'number') widget.value += 1;
        else if (typeof widget.value == 'string' && !widget.options?.values) widget.value += ' x';
    const output = blueprint.outputs.findIndex(output => output.type == 'IMAGE');
    if (output >= 0) blueprint.connect(output, preview, 0);
}"""
# The first node becomes a subgraph with all that it feeds, and that once more.
NEST = """() => {
    const outer = app.graph.nodes.find(node => node.subgraph);
    app.graph.convertToSubgraph(new Set([outer]));
}"""
SET_MODE = """([type, mode]) => {
    const inside = graph => {
        for (const node of graph.nodes) {
            if (node.type == type) node.mode = mode;
            if (node.subgraph) inside(node.subgraph);
        }
    };
    inside(app.graph);
}"""
SET_SUBGRAPHS_MODE = """mode => {
    for (const node of app.graph.nodes) if (node.subgraph) node.mode = mode;
}"""


@pytest.fixture(scope="module")
def page(browser: Browser, server: ComfyServer) -> Iterator[Page]:
    page = browser.new_page()
    page.request.post(f"{server.url}/api/settings", data={"Comfy.TutorialCompleted": True})
    page.goto(server.url, wait_until="domcontentloaded")
    page.wait_for_function(READY, timeout=60_000)
    yield page
    page.close()


def load(page: Page, workflow: dict[str, Any]) -> None:
    page.evaluate(LOAD, workflow)
    page.wait_for_function("() => app.graph.nodes.length > 0")


def prompt_of_page(page: Page) -> dict[str, Any]:
    """What the page would send to /prompt."""
    nodes = json.loads(page.evaluate(PROMPT))
    return {
        node: {"class_type": data["class_type"], "inputs": data["inputs"]}
        for node, data in nodes.items()
    }


def saved_workflow(page: Page) -> dict[str, Any]:
    workflow: dict[str, Any] = json.loads(page.evaluate(SAVED))
    return workflow


@pytest.mark.parametrize("name", workflow_files.ALL)
def test_a_shipped_workflow_converts_as_in_the_page(
    page: Page, object_info: dict[str, Any], name: str
) -> None:
    workflow = workflow_files.read(name)

    load(page, workflow)

    assert to_api_prompt(workflow, object_info) == prompt_of_page(page)


@pytest.mark.parametrize("name", BLUEPRINTS)
def test_a_blueprint_converts_as_in_the_page(
    page: Page, object_info: dict[str, Any], name: str
) -> None:
    load(page, BLUEPRINTS[name])

    shipped = prompt_of_page(page)
    assert to_api_prompt(BLUEPRINTS[name], object_info) == shipped
    page.evaluate(JOIN_AND_TURN)
    turned = prompt_of_page(page)
    assert to_api_prompt(saved_workflow(page), object_info) == turned
    assert sum(turned[node] != data for node, data in shipped.items()) > 2, "nothing was turned"
    page.evaluate(NEST)
    nested = prompt_of_page(page)
    assert to_api_prompt(saved_workflow(page), object_info) == nested
    assert any(node.count(":") == 2 for node in nested), "nothing is nested"


@pytest.mark.parametrize("mode", ["muted", "bypassed"])
@pytest.mark.parametrize("kind", ["MagicFaceConcept", "MagicFaceApply", "KSampler", "subgraphs"])
def test_what_is_left_out_of_a_subgraph_is_left_out_as_in_the_page(
    page: Page, object_info: dict[str, Any], kind: str, mode: str
) -> None:
    load(page, BLUEPRINTS["MagicFace"])
    page.evaluate(JOIN_AND_TURN)

    number = {"muted": 2, "bypassed": 4}[mode]
    if kind == "subgraphs":
        page.evaluate(SET_SUBGRAPHS_MODE, number)
    else:
        page.evaluate(SET_MODE, [kind, number])

    graph = saved_workflow(page)
    prompt = prompt_of_page(page)
    assert to_api_prompt(graph, object_info) == prompt
    assert kind not in {data["class_type"] for data in prompt.values()}
