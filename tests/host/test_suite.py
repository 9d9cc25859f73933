"""The benchmark runner, with a stand-in for the server: what it sends, what it repeats, what it
writes."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from bench import metrics, suite, toy_folders
from devkit.pack import ROOT, DevError

SUITES = ROOT / "bench" / "suites"
YAML = """
nodes: {model: {class_type: MagicToyCheckpoint, inputs: {}}}
concepts: [{name: one, draw: 0}]
prompts: [a man wearing a hat, a woman wearing a hat]
seeds: [1, 2]
set:
  "#positive.text": $prompt
  MagicFaceApply.prompt: $prompt
  MagicFaceConceptFolder.folder: $concept
  KSampler.seed: $seed
methods:
  plain: {workflow: plain.json}
  RSA only: {workflow: magicface.json, set: {MagicFaceApply.inject_at: 1.0}}
"""


@pytest.fixture
def folder(tmp_path) -> Path:
    for name in ("plain.json", "magicface.json"):
        (tmp_path / name).write_text((SUITES / name).read_text())
    (tmp_path / "small.yaml").write_text(YAML)
    return tmp_path


@pytest.fixture
def output(tmp_path) -> Path:
    return tmp_path / "output"


@pytest.fixture
def read(folder, output) -> suite.Suite:
    return suite.read_suite(folder / "small.yaml", output)


class StandIn:
    """Answers every prompt with a picture whose gray tells the seed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sent: list[dict[str, Any]] = []
        self.fails_at = 0
        monkeypatch.setattr(suite, "run_prompt", self.run_prompt)
        monkeypatch.setattr(suite, "upload_folder", lambda server, folder, remote: None)

    def object_info(self) -> dict[str, Any]:
        """Two of the nodes, with some of their inputs."""
        return {
            "KSampler": {"input": {"required": {"seed": ["INT"]}}},
            "MagicFaceApply": {
                "input": {"required": {"prompt": ["STRING"]}, "optional": {"inject_at": ["FLOAT"]}}
            },
        }

    def run_prompt(self, server: Any, prompt: dict[str, Any]) -> list[dict[str, str]]:
        if self.fails_at == len(self.sent) + 1:
            raise DevError("the server ended")
        self.sent.append(prompt)
        return [
            {"type": "temp", "filename": "preview"},
            {"type": "output", "filename": str(prompt["sampler"]["inputs"].get("seed", 0))},
        ]

    def fetch(self, picture: dict[str, str]) -> bytes:
        file = io.BytesIO()
        Image.fromarray(np.full((64, 64, 3), 40 * int(picture["filename"]), np.uint8)).save(
            file, "png"
        )
        return file.getvalue()


@pytest.fixture
def server(monkeypatch) -> StandIn:
    return StandIn(monkeypatch)


def test_every_cell_gets_its_own_values(read):
    everything = list(suite.cells(read))
    assert len(everything) == 1 * 2 * 2 * 2 and len({cell.path(Path()) for cell in everything}) == 8
    last = suite.prompt_of(read, everything[-1], {})
    assert everything[-1].method == "RSA only"
    assert (
        last["apply"]["inputs"]["inject_at"] == 1.0
        and last["apply"]["inputs"]["prompt"] == "a woman wearing a hat"
    )
    assert last["concepts"]["inputs"]["folder"] == "suite_small/one"
    assert (
        last["sampler"]["inputs"]["seed"] == 2
        and last["model"]["class_type"] == "MagicToyCheckpoint"
    )
    plain = suite.prompt_of(read, everything[0], {})
    assert (plain["positive"]["inputs"]["text"], plain["negative"]["inputs"]["text"]) == (
        "a man wearing a hat",
        "",
    )


def test_what_a_method_sets_must_be_there(folder, output):
    (folder / "small.yaml").write_text(
        YAML.replace(
            "{workflow: plain.json}", "{workflow: plain.json, set: {MagicFaceApply.start: 0.1}}"
        )
    )
    wrong = suite.read_suite(folder / "small.yaml", output)
    with pytest.raises(
        ValueError,
        match=r"method 'plain' sets MagicFaceApply\.start, but its workflow has no such node",
    ):
        suite.check_addresses(wrong, {})


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "MagicFaceApply.inject_at",
            "MagicFaceApply.inject",
            "method 'RSA only' sets MagicFaceApply.inject, but MagicFaceApply has no such input: it"
            " has prompt, inject_at",
        ),
        (
            "KSampler.seed",
            "KSampler.sead",
            "the suite sets KSampler.sead, but KSampler has no such input: it has seed",
        ),
        ("KSampler.seed", "Sampler.seed", "the suite sets Sampler.seed, but no workflow has such"),
        ("#positive.text", "#positiv.text", "sets #positiv.text, but no workflow has such a node"),
    ],
)
def test_what_is_misspelt_is_refused_before_anything_is_drawn(
    folder, output, server, old, new, message
):
    (folder / "small.yaml").write_text(YAML.replace(old, new))
    wrong = suite.read_suite(folder / "small.yaml", output)
    with pytest.raises(ValueError, match=re.escape(message)):
        suite.draw_cells(wrong, server, output)
    assert not server.sent


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("seeds: [1, 2]", "seeds: []", "concepts, seeds and methods are needed"),
        ("draw: 0", "folder: nowhere", "needs pictures in image/"),
    ],
)
def test_a_suite_that_is_incomplete_is_refused(folder, output, old, new, message):
    (folder / "small.yaml").write_text(YAML.replace(old, new))
    with pytest.raises(ValueError, match=message):
        suite.read_suite(folder / "small.yaml", output)


def test_a_folder_brings_its_own_prompt(folder, output, read):
    own = output / "concepts" / "one"
    (own / "config.yaml").write_text("target_prompt: a man in a hat\n")
    text = YAML.replace("draw: 0", f"folder: {own}").replace(
        "prompts: [a man wearing a hat, a woman wearing a hat]", ""
    )
    (folder / "small.yaml").write_text(text)
    [concept] = suite.read_suite(folder / "small.yaml", output).concepts
    assert concept.prompts == ("a man in a hat",)


def test_an_interrupted_run_goes_on_where_it_ended(read, output, server):
    server.fails_at = 4
    with pytest.raises(DevError, match="the server ended"):
        suite.draw_cells(read, server, output)
    assert len(server.sent) == 3 and len(list(output.rglob("pictures/**/*.png"))) == 3
    server.fails_at = 0
    suite.draw_cells(read, server, output)
    assert len(server.sent) == 8
    suite.draw_cells(read, server, output)
    assert len(server.sent) == 8, "nothing is drawn twice"


def test_what_changed_is_drawn_again(folder, read, output, server):
    suite.draw_cells(read, server, output)
    (folder / "small.yaml").write_text(YAML.replace("inject_at: 1.0", "inject_at: 0.9"))
    suite.draw_cells(suite.read_suite(folder / "small.yaml", output), server, output)
    assert len(server.sent) == 8 + 4
    Image.new("L", (128, 128), 255).save(output / "concepts" / "one" / "mask" / "hat.png")
    suite.draw_cells(read, server, output)
    assert len(server.sent) == 12 + 8


def test_results_and_grids(read, output, server):
    suite.draw_cells(read, server, output)
    suite.write_results(read, output)
    suite.write_grids(read, output)
    rows = list(csv.DictReader((output / "results.csv").open()))
    assert len(rows) == 8 and {row["method"] for row in rows} == {"plain", "RSA only"}
    report = (output / "results.md").read_text()
    assert (
        "| plain |" in report
        and "style distance ↓" in report
        and "- CSIM: no identity network" in report
    )
    grid = Image.open(output / "grid_one_prompt1.png")
    assert grid.width > 3 * 192 and grid.height > 3 * 192


def test_a_suite_names_the_network_of_csim(folder, output, server):
    (folder / "small.yaml").write_text(f"identity: toy\n{YAML}")
    with_csim = suite.read_suite(folder / "small.yaml", output)
    suite.draw_cells(with_csim, server, output)
    suite.write_results(with_csim, output)
    report = (output / "results.md").read_text()
    assert "| CSIM ↑ |" in report and "- CSIM:" not in report
    (folder / "small.yaml").write_text(f"identity: nowhere.safetensors\n{YAML}")
    message = r"'nowhere\.safetensors' is not among the models .* put ArcFace"
    with pytest.raises(ValueError, match=message):
        suite.read_suite(folder / "small.yaml", output)


def test_colour_distance_by_hand():
    picture = torch.zeros(10, 10, 3)
    picture[0, :2, 0] = 1
    red, mask = torch.zeros(1, 4, 4, 3), torch.zeros(1, 4, 4)
    red[0, :2, :, 0], mask[0, :2] = 1, 1
    assert suite.colour_distance(picture, red, mask) == pytest.approx(0)
    assert suite.colour_distance(picture * 0, red, mask) == pytest.approx(1)


@pytest.mark.parametrize("path", sorted(SUITES.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_suites_fit_their_workflows(path, tmp_path):
    """Those that need a user's files, on what the toy world draws in their place."""
    config = yaml.safe_load(path.read_text())
    config["concepts"] = [
        entry if "draw" in entry else {"name": entry["name"], "draw": 0}
        for entry in config["concepts"]
    ]
    config.setdefault("prompts", ["a hat"])
    for workflow in SUITES.glob("*.json"):
        (tmp_path / workflow.name).write_text(workflow.read_text())
    (tmp_path / path.name).write_text(yaml.safe_dump(config))
    shipped = suite.read_suite(tmp_path / path.name, tmp_path / "shipped")
    suite.check_addresses(shipped, {})
    for cell in suite.cells(shipped):
        prompt = suite.prompt_of(shipped, cell, {})
        links = [
            value[0]
            for node in prompt.values()
            for value in node["inputs"].values()
            if isinstance(value, list)
        ]
        assert set(links) <= prompt.keys()
        assert "$" not in json.dumps(prompt)
        for node in prompt.values():
            assert wrong_inputs(node) == set(), node["class_type"]


def prompts_of(name: str, concept: Path, tmp_path: Path) -> dict[str, dict[str, Any]]:
    """What a shipped suite sends for a method on a concept folder, by method."""
    config = yaml.safe_load((SUITES / name).read_text())
    config["concepts"] = [{"name": "one", "folder": str(concept)}]
    config["prompts"] = ["a hat"]
    for workflow in SUITES.glob("*.json"):
        (tmp_path / workflow.name).write_text(workflow.read_text())
    (tmp_path / name).write_text(yaml.safe_dump(config))
    shipped = suite.read_suite(tmp_path / name, tmp_path / "output")
    return {cell.method: suite.prompt_of(shipped, cell, {}) for cell in suite.cells(shipped)}


def test_the_suite_of_magicface_has_the_settings_of_the_official_code(tmp_path):
    import comfy.model_sampling
    import comfy.samplers

    class Discrete(comfy.model_sampling.ModelSamplingDiscrete, comfy.model_sampling.EPS):
        pass

    toy_folders.draw_concept(0, tmp_path / "concept")
    prompt = prompts_of("magicface_sd15.yaml", tmp_path / "concept", tmp_path)["MagicFace"]
    sampler, apply = prompt["sampler"]["inputs"], prompt["apply"]["inputs"]
    model_sampling = Discrete()
    sigmas = comfy.samplers.calculate_sigmas(model_sampling, sampler["scheduler"], sampler["steps"])
    # RSA in steps 0 to 20 of 50, which is above this sigma.
    inject = model_sampling.percent_to_sigma(apply["inject_at"])
    assert len(sigmas) == 51 and int((sigmas > inject).sum()) == 21
    assert (apply["start"], apply["end"], apply["layers"]) == (0.0, 1.0, "fine")
    assert apply["reference_noise"] == "per step"
    assert apply["noise_seed"] == sampler["seed"], "one generator draws both there"
    assert (sampler["cfg"], sampler["sampler_name"]) == (7.5, "euler")


def test_the_suite_of_magicapture_has_the_settings_of_the_official_script(tmp_path):
    toy_folders.draw_capture(0, tmp_path / "concept")
    prompt = prompts_of("magicapture_sd15.yaml", tmp_path / "concept", tmp_path)["MagiCapture"]
    official = {
        "inversion_steps": 1200,
        "lora_steps": 1500,
        "rank": 4,
        "batch": 1,
        # The script multiplies these three rates by 4.
        "inversion_rate": 4 * 5e-4,
        "unet_rate": 4 * 1e-4,
        "text_rate": 4 * 1e-5,
        "embedding_rate": 1e-4,
        "refocus_weight": 2.5,
        "style_weight": 2.0,
        "identity_weight": 0.25,
    }
    assert {name: prompt["train"]["inputs"][name] for name in official} == official
    apply, sampler = prompt["apply"]["inputs"], prompt["sampler"]["inputs"]
    assert (apply["strength_model"], apply["strength_clip"]) == (0.6, 0.9)
    assert (sampler["sampler_name"], sampler["steps"], sampler["cfg"]) == (
        "euler_ancestral",
        50,
        7.0,
    )


def wrong_inputs(node: dict[str, Any]) -> set[str]:
    """Names of inputs that one of our nodes does not have, and of those that it needs and has not
    got."""
    from magicportrait.nodes import NODES

    schemas = {ours.define_schema().node_id: ours.define_schema() for ours in NODES}
    schema = schemas.get(node["class_type"])
    if schema is None:
        return set()
    inputs = {item.id: item for item in schema.inputs or []}
    needed = {name for name, item in inputs.items() if not item.optional}
    return (node["inputs"].keys() - inputs.keys()) | (needed - node["inputs"].keys())


def test_what_is_compared_with_several_folders_is_measured_with_each(monkeypatch, tmp_path):
    (tmp_path / "pair.yaml").write_text((SUITES / "toy_magicstyle.yaml").read_text())
    (tmp_path / "magicstyle.json").write_text((SUITES / "magicstyle.json").read_text())
    output = tmp_path / "output"
    pairs = suite.read_suite(tmp_path / "pair.yaml", output)
    server = StandIn(monkeypatch)
    suite.draw_cells(pairs, server, output)
    sent = server.sent[0]
    assert sent["style_image"]["inputs"]["image"] == "suite_pair/pair1/style/style.png"
    assert len(server.sent) == 3 * 4
    suite.write_results(pairs, output)
    suite.write_grids(pairs, output)
    head = (output / "results.md").read_text().splitlines()[4]
    assert (
        "content: CSIM ↑" in head and "style: style distance ↓" in head and suite.COLOUR not in head
    )
    assert (output / "grid_pair3_prompt1.png").is_file()


def test_masks_of_training_pictures_are_no_pictures(tmp_path):
    toy_folders.draw_capture(0, tmp_path)
    concept = suite.Concept(
        "person", tmp_path, ("a",), "remote", (("subject", "subject"), ("style", "style"))
    )
    assert len(concept.references) == 10 and not any(
        "mask" in path.parts[-2] for path in concept.references
    )


def test_metrics_of_a_folder(tmp_path, monkeypatch, capsys):
    for i, name in enumerate(("b.png", "a.jpg", "sub/c.png")):
        (tmp_path / "pictures" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40 + 8 * i, 40), (80 * i, 40, 20)).save(tmp_path / "pictures" / name)
    (tmp_path / "pictures" / "note.txt").write_text("not a picture")
    table = tmp_path / "table.csv"
    arguments = [
        "metrics",
        str(tmp_path / "pictures"),
        "--references",
        str(tmp_path / "pictures" / "sub"),
        "--csv",
        str(table),
    ]
    monkeypatch.setattr("sys.argv", [*arguments, "--identity", "toy"])
    metrics.main()
    lines = [line.split(",") for line in table.read_text().splitlines()]
    assert [line[0] for line in lines] == ["picture", "a.jpg", "b.png", "sub/c.png"]
    assert lines[0][1] == "CSIM" and float(lines[3][1]) > float(lines[1][1])
    assert "| sub/c.png |" in capsys.readouterr().out
