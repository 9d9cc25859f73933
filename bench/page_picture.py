"""Draws docs/live_layout.png: MagicFace Apply in ComfyUI's page after a run. `python -m
bench.page_picture` (needs Chromium or Chrome)"""

from __future__ import annotations

import json
from pathlib import Path

from playwright.sync_api import sync_playwright

from devkit.browser import find_browser
from devkit.pack import CACHE, ROOT

from .command_line import bench_parser
from .server import pack_server

NODE = "MagicFaceApply"
READY = (
    f"!!window.LiteGraph?.registered_node_types?.{NODE} &&"
    " !!window.app?.extensionManager?.workflow?.activeWorkflow"
)
LOOK_AT = """type => {
    const node = app.graph.nodes.find(node => node.type == type);
    // As high as it must be: a template leaves it room for inputs that this way of drawing hides.
    node.setSize([node.size[0], 0]);
    app.canvas.ds.scale = 1;
    [app.canvas.ds.offset[0], app.canvas.ds.offset[1]] = [300 - node.pos[0], 100 - node.pos[1]];
    app.canvas.setDirty(true, true);
    return String(node.id);
}"""
IS_FINISHED = """() => {
    const saved = app.graph.nodes.filter(node => node.type == 'SaveImage');
    return saved.every(node => app.nodeOutputs[node.id]?.images?.length)
        && [...document.querySelectorAll('.magic-backdrop')].every(image => image.naturalWidth > 0);
}"""


def main() -> None:
    parser = bench_parser(__doc__)
    parser.add_argument("--comfyui", type=Path, metavar="DIR", help="default: as for dev.py")
    args = parser.parse_args()
    workflow = json.loads(
        (ROOT / "workflows" / "MagicFace-2-three-concepts.json").read_text(encoding="utf-8")
    )
    with pack_server(CACHE / "page", args.comfyui) as server, sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=find_browser(), args=["--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_page(viewport={"width": 1400, "height": 1300}, device_scale_factor=1.4)
        page.request.post(
            f"{server.url}/api/settings",
            data={"Comfy.TutorialCompleted": True, "Comfy.VueNodes.Enabled": True},
        )
        page.goto(server.url, wait_until="domcontentloaded")
        page.wait_for_function(READY, timeout=60_000)
        page.evaluate("async workflow => { await app.loadGraphData(workflow) }", workflow)
        node = page.evaluate(LOOK_AT, NODE)
        page.get_by_test_id("queue-button").first.click()
        page.wait_for_function(IS_FINISHED, timeout=600_000)
        # The node grows with what it shows.
        page.wait_for_timeout(1000)
        page.locator(f'[data-node-id="{node}"]').screenshot(path=ROOT / "docs" / "live_layout.png")
        browser.close()
    print("wrote docs/live_layout.png")


if __name__ == "__main__":
    main()
