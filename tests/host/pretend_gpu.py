"""A GPU for machines without one: tensors in plain memory that say they are on another device, and
are not mixed with those of the CPU.

A tensor is on the pretended device when its memory (its storage) is marked so: then views, `.data`,
parameters and what autograd saves are where their memory is, as on a real GPU. Every operation
passes `_PretendMode`, which refuses what CUDA refuses and marks what comes out. What the real
device has and this one lacks: other threads, streams, pinned memory, and kernels of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._device import _device_constructors
from torch.utils._python_dispatch import TorchDispatchMode

# Of the device types that torch knows, one that needs no driver, starts nothing when it is named,
# and has autocast.
PRETEND = torch.device("maia", 0)
CPU = torch.device("cpu")

_aten = torch.ops.aten
_INDEXING = (
    _aten.index,
    _aten._unsafe_index,
    _aten.index_put,
    _aten.index_put_,
    _aten._index_put_impl_,
    _aten._unsafe_index_put,
)
_COPYING = (_aten.copy_, _aten.copy, _aten._has_compatible_shallow_copy_type)
_SCALARS_PASS = (_aten.fill, _aten.fill_, _aten.masked_fill_)
_MAKERS = (  # of a new tensor, by the example of another
    *(
        (torch, f"{kind}_like")
        for kind in ("empty", "zeros", "ones", "full", "rand", "randn", "randint")
    ),
    *((Tensor, f"new_{kind}") for kind in ("empty", "zeros", "ones", "full", "tensor")),
    (torch, "tensor"),
)

_marks: dict[int, StorageWeakRef] = {}
"""The storages on the pretended device. As long as there is a weak reference no other storage takes
the same address."""
_generators: dict[int, torch.Generator] = {}
"""Those of the pretended device. torch hands on another object for the same generator: its address
stays."""


def is_pretended(tensor: Tensor) -> bool:
    return tensor.untyped_storage()._cdata in _marks


def place(tensor: Tensor, device: torch.device) -> Tensor:
    """Says of a tensor with memory of its own on which device it is."""
    storage = tensor.untyped_storage()
    if device.type == PRETEND.type and storage.device == CPU:
        _marks[storage._cdata] = StorageWeakRef(storage)
    else:
        _marks.pop(storage._cdata, None)
    return tensor


def _forget_the_dead() -> None:
    for address in [address for address, mark in _marks.items() if mark.expired()]:
        del _marks[address]


def _tensors(value: Any) -> list[Tensor]:
    """All in the arguments or the outputs of an operation. torch's own tree walk takes longer than
    the tests' operations."""
    if isinstance(value, Tensor):
        return [value]
    return (
        [tensor for item in value for tensor in _tensors(item)]
        if isinstance(value, (list, tuple))
        else []
    )


def _check(func: Any, args: tuple[Any, ...], tensors: list[Tensor]) -> None:
    """RuntimeError for an operation on tensors of both devices, unless CUDA has it."""
    kind = func.overloadpacket
    if kind in _COPYING:
        return
    scalars_pass = _takes_scalars(func)
    if kind in _INDEXING:
        owner, indices, *values = args
        if not is_pretended(owner) and any(map(is_pretended, _tensors(indices))):
            raise RuntimeError(
                f"{func}: indices should be either on cpu or on the same device as the indexed"
                " tensor (cpu)"
            )
        scalars_pass, tensors = True, [owner, *_tensors(values)]
    there = next(filter(is_pretended, tensors))
    written = [
        value
        for value, argument in zip(args, func._schema.arguments)
        if argument.alias_info and argument.alias_info.is_write
    ]
    for tensor in tensors:
        is_scalar = (
            tensor.ndim == 0 and scalars_pass and all(tensor is not value for value in written)
        )
        if not is_pretended(tensor) and not is_scalar:
            shapes = f"{tuple(there.shape)} on {PRETEND} and {tuple(tensor.shape)} on the CPU"
            raise RuntimeError(
                f"Expected all tensors to be on the same device, but {func} got {shapes}"
            )


def _takes_scalars(func: Any) -> bool:
    """Whether CUDA's form of an operation takes a number from the CPU, as a tensor without
    dimensions."""
    # Gradients are clipped in lists that torch makes, of what it takes for one device.
    return (
        torch.Tag.pointwise in func.tags
        or func.overloadpacket in _SCALARS_PASS
        or func.name().startswith("aten::_foreach")
    )


class _PretendMode(TorchDispatchMode):
    """Runs every operation on the CPU: inputs are checked before, outputs are marked after it."""

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        inputs = _tensors((*args, *kwargs.values()))
        pretended = [tensor for tensor in inputs if is_pretended(tensor)]
        if 0 < len(pretended) < len(inputs):
            _check(func, args, inputs)
        asked = kwargs.get("device")
        is_asked = asked is not None and asked.type == PRETEND.type
        if is_asked:
            kwargs["device"] = CPU
        generator = kwargs.get("generator")
        if generator is not None and (generator._cdata in _generators) != bool(
            is_asked or pretended
        ):
            raise RuntimeError(
                f"{func}: expected a generator of the device that the numbers are drawn on"
            )
        outputs = func(*args, **kwargs)
        if is_asked or pretended:
            theirs = {tensor.untyped_storage()._cdata for tensor in inputs}
            for tensor in _tensors(outputs):
                if tensor.untyped_storage()._cdata not in theirs:
                    place(tensor, PRETEND)
        if len(_marks) > 20_000:
            _forget_the_dead()
        return outputs


class _Generator(torch.Generator):
    """One that can be of the pretended device, where it draws the CPU's numbers."""

    def __new__(cls, device: Any = CPU) -> _Generator:
        made: _Generator = super().__new__(cls, CPU)
        if torch.device(device).type == PRETEND.type:
            _generators[made._cdata] = made
        return made

    @property
    def device(self) -> torch.device:
        return PRETEND if self._cdata in _generators else CPU


def _autocast(device_type: str, *args: Any, **kwargs: Any) -> Any:
    """The CPU's for the pretended device: its operations are the CPU's."""
    return torch.amp.autocast(
        "cpu" if device_type == PRETEND.type else device_type, *args, **kwargs
    )


class _Move(torch.autograd.Function):
    """A copy on another device, whose gradient goes back to where the original is."""

    @staticmethod
    def forward(
        ctx: Any, tensor: Tensor, device: torch.device, dtype: torch.dtype, options: dict[str, Any]
    ) -> Tensor:
        ctx.source = tensor.device, tensor.dtype
        return place(_aten._to_copy(tensor, dtype=dtype, **options), device)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        return gradient.to(*ctx.source), None, None, None


def _to(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    like = kwargs.pop("other", None)
    if args and isinstance(args[0], Tensor):
        like, args = args[0], args[1:]
    if like is not None:
        args = (like.device, like.dtype, *args)
    # torch's own reader of these arguments knows all their forms but 'copy'.
    copy = kwargs.pop("copy", False)
    if [type(value) for value in args[-2:]] == [bool, bool]:
        *args, copy = args
    device, dtype, _, memory_format = torch._C._nn._parse_to(*args, **kwargs)
    options = {} if memory_format is None else {"memory_format": memory_format}
    if device is None or device.type == tensor.device.type:
        return _ORIGINAL_TO(tensor, dtype=dtype or tensor.dtype, copy=copy, **options)
    if PRETEND.type not in (device.type, tensor.device.type):
        return _ORIGINAL_TO(tensor, device, dtype or tensor.dtype, copy=copy, **options)
    return _Move.apply(tensor, device, dtype or tensor.dtype, options)


_ORIGINAL_TO = Tensor.to
_ORIGINAL_DEVICE = Tensor.device


def _device(tensor: Tensor) -> torch.device:
    device = _ORIGINAL_DEVICE.__get__(tensor)
    return (
        PRETEND
        if device.type == "cpu" and tensor.layout == torch.strided and is_pretended(tensor)
        else device
    )


def _make(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A maker of tensors that puts them where it is asked to, else where its example is."""

    def make(*args: Any, device: Any = None, **kwargs: Any) -> Tensor:
        example = next(iter((*args, *kwargs.values())))
        if device is None and not isinstance(example, Tensor):
            return original(*args, **kwargs)
        device = example.device if device is None else torch.device(device)
        return place(
            original(*args, device=CPU if device.type == PRETEND.type else device, **kwargs), device
        )

    return make


def _as_tensor(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def as_tensor(data: Any, dtype: torch.dtype | None = None, device: Any = None) -> Tensor:
        made = data if isinstance(data, Tensor) else original(data, dtype=dtype)
        return made.to(device=device, dtype=dtype)

    return as_tensor


def _without_numpy(original: Callable[..., Any]) -> Callable[..., Any]:
    def convert(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        if is_pretended(tensor):
            raise TypeError(
                f"can't convert {PRETEND} device type tensor to numpy. Use Tensor.cpu() to copy the"
                " tensor to host memory first."
            )
        return original(tensor, *args, **kwargs)

    return convert


@contextmanager
def pretend_gpu(memory: int = 64 * 1024**3) -> Iterator[None]:
    """Within, torch has the device `PRETEND` and ComfyUI works on it. memory: bytes that the host
    believes to be free there, always."""
    import comfy.model_management as management

    # What `with torch.device(...)` applies to: torch remembers the functions that it finds at the
    # first use.
    _device_constructors()
    with pytest.MonkeyPatch.context() as patch, _PretendMode():
        # Where torch looks for a device's random states.
        patch.setattr(torch, PRETEND.type, SimpleNamespace(), raising=False)
        patch.setattr(Tensor, "device", property(_device))
        patch.setattr(Tensor, "is_cpu", property(lambda tensor: tensor.device.type == "cpu"))
        patch.setattr(Tensor, "to", _to)
        patch.setattr(Tensor, "cpu", lambda tensor, **_: tensor.to(CPU))
        patch.setattr(Tensor, "cuda", lambda tensor, *_, **__: tensor.to(PRETEND))
        patch.setattr(Tensor, "type_as", lambda tensor, other: tensor.to(other))
        patch.setattr(torch, "Generator", _Generator)
        patch.setattr(torch, "autocast", _autocast)
        for owner, name in _MAKERS:
            patch.setattr(owner, name, _make(getattr(owner, name)))
        patch.setattr(torch, "as_tensor", _as_tensor(torch.as_tensor))
        for name in ("numpy", "__array__"):
            patch.setattr(Tensor, name, _without_numpy(getattr(Tensor, name)))

        for name in ("get_torch_device", "text_encoder_device", "vae_device"):
            patch.setattr(management, name, lambda: PRETEND)
        patch.setattr(management, "vram_state", management.VRAMState.NORMAL_VRAM)
        patch.setattr(management, "current_loaded_models", [])
        for name in ("get_free_memory", "get_total_memory"):
            patch.setattr(
                management,
                name,
                lambda _=None, *both, **named: (
                    (memory, memory) if both or any(named.values()) else memory
                ),
            )
        try:
            yield
        finally:
            _generators.clear()
