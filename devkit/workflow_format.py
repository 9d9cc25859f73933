"""Converts a workflow as the editor saves it into the prompt that ComfyUI's /prompt endpoint
takes: the same that the page would send."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

Node = dict[str, Any]
NodeId = int | str

MUTED, BYPASSED = 2, 4
NOTES = {"Note", "MarkdownNote"}
PAGE_ONLY = {*NOTES, "PrimitiveNode", "Reroute"}
WIDGET_TYPES = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
DYNAMIC_TYPES = {"COMFY_AUTOGROW_V3", "COMFY_DYNAMICCOMBO_V3", "COMFY_DYNAMICSLOT_V3"}
CONTROL_VALUES = {"fixed", "increment", "decrement", "randomize"}
ANY_TYPE = ("*", "")
SUBGRAPH_INPUTS = -10
"""What a link inside a subgraph has as its origin when it comes in from outside."""
OWN_INPUT = "-1"
"""What a promoted widget has as its node when it is an input of the subgraph's own node."""


class WorkflowError(Exception):
    """The workflow cannot be converted; the message names the node."""


class Link(NamedTuple):
    """origin, slot: the node and the output that a link comes from."""

    origin: NodeId
    slot: int


class Output(NamedTuple):
    """An input's source: an output of a node, which is named as in the prompt ('outer:inner')."""

    node: str
    slot: int


class Value(NamedTuple):
    """An input's source: a value, of a primitive or of a widget on a subgraph's node."""

    value: Any


def to_api_prompt(workflow: dict[str, Any], object_info: dict[str, Any]) -> dict[str, Any]:
    """The prompt of a saved workflow. `object_info` is what ComfyUI's endpoint of that name
    answers: it holds the order of every node's widgets. WorkflowError for what cannot be
    converted."""
    prompt: dict[str, Any] = {}
    try:
        _Graph(workflow, _Definitions(workflow, object_info)).write(prompt)
    except RecursionError as error:
        raise WorkflowError("the links or the subgraphs of this workflow go in circles") from error
    for data in prompt.values():
        data["inputs"] = {
            name: [*source] if isinstance(source, Output) else _quoted(source)
            for name, source in data["inputs"].items()
        }
    return prompt


class _Definitions:
    """What all levels of a workflow share: the schemas of the nodes, the subgraphs by their id."""

    def __init__(self, workflow: dict[str, Any], object_info: dict[str, Any]) -> None:
        self.schemas = object_info
        subgraphs = workflow.get("definitions", {}).get("subgraphs", [])
        self.subgraphs: dict[str, dict[str, Any]] = {each["id"]: each for each in subgraphs}


class _Graph:
    """One level of a workflow: its top level, or the inside of one subgraph's node.

    definition: the level's nodes and links; the same one for every node of this subgraph.
    outer, node: the level around it and the node there, whose inputs lead in here.
    path: the ids of the nodes around it, from the top level on.
    widget_values: of nodes in here what the subgraph's node sets, by node and widget.
    sockets: the index of the node's input for each slot of the subgraph, in the node's order.
    slot_values: what the node shows as widgets of its own, by slot.
    """

    def __init__(
        self,
        definition: dict[str, Any],
        definitions: _Definitions,
        outer: _Graph | None = None,
        node: Node | None = None,
    ) -> None:
        self.definition, self.definitions, self.outer, self.node = (
            definition,
            definitions,
            outer,
            node,
        )
        self.path: tuple[NodeId, ...] = (*outer.path, node["id"]) if outer and node else ()
        self.nodes: dict[str, Node] = {str(each["id"]): each for each in definition["nodes"]}
        self.links = dict(map(_read_link, definition["links"]))
        self.widget_values: dict[tuple[str, str], Any] = {}
        self.sockets: dict[int, int] = {}
        self.slot_values: dict[int, Any] = {}
        self.insides: dict[str, _Graph] = {}
        if node:
            slots = {each["name"]: slot for slot, each in enumerate(definition["inputs"])}
            for index, socket in enumerate(node.get("inputs", [])):
                if socket["name"] in slots:
                    self.sockets[slots[socket["name"]]] = index
            self._read_widgets_of(node)

    # ---- the prompt ----

    def write(self, prompt: dict[str, Any]) -> None:
        """Adds the nodes of this level, and of those inside it, to the prompt."""
        for node in self.nodes.values():
            kind = node["type"]
            if node.get("mode", 0) in (MUTED, BYPASSED) or kind in PAGE_ONLY:
                continue
            if inside := self.inside(node):
                inside.write(prompt)
                continue
            inputs = self.values_of(node)
            for index, socket in enumerate(node.get("inputs", [])):
                source = self.source_of_input(node, index)
                if source is not None:
                    inputs[socket["name"]] = source if isinstance(source, Output) else source.value
            prompt[self.name_of(node)] = {"class_type": kind, "inputs": inputs}

    def name_of(self, node: Node) -> str:
        return ":".join(map(str, (*self.path, node["id"])))

    def inside(self, node: Node) -> _Graph | None:
        """The level in a subgraph's node; None for any other node."""
        definition = self.definitions.subgraphs.get(node["type"])
        if definition is None:
            return None
        key = str(node["id"])
        if key not in self.insides:
            self.insides[key] = _Graph(definition, self.definitions, self, node)
        return self.insides[key]

    def values_of(self, node: Node) -> dict[str, Any]:
        """The values of a node's widgets by input name."""
        if node["type"] not in self.definitions.schemas:
            raise WorkflowError(
                f"node {self.name_of(node)} has the type {node['type']!r}, which this ComfyUI does"
                " not know"
            )
        values = _widget_values(node, self.definitions.schemas[node["type"]]["input"])
        for (owner, name), value in self.widget_values.items():
            if owner == str(node["id"]) and name in values:
                values[name] = value
        return values

    # ---- links ----

    def source_of_input(self, node: Node, index: int, kind: str | None = None) -> Source | None:
        """Where an input's value comes from; None without one. `kind` is the type that is wanted at
        the far end, by default the input's."""
        socket = node["inputs"][index]
        if socket.get("link") is None:
            return None
        link = self.links[socket["link"]]
        if link.origin == SUBGRAPH_INPUTS:
            return self.source_from_outside(link.slot)
        return self.source_of_output(
            self.nodes[str(link.origin)], link.slot, kind or str(socket["type"])
        )

    def source_from_outside(self, slot: int) -> Source | None:
        """What a slot of the subgraph brings in: the source of its node's input, or its widget."""
        assert self.outer and self.node
        index = self.sockets.get(slot)
        if index is not None and self.node["inputs"][index].get("link") is not None:
            return self.outer.source_of_input(self.node, index)
        return Value(self.slot_values[slot]) if slot in self.slot_values else None

    def source_of_output(self, node: Node, slot: int, kind: str) -> Source | None:
        """Follows an output backwards through reroutes, bypassed nodes and subgraphs."""
        mode = node.get("mode", 0)
        if mode == MUTED:
            return None
        if mode == BYPASSED:
            index = _bypass_input(node, slot, kind)
            return None if index is None else self.source_of_input(node, index)
        if node["type"] == "PrimitiveNode":
            return Value(self._primitive_value(node))
        if node["type"] == "Reroute":
            return self.source_of_input(node, 0, kind)
        if inside := self.inside(node):
            links = inside.definition["outputs"][slot].get("linkIds") or []
            if not links:
                return None
            link = inside.links[links[0]]
            if link.origin == SUBGRAPH_INPUTS:
                return inside.source_from_outside(link.slot)
            return inside.source_of_output(inside.nodes[str(link.origin)], link.slot, kind)
        return Output(self.name_of(node), slot)

    def _primitive_value(self, node: Node) -> Any:
        for (owner, _), value in self.widget_values.items():
            if owner == str(node["id"]):
                return value
        return node["widgets_values"][0]

    # ---- widgets on a subgraph's node ----

    def _read_widgets_of(self, node: Node) -> None:
        """The widgets that a subgraph's node shows stand for widgets inside. Newer pages make each
        an input of the node, and save the values in the order of these inputs; older ones list
        nodes and widgets (`proxyWidgets`), and save the values in the order of the list."""
        saved = node.get("widgets_values")
        values = saved if isinstance(saved, list) else []
        promoted = node.get("properties", {}).get("proxyWidgets") or []
        position = 0
        for slot in self.sockets:
            widget = self._widget_behind(slot)
            if widget is None:
                continue
            own = values[position] if not promoted and position < len(values) else None
            self.slot_values[slot] = widget.value if own is None else own
            position += 1
        for (owner, name, *rest), value in zip(promoted, values):
            if value is not None:
                self._set_promoted(str(owner), name, str(rest[0]) if rest else None, value)

    def _widget_behind(self, slot: int) -> Value | None:
        """What the widget shows to which a slot leads, inside."""
        for node, socket in self._targets_of(slot):
            if inside := self.inside(node):
                for inner, index in inside.sockets.items():
                    if node["inputs"][index] is socket and inner in inside.slot_values:
                        return Value(inside.slot_values[inner])
            elif node["type"] in self.definitions.schemas:
                values = self.values_of(node)
                if socket["name"] in values:
                    return Value(values[socket["name"]])
        return None

    def _targets_of(self, slot: int) -> Iterator[tuple[Node, dict[str, Any]]]:
        """The nodes inside, each with its input, to which a slot leads."""
        for link in self.definition["inputs"][slot].get("linkIds") or []:
            for node in self.nodes.values():
                for socket in node.get("inputs", []):
                    if socket.get("link") == link:
                        yield node, socket

    def _set_promoted(self, owner: str, name: str, source: str | None, value: Any) -> None:
        """Sets the widget `name` of the node `owner` inside. In a subgraph's node `source` tells
        the node in there, where several widgets have the name."""
        for slot in self.slot_values:
            targets = {(str(node["id"]), socket["name"]) for node, socket in self._targets_of(slot)}
            if owner == OWN_INPUT:
                names = {target for _, target in targets}
                is_this = name in {*names, self.definition["inputs"][slot]["name"]}
            else:
                is_this = (owner, name) in targets
            if is_this:
                self.slot_values[slot] = value
                return
        if owner not in self.nodes:
            return
        inside = self.inside(self.nodes[owner])
        if not inside:
            self.widget_values[owner, name] = value
            return
        if prefix := re.fullmatch(r"(?:\s*\d+\s*:)*\s*(\d+)\s*:\s*(.+)", name):
            source, name = prefix[1], prefix[2]
        inside._set_promoted(source or OWN_INPUT, name, None, value)


Source = Output | Value


def _read_link(link: list[Any] | dict[str, Any]) -> tuple[int, Link]:
    if isinstance(link, dict):
        return link["id"], Link(link["origin_id"], link["origin_slot"])
    return link[0], Link(link[1], link[2])


def _bypass_input(node: Node, slot: int, kind: str) -> int | None:
    """The input that a bypassed node passes on: the one beside the output if its type fits both the
    output and what is wanted there, else the first of exactly that type, else the first that
    fits."""
    types = [str(socket["type"]) for socket in node.get("inputs", [])]
    if kind in ANY_TYPE:
        return slot if slot < len(types) else 0 if types else None
    fitting = [
        index
        for index, each in enumerate(types)
        if _fits(each, str(node["outputs"][slot]["type"])) and _fits(each, kind)
    ]
    if slot in fitting:
        return slot
    if kind in types:
        return types.index(kind)
    return fitting[0] if fitting else None


def _fits(first: str, second: str) -> bool:
    """As the page decides whether two sockets may be connected."""
    if first in ANY_TYPE or second in ANY_TYPE:
        return True
    return not set(first.lower().split(",")).isdisjoint(second.lower().split(","))


def _widget_values(node: Node, schema: dict[str, Any]) -> dict[str, Any]:
    """The widgets' values by input name; also those of inputs that a link overrides, whose place in
    the list is kept."""
    saved = node.get("widgets_values") or []
    if isinstance(saved, dict):
        names = {name for name, kind, _ in _widgets(node, schema) if kind != "UPLOAD"}
        return {name: value for name, value in saved.items() if name in names}
    values = {}
    position = 0
    for name, kind, options in _widgets(node, schema):
        if position < len(saved):
            if kind != "UPLOAD":
                values[name] = saved[position]
            position += 1
        elif "default" in options:
            values[name] = options["default"]
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
