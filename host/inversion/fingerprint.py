"""Content hashes: two things with the same fingerprint behave alike, also in another process and
after a restart.

What cannot be read that far (a handle of some library, a web of objects without end) gets a new
random fingerprint each time: it is equal to nothing, so whatever is cached under it is not found
again. That costs time, never correctness.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import hashlib
import os
import types
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_MOST_THINGS = 200_000
_SAMPLES = 256
_PLAIN = (
    bool,
    int,
    float,
    complex,
    str,
    bytes,
    torch.dtype,
    torch.device,
    enum.Enum,
    slice,
    type(None),
    type(...),
)


def fingerprint(*things: Any) -> str:
    """The hash of all bytes of tensors, and of everything that plain data, functions (code,
    closure, defaults) and objects consist of."""
    return _Hash().add_all(things).hexdigest()


def model_fingerprint(model: Any) -> str:
    """What MODEL computes with: its weights, the patches (LoRA, merges) on them, and what its
    output means (eps, v, noise levels).

    Weights are sampled, 256 numbers of each: models that differ, differ in almost every number.
    """
    result = _Hash()
    # What is patched in place at the moment has its original in the backup.
    originals = {name: saved.weight for name, saved in model.backup.items()}
    for name, weight in sorted(model.model.diffusion_model.state_dict().items()):
        flat = originals.get(f"diffusion_model.{name}", weight).detach().reshape(-1)
        result.add_all((name, tuple(weight.shape), flat[:: max(1, flat.numel() // _SAMPLES)]))
    result.add_all(
        (model.patches, type(model.model.model_config), model.get_model_object("model_sampling"))
    )
    return result.hexdigest()


class _Hash:
    def __init__(self) -> None:
        self._digest = hashlib.blake2b(digest_size=16)
        self._path: set[int] = set()
        self._left = _MOST_THINGS

    def hexdigest(self) -> str:
        return self._digest.hexdigest()

    def add_all(self, things: Iterable[Any]) -> _Hash:
        for thing in things:
            self._add(thing)
        return self

    def _add(self, thing: Any) -> None:
        self._left -= 1
        self._digest.update(f"<{type(thing).__name__}".encode())
        if isinstance(thing, _PLAIN):
            self._digest.update(repr(thing).encode())
        elif _is_found_by_name(thing):
            name = getattr(thing, "__qualname__", thing.__name__)
            self._digest.update(f"{getattr(thing, '__module__', '')}.{name}".encode())
        elif isinstance(thing, Tensor):
            self._add_tensor(thing)
        elif id(thing) in self._path:
            self._digest.update(b"cycle")
        elif self._left < 0:
            self._digest.update(os.urandom(16))
        else:
            self._path.add(id(thing))
            self._add_parts(thing)
            self._path.discard(id(thing))
        self._digest.update(b">")

    def _add_tensor(self, tensor: Tensor) -> None:
        data = tensor.detach().to("cpu").contiguous().reshape(-1)
        self._digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        if data.numel():
            self._digest.update(data.view(torch.uint8).numpy())

    def _add_parts(self, thing: Any) -> None:
        if isinstance(thing, np.ndarray) and thing.dtype != object:
            self._digest.update(f"{thing.dtype}{thing.shape}".encode() + thing.tobytes())
        elif isinstance(thing, Mapping):
            self.add_all(sorted(thing.items(), key=lambda item: repr(item[0])))
        elif isinstance(thing, (set, frozenset)):
            self.add_all(sorted(thing, key=repr))
        elif isinstance(thing, (list, tuple)):
            self.add_all(thing)
        elif isinstance(thing, types.MethodType):
            self.add_all((thing.__func__, thing.__self__))
        elif isinstance(thing, types.BuiltinFunctionType):
            self.add_all((thing.__qualname__, thing.__self__))
        elif isinstance(thing, functools.partial):
            self.add_all((thing.func, thing.args, thing.keywords))
        elif isinstance(thing, types.FunctionType):
            self._add_function(thing)
        elif isinstance(thing, types.CodeType):
            self.add_all((thing.co_code, thing.co_names, thing.co_consts))
        elif isinstance(thing, type):
            body = {
                name: value
                for name, value in vars(thing).items()
                if name not in ("__dict__", "__weakref__")
            }
            self.add_all((thing.__qualname__, thing.__bases__, body))
        elif isinstance(thing, nn.Module):
            self.add_all(
                (
                    type(thing),
                    thing.state_dict(),
                    {name: value for name, value in vars(thing).items() if name[0] != "_"},
                )
            )
        elif dataclasses.is_dataclass(thing):
            self.add_all(
                (
                    type(thing),
                    {field.name: getattr(thing, field.name) for field in dataclasses.fields(thing)},
                )
            )
        # Anything that holds a model is more than data, and slots are out of sight.
        elif (
            hasattr(thing, "__dict__")
            and not hasattr(thing, "load_device")
            and not _has_slots(type(thing))
        ):
            self.add_all((type(thing), vars(thing)))
        else:
            self._digest.update(os.urandom(16))

    def _add_function(self, function: types.FunctionType) -> None:
        cells = [
            cell.cell_contents for cell in function.__closure__ or () if cell != types.CellType()
        ]
        self.add_all(
            (function.__module__, function.__qualname__, function.__code__, vars(function))
        )
        self.add_all((function.__defaults__, function.__kwdefaults__, cells))


def _is_found_by_name(thing: Any) -> bool:
    """Whether a module and a name say all: not for methods of some object, and classes that a
    function makes anew in each call."""
    if isinstance(thing, types.BuiltinFunctionType):
        return thing.__self__ is None or isinstance(thing.__self__, types.ModuleType)
    return isinstance(thing, types.ModuleType) or (
        isinstance(thing, type) and "<locals>" not in thing.__qualname__
    )


def _has_slots(kind: type) -> bool:
    return any(vars(cls).get("__slots__") for cls in kind.__mro__)
