"""Templates and blueprints in ComfyUI's own frontend: each is offered, runs, and shows what it
makes."""

from __future__ import annotations

import json

import pytest

import workflow_files
from devkit.pack import PACK_NAME
from frontend import MODES, SHOWN, UNKNOWN, Frontend

BLUEPRINTS = workflow_files.FOLDER.parent / "subgraphs"

COVERED = """() => {
    const cover = app.graph.nodes.find(node => node.subgraph).widgets.at(-1).element;
    const images = [...cover.querySelectorAll('.magic-backdrop, .magic-layout')];
    return images.length == 4 && images.every(image => image.naturalWidth > 0);
}"""
# Connects the only subgraph of the graph to the toy world, and makes its work small.
JOIN_TOY = """() => {
    const add = (type, x, y) => {
        const node = LiteGraph.createNode(type);
        app.graph.add(node);
        node.pos = [x, y];
        return node;
    };
    const blueprint = app.graph.nodes.find(node => node.subgraph);
    const model = add('MagicToyCheckpoint', -400, 0);
    const portrait = add('MagicToyPortrait', -400, 200);
    const save = add('SaveImage', 600, 0);
    const sources = {
        MODEL: [model, 0], CLIP: [model, 1], VAE: [model, 2],
        IMAGE: [portrait, 0], MASK: [portrait, 1],
    };
    blueprint.inputs.forEach((input, i) => {
        const [node, slot] = sources[input.type] ?? [];
        node?.connect(slot, blueprint, i);
    });
    // A blueprint that gives no picture gives a model and a text encoder that can draw one.
    let drawn = [blueprint, 0];
    if (blueprint.outputs[0].type != 'IMAGE') {
        const types = ['CLIPTextEncode', 'EmptyLatentImage', 'KSampler', 'VAEDecode'];
        const nodes = types.map((type, i) => add(type, 600, 200 + 300 * i));
        const [prompt, latent, sampler, decode] = nodes;
        const links = [
            [blueprint, 0, sampler, 'model'],
            [blueprint, 1, prompt, 'clip'],
            [latent, 0, sampler, 'latent_image'],
            [prompt, 0, sampler, 'positive'],
            [prompt, 0, sampler, 'negative'],
            [sampler, 0, decode, 'samples'],
            [model, 2, decode, 'vae'],
        ];
        for (const [from, slot, to, name] of links) from.connect(slot, to, to.findInputSlot(name));
        prompt.widgets[0].value = 'a <subject> person, <style> style';
        for (const widget of latent.widgets)
            if (['width', 'height'].includes(widget.name)) widget.value = 128;
        sampler.widgets.find(widget => widget.name == 'steps').value = 2;
        drawn = [decode, 0];
    }
    drawn[0].connect(drawn[1], save, 0);
    portrait.widgets.find(widget => widget.name == 'seed').value = 165;
    for (const widget of blueprint.widgets) {
        if (widget.name == 'steps') widget.value = 4;
        if (['width', 'height'].includes(widget.name)) widget.value = 128;
        if (['steps_for_the_words', 'steps_for_the_LoRA', 'preview_every'].includes(widget.name))
            widget.value = 1;
    }
}"""
VIEWS = {
    "MagiCapture-1-learn-person-and-style": ("Training", "polyline[points*=',']"),
    "MagicStyle-2-step-by-step": ("Reconstruction against original", "img.magic-original"),
    "MagicStyle-7-transformer-step-by-step": (
        "Reconstruction against original",
        "img.magic-original",
    ),
    "MagicFace-3-where-it-looks": ("Correspondence", "img.magic-heat"),
}
"""What else a workflow shows when it has run, and by what in it this is seen."""


@pytest.mark.parametrize("name", workflow_files.TOY)
def test_workflow_from_the_gallery_runs_and_shows_its_pictures(
    frontend: Frontend, name: str
) -> None:
    frontend.open_from_gallery(name)
    assert frontend.page.evaluate(UNKNOWN) == []
    # Nothing is trained when the server has done so for the other frontend.
    frontend.set_widgets(
        steps=4,
        **{"MagiCaptureTrain.seed": list(MODES).index(frontend.mode)},
        **workflow_files.QUICK_TRAINING,
    )

    frontend.queue()

    frontend.page.wait_for_function(SHOWN, timeout=300_000)
    if name in VIEWS:
        region, drawing = VIEWS[name]
        frontend.page.get_by_role("region", name=region, exact=True).locator(
            drawing
        ).first.wait_for(state="attached")
    frontend.screenshot(f"{name}_finished")
    assert frontend.overlaps() == []
    assert frontend.complaints_about_us() == []


@pytest.mark.parametrize("name", sorted(path.stem for path in BLUEPRINTS.glob("*.json")))
def test_blueprint_is_offered_and_runs(frontend: Frontend, name: str) -> None:
    offered = json.loads(frontend.server.get("/global_subgraphs")).values()
    assert name in [
        entry["name"]
        for entry in offered
        if entry["info"]["node_pack"] == f"custom_nodes.{PACK_NAME}"
    ]
    frontend.load(json.loads((BLUEPRINTS / f"{name}.json").read_text(encoding="utf-8")))
    frontend.page.evaluate(JOIN_TOY)
    frontend.page.evaluate("() => app.extensionManager.command.execute('Comfy.Canvas.FitView')")
    assert frontend.page.evaluate(UNKNOWN) == []

    frontend.queue()

    frontend.page.wait_for_function(SHOWN, timeout=300_000)
    if name == "MagicFace":
        # The node that has the layout is inside; what it shows stands on the blueprint too.
        view = frontend.page.get_by_role("region", name="Layout", exact=True).first
        assert view.locator("mark").all_inner_texts() == ["hat"]
        frontend.page.wait_for_function(COVERED)
    frontend.screenshot(f"blueprint_{name}")
    assert frontend.complaints_about_us() == []
