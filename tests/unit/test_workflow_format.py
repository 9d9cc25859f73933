from __future__ import annotations

from typing import Any

import pytest

from devkit.workflow_format import WorkflowError, to_api_prompt

OBJECT_INFO: dict[str, Any] = {
    "Loader": {
        "input": {
            "required": {
                "image": [["a.png"], {"image_upload": True}],
                "channel": [["alpha", "red"]],
            }
        }
    },
    "Sampler": {
        "input": {
            "required": {
                "model": ["MODEL"],
                "seed": ["INT", {"default": 0, "control_after_generate": True}],
                "steps": ["INT", {"default": 20}],
                "name": ["COMBO", {"options": ["euler"]}],
                "strength": ["FLOAT", {"forceInput": True}],
            },
            "optional": {
                "mask": ["MASK"],
                "note": ["STRING", {"default": "none"}],
                "loud": ["BOOLEAN", {"default": False}],
            },
            "hidden": {"unique_id": "UNIQUE_ID"},
        }
    },
    "Model": {"input": {"required": {}}},
    "Patch": {"input": {"required": {"clip": ["CLIP"], "model": ["MODEL"]}}},
    "Grower": {"input": {"required": {"images": ["COMFY_AUTOGROW_V3", {"template": {}}]}}},
    "Lister": {"input": {"required": {"boxes": ["COMBO", {"multiselect": True}]}}},
}
SAMPLER_VALUES = [7, "randomize", 12, "euler", "words", True]


def node(
    number: int,
    kind: str,
    values: Any = None,
    inputs: list[dict[str, Any]] | None = None,
    **rest: Any,
) -> dict[str, Any]:
    return {"id": number, "type": kind, "inputs": inputs or [], "widgets_values": values, **rest}


def socket(name: str, link: int | None, kind: str = "MODEL", **rest: Any) -> dict[str, Any]:
    return {"name": name, "type": kind, "link": link, **rest}


def convert(*nodes: dict[str, Any], links: Any = ()) -> dict[str, Any]:
    return to_api_prompt({"nodes": list(nodes), "links": list(links)}, OBJECT_INFO)


def sampler_inputs(
    *others: dict[str, Any], links: Any, inputs: list[dict[str, Any]] | None = None
) -> dict[str, Any]:
    sampler = node(9, "Sampler", SAMPLER_VALUES, inputs or [socket("model", 1)])
    inputs_of_9: dict[str, Any] = convert(sampler, *others, links=links)["9"]["inputs"]
    return inputs_of_9


def test_widget_values_follow_the_schema_and_skip_the_control_value() -> None:
    inputs = sampler_inputs(node(1, "Model"), links=[[1, 1, 0, 9, 0, "MODEL"]])
    assert inputs == {
        "model": ["1", 0],
        "seed": 7,
        "steps": 12,
        "name": "euler",
        "note": "words",
        "loud": True,
    }


def test_links_may_be_dictionaries() -> None:
    link = {
        "id": 1,
        "origin_id": 1,
        "origin_slot": 2,
        "target_id": 9,
        "target_slot": 0,
        "type": "MODEL",
    }
    assert sampler_inputs(node(1, "Model"), links=[link])["model"] == ["1", 2]


def test_a_linked_widget_keeps_its_place_in_the_values() -> None:
    inputs = [socket("steps", 1, "INT", widget={"name": "steps"})]
    converted = sampler_inputs(node(1, "Model"), links=[[1, 1, 0, 9, 0, "INT"]], inputs=inputs)
    assert converted["steps"] == ["1", 0]
    assert (converted["seed"], converted["name"]) == (7, "euler")


def test_a_seed_saved_without_a_control_value() -> None:
    inputs = convert(node(1, "Sampler", [7, 12, "euler"]))["1"]["inputs"]
    assert inputs == {"seed": 7, "steps": 12, "name": "euler", "note": "none", "loud": False}


@pytest.mark.parametrize(
    "values",
    [
        ["a.png", "red", "image"],
        ["a.png", "red"],
        {"image": "a.png", "channel": "red", "upload": "image"},
    ],
)
def test_the_upload_button_is_no_input(values: Any) -> None:
    assert convert(node(1, "Loader", values))["1"]["inputs"] == {"image": "a.png", "channel": "red"}


def test_a_list_value_is_not_mistaken_for_a_link() -> None:
    assert convert(node(1, "Lister", [["2", 0]]))["1"]["inputs"] == {
        "boxes": {"__value__": ["2", 0]}
    }


def test_reroutes_are_followed() -> None:
    links = [[1, 2, 0, 9, 0, "*"], [2, 3, 0, 2, 0, "*"], [3, 1, 0, 3, 0, "*"]]
    reroutes = [
        node(2, "Reroute", inputs=[socket("", 2, "*")]),
        node(3, "Reroute", inputs=[socket("", 3, "*")]),
    ]
    assert sampler_inputs(node(1, "Model"), *reroutes, links=links)["model"] == ["1", 0]


def test_a_primitive_gives_its_value() -> None:
    primitive = node(1, "PrimitiveNode", [30, "fixed"])
    inputs = [socket("steps", 1, "INT", widget={"name": "steps"})]
    assert sampler_inputs(primitive, links=[[1, 1, 0, 9, 0, "INT"]], inputs=inputs)["steps"] == 30


def test_a_bypassed_node_passes_on_the_input_of_the_same_type() -> None:
    patch = node(
        2,
        "Patch",
        inputs=[socket("clip", None, "CLIP"), socket("model", 2)],
        outputs=[{"type": "MODEL"}],
        mode=4,
    )
    links = [[1, 2, 0, 9, 0, "MODEL"], [2, 1, 0, 2, 1, "MODEL"]]
    assert sampler_inputs(node(1, "Model"), patch, links=links)["model"] == ["1", 0]


def test_a_bypassed_node_without_a_fitting_input_passes_on_nothing() -> None:
    patch = node(
        2, "Patch", inputs=[socket("clip", None, "CLIP")], outputs=[{"type": "MODEL"}], mode=4
    )
    assert "model" not in sampler_inputs(patch, links=[[1, 2, 0, 9, 0, "MODEL"]])


def test_a_muted_node_and_its_links_are_dropped() -> None:
    links = [[1, 1, 0, 9, 0, "MODEL"]]
    muted = node(1, "Model", mode=2)
    assert list(
        convert(node(9, "Sampler", SAMPLER_VALUES, [socket("model", 1)]), muted, links=links)
    ) == ["9"]
    assert "model" not in sampler_inputs(muted, links=links)


def test_notes_are_dropped() -> None:
    assert convert(node(1, "Note", ["text"]), node(2, "MarkdownNote", ["text"])) == {}


def test_an_unknown_node_type_is_named() -> None:
    with pytest.raises(WorkflowError, match="'Nonsense'"):
        convert(node(1, "Nonsense"))


def test_a_dynamic_input_is_refused() -> None:
    with pytest.raises(WorkflowError, match="'images'"):
        convert(node(1, "Grower"))


# ---- subgraphs ----

SIMPLE = "11111111-0000-4000-8000-000000000000"
AROUND = "22222222-0000-4000-8000-000000000000"
INPUTS, OUTPUTS = -10, -20


def inner_link(number: int, origin: int, slot: int, target: int, at: int) -> dict[str, Any]:
    keys = ("id", "origin_id", "origin_slot", "target_id", "target_slot")
    return dict(zip(keys, (number, origin, slot, target, at)))


def slot(name: str, kind: str, *links: int) -> dict[str, Any]:
    return {"name": name, "type": kind, "linkIds": list(links)}


def widget_socket(name: str, link: int | None, kind: str = "INT") -> dict[str, Any]:
    return socket(name, link, kind, widget={"name": name})


def simple_subgraph(*, mode: int = 0, values: Any = SAMPLER_VALUES) -> dict[str, Any]:
    """A patch and a sampler; model and steps come in, the sampler's result and the patched model go
    out."""
    patch = node(
        2,
        "Patch",
        inputs=[socket("clip", None, "CLIP"), socket("model", 1)],
        outputs=[{"type": "MODEL"}],
        mode=mode,
    )
    sampler = node(3, "Sampler", values, [socket("model", 2), widget_socket("steps", 3)])
    return {
        "id": SIMPLE,
        "nodes": [patch, sampler],
        "links": [
            inner_link(1, INPUTS, 0, 2, 1),
            inner_link(2, 2, 0, 3, 0),
            inner_link(3, INPUTS, 1, 3, 1),
            inner_link(4, 3, 0, OUTPUTS, 0),
            inner_link(5, 2, 0, OUTPUTS, 1),
        ],
        "inputs": [slot("model", "MODEL", 1), slot("count", "INT", 3)],
        "outputs": [slot("LATENT", "LATENT", 4), slot("MODEL", "MODEL", 5)],
    }


def nested_subgraph() -> dict[str, Any]:
    """The simple one, whose inputs come in from outside once more, and its model goes out."""
    inner = node(
        5, SIMPLE, inputs=[socket("model", 1), widget_socket("count", 2)], outputs=[{}, {}]
    )
    return {
        "id": AROUND,
        "nodes": [inner],
        "links": [
            inner_link(1, INPUTS, 0, 5, 0),
            inner_link(2, INPUTS, 1, 5, 1),
            inner_link(3, 5, 1, OUTPUTS, 0),
        ],
        "inputs": [slot("model", "MODEL", 1), slot("number", "INT", 2)],
        "outputs": [slot("MODEL", "MODEL", 3)],
    }


def subgraph_node(
    kind: str = SIMPLE, values: Any = None, widget: str = "count", **rest: Any
) -> dict[str, Any]:
    inputs = [socket("model", 1), widget_socket(widget, None)]
    outputs = [{"type": "LATENT"}, {"type": "MODEL"}][kind == AROUND :]
    return node(7, kind, values, inputs, outputs=outputs, **rest)


def convert_with(
    definitions: list[dict[str, Any]], *nodes: dict[str, Any], links: Any = ()
) -> dict[str, Any]:
    """Node 1 is a model, which link 1 takes to node 7, a subgraph's."""
    workflow = {
        "nodes": [node(1, "Model"), *nodes],
        "links": [[1, 1, 0, 7, 0, "MODEL"], *links],
        "definitions": {"subgraphs": definitions},
    }
    return to_api_prompt(workflow, OBJECT_INFO)


def test_the_inside_of_a_subgraph_is_written_out() -> None:
    prompt = convert_with([simple_subgraph()], subgraph_node())
    assert set(prompt) == {"1", "7:2", "7:3"}
    assert prompt["7:2"] == {"class_type": "Patch", "inputs": {"model": ["1", 0]}}
    assert prompt["7:3"]["inputs"]["model"] == ["7:2", 0]
    assert prompt["7:3"]["inputs"]["steps"] == 12, "the widget's own value"


def test_what_a_subgraph_gives_comes_from_its_inside() -> None:
    sampler = node(9, "Sampler", SAMPLER_VALUES, [socket("model", 2)])
    prompt = convert_with(
        [simple_subgraph()], subgraph_node(), sampler, links=[[2, 7, 1, 9, 0, "MODEL"]]
    )
    assert prompt["9"]["inputs"]["model"] == ["7:2", 0]


def test_every_node_of_a_subgraph_has_values_of_its_own() -> None:
    other = {**subgraph_node(values=[40]), "id": 8}
    prompt = convert_with([simple_subgraph()], subgraph_node(values=[30]), other)
    assert (prompt["7:3"]["inputs"]["steps"], prompt["8:3"]["inputs"]["steps"]) == (30, 40)


def test_a_link_into_a_subgraph_overrides_the_widget_on_its_node() -> None:
    primitive = node(4, "PrimitiveNode", [50, "fixed"])
    outer = subgraph_node(values=[30])
    outer["inputs"][1]["link"] = 2
    prompt = convert_with([simple_subgraph()], outer, primitive, links=[[2, 4, 0, 7, 1, "INT"]])
    assert prompt["7:3"]["inputs"]["steps"] == 50


@pytest.mark.parametrize(
    ("promoted", "values", "expected"),
    [
        ([["3", "seed"]], None, 7),
        ([["3", "seed"]], [123], 123),
        ([["3", "name"], ["3", "seed"]], ["euler", 5], 5),
        ([["3", "name"], ["3", "seed"]], ["euler", None], 7),
    ],
)
def test_widgets_that_older_pages_promoted(promoted: Any, values: Any, expected: int) -> None:
    outer = subgraph_node(values=values, properties={"proxyWidgets": promoted})
    inputs = convert_with([simple_subgraph()], outer)["7:3"]["inputs"]
    assert (inputs["seed"], inputs["steps"]) == (expected, 12)


@pytest.mark.parametrize("entry", [["3", "steps"], ["-1", "count"]])
def test_older_pages_list_the_widgets_of_inputs_too(entry: list[str]) -> None:
    outer = subgraph_node(values=[9, 33], properties={"proxyWidgets": [["3", "seed"], entry]})
    inputs = convert_with([simple_subgraph()], outer)["7:3"]["inputs"]
    assert (inputs["seed"], inputs["steps"]) == (9, 33)


@pytest.mark.parametrize("values", [None, [60]])
def test_nested_subgraphs(values: Any) -> None:
    sampler = node(9, "Sampler", SAMPLER_VALUES, [socket("model", 2)])
    prompt = convert_with(
        [simple_subgraph(), nested_subgraph()],
        subgraph_node(AROUND, values, "number"),
        sampler,
        links=[[2, 7, 0, 9, 0, "MODEL"]],
    )
    assert set(prompt) == {"1", "9", "7:5:2", "7:5:3"}
    assert prompt["7:5:2"]["inputs"]["model"] == ["1", 0]
    assert prompt["7:5:3"]["inputs"]["steps"] == (values or [12])[0]
    assert prompt["9"]["inputs"]["model"] == ["7:5:2", 0]


@pytest.mark.parametrize("entry", [["5", "count"], ["5", "steps", "3"], ["5", "3: steps"]])
def test_older_pages_promote_widgets_of_nested_subgraphs(entry: list[str]) -> None:
    outer = subgraph_node(AROUND, [70], "number", properties={"proxyWidgets": [entry]})
    definitions = [simple_subgraph(), nested_subgraph()]
    for definition in definitions[1:]:
        definition["nodes"][0]["inputs"][1]["link"] = None
        definition["inputs"][1]["linkIds"] = []
    assert convert_with(definitions, outer)["7:5:3"]["inputs"]["steps"] == 70


def test_a_bypassed_node_in_a_subgraph_passes_on_what_comes_in() -> None:
    prompt = convert_with([simple_subgraph(mode=4)], subgraph_node())
    assert set(prompt) == {"1", "7:3"}
    assert prompt["7:3"]["inputs"]["model"] == ["1", 0]


def test_a_muted_node_in_a_subgraph_is_dropped() -> None:
    prompt = convert_with([simple_subgraph(mode=2)], subgraph_node())
    assert set(prompt) == {"1", "7:3"}
    assert "model" not in prompt["7:3"]["inputs"]


@pytest.mark.parametrize(("mode", "expected"), [(2, None), (4, ["1", 0])])
def test_a_subgraph_that_is_left_out(mode: int, expected: Any) -> None:
    sampler = node(9, "Sampler", SAMPLER_VALUES, [socket("model", 2)])
    links = [[2, 7, 1, 9, 0, "MODEL"]]
    prompt = convert_with([simple_subgraph()], subgraph_node(mode=mode), sampler, links=links)
    assert set(prompt) == {"1", "9"}
    assert prompt["9"]["inputs"].get("model") == expected


def test_a_widget_whose_link_is_muted_keeps_its_value() -> None:
    inputs = [socket("model", None), socket("steps", 1, "INT", widget={"name": "steps"})]
    muted = node(1, "Model", mode=2)
    links = [[1, 1, 0, 9, 1, "INT"]]
    assert sampler_inputs(muted, links=links, inputs=inputs)["steps"] == 12


@pytest.mark.parametrize(
    ("types", "output", "expected"),
    [
        (["CLIP", "MODEL"], "MODEL", ["1", 0]),
        (["*", "CLIP"], "MODEL", ["1", 0]),
        (["CLIP", "VAE,model"], "MODEL", ["1", 0]),
        (["CLIP", "VAE"], "MODEL", None),
    ],
)
def test_a_bypassed_node_passes_on_what_fits(types: list[str], output: str, expected: Any) -> None:
    index = 0 if types[0] == "*" else 1
    inputs = [socket("a", None, types[0]), socket("b", None, types[1])]
    inputs[index]["link"] = 2
    patch = node(2, "Patch", inputs=inputs, outputs=[{"type": output}], mode=4)
    links = [[1, 2, 0, 9, 0, "MODEL"], [2, 1, 0, 2, index, "MODEL"]]
    assert sampler_inputs(node(1, "Model"), patch, links=links).get("model") == expected


def test_a_bypassed_node_passes_on_the_input_beside_the_output() -> None:
    inputs = [socket("first", 2), socket("second", 3)]
    patch = node(2, "Patch", inputs=inputs, outputs=2 * [{"type": "MODEL"}], mode=4)
    links = [[1, 2, 1, 9, 0, "MODEL"], [2, 1, 0, 2, 0, "MODEL"], [3, 5, 0, 2, 1, "MODEL"]]
    converted = sampler_inputs(node(1, "Model"), node(5, "Model"), patch, links=links)
    assert converted["model"] == ["5", 0]


def test_a_bypassed_node_rather_passes_on_exactly_the_type() -> None:
    inputs = [socket("any", 2, "*"), socket("clip", None, "CLIP"), socket("model", 3)]
    outputs = [{"type": "LATENT"}, {"type": "MODEL"}]
    patch = node(2, "Patch", inputs=inputs, outputs=outputs, mode=4)
    links = [[1, 2, 1, 9, 0, "MODEL"], [2, 1, 0, 2, 0, "*"], [3, 5, 0, 2, 2, "MODEL"]]
    converted = sampler_inputs(node(1, "Model"), node(5, "Model"), patch, links=links)
    assert converted["model"] == ["5", 0]


def test_a_subgraph_in_itself_is_an_error() -> None:
    definition = simple_subgraph()
    definition["nodes"].append(node(6, SIMPLE, inputs=[]))
    with pytest.raises(WorkflowError, match="go in circles"):
        convert_with([definition], subgraph_node())


def test_an_unknown_node_in_a_subgraph_is_named() -> None:
    definition = simple_subgraph()
    definition["nodes"].append(node(6, "Nonsense"))
    with pytest.raises(WorkflowError, match="node 7:6 has the type 'Nonsense'"):
        convert_with([definition], subgraph_node())
