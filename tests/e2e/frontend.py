"""ComfyUI's own page in a browser, with the pack."""

from __future__ import annotations

import base64
import io
import json
from typing import Any

from PIL import Image
from playwright.sync_api import ConsoleMessage, Locator, Page

from comfy_server import ComfyServer
from devkit.pack import CACHE, PACK_NAME

SCREENSHOTS = CACHE / "screenshots"
MODES = {"classic": False, "nodes2": True}
"""The two ways in which the frontend draws nodes: on its canvas, and as elements of the page."""
# The last thing that the frontend does at its start is to open a workflow.
READY = (
    "!!window.LiteGraph?.registered_node_types?.MagicFaceApply &&"
    " !!window.app?.extensionManager?.workflow?.activeWorkflow"
)
# Left, top, right, bottom of nodes and groups, with titles, as they are drawn.
BOXES = """() => {
    const bottomOf = node => {
        const drawn = document.querySelector(`[data-node-id="${node.id}"]`);
        return LiteGraph.vueNodesMode ? drawn.offsetHeight - 30 : node.size[1];
    };
    const nodes = app.graph.nodes.map(node => [
        `${node.title} (${node.id})`, node.type, node.pos[0], node.pos[1] - 30,
        node.pos[0] + node.size[0], node.pos[1] + bottomOf(node),
    ]);
    const groups = app.graph.groups.map(({ pos, size }) => [
        pos[0], pos[1], pos[0] + size[0], pos[1] + size[1],
    ]);
    return { nodes, groups };
}"""
UNKNOWN = (
    "() => app.graph.nodes.map(node => node.type).filter(type =>"
    " !LiteGraph.registered_node_types[type])"
)
SCROLL_CARDS = """() => [...document.querySelectorAll("[data-testid^='template-workflow-']")]
    .at(-1)?.scrollIntoView()"""
REOPEN = """async workflow => {
    const tab = app.extensionManager.workflow.activeWorkflow;
    await app.loadGraphData(workflow, true, true, tab);
}"""
SET_WIDGETS = """values => {
    for (const node of app.graph.nodes)
        for (const widget of node.widgets ?? []) {
            const wanted = values[`${node.type}.${widget.name}`] ?? values[widget.name];
            if (wanted !== undefined) widget.value = wanted;
        }
}"""
ZOOM = """type => {
    const [x, y] = app.graph.nodes.find(node => node.type == type).pos;
    app.canvas.ds.scale = 1;
    [app.canvas.ds.offset[0], app.canvas.ds.offset[1]] = [200 - x, 200 - y];
    app.canvas.setDirty(true, true);
}"""
ADD_NODE = """type => {
    const node = LiteGraph.createNode(type);
    app.graph.add(node);
    return String(node.id);
}"""
# Every SaveImage has its pictures, and the page shows them: drawn on the canvas, or as elements.
SHOWN = """() => {
    const nodes = app.graph.nodes.filter(node => node.type == 'SaveImage');
    const isLoaded = image => image.naturalWidth > 0;
    const isDrawn = ({ id, imgs }) => LiteGraph.vueNodesMode
        ? [...document.querySelectorAll(`[data-node-id="${id}"] img`)].some(isLoaded)
        : imgs?.length > 0 && imgs.every(isLoaded);
    const hasPictures = ({ id }) => app.nodeOutputs[id]?.images?.length > 0;
    return nodes.length > 0 && nodes.every(node => hasPictures(node) && isDrawn(node));
}"""


class Frontend:
    def __init__(self, page: Page, server: ComfyServer, mode: str) -> None:
        self.page, self.server, self.mode = page, server, mode
        self.complaints: list[str] = []
        page.on("console", self._read)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.request.post(
            f"{server.url}/api/settings",
            data={"Comfy.TutorialCompleted": True, "Comfy.VueNodes.Enabled": MODES[mode]},
        )
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

    def reopen(self, workflow: dict[str, Any]) -> None:
        """In the tab on screen, as an undo does: `load` opens a tab of its own."""
        self.page.evaluate(REOPEN, workflow)
        self.page.wait_for_timeout(700)

    def reload(self, workflow: dict[str, Any]) -> None:
        """The whole page. Not every version of it brings back what was not saved."""
        self.page.reload(wait_until="domcontentloaded")
        self.page.wait_for_function(READY, timeout=60_000)
        self.page.wait_for_timeout(700)
        if self.page.evaluate("() => (app.rootGraph ?? app.graph).id") != workflow["id"]:
            self.load(workflow)

    def tabs(self) -> Locator:
        return self.page.locator(".workflow-tab")

    def card(self, name: str) -> Locator:
        """A template's in the gallery, which makes those of a long list as one scrolls; their order
        is that of the files on the disk."""
        card = self.page.get_by_test_id(f"template-workflow-{name}").first
        for _ in range(50):
            if card.count():
                break
            self.page.evaluate(SCROLL_CARDS)
            self.page.wait_for_timeout(200)
        return card

    def open_from_gallery(self, name: str) -> None:
        self.page.evaluate("() => app.extensionManager.command.execute('Comfy.BrowseTemplates')")
        self.page.get_by_text(PACK_NAME, exact=True).first.click()
        self.page.get_by_placeholder("Search ...").first.fill(name)
        self.card(name).click()
        self.page.get_by_test_id("template-workflows-content").first.wait_for(state="hidden")
        self.page.wait_for_function("() => app.graph.nodes.length > 0")
        self.page.evaluate("() => app.extensionManager.command.execute('Comfy.Canvas.FitView')")
        self.page.wait_for_timeout(700)

    def set_widgets(self, **values: Any) -> None:
        """Values by the widget's name, or by 'node type.name'."""
        self.page.evaluate(SET_WIDGETS, values)

    def queue(self) -> None:
        # Where it was left it may hold open the preview of a tab, over the button.
        self.page.mouse.move(960, 540)
        self.page.get_by_test_id("queue-button").first.click()

    def view(self, node_type: str) -> Locator:
        """What our frontend adds to the only node of a type."""
        node = self.page.evaluate(
            "type => app.graph.nodes.find(node => node.type == type).widgets.at(-1).element.id ||="
            " type",
            node_type,
        )
        return self.page.locator(f"[id='{node}'] .magic-view")

    def zoom_to(self, node_type: str) -> None:
        """At full size: the classic mode hides what it draws small."""
        self.page.evaluate(ZOOM, node_type)
        self.page.wait_for_timeout(300)

    def send(self, event: str, data: dict[str, Any]) -> None:
        """As if it came from the server."""
        self.page.evaluate(
            "([event, detail]) => app.api.dispatchEvent(new CustomEvent(event, { detail }))",
            [event, data],
        )

    def open_help(self, node_type: str) -> str | None:
        self.page.evaluate(
            f"type => {{ ({ADD_NODE})(type); app.canvas.selectNode(app.graph.nodes[0]); }}",
            node_type,
        )
        self.page.evaluate("() => app.extensionManager.command.execute('Comfy.Canvas.FitView')")
        self.page.get_by_test_id("info-button").first.click()
        heading = self.page.locator(".node-help-content h1").first
        heading.wait_for(timeout=10_000)
        return heading.text_content()

    def prompt(self) -> dict[str, Any]:
        """What the frontend would send to /prompt for the workflow that is open."""
        nodes = json.loads(
            self.page.evaluate("async () => JSON.stringify((await app.graphToPrompt()).output)")
        )
        return {
            node: {"class_type": data["class_type"], "inputs": data["inputs"]}
            for node, data in nodes.items()
        }

    def saved_workflow(self) -> dict[str, Any]:
        workflow: dict[str, Any] = json.loads(
            self.page.evaluate("() => JSON.stringify(app.graph.serialize())")
        )
        return workflow

    def complaints_about_us(self) -> list[str]:
        return [
            complaint
            for complaint in self.complaints
            if "magic" in complaint.lower() or PACK_NAME in complaint
        ]

    def forget_complaints(self) -> list[str]:
        """Returns those about us."""
        ours = self.complaints_about_us()
        self.complaints.clear()
        return ours

    def overlaps(self) -> list[str]:
        """Nodes over one another, and nodes that reach out of their groups."""
        boxes = self.page.evaluate(BOXES)
        pairs, outside = [], []
        for i, (first, kind, left, top, right, bottom) in enumerate(boxes["nodes"]):
            for second, _, *other in boxes["nodes"][i + 1 :]:
                if left < other[2] and other[0] < right and top < other[3] and other[1] < bottom:
                    pairs.append(f"{first} and {second}")
            is_inside = any(
                box[0] <= left and box[1] <= top and right <= box[2] + 1 and bottom <= box[3] + 1
                for box in boxes["groups"]
            )
            if kind != "MarkdownNote" and not is_inside:
                outside.append(f"{first} reaches out of its group")
        return pairs + outside

    def screenshot(self, name: str) -> None:
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        # In the classic mode nodes grow with their content from one drawing to the next.
        self.page.wait_for_timeout(300)
        self.page.screenshot(path=SCREENSHOTS / f"{name}_{self.mode}.png")


def png(size: tuple[int, int]) -> str:
    buffer = io.BytesIO()
    Image.new("RGB", size).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()
