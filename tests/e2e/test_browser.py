"""The pack in ComfyUI's own frontend, in a real browser; templates and blueprints run in
test_gallery.py."""

from __future__ import annotations

import base64
import operator
import re
from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image
from playwright.sync_api import Locator

import workflow_files
from bench.arrange_workflows import GROWTH
from devkit.pack import PACK_NAME
from devkit.workflow_format import to_api_prompt
from frontend import ADD_NODE, MODES, SHOWN, UNKNOWN, Frontend, png
from magicportrait.host.pictures.palette import PALETTE
from magicportrait.magic.phrases import split_phrases

HEATED = (
    "() => [...document.querySelectorAll('.magic-heat')].every(image => image.naturalWidth > 0)"
)
CHANGED = """before => {
    const now = [...document.querySelectorAll('.magic-heat')];
    return now.length == before.length && now.some((image, i) => image.src != before[i]);
}"""
POSITION = (
    "() => [...app.graph.nodes.find(node => node.type == 'MagicCorrespondenceMap').pos,"
    " ...app.canvas.ds.offset]"
)
EXPLORED = """() => {
    const { id } = app.graph.nodes.find(node => node.type == 'MagicCorrespondenceMap');
    return [String(id), app.nodeOutputs[id]];
}"""
PHRASES = (
    "() => app.graph.nodes.filter(node => node.type == 'MagicFaceConcept').map(node =>"
    " node.widgets[0].value)"
)
EDIT_PHRASES = PHRASES.replace("MagicFaceConcept", "MagicEditReference")
FIRST_WITHOUT_PHRASE = (
    "() => { app.graph.nodes.find(node => node.type == 'MagicEditReference').widgets[0].value = ''"
    " }"
)
# How high a node is without the link to its prompt, with it, and without it again.
RELINK = """type => {
    const node = app.graph.nodes.find(node => node.type == type);
    const slot = node.findInputSlot('prompt');
    const { origin_id, origin_slot } = node.getInputLink(slot);
    const heights = [];
    for (const isLinked of [false, true, false]) {
        if (isLinked) app.graph.getNodeById(origin_id).connect(origin_slot, node, slot);
        else node.disconnectInput(slot);
        heights.push(node.size[1]);
    }
    return heights;
}"""
ADD_BEHIND = """([type, output, added, input]) => {
    const source = app.graph.nodes.find(node => node.type == type);
    const target = LiteGraph.createNode(added);
    app.graph.add(target);
    source.connect(source.findOutputSlot(output), target, target.findInputSlot(input));
    document.dispatchEvent(new Event('input'));
}"""
MANY_FILES = """() => {
    const { options } = app.graph.nodes[0].widgets.find(({ name }) => name == 'file');
    const others = Array.from({ length: 3000 }, (_, i) => `some/gone ${i}.safetensors`);
    options.values = [...options.values, ...others];
    document.dispatchEvent(new Event('input'));
}"""
MODULE = f"import('/extensions/{PACK_NAME}/{{}}.js')"
FIND = f"""async cases => {{
    const {{ findPhrases }} = await {MODULE.format("phrases")};
    // Browsers of 2023 do not have it.
    const filter = window.Iterator?.prototype.filter;
    if (filter) delete Iterator.prototype.filter;
    try {{
        return cases.map(([phrases, prompt]) => findPhrases([phrases].flat(), prompt));
    }} finally {{
        if (filter) Iterator.prototype.filter = filter;
    }}
}}"""
# How often the views of layouts read their prompts when the graph changes; the first that does,
# fails.
REFRESHES = f"""async () => {{
    const {{ LayoutView }} = await {MODULE.format("layout_view")};
    const refresh = LayoutView.prototype.refresh;
    let count = 0;
    LayoutView.prototype.refresh = function () {{
        if (!count++) throw new Error('not this one');
        refresh.call(this);
    }};
    document.dispatchEvent(new Event('input'));
    await new Promise(requestAnimationFrame);
    await new Promise(requestAnimationFrame);
    LayoutView.prototype.refresh = refresh;
    return count;
}}"""
TRAIN = f"""async steps => {{
    const {{ TrainingRun }} = await {MODULE.format("training_view")};
    const run = new TrainingRun({{ node: '1', steps }});
    for (let step = 1; step <= steps; step++) run.add({{ step, steps, loss: 1 / step }});
    return run.points.map(point => point.step);
}}"""
TIMES_LEFT = (
    f"async times => {{ const {{ timeLeft }} = await {MODULE.format('training_view')}; return"
    " times.map(timeLeft); }"
)
OUR_WIDGETS = (
    "() => app.graph.nodes.flatMap(node => node.widgets ?? []).filter(widget => widget.type =="
    " 'magicportrait').length"
)
ID_OF = "type => String(app.graph.nodes.find(node => node.type == type).id)"
PREVIEW = """([nodeId, base64]) => {
    const bytes = Uint8Array.from(atob(base64), letter => letter.charCodeAt(0));
    const detail = { blob: new Blob([bytes], { type: 'image/png' }), nodeId };
    app.api.dispatchEvent(new CustomEvent('b_preview_with_metadata', { detail }));
}"""
COUNT_CHANGES_OF_ALERT = """() => {
    window.changesOfAlert = 0;
    const observer = new MutationObserver(changes => { window.changesOfAlert += changes.length });
    observer.observe(document.querySelector('.magic-help'), { childList: true });
    const all = { childList: true, characterData: true, subtree: true };
    observer.observe(document.querySelector('[role=alert].magic-missing'), all);
}"""
# Of the underlined prompt: how high all of it is, how much is shown, whether it fades below, and
# whether it takes the focus.
SHOWN_OF_PROMPT = """() => {
    const prompt = document.querySelector('.magic-prompt');
    const { scrollHeight, clientHeight, classList, tabIndex } = prompt;
    return [scrollHeight, clientHeight, classList.contains('magic-more-below'), tabIndex == 0];
}"""
# The text boxes of a type's only node: how high each is, and how high its text.
TEXT_BOXES = """type => {
    const node = app.graph.nodes.find(node => node.type == type);
    const drawn = document.querySelector(`[data-node-id="${node.id}"]`);
    const boxes = LiteGraph.vueNodesMode
        ? [...drawn.querySelectorAll('textarea')]
        : node.widgets.map(widget => widget.element).filter(each => each?.tagName == 'TEXTAREA');
    return boxes.map(({ clientHeight, scrollHeight }) => [clientHeight, scrollHeight]);
}"""
HELP_PICTURE = "() => document.querySelector('.node-help-content img')?.naturalWidth > 0"
# How many pictures the host shows on a node.
HOSTS_PICTURES = """id => {
    if (!LiteGraph.vueNodesMode) return app.graph.getNodeById(id).imgs?.length ?? 0;
    return [...document.querySelectorAll(`[data-node-id="${id}"] img`)]
        .filter(image => !image.closest('.magic-view')).length;
}"""
STEPS = 8


@pytest.mark.parametrize("name", workflow_files.ALL)
def test_workflow_opens_as_it_was_saved_and_so_it_does_again(
    frontend: Frontend, object_info: dict[str, Any], name: str
) -> None:
    workflow = workflow_files.read(name)

    frontend.load(workflow)

    frontend.screenshot(name)
    assert frontend.page.evaluate(UNKNOWN) == []
    assert frontend.prompt() == to_api_prompt(workflow, object_info)
    saved = frontend.saved_workflow()
    assert sorted(saved["links"]) == sorted(workflow["links"])
    assert [group["title"] for group in saved["groups"]] == [
        group["title"] for group in workflow["groups"]
    ]
    assert values(saved) == values(workflow)
    frontend.load(saved)
    assert frontend.saved_workflow() == saved
    assert frontend.complaints_about_us() == []


def test_layout_appears_while_it_samples(frontend: Frontend) -> None:
    frontend.load(workflow_files.read("MagicFace-2-three-concepts"))
    page, view = frontend.page, frontend.view("MagicFaceApply")
    phrases = page.evaluate(PHRASES)
    assert view.locator("mark").all_inner_texts() == phrases
    # Nothing is sampled when the server knows the pictures already.
    frontend.set_widgets(steps=STEPS, **{"KSampler.seed": 1000 + list(MODES).index(frontend.mode)})

    frontend.queue()

    view.locator(".magic-layout").first.wait_for(state="attached", timeout=300_000)
    page.wait_for_function(SHOWN, timeout=300_000)
    assert view.locator(".magic-legend li").all_inner_texts() == phrases
    assert [swatches_colour(item) for item in view.locator(".magic-swatch").all()] == [
        rgb for _, rgb in PALETTE[: len(phrases)]
    ]
    assert view.locator(".magic-picture").count() == 4
    assert view.locator(".magic-references img").count() == len(phrases)
    page.wait_for_function(
        "() => [...document.querySelectorAll('.magic-backdrop')].every(image => image.naturalWidth"
        " > 0)"
    )
    frontend.screenshot("layout")
    assert frontend.complaints_about_us() == []


def test_layout_is_turned_by_keyboard_and_says_what_it_shows(frontend: Frontend) -> None:
    """Goes on from the run of the test before."""
    view = frontend.view("MagicFaceApply")
    step, picture = view.get_by_label("step"), view.locator(".magic-layout").first
    last = picture.get_attribute("src")
    step.focus()

    for _ in range(STEPS):
        frontend.page.keyboard.press("ArrowLeft")

    assert step.get_attribute("aria-valuetext") == f"1 of {STEPS}"
    assert picture.get_attribute("src") != last
    assert "at step 1" in (picture.get_attribute("alt") or "")
    assert all(image.get_attribute("alt") for image in view.locator("img").all())


def test_a_layout_outlives_its_node(frontend: Frontend) -> None:
    """The host makes nodes anew at an undo, a reload and a change of tab."""
    workflow, page = workflow_files.read("MagicFace-2-three-concepts"), frontend.page
    frontend.load(workflow)
    node, sampler = page.evaluate(ID_OF, "MagicFaceApply"), page.evaluate(ID_OF, "KSampler")
    about, picture = {"node": node, "sampler": sampler}, png((2, 2))
    run = {**about, "steps": STEPS, "phrases": ["a man"], "references": []}
    frontend.send("magicportrait.run", run)
    frontend.send(
        "magicportrait.layout",
        {**about, "layouts": {"0": [picture], "3": [picture]}, "done": False},
    )

    frontend.reopen(frontend.saved_workflow())

    view = page.get_by_role("region", name="Layout", exact=True)
    step, layouts = view.get_by_label("step"), view.locator(".magic-layout")
    assert step.get_attribute("aria-valuetext") == f"4 of {STEPS}"
    frontend.send("magicportrait.layout", {**about, "layouts": {"5": [picture]}, "done": False})
    assert step.get_attribute("aria-valuetext") == f"6 of {STEPS}"
    page.evaluate(PREVIEW, [sampler, picture])
    page.wait_for_function("() => document.querySelector('.magic-backdrop').naturalWidth == 2")
    frontend.reopen({**workflow, "id": "00000000-1111-4222-8333-444444444444"})
    frontend.send("magicportrait.layout", {**about, "layouts": {"6": [picture]}, "done": True})
    assert layouts.count() == 0, "another workflow has a node of this id too"
    frontend.reopen(workflow)
    assert layouts.count() == 1
    assert step.get_attribute("aria-valuetext") == f"7 of {STEPS}"
    page.wait_for_function("() => document.querySelector('.magic-backdrop').naturalWidth == 2")

    preview = page.locator(".magic-backdrop").get_attribute("src")

    frontend.send("magicportrait.run", run)
    assert (
        page.evaluate("url => fetch(url).then(() => 'held', () => 'let go')", preview) == "let go"
    )
    step.dispatch_event("input")
    assert (layouts.count(), step.get_attribute("max"), step.get_attribute("aria-valuetext")) == (
        0,
        "0",
        None,
    )
    assert page.evaluate(REFRESHES) == 1, "views of nodes that are gone still read their prompts"
    page.evaluate(ADD_NODE, "MagicFaceApply")
    frontend.forget_complaints()
    assert page.evaluate(REFRESHES) == 2, "one view that fails stops the others"
    assert ["not this one" in complaint for complaint in frontend.forget_complaints()] == [True]


def test_a_layout_waits_for_the_workflow_that_was_queued(frontend: Frontend) -> None:
    """Two tabs made from one template have nodes of the same ids."""
    queued = workflow_files.read("MagicFace-2-three-concepts")
    other = {**queued, "id": "00000000-1111-4222-8333-444444444444"}
    frontend.load(queued)
    about = {
        "node": frontend.page.evaluate(ID_OF, "MagicFaceApply"),
        "sampler": frontend.page.evaluate(ID_OF, "KSampler"),
    }
    frontend.load(other)
    layouts = frontend.page.locator(".magic-layout")
    run = {**about, "steps": STEPS, "phrases": ["a man"], "references": []}

    for workflow, pictures in ((queued, 1), (other, 2)):
        frontend.send("magicportrait.run", {**run, "workflow": workflow["id"]})
        shown = {"layouts": {"0": [png((2, 2))] * pictures}, "done": True}
        frontend.send("magicportrait.layout", {**about, **shown, "workflow": workflow["id"]})
        assert layouts.count() == (0 if workflow is queued else pictures)

    frontend.load(queued)
    assert layouts.count() == 1
    assert frontend.complaints_about_us() == []


def test_a_run_belongs_to_the_tab_that_queued_it(frontend: Frontend) -> None:
    """A template that is opened again has the same id, and nodes of the same ids."""
    workflow, page = workflow_files.read("MagicFace-1-one-concept"), frontend.page
    layouts = page.locator(".magic-layout")
    Image.new("RGB", (8, 8)).save(frontend.server.input_dir / "done.png")

    def run(pictures: int) -> None:
        prompt = f"of {pictures}"
        nodes = {
            "node": page.evaluate(ID_OF, "MagicFaceApply"),
            "sampler": page.evaluate(ID_OF, "KSampler"),
            "workflow": workflow["id"],
            "run": prompt,
        }
        frontend.send("execution_start", {"prompt_id": prompt, "timestamp": 0})
        details = {"steps": 1, "phrases": ["hat"], "references": [], "prompt": prompt}
        frontend.send("magicportrait.run", {**nodes, **details})
        shown = {"layouts": {"0": [png((2, 2))] * pictures}, "done": True}
        frontend.send("magicportrait.layout", {**nodes, **shown})
        save = page.evaluate(ID_OF, "SaveImage")
        done = {"filename": "done.png", "subfolder": "", "type": "input"}
        output = {"images": [done] * pictures}
        event = {"node": save, "display_node": save, "output": output, "prompt_id": prompt}
        frontend.send("executed", event)
        frontend.send("execution_success", {"prompt_id": prompt, "timestamp": 1})

    def open_tab(place: int, pictures: int) -> None:
        frontend.tabs().nth(place).click()
        page.wait_for_function(
            "count => document.querySelectorAll('.magic-backdrop[src]').length == count",
            arg=pictures,
        )
        assert layouts.count() == pictures

    queueing = {"requestId": 1, "batchCount": 1}
    frontend.load(workflow)
    frontend.send("promptQueueing", queueing)
    frontend.load(workflow)
    frontend.send("promptQueueing", queueing)

    run(pictures=1)
    assert layouts.count() == 0, "it is the first tab's"
    run(pictures=2)
    assert layouts.count() == 2

    open_tab(-2, pictures=1)
    open_tab(-1, pictures=2)
    frontend.load(workflow)
    assert layouts.count() == 0, "a third tab has queued nothing"
    frontend.send("execution_start", {"prompt_id": "of 3", "timestamp": 0})
    frontend.send("execution_success", {"prompt_id": "of 3", "timestamp": 1})
    about = {"node": page.evaluate(ID_OF, "MagicFaceApply"), "sampler": "", "run": "earlier"}
    about["workflow"] = workflow["id"]
    details = {"steps": 1, "phrases": ["hat"], "references": [], "isEarlier": True}
    frontend.send("magicportrait.run", {**about, **details})
    shown = {**about, "layouts": {"0": [png((2, 2))]}, "done": True}
    frontend.send("magicportrait.layout", shown)
    assert layouts.count() == 0, "it was not there when the page was loaded"
    frontend.send("promptQueueing", queueing)
    frontend.send("magicportrait.layout", shown)
    assert layouts.count() == 1, "it may have queued what the page has missed"
    # What is queued for show here would be taken for a run of a later test.
    frontend.send("execution_start", {"prompt_id": "of 4", "timestamp": 0})
    frontend.send("execution_success", {"prompt_id": "of 4", "timestamp": 1})
    assert frontend.complaints_about_us() == []


def test_edit_regions_underlines_its_phrases_and_shows_its_layout(frontend: Frontend) -> None:
    frontend.load(workflow_files.read("MagicFace-Qwen-Image-Edit-regions"))
    page, view = frontend.page, frontend.view("MagicEditRegions")
    phrases = page.evaluate(EDIT_PHRASES)
    # The prompt has them in this order too, and says 'the man' once more.
    assert view.locator("mark").all_inner_texts() == ["woman", "man", "man", "hat"]
    assert view.get_by_role("alert").count() == 0
    about = {
        "node": page.evaluate(ID_OF, "MagicEditRegions"),
        "sampler": page.evaluate(ID_OF, "KSampler"),
    }

    run = {**about, "steps": STEPS, "phrases": phrases, "references": []}
    frontend.send("magicportrait.run", run)
    frontend.send("magicportrait.layout", {**about, "layouts": {"0": [png((2, 2))]}, "done": False})

    assert view.locator(".magic-legend li").all_inner_texts() == phrases == ["woman", "man", "hat"]
    assert view.locator(".magic-layout").count() == 1
    frontend.screenshot("edit_regions")
    page.evaluate(FIRST_WITHOUT_PHRASE)
    page.evaluate("() => document.dispatchEvent(new Event('input'))")
    page.wait_for_function("() => document.querySelectorAll('.magic-prompt mark').length == 3")
    assert view.get_by_role("alert").count() == 0
    high, low, again = page.evaluate(RELINK, "MagicEditRegions")
    assert low <= high - 20 and again == high, "a text box that shows nothing"
    assert frontend.complaints_about_us() == []


def test_a_picture_is_explored_by_pointer_and_keyboard(frontend: Frontend) -> None:
    frontend.load(workflow_files.read("MagicFace-3-where-it-looks"))
    page = frontend.page
    frontend.set_widgets(steps=4, **{"KSampler.seed": 1000 + list(MODES).index(frontend.mode)})
    frontend.queue()
    view = page.get_by_role("region", name="Correspondence", exact=True)
    view.wait_for(state="attached", timeout=300_000)
    frontend.zoom_to("MagicCorrespondenceMap")
    place = view.get_by_role("slider", name="Place in the picture")
    heats, words = view.locator(".magic-heat"), view.locator("p[role=status]")
    page.wait_for_function(HEATED)
    assert heats.count() == 3

    def seen_after(act: Callable[[], Any]) -> str:
        """What an act makes of the heat maps, which it must change."""
        before = [heat.get_attribute("src") for heat in heats.all()]
        act()
        page.wait_for_function(CHANGED, arg=before)
        return words.inner_text()

    # The place that is shown first depends on the machine's arithmetic and may be the hat's own. To
    # hover waits until the node stands still.
    across = 20 if int(place.get_attribute("aria-valuenow") or 0) > 50 else 100
    seen_after(lambda: place.hover(position={"x": across, "y": 100}))
    box = place.bounding_box()
    assert box
    on_the_hat = box["x"] + 0.47 * box["width"], box["y"] + 0.22 * box["height"]
    hovered = seen_after(lambda: page.mouse.move(*on_the_hat))
    assert float(re.findall(r"top hat ([\d.]+) %", hovered)[0]) > 10
    seen_after(lambda: page.mouse.move(box["x"] + 1.5 * box["width"], 100))
    page.mouse.click(*on_the_hat)
    page.wait_for_function(
        "words => document.querySelector('section.magic-view > p[role=status]').textContent =="
        " words",
        arg=hovered,
    )
    frontend.screenshot("correspondence")

    finger, position = page.context.new_cdp_session(page), page.evaluate(POSITION)

    def touch(kind: str, *at: float) -> None:
        points = [
            {"x": box["x"] + x * box["width"], "y": box["y"] + 0.85 * box["height"]} for x in at
        ]
        finger.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    on_the_shirt = seen_after(lambda: (touch("touchStart", 0.5), touch("touchEnd")))
    seen_after(
        lambda: (
            touch("touchStart", 0.5),
            touch("touchMove", 0.4),
            touch("touchMove", 0.3),
            touch("touchEnd"),
        )
    )
    assert int((place.get_attribute("aria-valuetext") or "").split()[0]) < 35, (
        "a finger that is dragged goes on looking"
    )
    assert words.inner_text() != on_the_shirt and page.evaluate(POSITION) == position, (
        "and does not drag the node"
    )

    chosen = place.get_attribute("aria-valuetext")
    place.focus()
    seen_after(lambda: page.keyboard.press("ArrowDown"))
    assert place.get_attribute("aria-valuetext") != chosen
    seen_after(lambda: page.keyboard.press("ArrowRight"))
    seen_after(lambda: view.get_by_label("layers").select_option("8x8"))
    seen_after(lambda: view.get_by_label("picture", exact=True).select_option("2"))
    step = view.get_by_label("step", exact=True)
    seen_after(lambda: step.press("ArrowLeft"))
    assert step.get_attribute("aria-valuetext") == "3 of 4"
    assert all(image.get_attribute("alt") for image in view.locator("img").all())

    node, output = page.evaluate(EXPLORED)
    output["magic_exploration"][0]["key"] = "another"
    frontend.send("executed", {"node": node, "display_node": node, "output": output})
    view.get_by_text("queue the workflow again").wait_for()
    frontend.screenshot("correspondence_gone")
    frontend.reopen(frontend.saved_workflow())
    view.get_by_text("queue the workflow again").wait_for()
    frontend.send(
        "executed", {"node": node, "display_node": node, "output": {"magic_correspondence": [{}]}}
    )
    assert words.count() == 0, "an exploration of a run before this one"
    frontend.reopen(frontend.saved_workflow())
    assert words.count() == 0
    assert frontend.complaints_about_us() == []


def test_a_phrase_that_is_not_in_the_prompt_is_marked_before_queueing(frontend: Frontend) -> None:
    frontend.load(workflow_files.read("MagicFace-2-three-concepts"))
    view = frontend.view("MagicFaceApply")
    first, *others = frontend.page.evaluate(PHRASES)
    assert view.get_by_role("alert").count() == 0

    frontend.set_widgets(**{"MagicFaceApply.prompt": f"a man with {' and '.join(others)}"})
    frontend.page.evaluate("() => document.dispatchEvent(new Event('input'))")

    view.get_by_role("alert").wait_for()
    assert view.get_by_role("alert").inner_text() == f"Not in the prompt: '{first}'"
    assert view.locator("mark").all_inner_texts() == others
    frontend.screenshot("phrase_missing")

    frontend.page.evaluate(COUNT_CHANGES_OF_ALERT)
    for i, prompt in enumerate(
        [f"a big man with {' and '.join(others)}", f"a man with {others[0]}"]
    ):
        frontend.set_widgets(**{"MagicFaceApply.prompt": prompt})
        frontend.page.evaluate("() => document.dispatchEvent(new Event('input'))")
        frontend.page.wait_for_function(
            "prompt => document.querySelector('.magic-prompt').textContent == prompt", arg=prompt
        )
        assert (frontend.page.evaluate("() => window.changesOfAlert") > 0) == (i > 0), (
            "an alert that is touched is read out again"
        )
    assert view.get_by_role("alert").inner_text() == f"Not in the prompt: '{first}', '{others[1]}'"


def test_the_words_of_a_training_are_said_and_missed_in_the_prompt(frontend: Frontend) -> None:
    def type_in(**values: str) -> None:
        frontend.set_widgets(**{name.replace("_", "."): text for name, text in values.items()})
        frontend.page.evaluate("() => document.dispatchEvent(new Event('input'))")

    frontend.load(workflow_files.read("MagiCapture-1-learn-person-and-style"))
    view = frontend.view("MagiCaptureApply")
    view.get_by_text("Write in the prompt: <subject>, <style>", exact=True).wait_for()
    assert view.get_by_role("alert").count() == 0
    grown = view.evaluate("view => view.offsetHeight") + 20
    assert grown <= GROWTH["MagiCaptureApply"]

    type_in(CLIPTextEncode_text="a woman in a yellow shirt", MagiCaptureSubject_placeholder="sks")
    view.get_by_role("alert").wait_for()
    assert view.get_by_role("alert").inner_text() == "Not in the prompt: 'sks', '<style>'"
    frontend.screenshot("learned_words_missing")

    type_in(CLIPTextEncode_text="a SKS woman")
    view.get_by_role("alert").wait_for(state="detached")
    # What is encoded elsewhere is not known, and nothing is missed.
    type_in(CLIPTextEncode_text="a woman")
    view.get_by_role("alert").wait_for()
    frontend.page.evaluate(ADD_BEHIND, ["MagiCaptureApply", "CLIP", "MagicDetailPass", "clip"])
    view.get_by_role("alert").wait_for(state="detached")
    assert frontend.complaints_about_us() == []


def test_a_prompt_is_shown_whole_or_seen_to_go_on(frontend: Frontend) -> None:
    page = frontend.page
    frontend.load(workflow_files.read("MagicFace-7-detail-pass"))
    frontend.zoom_to("MagicSemanticLayout")
    whole, shown, *cue = page.evaluate(SHOWN_OF_PROMPT)
    assert whole == shown > 60 and cue == [False, False]

    prompt = "a man, " * 200
    frontend.set_widgets(**{"MagicSemanticLayout.prompt": prompt})
    page.evaluate("() => document.dispatchEvent(new Event('input'))")

    page.wait_for_function("() => document.querySelector('.magic-more-below')")
    whole, shown, *cue = page.evaluate(SHOWN_OF_PROMPT)
    assert whole > shown > 150 and cue == [True, True]
    frontend.screenshot("long_prompt")
    page.locator(".magic-prompt").click()
    page.mouse.wheel(0, 2000)
    page.wait_for_function("() => !document.querySelector('.magic-more-below')")
    assert frontend.complaints_about_us() == []


@pytest.mark.parametrize(
    ("name", "node"),
    [
        ("MagicFace-7-detail-pass", "MagicDetailPass"),
        ("MagicFace-7-detail-pass", "MagicSemanticLayout"),
        ("MagicFace-2-three-concepts", "MagicFaceApply"),
        ("MagicFace-6-two-people", "MagicFaceApply"),
        (None, "MagicDetailPass"),
        (None, "MagicFaceApply"),
    ],
)
def test_a_text_box_has_room_for_its_text_and_not_much_more(
    frontend: Frontend, name: str | None, node: str
) -> None:
    """In a template, and of a node from the menu."""
    if name:
        frontend.load(workflow_files.read(name))
    else:
        frontend.page.evaluate("() => app.graph.clear()")
        frontend.page.evaluate(ADD_NODE, node)
    frontend.zoom_to(node)

    (box, text), *_ = frontend.page.evaluate(TEXT_BOXES, node)

    assert text <= box <= 130 and box >= 60


@pytest.mark.parametrize("widget", ["MagicFaceApply.prompt", "MagicFaceConcept.phrase"])
def test_a_number_in_a_text_widget_is_no_prompt(frontend: Frontend, widget: str) -> None:
    frontend.load(workflow_files.read("MagicFace-2-three-concepts"))
    view = frontend.view("MagicFaceApply")
    assert view.locator("mark").count()

    frontend.set_widgets(**{widget: 7})
    frontend.page.evaluate("() => document.dispatchEvent(new Event('input'))")

    frontend.page.wait_for_function("() => !document.querySelector('.magic-help mark')")
    assert frontend.complaints_about_us() == []


def test_phrases_are_found_as_the_server_finds_them(frontend: Frontend) -> None:
    cases = {
        ("hat", "a hat, a red hat"): ["hat", "hat"],
        ("hat", "two hats"): [],
        ("red hat", "a (Red hat:1.2) and a scarf"): ["Red hat"],
    }
    found = frontend.page.evaluate(FIND, [list(case) for case in cases])
    assert [
        [prompt[start:end] for start, end in places[0]] for (_, prompt), places in zip(cases, found)
    ] == list(cases.values())
    longer, twins = frontend.page.evaluate(
        FIND, [[["hat", "red hat"], "a hat, a red hat"], [["man", "man"], "a man and a man"]]
    )
    assert longer == [[[2, 5]], [[9, 16]]]
    assert twins == [[[2, 5]], [[12, 15]]]
    numbered, written, too_many = frontend.page.evaluate(
        FIND,
        [
            [["man", "man#2"], "a man and a man"],
            [["room#2"], "a room#2 and a room"],
            [["man#3"], "a man and a man"],
        ],
    )
    assert frontend.page.evaluate(FIND, [[["man # ２"], "a man, a man"], [["man#0"], "a man"]]) == [
        [[[9, 12]]],
        [[]],
    ]
    assert numbered == [[[2, 5]], [[12, 15]]]
    assert written == [[[2, 8]]] and too_many == [[]]


def test_the_page_splits_phrases_as_the_server_does(frontend: Frontend) -> None:
    text = "red hat, scarf；coat、shoe;\n gloves，,tie"
    split = f"async text => (await {MODULE.format('phrases')}).splitPhrases(text)"
    assert frontend.page.evaluate(split, text) == split_phrases(text)


def recent_mean(losses: list[float]) -> float:
    """What the page says of a noisy loss: each step counts nine tenths of the one after it."""
    weights = [0.9 ** (len(losses) - 1 - step) for step in range(len(losses))]
    return sum(map(operator.mul, weights, losses)) / sum(weights)


def test_inversion_and_training_show_what_they_send(frontend: Frontend) -> None:
    frontend.page.evaluate("() => app.graph.clear()")
    node = frontend.page.evaluate(ADD_NODE, "MagicStyleInvert")
    Image.new("RGB", (64, 64), "white").save(frontend.server.input_dir / "white.png")
    Image.new("RGB", (64, 64), "black").save(frontend.server.input_dir / "black.png")
    original, again = ({"filename": f"{name}.png", "type": "input"} for name in ("white", "black"))
    output = {"magic_comparison": [{"original": original, "reconstruction": again}]}
    frontend.send("executed", {"node": node, "display_node": node, "output": output})
    node = frontend.page.evaluate(ADD_NODE, "MagiCaptureTrain")
    preview = base64.b64encode(
        (workflow_files.FOLDER / "Semantic-Layout.jpg").read_bytes()
    ).decode()
    losses = {step: 1 / (step + 10) for step in range(0, 101, 10)}
    learned = [
        {"name": f"anna {i}", "share": share, "picture": preview}
        for i, share in enumerate((0.316, 1.0))
    ]
    for step, loss in losses.items():
        state = {
            "node": node,
            "step": step,
            "steps": 200,
            "loss": loss,
            "preview": preview,
            "seconds_left": 75.4,
            "pictures": learned if step == 0 else None,
        }
        frontend.send("magicportrait.training", state)

    compared, training = (
        frontend.page.get_by_label("Reconstruction against original"),
        frontend.page.get_by_label("Training"),
    )
    frontend.page.wait_for_function(
        "() => document.querySelector('.magic-original')?.naturalWidth == 64"
    )
    assert compared.get_by_role("slider").get_attribute("aria-label") == "original | sampled again"
    loss = f"{recent_mean(list(losses.values())):#.3g}"
    assert (
        training.get_by_role("status").inner_text()
        == f"step 100 of 200, loss {loss}, 1 min 15 s left"
    )
    frontend.send("magicportrait.training", {**state, "preview": None, "end": "kept"})
    ended = f"stopped at step 100 of 200, loss {loss}: Run goes on from there"
    training.get_by_text(ended).wait_for()
    previews = training.locator(".magic-previews img")
    titles = previews.evaluate_all("images => images.map(image => image.title)")
    assert titles == [f"step {step}" for step in range(100, 20, -10)]
    left, right = (previews.nth(i).bounding_box() or {} for i in (0, 1))
    assert left["x"] < right["x"] and left["width"] > right["width"]
    # The previews come once more, as the node's output, which the history keeps.
    output = {"images": [again, original]}
    frontend.zoom_to("MagiCaptureTrain")
    frontend.send("executed", {"node": node, "display_node": node, "output": output})
    frontend.page.wait_for_function(
        "node => app.nodeOutputs[node]?.images.length == 2", arg=node, timeout=5_000
    )
    frontend.page.wait_for_timeout(300)
    assert frontend.page.evaluate(HOSTS_PICTURES, node) == 0
    figures = training.get_by_label("What of each picture counts").locator("figure")
    assert figures.all_inner_texts() == ["32 %", "100 %"]
    captions = training.locator(".magic-caption").all_inner_texts()
    assert [text.split()[0] for text in captions] == ["How", "Loss,", "Previews,"]
    assert figures.first.get_attribute("title") == "anna 0, 32 % of it counts"
    assert len((training.locator(".magic-trend").get_attribute("points") or "").split()) == 11
    assert (training.locator("svg").get_attribute("aria-label") or "").startswith(
        f"Loss from 0.100 to {loss}"
    )
    frontend.screenshot("inversion_and_training")
    saved = frontend.saved_workflow()
    [of_invert] = [node for node in saved["nodes"] if node["type"] == "MagicStyleInvert"]
    method = of_invert["widgets_values"].index("fixed-point")
    # As earlier versions called it.
    of_invert["widgets_values"][method] = "ddim"
    frontend.reopen(saved)
    frontend.page.wait_for_function(
        "() => document.querySelector('.magic-original')?.naturalWidth == 64"
    )
    assert frontend.prompt()[str(of_invert["id"])]["inputs"]["method"] == "euler"
    assert compared.get_by_role("slider").count() == 1
    assert frontend.complaints_about_us() == []


def test_a_training_is_one_curve_to_its_end(frontend: Frontend) -> None:
    page = frontend.page
    page.evaluate("() => app.graph.clear()")
    node, picture = page.evaluate(ADD_NODE, "MagiCaptureTrain"), png((2, 2))
    training = page.get_by_label("Training")
    words, trend = training.get_by_role("status"), training.locator(".magic-trend")

    def send(step: int, loss: float | None, preview: str | None = None) -> None:
        state = {
            "node": node,
            "step": step,
            "steps": 20,
            "loss": loss,
            "preview": preview,
            "seconds_left": None,
        }
        frontend.send("magicportrait.training", state)

    def points() -> int:
        return len((trend.get_attribute("points") or "").split())

    about = {"node": node, "steps": 20, "preview": None, "seconds_left": None, "goes_on": True}
    for step, encoded, said in (
        (0, [1, 2], "encoding pictures: 1 of 2, then on from where it stopped"),
        (8, None, "goes on from step 8 of 20"),
    ):
        state = {**about, "run": "kept", "step": step, "loss": None, "encoded": encoded}
        frontend.send("magicportrait.training", state)
        assert words.inner_text() == said
    send(0, None, picture)
    assert words.inner_text() == "step 0 of 20"
    losses = [1 / step for step in range(1, 20)] + [0.25]
    for step, loss in enumerate(losses, start=1):
        send(step, loss)
    send(20, 0.25, picture)
    assert (points(), training.locator("img").count()) == (20, 2)
    trends = [recent_mean(losses[: count + 1]) for count in range(20)]
    assert words.inner_text() == f"step 20 of 20, loss {trends[-1]:#.3g}"
    assert (
        training.locator("svg").get_attribute("aria-label")
        == f"Loss from 1.00 to {trends[-1]:#.3g}, lowest {min(trends):#.3g}"
    )
    assert words.get_attribute("aria-live") == "off"
    frontend.reopen(frontend.saved_workflow())
    assert (points(), training.locator("img").count()) == (20, 2), "an undo has erased it"
    send(1, 0.5)
    assert (points(), training.locator("img").count()) == (1, 0), "another training begins"
    assert frontend.complaints_about_us() == []


def test_a_long_training_stays_quick_to_draw(frontend: Frontend) -> None:
    assert frontend.page.evaluate(TRAIN, 500) == list(range(1, 501))
    steps = frontend.page.evaluate(TRAIN, 200_000)
    assert steps[:3] == [1, 201, 401] and steps[-1] == 200_000
    assert len(steps) == 1001 and steps == sorted(steps)


def test_time_left_is_in_whole_seconds(frontend: Frontend) -> None:
    said = frontend.page.evaluate(TIMES_LEFT, [None, 0.4, 59.6, 75.4, 119.7])
    assert said == ["", ", 0 s left", ", 1 min 0 s left", ", 1 min 15 s left", ", 2 min 0 s left"]


def test_events_leave_nodes_of_another_workflow_alone(frontend: Frontend) -> None:
    page = frontend.page
    page.evaluate("() => app.graph.clear()")
    nodes = [page.evaluate(ADD_NODE, kind) for kind in ("KSampler", "MagicFaceApply")]
    before = page.evaluate(OUR_WIDGETS)
    picture = {"filename": "white.png", "type": "input"}
    outputs = {
        "magic_comparison": [{"original": picture, "reconstruction": picture}],
        "magic_exploration": [
            {
                "key": "1",
                "pictures": [picture],
                "references": [],
                "groups": [],
                "steps": [],
                "total": 1,
            }
        ],
        "magic_correspondence": [{}],
    }
    for node in [*nodes, "99", "99:1"]:
        frontend.send(
            "magicportrait.training",
            {"node": node, "step": 1, "steps": 2, "loss": 1, "preview": None, "seconds_left": None},
        )
        for name, data in outputs.items():
            frontend.send("executed", {"node": node, "display_node": node, "output": {name: data}})

    assert page.evaluate(OUR_WIDGETS) == before == 1
    assert frontend.complaints_about_us() == []


def test_help_opens_for_every_node(frontend: Frontend, object_info: dict[str, Any]) -> None:
    ours = [
        node
        for node, info in object_info.items()
        if info["python_module"] == f"custom_nodes.{PACK_NAME}"
    ]
    # The panel is the same in both frontends.
    for node in ours if frontend.mode == "nodes2" else ours[::8]:
        frontend.page.evaluate("() => app.graph.clear()")
        heading = frontend.open_help(node)
        assert (
            heading and heading.split(" (")[0] == object_info[node]["display_name"].split(" (")[0]
        ), node
        frontend.page.wait_for_function(HELP_PICTURE, timeout=10_000)
    frontend.screenshot("help")
    assert frontend.complaints_about_us() == []


def test_a_help_page_leads_to_the_documents(frontend: Frontend) -> None:
    """Links are relative, as the repository has them, which the host does not resolve."""
    page = frontend.page
    page.evaluate("() => app.graph.clear()")
    frontend.open_help("MagiCaptureTrain")
    # As soon as the page shows: an address is copied, too.
    link = page.locator(
        ".node-help-content a[href$='/magicportrait/docs/magicapture_flow.md']"
    ).first
    link.wait_for(timeout=10_000)
    assert page.locator(".node-help-content a[href^='../']").count() == 0

    with page.context.expect_page() as opened:
        link.click()

    document = opened.value
    assert document.locator("h1").inner_text() == "MagiCapture on transformers"
    # A link of a document leads on.
    document.locator("a[href='model_families.md']").first.click()
    document.get_by_role("heading", name="Model families", exact=True).wait_for()
    document.close()
    assert frontend.complaints_about_us() == []


def swatches_colour(swatch: Locator) -> tuple[int, ...]:
    colour: str = swatch.evaluate("element => getComputedStyle(element).backgroundColor")
    return tuple(int(number) for number in re.findall(r"\d+", colour))


def values(workflow: dict[str, Any]) -> dict[int, Any]:
    return {node["id"]: node.get("widgets_values") for node in workflow["nodes"]}


def test_concepts_are_chosen_by_their_pictures(frontend: Frontend) -> None:
    page = frontend.page
    name = "people/ü & 'näme' #1 100%"
    frontend.server.queue(
        {
            "drawn": {
                "class_type": "MagicToyPortrait",
                "inputs": {"seed": 3, "part": "hat", "style": "cartoon", "size": 64},
            },
            "concept": {
                "class_type": "MagicFaceConcept",
                "inputs": {"image": ["drawn", 0], "mask": ["drawn", 1], "phrase": "hat"}
                | {"strength": 3.0},
            },
            "kept": {
                "class_type": "MagicConceptSave",
                "inputs": {"concepts": ["concept", 0], "name": name},
            },
        }
    )
    page.evaluate("() => app.refreshComboInNodes()")
    page.evaluate("() => app.graph.clear()")
    page.evaluate(ADD_NODE, "MagicConceptLoad")
    # Thousands of others, of which nothing is on the disk.
    page.evaluate(MANY_FILES)
    frontend.zoom_to("MagicConceptLoad")
    view = frontend.view("MagicConceptLoad")
    view.get_by_role("button", name="Choose").click()
    choices = view.locator(".magic-choices button")
    assert choices.count() == 48
    assert view.get_by_text(re.compile(r"and \d{4} more: type a part of the name")).count() == 1

    search = view.get_by_role("searchbox")
    search.fill("gone 17")
    # A file without a picture has its first letter.
    page.wait_for_function("() => document.querySelector('.magic-choices')?.innerText[0] == 'G'")
    search.fill("ü 100%")
    page.wait_for_function("() => document.querySelector('.magic-choices img')?.naturalWidth == 64")
    frontend.screenshot("concept_picker")
    choices.first.click()
    chosen = frontend.prompt()["1"]["inputs"]["file"]
    assert chosen.startswith(name) and chosen.endswith(".safetensors")
    assert view.get_by_role("status").inner_text() == name
    assert choices.count() == 0, "the list is closed"
    assert frontend.complaints_about_us() == []
