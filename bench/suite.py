"""Compares methods: concepts x prompts x seeds x methods through a ComfyUI server: `python -m
bench.suite bench/suites/toy.yaml`

A suite is a YAML file (see bench/suites/). `methods` are workflows in ComfyUI's API or editor
format and what is set in them; `set` holds for all of them. '#id.input' names the input of a node,
'Type.input' that of all nodes of a type. $concept, $prompt and $seed stand for the cell's own,
$concept/folder for a folder of the concept's, $concept/folder/* for the first picture in it.
`nodes` are added to every workflow; `identity` names the network for CSIM, as for bench.metrics.
`references` are the folders of a concept whose pictures the results are compared with, each by
itself, by the name that the table gives them: {style: style}; default image/. A run that was
interrupted goes on where it ended; a cell whose workflow or concept changed is drawn again. Into
the output folder go the pictures, results.md, results.csv and a grid for every concept and prompt.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from devkit.client import Client, run_prompt
from devkit.pack import CACHE, ROOT, DevError
from devkit.workflow_format import to_api_prompt

from . import toy
from .command_line import bench_parser
from .metrics import identity_of, measure_files, pictures_in, read_pictures, use_models
from .report import table_head, table_row
from .server import pack_server, upload_folder
from .toy_folders import draw_capture, draw_concept, draw_pair

# ruff: isort: split
import torch
import yaml
from torch import Tensor

from magicportrait.host.faces.identity import Identity
from magicportrait.host.metrics.table import ARROWS
from magicportrait.host.pictures.compare_grid import CompareGrid
from magicportrait.host.pictures.conversion import as_image

COLOUR = "colour distance"
ALONE = ("CLIP-T", "aesthetic")
"""Metrics that compare with no reference."""
_NEAREST = 0.02
_DRAWERS: Mapping[frozenset[str], Callable[[int, Path], None]] = {
    frozenset({"content", "style"}): draw_pair,
    frozenset({"subject", "style"}): draw_capture,
}
"""What the toy world draws for a suite with these groups of references; else a concept folder."""


@dataclass(frozen=True)
class Concept:
    """What a suite draws pictures of.

    name: in the table; folder: here; prompts: one at least; remote: the folder on the server, in
    its inputs; groups: the folder's subfolders of references, as (name in the table, subfolder).
    A folder with image/ and mask/ is of MagicFace's official format.
    """

    name: str
    folder: Path
    prompts: tuple[str, ...]
    remote: str
    groups: tuple[tuple[str, str], ...] = (("", "image"),)

    def images(self, subfolder: str) -> list[Path]:
        """Pictures, without masks of theirs that lie within."""
        root = self.folder / subfolder
        return [
            path for path in pictures_in(root) if "mask" not in path.relative_to(root).parts[:-1]
        ]

    @property
    def references(self) -> list[Path]:
        return [path for _, subfolder in self.groups for path in self.images(subfolder)]

    def on_server(self, address: str) -> str:
        """A folder of the concept's, or ('folder/*') the first picture in it, as the server calls
        it."""
        subfolder, is_picture, _ = address.partition("/*")
        if not is_picture:
            return f"{self.remote}/{address}"
        return f"{self.remote}/{self.images(subfolder)[0].relative_to(self.folder).as_posix()}"


@dataclass(frozen=True)
class Suite:
    """What is compared.

    name: of the file; concepts, seeds: what every method draws; methods: name -> (workflow, what is
    set in it); nodes: added to every workflow; changes: set in all of them; identity: the network
    for CSIM.
    """

    name: str
    concepts: tuple[Concept, ...]
    seeds: tuple[int, ...]
    methods: dict[str, tuple[dict[str, Any], dict[str, Any]]]
    nodes: dict[str, Any]
    changes: dict[str, Any]
    identity: Identity | None = None


@dataclass(frozen=True)
class Cell:
    """One picture: a method of the suite on a concept, with one of its prompts and a seed."""

    method: str
    concept: Concept
    prompt: str
    seed: int

    def path(self, output: Path) -> Path:
        number = self.concept.prompts.index(self.prompt) + 1
        return (
            output
            / "pictures"
            / self.method.replace(" ", "_")
            / f"{self.concept.name}_prompt{number}_seed{self.seed}.png"
        )


def read_suite(path: Path, output: Path) -> Suite:
    """ValueError says which entry is not understood."""
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(config, dict) or not all(
        config.get(key) for key in ("concepts", "seeds", "methods")
    ):
        raise ValueError(f"{path.name}: concepts, seeds and methods are needed")
    concepts = tuple(_read_concept(entry, config, path, output) for entry in config["concepts"])
    methods = {}
    for name, entry in config["methods"].items():
        workflow = json.loads((path.parent / entry["workflow"]).read_text(encoding="utf-8"))
        methods[name] = (workflow, entry.get("set") or {})
    identity = identity_of(config.get("identity"))
    return Suite(
        path.stem,
        concepts,
        tuple(config["seeds"]),
        methods,
        config.get("nodes") or {},
        config.get("set") or {},
        identity,
    )


def _read_concept(
    entry: dict[str, Any], config: dict[str, Any], path: Path, output: Path
) -> Concept:
    name, groups = str(entry["name"]), config.get("references") or {"": "image"}
    if "draw" in entry:
        folder = output / "concepts" / name
        _DRAWERS.get(frozenset(groups), draw_concept)(int(entry["draw"]), folder)
    else:
        folder = (path.parent / entry["folder"]).resolve()
    prompts = tuple(entry.get("prompts") or config.get("prompts") or _own_prompt(folder))
    concept = Concept(name, folder, prompts, f"suite_{path.stem}/{name}", tuple(groups.items()))
    if not all(concept.images(subfolder) for subfolder in groups.values()) or not prompts:
        subfolders = (
            "image/ and mask/"
            if "image" in groups.values()
            else " and ".join(f"{subfolder}/" for subfolder in groups.values())
        )
        raise ValueError(
            f"concept {name}: {folder} needs pictures in {subfolders}, and a prompt here or in its"
            " config*.yaml"
        )
    return concept


def _own_prompt(folder: Path) -> list[str]:
    configs = sorted(folder.glob("config*.y*ml"))
    return (
        [yaml.safe_load(configs[0].read_text(encoding="utf-8"))["target_prompt"]] if configs else []
    )


# ---- running ----


def cells(suite: Suite) -> Iterator[Cell]:
    """Seed by seed: the server remembers what the cell before has trained or inverted."""
    for concept in suite.concepts:
        for method in suite.methods:
            for prompt in concept.prompts:
                for seed in suite.seeds:
                    yield Cell(method, concept, prompt, seed)


def check_addresses(suite: Suite, object_info: dict[str, Any]) -> None:
    """ValueError when the suite or a method sets what is in no workflow of theirs, or an input that
    the node does not have. object_info: the server's."""
    graphs = {method: _nodes_of(suite, method, object_info) for method in suite.methods}
    for method, (_, own) in suite.methods.items():
        for address in own:
            kinds = _kinds_at(address, graphs[method])
            if not kinds:
                raise ValueError(
                    f"method '{method}' sets {address}, but its workflow has no such node"
                )
            _check_input(f"method '{method}'", address, kinds, object_info)
    for address in suite.changes:
        kinds = {kind for graph in graphs.values() for kind in _kinds_at(address, graph)}
        if not kinds:
            raise ValueError(f"the suite sets {address}, but no workflow has such a node")
        _check_input("the suite", address, kinds, object_info)


def _check_input(who: str, address: str, kinds: set[str], object_info: dict[str, Any]) -> None:
    name = address.rpartition(".")[2]
    # A node that the server does not know, it refuses itself.
    for kind in kinds & object_info.keys():
        inputs = [each for part in object_info[kind]["input"].values() for each in part]
        if name not in inputs:
            raise ValueError(
                f"{who} sets {address}, but {kind} has no such input: it has {', '.join(inputs)}"
            )


def _kinds_at(address: str, nodes: dict[str, Any]) -> set[str]:
    """The types of the nodes that an address ('type.input' or '#key.input') means."""
    return {nodes[key]["class_type"] for key in _keys_at(address, nodes)}


def _keys_at(address: str, nodes: dict[str, Any]) -> list[str]:
    where = address.rpartition(".")[0]
    return [key for key, node in nodes.items() if where in (f"#{key}", node["class_type"])]


def _nodes_of(suite: Suite, method: str, object_info: dict[str, Any]) -> dict[str, Any]:
    """A method's workflow as an API prompt, with the suite's nodes, nothing set yet."""
    workflow, _ = suite.methods[method]
    graph = to_api_prompt(workflow, object_info) if "nodes" in workflow else workflow
    nodes: dict[str, Any] = json.loads(json.dumps({**graph, **suite.nodes}))
    return nodes


def prompt_of(suite: Suite, cell: Cell, object_info: dict[str, Any]) -> dict[str, Any]:
    """What is sent to the server."""
    nodes = _nodes_of(suite, cell.method, object_info)
    values = {"$concept": cell.concept.remote, "$prompt": cell.prompt, "$seed": cell.seed}
    for changes in (suite.changes, suite.methods[cell.method][1]):
        for address, value in changes.items():
            name = address.rpartition(".")[2]
            for node in (nodes[key] for key in _keys_at(address, nodes)):
                if isinstance(value, str) and value.startswith("$concept/"):
                    node["inputs"][name] = cell.concept.on_server(value.removeprefix("$concept/"))
                else:
                    node["inputs"][name] = (
                        values.get(value, value) if isinstance(value, str) else value
                    )
    return nodes


def digest_of(cell: Cell, prompt: dict[str, Any]) -> str:
    """Changes with the prompt and with every file of the concept."""
    digest = hashlib.sha256(json.dumps(prompt, sort_keys=True).encode())
    for path in sorted(path for path in cell.concept.folder.rglob("*") if path.is_file()):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def draw_cells(suite: Suite, client: Client, output: Path) -> None:
    """Draws what is not there yet."""
    object_info, everything = client.object_info(), list(cells(suite))
    check_addresses(suite, object_info)
    for concept in suite.concepts:
        upload_folder(client, concept.folder, concept.remote)
    for number, cell in enumerate(everything, 1):
        path, prompt = cell.path(output), prompt_of(suite, cell, object_info)
        stamp, digest = path.with_suffix(".sha256"), digest_of(cell, prompt)
        if path.exists() and stamp.exists() and stamp.read_text() == digest:
            continue
        print(f"{number} of {len(everything)}: {path.relative_to(output)}", flush=True)
        pictures = [
            picture for picture in run_prompt(client, prompt) if picture["type"] == "output"
        ]
        if not pictures:
            raise DevError(f"the workflow of '{cell.method}' saved no picture")
        path.parent.mkdir(parents=True, exist_ok=True)
        part_file = path.with_suffix(".part")
        part_file.write_bytes(client.fetch(pictures[0]))
        os.replace(part_file, path)
        stamp.write_text(digest)


# ---- results ----


def colour_distance(picture: Tensor, references: Tensor, masks: Tensor) -> float:
    """How far a concept's own colours are from those of a picture: for each reference the distance
    (RGB, 0..1) of its mean colour inside the mask to the nearest 2 % of the picture's pixels. Knows
    nothing of shapes; needs no network. picture: H W 3; masks: B H W.
    """
    means = []
    for reference, mask in zip(references, masks, strict=True):
        distances = (picture - toy.mean_colour(reference, mask)).norm(dim=-1).flatten()
        means.append(
            distances.topk(max(1, round(len(distances) * _NEAREST)), largest=False).values.mean()
        )
    return torch.stack(means).mean().item()


@torch.inference_mode()
def results(suite: Suite, output: Path) -> tuple[dict[str, dict[str, list[float]]], dict[str, str]]:
    """method -> metric -> a value for each cell; and what could not be measured."""
    table: dict[str, dict[str, list[float]]] = {}
    missing: dict[str, str] = {}
    for method in suite.methods:
        columns: dict[str, list[float]] = {}
        for concept in suite.concepts:
            own = [
                cell for cell in cells(suite) if cell.method == method and cell.concept is concept
            ]
            paths = [cell.path(output) for cell in own]
            if masks := pictures_in(concept.folder / "mask"):
                references, areas = read_pictures(concept.references), read_pictures(masks)[..., 0]
                columns.setdefault(COLOUR, []).extend(
                    colour_distance(picture, references, areas) for picture in read_pictures(paths)
                )
            for label, subfolder in concept.groups:
                metrics = measure_files(
                    paths,
                    concept.images(subfolder),
                    tuple(cell.prompt for cell in own),
                    suite.identity,
                )
                missing |= metrics.missing
                for name, values in metrics.columns.items():
                    if name not in ALONE:
                        columns.setdefault(f"{label}: {name}" if label else name, []).extend(values)
                    elif subfolder == concept.groups[0][1]:
                        columns.setdefault(name, []).extend(values)
        table[method] = columns
    return table, missing


def write_results(suite: Suite, output: Path) -> None:
    """results.md with the means of each method, results.csv with a row for each picture."""
    table, missing = results(suite, output)
    names = list(next(iter(table.values())))
    count = len(list(cells(suite))) // len(suite.methods)
    arrows = {**ARROWS, COLOUR: "↓"}
    lines = [f"# {suite.name}", "", f"{count} pictures a method; mean and standard error.", ""]
    lines += table_head(["method", *(f"{name} {arrows[name.split(': ')[-1]]}" for name in names)])
    for method, columns in table.items():
        lines.append(table_row([method, *(_mean_and_error(columns[name]) for name in names)]))
    lines += ["", *(f"- {name}: {reason}" for name, reason in missing.items())]
    (output / "results.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))
    with (output / "results.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["method", "concept", "prompt", "seed", *names])
        for method in suite.methods:
            own = [cell for cell in cells(suite) if cell.method == method]
            for i, cell in enumerate(own):
                writer.writerow(
                    [
                        method,
                        cell.concept.name,
                        cell.prompt,
                        cell.seed,
                        *(f"{table[method][name][i]:.6g}" for name in names),
                    ]
                )


def _mean_and_error(values: list[float]) -> str:
    numbers = torch.tensor(values)
    numbers = numbers[~numbers.isnan()]
    if not len(numbers):
        return "-"
    error = numbers.std().item() / len(numbers) ** 0.5 if len(numbers) > 1 else 0.0
    return f"{numbers.mean().item():.4f} ± {error:.4f}"


def write_grids(suite: Suite, output: Path) -> None:
    """References above, then a row for each method and a column for each seed."""
    for concept in suite.concepts:
        references = [read_pictures([path])[0] for path in concept.references]
        for number, prompt in enumerate(concept.prompts, 1):
            rows: list[list[Tensor | None]] = [list(references)]
            for method in suite.methods:
                rows.append(
                    [
                        read_pictures([Cell(method, concept, prompt, seed).path(output)])[0]
                        for seed in suite.seeds
                    ]
                )
            captions = (
                [f"seed {seed}" for seed in suite.seeds]
                if len(suite.seeds) >= len(references)
                else []
            )
            grid = CompareGrid(rows, ["references", *suite.methods], captions, prompt, cell=192)
            as_image(grid.draw()[0]).save(output / f"grid_{concept.name}_prompt{number}.png")


def main() -> None:
    parser = bench_parser(__doc__)
    parser.add_argument("suite", type=Path, help="a YAML file")
    parser.add_argument(
        "--output", type=Path, metavar="FOLDER", help="default: output/suites/<name of the suite>"
    )
    parser.add_argument(
        "--port",
        type=int,
        help="of a ComfyUI that runs on this machine with this pack; default: start one of its own",
    )
    parser.add_argument(
        "--models",
        type=Path,
        metavar="FOLDER",
        help="networks for the metrics, as for bench.metrics",
    )
    args = parser.parse_args()
    output = (args.output or ROOT / "output" / "suites" / args.suite.stem).resolve()
    try:
        suite = read_suite(args.suite, output)
        if args.models:
            use_models(args.models)
        with contextlib.ExitStack() as stack:
            client = (
                Client(f"http://127.0.0.1:{args.port}")
                if args.port
                else stack.enter_context(pack_server(CACHE / "suite"))
            )
            draw_cells(suite, client, output)
        write_results(suite, output)
        write_grids(suite, output)
    except (ValueError, OSError, DevError) as error:
        parser.exit(1, f"error: {error}\n")


if __name__ == "__main__":
    main()
