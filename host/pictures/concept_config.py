"""The YAML file of a concept folder, as MagicFace's official code has it.

Every field has a type and a length, and nothing is expanded: a file from elsewhere costs no more
than its length.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...magic.messages import shown

_LARGEST = 64 * 1024
"""Bytes of a file."""
_DEEPEST = 8
"""Brackets and indents in each other."""
_LONGEST_TEXT = 4000
_MOST_CONCEPTS = 64
_STRENGTHS = (-5.0, 10.0)
"""As of MagicFace Concept."""
_STEPS = 50
"""In which the official code samples, whatever its files say."""
_LAYERS = (
    *("i1", "i2", "i4", "i5", "i7", "i8", "m0"),
    *("o3", "o4", "o5", "o6", "o7", "o8", "o9", "o10", "o11"),
)
"""The official code counts the self-attention layers of SD1.5 and SD2.1 as they are called."""
_USED = {
    *("ref_image_infos", "target_prompt", "negative_prompt", "ref_index", "mask_weights"),
    *("ca_scale", "use_null_ref_prompts", "start_step", "inject_step", "end_step", "layer_idx"),
    *("seeds", "model_path"),
}


@dataclass(frozen=True)
class ConceptConfig:
    """What a file asks for; None, or empty, where it does not say.

    file: its name. prompts: of the references, by the name of the concept's picture, in order.
    target_prompt: of the new picture. negative_prompt: what it should not show. ref_index: for each
    concept the token of the target prompt that names it, the start token being 0. mask_weights: the
    strength of each concept. ca_scale: of MagicFace Apply, 0..1. start, inject_at, end: shares of
    sampling, as of MagicFace Apply. layers: where references act, in that node's words. seeds: of
    the pictures. model_path: what it was made for. ignored: fields that mean nothing here.
    """

    file: str
    prompts: Mapping[str, str]
    target_prompt: str
    negative_prompt: str
    ref_index: tuple[int, ...]
    mask_weights: tuple[float, ...]
    ca_scale: float | None
    start: float | None
    inject_at: float | None
    end: float | None
    layers: str
    seeds: tuple[int, ...]
    model_path: str
    ignored: tuple[str, ...]

    @property
    def settings(self) -> dict[str, Any]:
        """The inputs of MagicFace Apply that the file sets."""
        settings = {
            "ca_scale": self.ca_scale,
            "start": self.start,
            "inject_at": self.inject_at,
            "end": self.end,
            "layers": self.layers or None,
        }
        return {name: value for name, value in settings.items() if value is not None}

    @property
    def requests(self) -> list[str]:
        """What the file asks for, and where to set it, a line each."""
        lines = []
        if self.settings:
            values = ", ".join(f"{name} {value}" for name, value in self.settings.items())
            lines.append(f"MagicFace Apply: {values}")
        if self.seeds:
            lines.append(f"sampler: seed {self.seeds[0]}, {_STEPS} steps of ddim")
        if self.seeds[1:]:
            lines.append(f"more seeds: {', '.join(map(str, self.seeds[1:]))}")
        if self.model_path:
            lines.append(f"made for the model {self.model_path}")
        if self.ignored:
            lines.append(f"not used here: {', '.join(self.ignored)}")
        return [f"{self.file} asks for", *(f"- {line}" for line in lines)] if lines else []


def read_config(path: Path) -> ConceptConfig:
    """ValueError, with the file and the line, for anything that is not understood."""
    fields = _Fields(shown(path.name), _top_level(path))
    prompts = fields.prompts("ref_image_infos")
    if fields.switch("use_null_ref_prompts"):
        prompts = dict.fromkeys(prompts, " ")
    target = fields.text("target_prompt")
    if not target.strip():
        raise fields.wrong("target_prompt", "expected the new picture in words")
    inject_step = fields.step("inject_step")
    return ConceptConfig(
        file=fields.file,
        prompts=prompts,
        target_prompt=target,
        negative_prompt=fields.text("negative_prompt"),
        ref_index=fields.whole_numbers("ref_index", 1, 1000),
        mask_weights=fields.numbers("mask_weights", *_STRENGTHS),
        ca_scale=fields.number("ca_scale", 0.0, 1.0),
        start=_share(fields.step("start_step")),
        # The rule changes in the step after inject_step.
        inject_at=None if inject_step is None else _share(inject_step + 1),
        end=_share(fields.step("end_step")),
        layers=_layers(fields.whole_numbers("layer_idx", 0, len(_LAYERS) - 1)),
        seeds=fields.whole_numbers("seeds", 0, 2**64 - 1),
        model_path=fields.text("model_path"),
        ignored=tuple(sorted(fields.names - _USED)),
    )


def _share(step: int | None) -> float | None:
    return None if step is None else min(1.0, step / _STEPS)


def _layers(indices: tuple[int, ...]) -> str:
    """'i1,m0,o6-11' for the indices of these layers."""
    ranges: list[tuple[int, int]] = []
    for index in sorted(set(indices)):
        if ranges and index == ranges[-1][1] + 1 and _LAYERS[index][0] == _LAYERS[index - 1][0]:
            ranges[-1] = ranges[-1][0], index
        else:
            ranges.append((index, index))
    return ",".join(
        _LAYERS[first] + ("" if first == last else f"-{_LAYERS[last][1:]}")
        for first, last in ranges
    )


class _Fields:
    """The fields of a file, as nodes of YAML: so that text is what is written, and every complaint
    has its line."""

    def __init__(self, file: str, nodes: Mapping[str, Any]):
        self.file, self._nodes = file, nodes

    @property
    def names(self) -> set[str]:
        return set(self._nodes)

    def wrong(self, name: str, expected: str, node: Any = None) -> ValueError:
        node = node or self._nodes.get(name)
        place = self.file if node is None else f"{self.file}, line {node.start_mark.line + 1}"
        return ValueError(f"{place}: {name}: {expected}")

    def text(self, name: str) -> str:
        """Empty where the file does not say."""
        node = self._nodes.get(name)
        return "" if node is None else self._text(name, node)

    def switch(self, name: str) -> bool:
        word = self.text(name).lower()
        if word not in ("", "true", "yes", "on", "false", "no", "off"):
            raise self.wrong(name, "expected True or False")
        return word in ("true", "yes", "on")

    def number(self, name: str, low: float, high: float) -> float | None:
        node = self._nodes.get(name)
        if node is None or _is_null(node):
            return None
        return self._number(name, node, low, high)

    def numbers(self, name: str, low: float, high: float) -> tuple[float, ...]:
        return tuple(self._number(name, item, low, high) for item in self._items(name))

    def step(self, name: str) -> int | None:
        node = self._nodes.get(name)
        return None if node is None or _is_null(node) else self._whole(name, node, 0, 1000)

    def whole_numbers(self, name: str, low: int, high: int) -> tuple[int, ...]:
        return tuple(self._whole(name, item, low, high) for item in self._items(name))

    def prompts(self, name: str) -> dict[str, str]:
        """The prompt of each picture, by the picture's name."""
        node = self._nodes.get(name)
        expected = "expected the pictures with their prompts, such as 'image/hat.jpg: a hat'"
        if node is None or _kind(node) != "mapping" or not node.value:
            raise self.wrong(name, expected)
        if len(node.value) > _MOST_CONCEPTS:
            raise self.wrong(name, f"{len(node.value)} pictures, {_MOST_CONCEPTS} are the most")
        prompts: dict[str, str] = {}
        for key, value in node.value:
            stem = re.split(r"[/\\]", self._text(name, key))[-1]
            stem = stem.rpartition(".")[0] or stem
            if not stem:
                raise self.wrong(name, expected, key)
            if stem in prompts:
                raise self.wrong(name, f"'{stem}' is there twice", key)
            prompts[stem] = self._text(name, value)
        return prompts

    def _items(self, name: str) -> list[Any]:
        node = self._nodes.get(name)
        if node is None or _is_null(node):
            return []
        if _kind(node) == "scalar":
            return [node]
        if _kind(node) != "sequence" or len(node.value) > _MOST_CONCEPTS:
            raise self.wrong(name, f"expected at most {_MOST_CONCEPTS} numbers, such as [1, 2]")
        return list(node.value)

    def _text(self, name: str, node: Any) -> str:
        if _kind(node) != "scalar":
            raise self.wrong(name, "expected text", node)
        if len(node.value) > _LONGEST_TEXT:
            raise self.wrong(
                name, f"{len(node.value)} characters, {_LONGEST_TEXT} are the most", node
            )
        return "" if _is_null(node) else str(node.value)

    def _number(self, name: str, node: Any, low: float, high: float) -> float:
        try:
            number = float(self._text(name, node))
        except ValueError:
            number = math.nan
        if not low <= number <= high:
            raise self.wrong(name, f"expected a number from {low:g} to {high:g}", node)
        return number

    def _whole(self, name: str, node: Any, low: int, high: int) -> int:
        text = self._text(name, node)
        number = int(text) if re.fullmatch(r"[0-9]{1,20}", text) else -1
        if not low <= number <= high:
            raise self.wrong(name, f"expected a whole number from {low} to {high}", node)
        return number


def _top_level(path: Path) -> dict[str, Any]:
    """The nodes of the fields by their names."""
    import yaml

    name = shown(path.name)
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST + 1)
    except OSError as error:
        raise ValueError(f"{name} cannot be read: {error.strerror}") from error
    if len(content) > _LARGEST:
        raise ValueError(f"{name}: larger than {_LARGEST // 1024} KB, which no such file is")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{name}, line {line}: not UTF-8: save it as UTF-8") from error
    try:
        _check_shape(name, text)
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f", line {mark.line + 1}" if mark else ""
        problem = " ".join((error.problem or error.context or "").split())
        raise ValueError(f"{name}{place}: not understood as YAML: {problem}") from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ValueError(
            f"{name}, line {line}: U+{error.character:04X} is a character that YAML does not allow"
        ) from error
    if root is None or _kind(root) != "mapping":
        raise ValueError(f"{name}: expected settings such as 'target_prompt: a hat', one a line")
    nodes: dict[str, Any] = {}
    for key, value in root.value:
        line = key.start_mark.line + 1
        if _kind(key) != "scalar":
            raise ValueError(f"{name}, line {line}: expected a setting's name before the colon")
        if key.value in nodes:
            raise ValueError(f"{name}, line {line}: {key.value} is there twice")
        nodes[key.value] = value
    return nodes


def _check_shape(name: str, text: str) -> None:
    """Before anything is built. References are refused: a few can stand for gigabytes."""
    import yaml

    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        place = f"{name}, line {event.start_mark.line + 1}"
        if isinstance(event, yaml.AliasEvent):
            raise ValueError(f"{place}: references ('*{event.anchor}') are not read: write it out")
        if depth > _DEEPEST:
            raise ValueError(f"{place}: brackets or indents are more than {_DEEPEST} deep")


def _kind(node: Any) -> str:
    """'scalar', 'sequence' or 'mapping'."""
    return str(node.id)


def _is_null(node: Any) -> bool:
    return str(node.tag).endswith(":null")
