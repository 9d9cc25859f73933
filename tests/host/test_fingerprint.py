"""What is alike has one fingerprint, in any process; what behaves otherwise has another."""

from __future__ import annotations

import collections
import functools
import logging
import os
import re
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from magicportrait.host.inversion import fingerprint as fingerprints
from magicportrait.host.inversion.fingerprint import fingerprint

ROOT = Path(__file__).resolve().parents[2]


def scaled_by(factor: float) -> Callable[[float], float]:
    return lambda x: x * factor


def nest(twice: bool) -> Callable[[Any], Any]:
    if twice:
        return lambda x: [(lambda y: y * 2)(one) for one in x]
    return lambda x: [(lambda y: y * 3)(one) for one in x]


def with_default(x: float, factor: float = 2.0) -> float:
    return x * factor


class Patch:
    def __init__(self, strength: float) -> None:
        self.strength = strength

    def act(self, x: float) -> float:
        return x * self.strength


class Slotted:
    __slots__ = ("strength",)

    def __init__(self, strength: float) -> None:
        self.strength = strength


def local_class(base: type, factor: float = 1.0) -> type:
    class Made(base):  # type: ignore[misc]
        def act(self, x: float) -> float:
            return x * factor

    return Made


def with_property(factor: float) -> type:
    class Made(Patch):
        @property
        def scaled(self) -> float:
            return self.strength * factor

    return Made


def module(scale: float, weight: float = 1.0) -> nn.Module:
    made = nn.Linear(2, 2)
    nn.init.constant_(made.weight, weight)
    nn.init.zeros_(made.bias)
    made.scale = scale  # type: ignore[assignment]
    return made


def attribute(strength: float) -> Callable[[float], float]:
    def patch(x: float) -> float:
        return x

    patch.strength = strength  # type: ignore[attr-defined]
    return patch


CASES: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "number": (lambda: 1, lambda: 2),
    "type of a number": (lambda: 1, lambda: 1.0),
    "nesting": (lambda: [[1], 2], lambda: [1, [2]]),
    "dict": (lambda: {"a": 1, "b": 2}, lambda: {"a": 2, "b": 1}),
    "set": (lambda: {"a", "b", "c"}, lambda: {"a", "b", "d"}),
    "tensor": (lambda: torch.zeros(3), lambda: torch.tensor([0.0, 0.0, 1e-30])),
    "shape": (lambda: torch.zeros(2, 3), lambda: torch.zeros(3, 2)),
    "dtype": (lambda: torch.zeros(2), lambda: torch.zeros(2, dtype=torch.int32)),
    "array": (lambda: np.arange(3), lambda: np.arange(3) + 1),
    "closure": (lambda: scaled_by(2.0), lambda: scaled_by(3.0)),
    "code in a function's functions": (lambda: nest(True), lambda: nest(False)),
    "default": (lambda: with_default, lambda: scaled_by(2.0)),
    "ellipsis": (lambda: lambda x: x[..., None], lambda: lambda x: x[..., 0]),
    "partial": (
        lambda: functools.partial(with_default, factor=2.0),
        lambda: functools.partial(with_default, factor=3.0),
    ),
    "attribute of a function": (lambda: attribute(1.0), lambda: attribute(2.0)),
    "method": (lambda: Patch(1.0).act, lambda: Patch(2.0).act),
    "builtin method": (lambda: {"a": 1}.get, lambda: {"a": 2}.get),
    "object": (lambda: Patch(1.0), lambda: Patch(2.0)),
    "deque": (lambda: collections.deque([1]), lambda: collections.deque([2])),
    "path": (lambda: Path("a"), lambda: Path("b")),
    "number of numpy": (lambda: np.float32(1), lambda: np.float32(2)),
    "pattern": (lambda: re.compile("a"), lambda: re.compile("b")),
    "property of a local class": (
        lambda: with_property(1.0)(1.0),
        lambda: with_property(2.0)(1.0),
    ),
    "module's weights": (lambda: module(1.0, 1.0), lambda: module(1.0, 2.0)),
    "module's attribute": (lambda: module(1.0), lambda: module(2.0)),
    "base of a local class": (
        lambda: local_class(Patch)(1.0),
        lambda: local_class(Patch, 1.0).__base__(1.0),
    ),
    "body of a local class": (
        lambda: local_class(Patch, 1.0)(1.0),
        lambda: local_class(Patch, 2.0)(1.0),
    ),
    "other base of a local class": (lambda: local_class(Patch), lambda: local_class(dict)),
}


@pytest.mark.parametrize("name", CASES)
def test_alike_and_different(name):
    one, other = CASES[name]
    assert fingerprint(one()) == fingerprint(one()), "made twice, it is the same"
    assert fingerprint(one()) != fingerprint(other())
    assert not fingerprint(one()).unstable and not fingerprint(other()).unstable


@pytest.mark.parametrize(
    "thing", [Slotted(1.0), object(), iter([1])], ids=["slots", "object", "iterator"]
)
def test_what_cannot_be_read_is_named(thing):
    named = fingerprint(1, options={"pack": [thing]})
    assert named.unstable == (f"options['pack'][0] ({type(thing).__qualname__})",)
    assert named == fingerprint(1, options={"pack": [thing]}), "the rest is the same"
    assert named.text != fingerprint(2, options={"pack": [thing]}).text


def test_of_many_things_that_cannot_be_read_the_first_are_named():
    names = fingerprint([object() for _ in range(9)]).unstable
    assert names == (*(f"0[{i}] (object)" for i in range(5)), "4 more")


def test_an_object_that_fails_when_it_is_looked_at_is_named():
    class Odd:
        def __getattr__(self, name: str) -> Any:
            raise RuntimeError("do not look")

    assert fingerprint(odd=Odd()).unstable == (f"odd ({Odd.__qualname__})",)


def test_more_than_anybody_can_read_ends(monkeypatch):
    monkeypatch.setattr(fingerprints, "_MOST_THINGS", 2000)
    [name] = fingerprint(many=[0] * 10_000).unstable
    assert name == "many[1999] and all after it (2000 parts are read)"


@pytest.mark.parametrize("depth", [500, 50_000])
def test_depth_has_no_end(depth):
    def nest(value: int) -> list[Any]:
        thing: list[Any] = [value]
        for _ in range(depth):
            thing = [thing]
        return thing

    assert fingerprint(nest(1)) == fingerprint(nest(1)) != fingerprint(nest(2))
    assert not fingerprint(nest(1)).unstable
    [name] = fingerprint(nest(object())).unstable
    assert len(name) < 150 and name.startswith("...") and name.endswith("[0] (object)")


def test_loggers_and_locks_say_nothing():
    def patch(strength: float) -> Patch:
        made = Patch(strength)
        made.log, made.lock = logging.getLogger("a.pack"), threading.RLock()
        return made

    assert fingerprint(patch(1.0)) == fingerprint(patch(1.0)) != fingerprint(patch(2.0))
    assert not fingerprint(patch(1.0)).unstable


def test_the_order_of_keys_without_a_text_of_their_own_does_not_matter():
    def table(order: int) -> dict[Any, int]:
        items = [(frozenset({Patch(1.0)}), 1), (frozenset({Patch(2.0)}), 2)]
        return dict(items[::order])

    assert fingerprint(table(1)) == fingerprint(table(-1))


def test_cycles_end():
    ring: list[Any] = [1]
    ring.append(ring)
    assert fingerprint(ring) == fingerprint(ring) != fingerprint([1, [1]])


CHILD = f"""
import sys
sys.path.append({str(ROOT)!r})
from devkit.pack import load_pack
load_pack()
import textwrap
import torch
from magicportrait.host.inversion import fingerprint as fingerprints
from magicportrait.host.inversion.fingerprint import fingerprint
print(fingerprint({{"z": {{"b", "a", "c"}}, "f": textwrap.dedent, "t": torch.arange(5.0)}}).text)
"""


def test_another_process_finds_the_same():
    environment = {**os.environ, "PYTHONHASHSEED": "4711"}
    child = subprocess.run(
        [sys.executable, "-c", CHILD], env=environment, capture_output=True, text=True, check=True
    )
    assert (
        child.stdout.split()[-1]
        == fingerprint({"t": torch.arange(5.0), "f": textwrap.dedent, "z": {"c", "a", "b"}}).text
    )
