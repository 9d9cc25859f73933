"""The pack in ComfyUI's own frontend, in a real browser."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, sync_playwright

import workflow_files
from comfy_server import ComfyServer
from dev import CACHE, PACK_NAME
from workflow_format import to_api_prompt

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
OPTIONS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--no-first-run",
    "--disable-component-update",
    "--disable-sync",
]
SCREENSHOTS = CACHE / "screenshots"
MODES = {"classic": False, "nodes2": True}
"""The two ways in which the frontend draws nodes: on its canvas, and as elements of the page."""

# The last thing that the frontend does at its start is to open a workflow.
READY = "!!window.LiteGraph?.registered_node_types?.MagicFaceApply && !!window.app?.extensionManager?.workflow?.activeWorkflow"
UNKNOWN = "() => app.graph.nodes.map(node => node.type).filter(type => !LiteGraph.registered_node_types[type])"
SET_STEPS = """steps => {
    const sampler = app.graph.nodes.find(node => node.type == 'KSampler');
    sampler.widgets.find(widget => widget.name == 'steps').value = steps;
}"""
# Every SaveImage has its pictures, and the page shows them: drawn on the canvas, or as elements.
SHOWN = """() => {
    const nodes = app.graph.nodes.filter(node => node.type == 'SaveImage');
    const drawn = node => LiteGraph.vueNodesMode
        ? [...document.querySelectorAll(`[data-node-id="${node.id}"] img`)].filter(image => image.naturalWidth).length > 0
        : node.imgs?.length > 0 && node.imgs.every(image => image.naturalWidth);
    return nodes.length > 0 && nodes.every(node => app.nodeOutputs[node.id]?.images?.length > 0 && drawn(node));
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.fail(f"no browser: install one of {', '.join(BROWSERS)}, such as with `apt install chromium`")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=program, args=OPTIONS)
        yield started
        started.close()


class Frontend:
    def __init__(self, page: Page, server: ComfyServer, mode: str) -> None:
        self.page, self.mode = page, mode
        self.complaints: list[str] = []
        page.on("console", self._read)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.request.post(f"{server.url}/api/settings", data={"Comfy.TutorialCompleted": True, "Comfy.VueNodes.Enabled": MODES[mode]})
        page.goto(server.url, wait_until="domcontentloaded")
        page.wait_for_function(READY, timeout=60_000)

    def _read(self, message: ConsoleMessage) -> None:
        # A fresh ComfyUI answers 404 for a new user's files, and asks for news on the internet.
        if message.type == "error" and not message.text.startswith("Failed to load resource"):
            self.complaints.append(f"{message.text} ({message.location.get('url')})")

    def load(self, workflow: dict[str, Any]) -> None:
        self.page.evaluate("async workflow => { await app.loadGraphData(workflow) }", workflow)
        self.page.evaluate("() => app.extensionManager.command.execute('Comfy.Canvas.FitView')")
        self.page.wait_for_timeout(700)

    def prompt(self) -> dict[str, Any]:
        """What the frontend would send to /prompt for the workflow that is open."""
        nodes = json.loads(self.page.evaluate("async () => JSON.stringify((await app.graphToPrompt()).output)"))
        return {node: {"class_type": data["class_type"], "inputs": data["inputs"]} for node, data in nodes.items()}

    def saved(self) -> dict[str, Any]:
        workflow: dict[str, Any] = json.loads(self.page.evaluate("() => JSON.stringify(app.graph.serialize())"))
        return workflow

    def complaints_about_us(self) -> list[str]:
        return [complaint for complaint in self.complaints if "magic" in complaint.lower() or PACK_NAME in complaint]

    def screenshot(self, name: str) -> None:
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=SCREENSHOTS / f"{name}_{self.mode}.png")


@pytest.fixture(scope="module", params=MODES)
def frontend(browser: Browser, server: ComfyServer, request: pytest.FixtureRequest) -> Iterator[Frontend]:
    page = browser.new_page(viewport={"width": 2600, "height": 1500})
    yield Frontend(page, server, request.param)
    page.close()


@pytest.mark.parametrize("name", workflow_files.ALL)
def test_workflow_opens_as_it_was_saved(frontend: Frontend, object_info: dict[str, Any], name: str) -> None:
    workflow = workflow_files.read(name)

    frontend.load(workflow)

    frontend.screenshot(name)
    assert frontend.page.evaluate(UNKNOWN) == []
    assert frontend.prompt() == to_api_prompt(workflow, object_info)
    saved = frontend.saved()
    assert sorted(saved["links"]) == sorted(workflow["links"])
    assert [group["title"] for group in saved["groups"]] == [group["title"] for group in workflow["groups"]]
    assert values(saved) == values(workflow)
    assert frontend.complaints_about_us() == []


def test_workflow_runs_in_the_page(frontend: Frontend, server: ComfyServer) -> None:
    frontend.load(workflow_files.read("magicface_three_concepts"))
    frontend.page.evaluate(SET_STEPS, 8)

    frontend.page.get_by_test_id("queue-button").first.click()

    frontend.page.wait_for_function(SHOWN, timeout=120_000)
    frontend.screenshot("finished")
    assert frontend.complaints_about_us() == []


def values(workflow: dict[str, Any]) -> dict[int, Any]:
    return {node["id"]: node.get("widgets_values") for node in workflow["nodes"]}
