"""Converts a workflow as the editor saves it into the prompt that ComfyUI's /prompt endpoint
takes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

Node = dict[str, Any]
# What an input receives: ("link", node id, slot) or ("value", anything); None is an input without a
# source.
Source = tuple[Any, ...]

MUTED, BYPASSED = 2, 4
NOTES = {"Note", "MarkdownNote"}
WIDGET_TYPES = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
DYNAMIC_TYPES = {"COMFY_AUTOGROW_V3", "COMFY_DYNAMICCOMBO_V3", "COMFY_DYNAMICSLOT_V3"}
CONTROL_VALUES = {"fixed", "increment", "decrement", "randomize"}


class WorkflowError(Exception):
    pass


def to_api_prompt(workflow: dict[str, Any], object_info: dict[str, Any]) -> dict[str, Any]:
    """`object_info` is what ComfyUI's endpoint of that name answers: it holds the order of every
    node's widgets."""
    nodes = {node["id"]: node for node in workflow["nodes"]}
    links = dict(_read_link(link) for link in workflow["links"])
    prompt = {}
    for node in nodes.values():
        kind = node["type"]
        if (
            kind in NOTES
            or kind in ("Reroute", "PrimitiveNode")
            or node.get("mode", 0) in (MUTED, BYPASSED)
        ):
            continue
        if kind not in object_info:
            raise WorkflowError(
                f"node {node['id']} has the type {kind!r}, which this ComfyUI does not know"
            )
        inputs = _widget_values(node, object_info[kind]["input"])
        for socket in node.get("inputs", []):
            if socket.get("link") is None:
                continue
            source = _resolve(links[socket["link"]], nodes, links)
            if source is None:
                inputs.pop(socket["name"], None)
            else:
                inputs[socket["name"]] = (
                    _quoted(source[1]) if source[0] == "value" else [str(source[1]), source[2]]
                )
        prompt[str(node["id"])] = {"class_type": kind, "inputs": inputs}
    return prompt


def _read_link(link: list[Any] | dict[str, Any]) -> tuple[int, tuple[int, int]]:
    if isinstance(link, dict):
        return link["id"], (link["origin_id"], link["origin_slot"])
    return link[0], (link[1], link[2])


def _resolve(
    origin: tuple[int, int], nodes: dict[int, Node], links: dict[int, tuple[int, int]]
) -> Source | None:
    """Follows a link backwards through reroutes and bypassed nodes."""
    while True:
        node, slot = nodes[origin[0]], origin[1]
        mode = node.get("mode", 0)
        if mode == MUTED:
            return None
        if node["type"] == "PrimitiveNode":
            return "value", node["widgets_values"][0]
        if node["type"] == "Reroute":
            link = node["inputs"][0].get("link")
        elif mode == BYPASSED:
            link = _bypass_link(node, slot)
        else:
            return "link", node["id"], slot
        if link is None:
            return None
        origin = links[link]


def _bypass_link(node: Node, slot: int) -> int | None:
    """The input that a bypassed node passes on: the one beside the output if its type fits, else
    the first that does."""
    sockets = node.get("inputs", [])
    for socket in sockets[slot : slot + 1] + sockets:
        if socket["type"] == node["outputs"][slot]["type"]:
            link: int | None = socket.get("link")
            return link
    return None


def _widget_values(node: Node, schema: dict[str, Any]) -> dict[str, Any]:
    """The widgets' values by input name; also those of inputs that a link overrides, whose place in
    the list is kept."""
    saved = node.get("widgets_values") or []
    if isinstance(saved, dict):
        names = {name for name, kind, _ in _widgets(node, schema) if kind != "UPLOAD"}
        return {name: _quoted(value) for name, value in saved.items() if name in names}
    values = {}
    position = 0
    for name, kind, options in _widgets(node, schema):
        if position < len(saved):
            if kind != "UPLOAD":
                values[name] = _quoted(saved[position])
            position += 1
        elif "default" in options:
            values[name] = _quoted(options["default"])
        # The editor adds a "control after generate" widget to these, which is its own business.
        has_control = kind == "INT" and (
            options.get("control_after_generate") or name in ("seed", "noise_seed")
        )
        if has_control and position < len(saved) and saved[position] in CONTROL_VALUES:
            position += 1
    return values


def _widgets(node: Node, schema: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Name, type and options of the node's widgets in the order in which the editor saves their
    values."""
    marked = {socket["widget"]["name"] for socket in node.get("inputs", []) if socket.get("widget")}
    for section in ("required", "optional"):
        uploads = False
        for name, (kind, *rest) in schema.get(section, {}).items():
            options = rest[0] if rest else {}
            if isinstance(kind, list):
                kind = "COMBO"
            if kind in DYNAMIC_TYPES:
                raise WorkflowError(
                    f"node {node['id']} ({node['type']}): the dynamic input {name!r} cannot be"
                    " converted"
                )
            uploads = uploads or bool(options.get("image_upload"))
            if not options.get("forceInput") and (
                kind in WIDGET_TYPES or options.get("socketless") or name in marked
            ):
                yield name, kind, options
        if uploads:
            # The upload button, whose saved value is always "image", stands after the section's own
            # widgets.
            yield "upload", "UPLOAD", {}


def _quoted(value: Any) -> Any:
    """ComfyUI would take a bare list for a link."""
    return {"__value__": value} if isinstance(value, list) else value
