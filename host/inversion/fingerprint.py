"""Content hashes: two things with the same fingerprint behave alike, also in another process and
after a restart.

What cannot be read that far (a handle of some library, a web of objects without end) is named by
the fingerprint instead: what depends on such things must not be looked up by it.
"""

from __future__ import annotations

import collections
import dataclasses
import enum
import functools
import hashlib
import logging
import re
import threading
import types
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import PurePath
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

_MOST_THINGS = 200_000
_MOST_NAMES = 5
_LONGEST_NAME = 120
_SAMPLES = 256
_PLAIN = (
    bool,
    int,
    float,
    complex,
    str,
    bytes,
    bytearray,
    range,
    slice,
    type(None),
    type(...),
    enum.Enum,
    re.Pattern,
    uuid.UUID,
    PurePath,
    np.generic,
    np.dtype,
    torch.dtype,
    torch.device,
)
# They hold nothing that a result could depend on.
_IDLE = (type(threading.Lock()), type(threading.RLock()))


@dataclasses.dataclass(frozen=True)
class Fingerprint:
    """The hash of what things consist of.

    text: the hash, in hexadecimal digits; unstable: where the first parts lie that could not be
    read, such as "model_options['pack'].handle (socket)". Empty when the text stands for all there
    is: things of equal texts behave alike then.
    """

    text: str
    unstable: tuple[str, ...] = ()


def fingerprint(*things: Any, **named: Any) -> Fingerprint:
    """The fingerprint of things: all bytes of tensors, and everything that plain data, functions
    (code, closure, defaults) and objects consist of. Names serve to say where a part lies; they are
    not hashed."""
    walk = _Walk()
    for name, thing in (*enumerate(things), *named.items()):
        walk.add(str(name), thing)
    return walk.fingerprint()


def model_fingerprint(model: Any) -> Fingerprint:
    """What MODEL computes with: its weights, the patches (LoRA, merges) on them, and what its
    output means (eps, v, noise levels).

    Weights are sampled, 256 numbers of each: models that differ, differ in almost every number.
    """
    walk = _Walk()
    # What is patched in place at the moment has its original in the backup.
    originals = {name: entry.weight for name, entry in model.backup.items()}
    for name, weight in sorted(model.model.diffusion_model.state_dict().items()):
        flat = originals.get(f"diffusion_model.{name}", weight).detach().reshape(-1)
        walk.add(name, name)
        walk.add(name, tuple(weight.shape))
        walk.add(name, flat[:: max(1, flat.numel() // _SAMPLES)])
    walk.add("patches", model.patches)
    walk.add("model_config", type(model.model.model_config))
    walk.add("model_sampling", model.get_model_object("model_sampling"))
    return walk.fingerprint()


class _Place(NamedTuple):
    """Where a thing lies: label says it within `around`, such as '.weight' or "['name']"."""

    around: _Place | None
    label: str

    def __str__(self) -> str:
        labels: list[str] = []
        place: _Place | None = self
        while place is not None and sum(map(len, labels)) <= _LONGEST_NAME:
            labels.insert(0, place.label)
            place = place.around
        text = "".join(labels)
        return text if len(text) <= _LONGEST_NAME else f"...{text[-_LONGEST_NAME:]}"


class _Part(NamedTuple):
    """A thing that a thing consists of. label: see `_Place`."""

    label: str
    thing: Any


class _End(NamedTuple):
    """All that a thing consists of has been read. It keeps the thing alive as long as its id stands
    for it."""

    thing: Any


_Step = tuple[_Place, Any] | bytes | memoryview | _End


class _Unreadable(Exception):
    """A thing's content is out of reach."""


class _Walk:
    """Reads things in depth, with a stack of its own: what nests without end must not end in a
    RecursionError."""

    def __init__(self) -> None:
        self._digest = hashlib.blake2b(digest_size=16)
        self._around: set[int] = set()
        self._left = _MOST_THINGS
        self._unreadable: list[str] = []

    def fingerprint(self) -> Fingerprint:
        names = tuple(dict.fromkeys(self._unreadable))
        more = len(names) - _MOST_NAMES
        return Fingerprint(
            self._digest.hexdigest(),
            (*names[:_MOST_NAMES], f"{more} more") if more > 0 else names,
        )

    def add(self, name: str, thing: Any) -> None:
        waiting: list[_Step] = [(_Place(None, name), thing)]
        while waiting:
            step = waiting.pop()
            if isinstance(step, (bytes, memoryview)):
                self._digest.update(step)
            elif isinstance(step, _End):
                self._around.discard(id(step.thing))
            else:
                self._enter(*step, waiting)

    def _enter(self, place: _Place, thing: Any, waiting: list[_Step]) -> None:
        self._left -= 1
        if self._left < 0:
            self._unreadable.append(f"{place} and all after it ({_MOST_THINGS} parts are read)")
            waiting.clear()
            return
        self._digest.update(f"<{type(thing).__name__}".encode())
        waiting.append(b">")
        if id(thing) in self._around:
            self._digest.update(b"cycle")
            return
        try:
            parts = list(_parts(thing))
        # Other packs' objects may do anything when they are looked at.
        except Exception:
            self._unreadable.append(f"{place} ({type(thing).__qualname__})")
            return
        if any(isinstance(part, _Part) for part in parts):
            self._around.add(id(thing))
            waiting.append(_End(thing))
        waiting += [
            (_Place(place, part.label), part.thing) if isinstance(part, _Part) else part
            for part in reversed(parts)
        ]


def _parts(thing: Any) -> Iterator[_Part | bytes | memoryview]:
    """What a thing consists of, in order: bytes to hash, and further things. _Unreadable when it
    cannot be told."""
    if isinstance(thing, _PLAIN):
        yield repr(thing).encode()
    elif isinstance(thing, logging.Logger):
        yield thing.name.encode()
    elif isinstance(thing, _IDLE):
        return
    elif _is_defined_by_name(thing):
        name = getattr(thing, "__qualname__", thing.__name__)
        yield f"{getattr(thing, '__module__', '')}.{name}".encode()
    elif isinstance(thing, Tensor):
        yield from _tensor_bytes(thing)
    elif isinstance(thing, np.ndarray) and thing.dtype != object:
        yield f"{thing.dtype}{thing.shape}".encode() + thing.tobytes()
    elif isinstance(thing, Mapping):
        yield from _items(thing, _index)
    elif isinstance(thing, (set, frozenset)):
        yield from (_Part("{...}", part) for part in sorted(thing, key=_order))
    elif isinstance(thing, (list, tuple, collections.deque)):
        yield from (_Part(f"[{index}]", part) for index, part in enumerate(thing))
    elif isinstance(thing, types.MethodType):
        yield from _unnamed(thing.__func__, thing.__self__)
    elif isinstance(thing, types.BuiltinFunctionType):
        yield from _unnamed(thing.__qualname__, thing.__self__)
    elif isinstance(thing, functools.partial):
        yield from _unnamed(thing.func, thing.args, thing.keywords)
    elif isinstance(thing, property):
        yield from _unnamed(thing.fget, thing.fset, thing.fdel)
    elif isinstance(thing, types.FunctionType):
        yield from _function_parts(thing)
    elif isinstance(thing, types.CodeType):
        yield from _unnamed(thing.co_code, thing.co_names, thing.co_consts)
    elif isinstance(thing, type):
        yield from _unnamed(thing.__qualname__, thing.__bases__)
        body = {
            name: value
            for name, value in vars(thing).items()
            if name not in ("__dict__", "__weakref__")
        }
        yield from _attributes(body)
    elif isinstance(thing, nn.Module):
        yield from _unnamed(type(thing))
        yield from _attributes(thing.state_dict())
        yield from _attributes(
            {name: value for name, value in vars(thing).items() if name[0] != "_"}
        )
    elif dataclasses.is_dataclass(thing):
        yield from _unnamed(type(thing))
        yield from _attributes(
            {field.name: getattr(thing, field.name) for field in dataclasses.fields(thing)}
        )
    # Anything that holds a model is more than data, and slots are out of sight.
    elif (
        hasattr(thing, "__dict__")
        and not hasattr(thing, "load_device")
        and not _has_slots(type(thing))
    ):
        yield from _unnamed(type(thing))
        yield from _attributes(vars(thing))
    else:
        raise _Unreadable


def _unnamed(*things: Any) -> Iterator[_Part]:
    return (_Part("", thing) for thing in things)


def _items(
    mapping: Mapping[Any, Any], label: Callable[[Any], str]
) -> Iterator[_Part | bytes | memoryview]:
    for key, value in sorted(mapping.items(), key=lambda item: _order(item[0])):
        yield b"<tuple"
        yield _Part("", key)
        yield _Part(label(key), value)
        yield b">"


def _index(key: Any) -> str:
    return f"[{key!r}]" if _is_plain(key) else f"[{type(key).__name__}]"


def _attributes(attributes: Mapping[str, Any]) -> Iterator[_Part | bytes | memoryview]:
    yield f"<{type(attributes).__name__}".encode()
    yield from _items(attributes, ".{}".format)
    yield b">"


def _order(key: Any) -> str:
    """By which the keys of a mapping or a set are sorted, the same in every process: the text of an
    object may have its address in it."""
    return repr(key) if _is_plain(key) else fingerprint(key).text


def _is_plain(key: Any) -> bool:
    return all(isinstance(part, _PLAIN) for part in (key if isinstance(key, tuple) else (key,)))


def _tensor_bytes(tensor: Tensor) -> Iterator[bytes | memoryview]:
    data = tensor.detach().to("cpu").contiguous().reshape(-1)
    yield f"{tensor.dtype}{tuple(tensor.shape)}".encode()
    if data.numel():
        yield data.view(torch.uint8).numpy().data


def _function_parts(function: types.FunctionType) -> Iterator[_Part]:
    cells = [cell.cell_contents for cell in function.__closure__ or () if cell != types.CellType()]
    yield from _unnamed(function.__module__, function.__qualname__, function.__code__)
    yield from _unnamed(vars(function), function.__defaults__, function.__kwdefaults__)
    yield from _unnamed(cells)


def _is_defined_by_name(thing: Any) -> bool:
    """Whether a module and a name say all: not for methods of some object, and classes that a
    function makes anew in each call."""
    if isinstance(thing, types.BuiltinFunctionType):
        return thing.__self__ is None or isinstance(thing.__self__, types.ModuleType)
    return isinstance(thing, types.ModuleType) or (
        isinstance(thing, type) and "<locals>" not in thing.__qualname__
    )


def _has_slots(kind: type) -> bool:
    return any(vars(cls).get("__slots__") for cls in kind.__mro__)
