"""What a newcomer sees and falls over, in ComfyUI's own page on a screen of 1920 x 1080."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from PIL import Image, ImageDraw
from playwright.sync_api import Locator, Page, expect

import workflow_files
from devkit.pack import PACK_NAME
from devkit.serve import template_link
from frontend import ADD_NODE, READY, SHOWN, Frontend, png

LEGIBLE = 0.58
"""The zoom from which the classic mode draws text."""
ZOOM = "() => ({ scale: app.canvas.ds.scale, isRough: app.canvas.low_quality })"
# A note has a text area of its own, which shows only while it is edited.
TEXTS = """() => [...document.querySelectorAll('textarea')]
    .filter(area => area.value && area.checkVisibility())
    .map(area => ({ text: area.value, height: area.getBoundingClientRect().height }))"""
LAYOUTS = ("MagicFaceApply", "MagicSemanticLayout")
SAMPLERS = ("KSampler", "SamplerCustom")
BUILD = """nodes => {
    app.graph.clear();
    const made = {};
    for (const [name, [type, values]] of Object.entries(nodes)) {
        made[name] = LiteGraph.createNode(type);
        app.graph.add(made[name]);
        for (const widget of made[name].widgets ?? [])
            if (values[widget.name] !== undefined) widget.value = values[widget.name];
    }
    return Object.fromEntries(Object.entries(made).map(([name, node]) => [name, node.id]));
}"""
CONNECT = """links => {
    for (const [from, output, to, input] of links) {
        const [source, target] = [from, to].map(id => app.graph.getNodeById(id));
        source.connect(source.findOutputSlot(output), target, target.findInputSlot(input));
    }
}"""
DISCONNECT = """([type, input]) => {
    const node = app.graph.nodes.find(node => node.type == type);
    node.disconnectInput(node.findInputSlot(input));
}"""
MODE = """([type, index, mode]) => {
    app.graph.nodes.filter(node => node.type == type).at(index).mode = mode;
    app.graph.afterChange?.();
    document.dispatchEvent(new Event('input'));
}"""
# Puts a node of the chain of concepts between its end and what led there.
LEAD_THROUGH = """([type, phrase, end]) => {
    const last = app.graph.nodes.find(node => node.type == end);
    const slot = last.findInputSlot('concepts');
    const node = LiteGraph.createNode(type);
    app.graph.add(node);
    node.widgets.find(widget => widget.name == 'phrase').value = phrase;
    last.getInputNode(slot).connect(0, node, node.findInputSlot('concepts'));
    node.connect(0, last, slot);
    document.dispatchEvent(new Event('input'));
    return [node.id];
}"""
MUTED, BYPASSED = 2, 4
SIZES = """type => {
    const node = app.graph.nodes.find(node => node.type == type);
    const widget = node.widgets.find(widget => widget.name == 'prompt');
    return {
        prompt: widget.element?.offsetHeight || widget.computedHeight,
        node: node.size[1],
        saved: node.serialize().size[1],
    };
}"""
VALUE = """([type, name]) => app.graph.nodes.find(node => node.type == type)
    .widgets.find(widget => widget.name == name).value"""
TURN = """([type, name, value]) => {
    const node = app.graph.nodes.find(node => node.type == type);
    const widget = node.widgets.find(widget => widget.name == name);
    widget.value = value;
    widget.callback(value);
}"""
# Bright or dark: the mean of the middle and of the corner of the first canvas of our view.
BRIGHTNESS = """() => {
    const canvas = document.querySelector('canvas.magic-taken');
    const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
    const at = (x, y) => data[4 * (Math.floor(y * canvas.height) * canvas.width +
        Math.floor(x * canvas.width))];
    return [at(0.5, 0.5), at(0.05, 0.05)];
}"""
FINISHED = (
    "() => [...document.querySelectorAll('.magic-backdrop')].every(image => image.naturalWidth)"
)
MARKED = "() => [...document.querySelectorAll('.magic-prompt mark')].map(mark => mark.textContent)"


def fit(screen: Frontend) -> None:
    screen.page.evaluate("() => app.extensionManager.command.execute('Comfy.Canvas.FitView')")
    screen.page.wait_for_timeout(500)


def seed_of(screen: Frontend) -> int:
    """One for each mode: nothing is sampled when the server knows the pictures already."""
    return 2000 + len(screen.mode)


def toasts(page: Page) -> Locator:
    return page.locator(".p-toast-message")


def close_toasts(page: Page) -> None:
    page.evaluate("() => app.extensionManager.toast.removeAll()")
    page.wait_for_timeout(300)


def run_of(
    screen: Frontend, pictures: int, steps: int = 4, done: bool = True, **details: Any
) -> str:
    """A run of the workflow's node with a layout, as if it came from the server. Returns its id.
    details: of its first event."""
    node, sampler = (
        screen.page.evaluate(ID_OF, next(k for k in kinds if screen.page.evaluate(HAS, k)))
        for kinds in (LAYOUTS, SAMPLERS)
    )
    about = {"node": node, "sampler": sampler, "run": "one"}
    screen.send(
        "magicportrait.run",
        {**about, "steps": steps, "phrases": ["hat"], "references": [], **details},
    )
    about["run"] = details.get("run", about["run"])
    layouts = {str(step): [png((8, 8))] * pictures for step in range(steps)}
    screen.send("magicportrait.layout", {**about, "layouts": layouts, "done": done})
    return str(node)


HAS = "type => app.graph.nodes.some(node => node.type == type)"
ID_OF = "type => String(app.graph.nodes.find(node => node.type == type).id)"


# ---- templates ----


@pytest.mark.parametrize("name", workflow_files.ALL)
def test_a_template_fits_with_its_prompts_readable_and_its_layout_in_sight(
    screen: Frontend, name: str
) -> None:
    page = screen.page
    screen.load(workflow_files.read(name))
    page.wait_for_timeout(500)
    fit(screen)

    zoom = page.evaluate(ZOOM)
    assert zoom["scale"] >= LEGIBLE and not zoom["isRough"]
    assert screen.overlaps() == []
    texts = page.evaluate(TEXTS)
    prompts = [
        value
        for node in workflow_files.read(name)["nodes"]
        if node["type"] in ("CLIPTextEncode", *LAYOUTS)
        for value in node["widgets_values"][:1]
        if value
    ]
    assert {prompt for prompt in prompts} <= {entry["text"] for entry in texts}
    assert [entry for entry in texts if entry["height"] < 20] == []
    notes = [node for node in workflow_files.read(name)["nodes"] if node["type"] == "MarkdownNote"]
    for note in notes:
        words = note["widgets_values"][0].split("**")[1]
        assert page.get_by_text(words, exact=True).first.is_visible()

    if any(page.evaluate(HAS, kind) for kind in LAYOUTS):
        # A prompt that comes from another node is not known before it runs.
        own = [
            node["widgets_values"][0]
            for node in workflow_files.read(name)["nodes"]
            if node["type"] in LAYOUTS
        ]
        assert bool(page.evaluate(MARKED)) == any(own), "which words are whose"
        run_of(screen, pictures=4)
        page.wait_for_timeout(700)
        for image in page.locator(".magic-layout").all():
            box = image.bounding_box()
            assert box and box["width"] >= 40 and box["height"] >= 40
            assert box["y"] + box["height"] <= 1080 and box["x"] + box["width"] <= 1920
        assert screen.overlaps() == []
    screen.screenshot(f"screen_{name}")
    assert screen.complaints_about_us() == []


def open_link(screen: Frontend, name: str) -> None:
    screen.page.goto(template_link(screen.server.url, name), wait_until="domcontentloaded")
    screen.page.wait_for_function(READY, timeout=60_000)
    screen.page.wait_for_function(
        "title => app.extensionManager.workflow.activeWorkflow.filename == title"
        " && !location.search",
        arg=name,
    )
    screen.page.wait_for_timeout(300)


# The reload below opens one without a dot in its name.
def test_a_link_opens_its_template(screen: Frontend) -> None:
    open_link(screen, "MagicFace-SD1.5-three-concepts")
    assert screen.page.evaluate(HAS, "MagicFaceApply")


def test_a_first_graph_of_untouched_nodes_draws_pictures(screen: Frontend) -> None:
    page = screen.page
    nodes = {
        "toy": ["MagicToyCheckpoint", {}],
        "portrait": ["MagicToyPortrait", {}],
        "concept": ["MagicFaceConcept", {}],
        "apply": ["MagicFaceApply", {}],
        "negative": ["CLIPTextEncode", {}],
        "latent": ["EmptyLatentImage", {"width": 128, "height": 128}],
        "sampler": ["KSampler", {"steps": 4, "seed": seed_of(screen)}],
        "decode": ["VAEDecode", {}],
        "save": ["SaveImage", {}],
    }
    ids = page.evaluate(BUILD, nodes)
    links = [
        ("portrait", "IMAGE", "concept", "image"),
        ("portrait", "MASK", "concept", "mask"),
        *(("toy", kind, "apply", kind.lower()) for kind in ("MODEL", "CLIP", "VAE")),
        ("concept", "concepts", "apply", "concepts"),
        ("toy", "CLIP", "negative", "clip"),
        ("apply", "MODEL", "sampler", "model"),
        ("apply", "positive", "sampler", "positive"),
        ("negative", "CONDITIONING", "sampler", "negative"),
        ("latent", "LATENT", "sampler", "latent_image"),
        ("sampler", "LATENT", "decode", "samples"),
        ("toy", "VAE", "decode", "vae"),
        ("decode", "IMAGE", "save", "images"),
    ]
    page.evaluate(CONNECT, [[ids[a], out, ids[b], into] for a, out, b, into in links])
    close_toasts(page)

    screen.queue()

    page.wait_for_function(SHOWN, timeout=300_000)
    assert screen.complaints_about_us() == []


# ---- sentences ----


def test_our_sentence_stands_in_a_toast_when_a_node_fails(screen: Frontend) -> None:
    page = screen.page
    screen.load(workflow_files.read("MagicFace-1-one-concept"))
    screen.set_widgets(**{"MagicFaceApply.prompt": "a man with a scarf"})
    close_toasts(page)

    screen.queue()

    toast = toasts(page).filter(has_text="phrase 'top hat' is not in the prompt")
    toast.wait_for(timeout=120_000)
    assert "MagicFace Apply" in toast.inner_text()
    screen.screenshot("toast_failure")

    # What was said of a run goes with the next one.
    prompt = "a man wearing a top hat"
    screen.set_widgets(**{"MagicFaceApply.prompt": prompt, "steps": 1, "batch_size": 1})
    screen.queue()
    toast.wait_for(state="detached", timeout=120_000)
    close_toasts(page)


CARD = '[data-testid="error-overlay"]'
"""The host's own card for errors; older frontends open a dialog, with our sentence in it."""


def boxes_meet(first: Locator, second: Locator) -> bool:
    one, other = first.bounding_box(), second.bounding_box()
    assert one and other
    return all(
        one[at] < other[at] + other[size] and other[at] < one[at] + one[size]
        for at, size in (("x", "width"), ("y", "height"))
    )


def test_our_sentence_leaves_the_hosts_own_card_in_sight(screen: Frontend) -> None:
    page = screen.page
    screen.load(workflow_files.read("MagicFace-1-one-concept"))
    close_toasts(page)
    screen.send("execution_error", failure(page, "MagicFaceApply", "nodes/magicface_apply.py"))

    notice = toasts(page).filter(has_text="a sentence of ours")
    notice.wait_for(timeout=30_000)
    page.locator(CARD).wait_for(timeout=30_000)
    page.wait_for_timeout(2500)

    assert notice.count() == 1
    assert not boxes_meet(notice, page.locator(CARD))
    screen.screenshot("toast_and_card")
    close_toasts(page)


def failure(
    page: Page, kind: str, path: str, sentence: str = "a sentence of ours"
) -> dict[str, Any]:
    """What the host sends of a node that failed in a file of the pack's folder."""
    return {
        "prompt_id": "a prompt",
        "node_id": page.evaluate(ID_OF, kind),
        "node_type": kind,
        "executed": [],
        "exception_message": sentence,
        "exception_type": "ValueError",
        "traceback": [
            '  File "/comfy/execution.py", line 1, in execute\n',
            f'  File "/comfy/custom_nodes/{PACK_NAME}/host/sampling/patch.py", line 1, in step\n',
            f'  File "/comfy/custom_nodes/{PACK_NAME}/{path}", line 1, in there\n    raise\n',
        ],
        "current_inputs": {},
        "current_outputs": [],
    }


@pytest.mark.parametrize(
    ("kind", "path", "is_ours"),
    [
        ("MagicFaceApply", ".venv/lib/torch/functional.py", True),
        ("KSampler", "host/sampling/patch.py", True),
        ("KSampler", ".venv/lib/torch/functional.py", False),
        ("KSampler", ".cache/comfyui/comfy/samplers.py", False),
    ],
)
def test_failures_of_others_are_not_ours_to_tell(
    screen: Frontend, kind: str, path: str, is_ours: bool
) -> None:
    page = screen.page
    screen.load(workflow_files.read("MagicFace-1-one-concept"))
    close_toasts(page)
    sentence = f"{kind} failed in {path}"

    screen.send("execution_error", failure(page, kind, path, sentence))

    page.wait_for_timeout(1500)
    assert toasts(page).filter(has_text=sentence).count() == int(is_ours)
    close_toasts(page)


def test_a_bypass_that_passes_no_conditioning_is_warned_about(screen: Frontend) -> None:
    page = screen.page
    screen.load(workflow_files.read("MagicFace-1-one-concept"))
    view = screen.view("MagicFaceApply")
    page.evaluate(MODE, ["MagicFaceApply", 0, BYPASSED])

    view.get_by_role("alert").wait_for()
    sentence = "MagicFace Apply is bypassed and passes no conditioning on"
    assert sentence in view.get_by_role("alert").inner_text()
    close_toasts(page)
    screen.queue()
    warning = toasts(page).filter(has_text=sentence)
    warning.wait_for(timeout=30_000)
    assert "connect its positive input, or mute the concepts" in warning.inner_text()
    screen.screenshot("toast_bypass")
    close_toasts(page)

    plain = page.evaluate(ADD_NODE, "CLIPTextEncode")
    toy, node = (page.evaluate(ID_OF, kind) for kind in ("MagicToyCheckpoint", "MagicFaceApply"))
    links = [[toy, "CLIP", plain, "clip"], [plain, "CONDITIONING", node, "positive"]]
    page.evaluate(CONNECT, links)
    page.evaluate("() => document.dispatchEvent(new Event('input'))")
    view.get_by_role("alert").wait_for(state="detached")


def test_a_refused_value_is_said_once(screen: Frontend) -> None:
    page = screen.page
    screen.load(workflow_files.read("MagicFace-1-one-concept"))
    screen.set_widgets(**{"MagicFaceApply.start": 0.8, "MagicFaceApply.end": 0.2})
    close_toasts(page)

    screen.queue()

    sentence = toasts(page).filter(has_text="start (0.8) is after end (0.2)")
    sentence.first.wait_for(timeout=60_000)
    page.wait_for_timeout(1000)
    assert sentence.count() == 1
    screen.screenshot("toast_refusal")
    close_toasts(page)


def test_a_model_without_its_positive_is_warned_about_before_queueing(screen: Frontend) -> None:
    page = screen.page
    screen.load(workflow_files.read("MagicFace-1-one-concept"))
    view = screen.view("MagicFaceApply")
    assert view.get_by_role("alert").count() == 0

    page.evaluate(DISCONNECT, ["KSampler", "positive"])
    page.evaluate("() => document.dispatchEvent(new Event('input'))")

    view.get_by_role("alert").wait_for()
    assert "MODEL is connected, positive is not" in view.get_by_role("alert").inner_text()
    close_toasts(page)
    screen.queue()
    toasts(page).filter(has_text="positive is not").wait_for(timeout=30_000)
    screen.screenshot("toast_unconnected")
    close_toasts(page)


# ---- with and without ----


def test_muted_and_bypassed_concepts_are_left_out_and_the_rest_runs(screen: Frontend) -> None:
    page = screen.page
    screen.load(workflow_files.read("MagicFace-2-three-concepts"))
    view = screen.view("MagicFaceApply")

    def marks() -> list[str]:
        page.wait_for_timeout(300)
        return view.locator("mark").all_inner_texts()

    assert marks() == ["top hat", "scarf", "shirt"]
    links = page.evaluate(LEAD_THROUGH, ["MagicConceptLora", "Scarf", "MagicFaceApply"])
    links += page.evaluate(LEAD_THROUGH, ["MagicLayoutConditioning", "woman", "MagicFaceApply"])
    assert marks() == ["woman", "top hat", "scarf", "shirt"], "what has no picture is named too"
    titles = [mark.get_attribute("title") for mark in view.locator("mark").all()]
    assert titles == ["woman", "top hat", "scarf", "shirt"], "the LoRA is of the concept's phrase"
    for node in links:
        page.evaluate("id => app.graph.getNodeById(id).mode = 4", node)
    page.evaluate(MODE, ["MagicFaceConcept", 0, MUTED])
    assert marks() == ["scarf", "shirt"]
    page.evaluate(MODE, ["MagicFaceConcept", 0, 0])
    page.evaluate(MODE, ["MagicFaceConcept", 1, BYPASSED])
    assert marks() == ["top hat", "shirt"]
    page.evaluate(MODE, ["MagicFaceConcept", 2, BYPASSED])
    assert marks() == ["top hat"]
    [apply] = [
        node["inputs"]
        for node in screen.prompt().values()
        if node["class_type"] == "MagicFaceApply"
    ]
    assert apply["concepts"][0] == page.evaluate(ID_OF, "MagicFaceConcept")

    page.evaluate(MODE, ["MagicFaceConcept", 2, MUTED])
    assert marks() == []
    [apply] = [
        node["inputs"]
        for node in screen.prompt().values()
        if node["class_type"] == "MagicFaceApply"
    ]
    assert "concepts" not in apply
    page.evaluate("() => { app.graph.nodes.find(n => n.title == 'layout').mode = 2 }")
    screen.set_widgets(steps=2, **{"KSampler.seed": seed_of(screen)})
    screen.queue()
    page.wait_for_function(PICTURES, timeout=300_000)
    assert screen.complaints_about_us() == []


def test_a_run_without_concepts_shows_no_layout_of_the_run_before(screen: Frontend) -> None:
    page = screen.page
    workflow = workflow_files.read("MagicFace-1-one-concept")
    screen.load(workflow)
    screen.set_widgets(steps=2, **{"KSampler.seed": seed_of(screen) + 1})
    view = page.get_by_role("region", name="Layout", exact=True)
    screen.queue()
    view.locator(".magic-backdrop").first.wait_for(state="attached", timeout=300_000)

    page.evaluate(MODE, ["MagicFaceConcept", 0, BYPASSED])
    screen.queue()

    view.get_by_text("No phrases in this run").wait_for(state="attached", timeout=300_000)
    for left in (".magic-legend", ".magic-stage", ".magic-references", "[aria-label='step']"):
        assert view.locator(left).count() == 0
    screen.reload(workflow)
    view.get_by_text("No phrases in this run").wait_for(state="attached", timeout=30_000)
    assert screen.complaints_about_us() == []


def test_pictures_of_another_prompt_are_not_put_under_a_layout(screen: Frontend) -> None:
    page = screen.page
    screen.load(workflow_files.read("MagicFace-1-one-concept"))
    run_of(screen, pictures=1, prompt="with the node")
    Image.new("RGB", (8, 8)).save(screen.server.input_dir / "done.png")
    save = page.evaluate(ID_OF, "SaveImage")
    output = {"images": [{"filename": "done.png", "subfolder": "", "type": "input"}]}
    event = {"node": save, "display_node": save, "output": output}
    backdrop = page.locator(".magic-backdrop").first

    screen.send("executed", {**event, "prompt_id": "with the node bypassed"})
    page.wait_for_timeout(300)
    assert backdrop.get_attribute("src") is None
    screen.send("executed", {**event, "prompt_id": "with the node"})
    page.wait_for_function(FINISHED)
    assert "done.png" in (backdrop.get_attribute("src") or "")


PICTURES = """() => {
    const save = app.graph.nodes.find(node => node.title == 'pictures');
    return app.nodeOutputs[save.id]?.images?.length == 4;
}"""


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("MagicFace-4-mask-to-comparison", "MagicFaceApply"),
        ("Semantic-Layout", "MagicSemanticLayout"),
    ],
)
def test_a_bypass_passes_model_and_conditioning_on(screen: Frontend, name: str, kind: str) -> None:
    page = screen.page
    screen.load(workflow_files.read(name))
    if kind == "MagicSemanticLayout":
        plain = page.evaluate(ADD_NODE, "CLIPTextEncode")
        toy, node = page.evaluate(ID_OF, "MagicToyCheckpoint"), page.evaluate(ID_OF, kind)
        links = [[toy, "CLIP", plain, "clip"], [plain, "CONDITIONING", node, "positive"]]
        page.evaluate(CONNECT, links)

    page.evaluate(MODE, [kind, 0, BYPASSED])

    prompt = screen.prompt()
    assert kind not in {node["class_type"] for node in prompt.values()}
    [sampler] = [node["inputs"] for node in prompt.values() if node["class_type"] == "KSampler"]
    assert prompt[sampler["model"][0]]["class_type"] == "MagicToyCheckpoint"
    assert prompt[sampler["positive"][0]]["class_type"] == "CLIPTextEncode"


# ---- the views ----


def test_the_prompt_keeps_its_height_and_the_saved_node_its_size(screen: Frontend) -> None:
    page = screen.page
    screen.load(workflow_files.read("MagicFace-2-three-concepts"))
    page.wait_for_timeout(500)
    before = page.evaluate(SIZES, "MagicFaceApply")
    assert before["prompt"] < 200, "it has the room of inputs that are not shown"

    run_of(screen, pictures=6)
    page.wait_for_timeout(700)

    after = page.evaluate(SIZES, "MagicFaceApply")
    assert after["node"] > before["node"] + 150
    assert abs(after["prompt"] - before["prompt"]) <= 2
    assert after["saved"] == before["saved"]
    widths = {
        round((image.bounding_box() or {})["width"])
        for image in page.locator(".magic-layout").all()
    }
    assert len(widths) == 1, "six pictures are six of a size"
    tops = {
        round((image.bounding_box() or {})["y"]) for image in page.locator(".magic-layout").all()
    }
    assert len(tops) == 2, "in two rows of three"
    for _ in range(2):
        screen.reopen(screen.saved_workflow())
        again = page.evaluate(SIZES, "MagicFaceApply")
        assert (again["saved"], again["node"]) == (before["saved"], after["node"])


def test_a_view_is_as_high_as_what_it_shows(screen: Frontend) -> None:
    page = screen.page
    screen.load(workflow_files.read("MagicFace-1-one-concept"))
    references = [{"phrase": 0, "image": png((8, 8))}]
    run_of(screen, pictures=4, references=references, asked=3, run="high")
    page.wait_for_timeout(700)
    screen.screenshot("view_height")

    gap = page.evaluate(GAP_BELOW_VIEW, "MagicFaceApply")

    # A zoomed page is off by parts of a millionth.
    assert 0 <= round(gap, 3) <= 24


GAP_BELOW_VIEW = """type => {
    const node = app.graph.nodes.find(node => node.type == type);
    const widget = node.widgets.find(widget => widget.type == 'magicportrait');
    if (!LiteGraph.vueNodesMode) return node.size[1] - widget.y - widget.element.offsetHeight;
    const grid = widget.element.closest('[data-testid="node-widgets"]').getBoundingClientRect();
    return grid.bottom - widget.element.firstChild.getBoundingClientRect().bottom;
}"""


def test_a_layout_says_what_is_dark_and_how_the_steps_are_counted(screen: Frontend) -> None:
    page = screen.page
    screen.load(workflow_files.read("MagicFace-1-one-concept"))
    view = screen.view("MagicFaceApply")
    references = [{"phrase": 0, "image": png((8, 8)), "masked": True}]

    run_of(screen, pictures=1, steps=13, references=references, asked=12, run="thirteen")
    said = view.locator(".magic-caption").all_inner_texts()
    assert said == [
        "The sampler's scheduler makes 13 steps of the 12 asked for.",
        "dark: left out by the mask",
    ]

    run_of(screen, pictures=1, steps=12, references=references, asked=12, run="twelve")
    assert view.locator(".magic-caption").all_inner_texts() == ["dark: left out by the mask"]
    concept = page.evaluate(ID_OF, "MagicFaceConcept")
    taken = {"picture": png((8, 8)), "masked": True}
    event = {"node": concept, "display_node": concept}
    screen.send("executed", {**event, "output": {"magic_taken": [taken]}})
    said_of_concept = screen.view("MagicFaceConcept").locator(".magic-caption")
    assert said_of_concept.inner_text() == "dark: left out by the mask"

    whole = "All of it is taken, the background too."
    bright = [{**references[0], "masked": False}]
    run_of(screen, pictures=1, steps=12, references=bright, asked=12, run="bright")
    assert view.locator(".magic-caption").inner_text().startswith(whole)
    screen.send("executed", {**event, "output": {"magic_taken": [{**taken, "masked": False}]}})
    assert said_of_concept.inner_text().startswith(f"{whole} For a part of it: right-click")


@pytest.mark.parametrize("kind", ["MagiCaptureSubject", "MagiCaptureStyle"])
def test_a_set_says_what_is_dark_in_its_pictures(screen: Frontend, kind: str) -> None:
    page = screen.page
    page.evaluate("() => app.graph.clear()")
    node = page.evaluate(ADD_NODE, kind)
    captions = []
    for is_masked in (True, False):
        output = {"magic_masked": [is_masked]}
        screen.send("executed", {"node": node, "display_node": node, "output": output})
        captions.append(screen.view(kind).locator(".magic-caption").inner_text())
    assert captions == ["dark: left out by the mask", "All of each picture is learned."]


def test_views_have_no_row_in_the_panel_of_parameters(screen: Frontend) -> None:
    screen.load(workflow_files.read("MagicFace-1-one-concept"))
    assert screen.page.evaluate(
        "() => app.graph.nodes.flatMap(node => node.widgets ?? [])"
        ".filter(widget => widget.type == 'magicportrait')"
        ".every(widget => widget.options.hideInPanel)"
    )


def test_a_layout_comes_back_after_a_reload_in_mid_run_and_after(screen: Frontend) -> None:
    page = screen.page
    name = "MagicFace-2-three-concepts"
    workflow = workflow_files.read(name)
    open_link(screen, name)
    assert page.evaluate(HAS, "MagicFaceApply")
    # Concepts that the server knows from another page are not executed for this one.
    strength = {"MagicFaceConcept.strength": 1 + len(screen.mode) / 10}
    screen.set_widgets(steps=40, **{"KSampler.seed": seed_of(screen)}, **strength)
    screen.queue()
    layouts = page.locator(".magic-layout")
    # Not those of a run before.
    page.locator(".magic-legend li", has_text="shirt").wait_for(state="attached", timeout=300_000)
    layouts.first.wait_for(state="attached", timeout=60_000)

    taken = page.get_by_role("region", name="What is taken").locator("img")
    screen.reload(workflow)
    layouts.first.wait_for(state="attached", timeout=30_000)
    assert layouts.count() == 4
    expect(taken).to_have_count(3)
    view = page.get_by_role("region", name="Layout", exact=True)
    page.wait_for_function(
        "() => document.querySelector('.magic-view [aria-valuetext]')"
        "?.getAttribute('aria-valuetext') == '40 of 40'",
        timeout=300_000,
    )
    assert view.locator(".magic-legend li").all_inner_texts() == ["top hat", "scarf", "shirt"]

    screen.reload(workflow)
    layouts.first.wait_for(state="attached", timeout=30_000)
    assert view.get_by_label("step").get_attribute("aria-valuetext") == "40 of 40"
    assert view.locator(".magic-references img").count() == 3
    expect(taken).to_have_count(3)
    page.wait_for_function(FINISHED)
    assert page.locator(".magic-backdrop").count() == 4
    screen.screenshot("reloaded")

    # In the tab that is open already: what was in it is gone.
    open_link(screen, name)
    expect(page.locator(".magic-prompt mark")).to_have_text(["top hat", "scarf", "shirt"])
    page.wait_for_timeout(500)
    assert (layouts.count(), taken.count()) == (0, 0)
    assert screen.complaints_about_us() == []


def test_a_finished_picture_is_seen_through_its_layout(screen: Frontend) -> None:
    page = screen.page
    screen.load(workflow_files.read("MagicFace-1-one-concept"))
    run_of(screen, pictures=1)
    view = page.get_by_role("region", name="Layout", exact=True)
    assert view.get_by_label("layout", exact=True).input_value() == "0.6"
    Image.new("RGB", (8, 8)).save(screen.server.input_dir / "done.png")
    save = page.evaluate(ID_OF, "SaveImage")
    output = {"images": [{"filename": "done.png", "subfolder": "", "type": "input"}]}

    screen.send("executed", {"node": save, "display_node": save, "output": output})

    page.wait_for_function(FINISHED)
    assert view.get_by_label("layout", exact=True).input_value() == "0.3"


# ---- a concept with a picture of its own ----


def test_a_concept_shows_what_is_taken_of_its_own_picture(screen: Frontend) -> None:
    page = screen.page
    picture = Image.new("RGBA", (64, 64), (200, 200, 200, 255))
    picture.save(screen.server.input_dir / "own.png")
    ImageDraw.Draw(picture).ellipse((16, 16, 48, 48), (200, 200, 200, 0))
    picture.save(screen.server.input_dir / "clipspace-painted-own.png")
    page.evaluate("() => app.graph.clear()")
    page.evaluate(ADD_NODE, "MagicFaceConcept")
    view = page.get_by_role("region", name="What is taken")

    page.evaluate(TURN, ["MagicFaceConcept", "picture", "own.png"])
    view.get_by_text("All of it is taken").wait_for()
    middle, corner = page.evaluate(BRIGHTNESS)
    assert middle == corner == 200

    # The Mask Editor knows only a widget called image.
    page.evaluate(TURN_ALIAS, "clipspace-painted-own.png [input]")
    view.get_by_text("The bright part is taken").wait_for()
    middle, corner = page.evaluate(BRIGHTNESS)
    assert middle == 200 and corner == 50
    [concept] = screen.prompt().values()
    assert concept["inputs"] == {
        "phrase": "hat",
        "strength": 3,
        "reference_prompt": "",
        "picture": "clipspace-painted-own.png [input]",
        "preset": "custom",
        "invert": False,
        "start": 0,
        "end": 1,
        "strength_curve": "",
    }
    saved = screen.saved_workflow()
    assert saved["nodes"][0]["widgets_values"] == [
        "hat",
        3,
        "",
        "clipspace-painted-own.png [input]",
        "custom",
        False,
        0,
        1,
        "",
        "image",
    ]
    screen.load(saved)
    view.get_by_text("The bright part is taken").wait_for()
    screen.screenshot("own_picture")
    assert screen.complaints_about_us() == []


TURN_ALIAS = """value => {
    const node = app.graph.nodes.find(node => node.type == 'MagicFaceConcept');
    node.widgets.find(widget => widget.name == 'image').value = value;
}"""


def test_the_mask_editor_paints_a_concepts_own_picture(screen: Frontend) -> None:
    page = screen.page
    Image.new("RGB", (256, 256), "white").save(screen.server.input_dir / "paint.png")
    page.evaluate("() => app.graph.clear()")
    page.evaluate(ADD_NODE, "MagicFaceConcept")
    page.evaluate(TURN, ["MagicFaceConcept", "picture", "paint.png"])
    page.get_by_role("button", name="Paint the mask").click()
    canvas = page.locator("canvas#maskCanvas, .maskEditor_sidePanelContainer, canvas").last
    canvas.wait_for()
    page.wait_for_timeout(1500)
    page.mouse.move(850, 450)
    page.mouse.down()
    for step in range(20):
        page.mouse.move(850 + 6 * step, 450 + step % 5)
    page.mouse.up()

    page.get_by_role("button", name="Save").first.click()

    page.get_by_text("The bright part is taken").wait_for(timeout=30_000)
    assert "clipspace" in page.evaluate(VALUE, ["MagicFaceConcept", "picture"])
    assert screen.complaints_about_us() == []


DISABLED = """name => Boolean(app.graph.nodes.find(node => node.type == 'MagicFaceConcept')
    .widgets.find(widget => widget.name == name).disabled)"""


def test_a_connected_image_disables_the_concepts_own_picture(screen: Frontend) -> None:
    page = screen.page
    screen.load(workflow_files.read("MagicFace-1-one-concept"))
    page.wait_for_timeout(300)
    assert page.evaluate(DISABLED, "picture") and page.evaluate(DISABLED, "upload")
    assert not page.evaluate(DISABLED, "phrase")

    page.evaluate(DISCONNECT, ["MagicFaceConcept", "image"])
    page.evaluate("() => document.dispatchEvent(new Event('input'))")
    page.wait_for_timeout(300)

    assert not page.evaluate(DISABLED, "picture") and not page.evaluate(DISABLED, "upload")


def test_strength_in_words_and_as_a_number_agree(screen: Frontend) -> None:
    page = screen.page
    page.evaluate("() => app.graph.clear()")
    page.evaluate(ADD_NODE, "MagicFaceConcept")

    page.evaluate(TURN, ["MagicFaceConcept", "preset", "strong"])
    assert page.evaluate(VALUE, ["MagicFaceConcept", "strength"]) == 4
    page.evaluate(TURN, ["MagicFaceConcept", "strength", 2.5])
    assert page.evaluate(VALUE, ["MagicFaceConcept", "preset"]) == "custom"


# ---- finding things ----


@pytest.mark.parametrize(
    "words",
    [
        "instantid",
        "pulid",
        "character",
        "consistent character",
        "outfit",
        "clothes",
        "try on",
        "lora training",
        "multi subject",
        "reference",
        "hat",
        "scarf",
        "glasses",
        "hairstyle",
        "face swap",
        "clothes swap",
        "style transfer",
        "cartoon",
        "anime",
        "face restore",
        "face crop",
        "segment",
        "train lora",
        "two people",
        "sketch",
    ],
)
def test_what_people_type_finds_a_node(object_info: dict[str, Any], words: str) -> None:
    ours = [info for name, info in object_info.items() if name.startswith(("Magic", "MagiC"))]
    assert any(words in (info.get("search_aliases") or ()) for info in ours)


SORTED_BY = re.compile(r"Default|Relevance|Recommended|Popular|Alphabetical|A\W+Z")
"""What the gallery's box may say: a search changes it."""


def test_the_gallery_finds_a_template_by_its_words(screen: Frontend) -> None:
    page = screen.page
    # The page keeps what was chosen the last time.
    page.evaluate("app.extensionManager.setting.set('Comfy.Templates.SortBy', 'default')")
    page.evaluate("() => app.extensionManager.command.execute('Comfy.BrowseTemplates')")
    page.get_by_text(PACK_NAME, exact=True).first.click()
    page.get_by_placeholder("Search ...").first.fill("style transfer")
    screen.card("MagicStyle-1-style-transfer").wait_for()
    screen.screenshot("gallery")
    page.get_by_placeholder("Search ...").first.fill("MagicFace")
    page.get_by_role("combobox").filter(has_text=SORTED_BY).first.click()
    page.get_by_role("option", name="A", exact=False).filter(has_text="Z").first.click()
    page.wait_for_timeout(1000)
    named = page.locator("[data-testid^='template-workflow-MagicFace-']").evaluate_all(
        "cards => cards.map(card => card.dataset.testid)"
    )
    assert len(named) > 5 and named == sorted(named), "docs/magicface.md names this order"
    page.keyboard.press("Escape")
    assert json.loads(screen.server.get("/workflow_templates"))[PACK_NAME]
