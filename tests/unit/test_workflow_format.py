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
