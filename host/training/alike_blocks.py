"""Blocks of a network that are alike, rehearsed once: what a block takes in memory is found on one
of its kind, done forth and back with tensors that have shapes and no numbers (memory_need.py). All
of the kind then take that much, without being done.

So a network of sixty blocks costs what a few cost. The order in which memory is taken and given
back stays the network's: only what happens inside of a block is told by another.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from ..sampling.backbone.model_call import attentions_in, set_attentions
from .lora import Adapter


class Ledger(Protocol):
    """Who counts the bytes that are alive. now: of them; peak: the most so far."""

    now: int
    peak: int

    def size_at(self, place: int) -> int:
        """Of a storage by its address; 0 when there is none any more."""
        ...


@dataclass(frozen=True)
class _Form:
    """Of a tensor all but its numbers."""

    size: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    requires_grad: bool

    @classmethod
    def of(cls, tensor: Tensor) -> _Form:
        form = (tensor.shape, tensor.stride(), tensor.dtype, tensor.device)
        return cls(*form, tensor.requires_grad)

    def new(self) -> Tensor:
        return torch.empty_strided(self.size, self.stride, dtype=self.dtype, device=self.device)


@dataclass(frozen=True)
class _Back:
    """An input that a block gives back. place: among its inputs."""

    place: int


@dataclass(frozen=True)
class _Cost:
    """What a block takes and gives.

    outputs: each tensor's form, a `_Back`, or what is no tensor; spec: how they lie in what it
    returns. forward, backward: bytes at the peak over what was alive before. held: what it keeps
    for its gradient beside inputs and outputs. kept, kept_outputs: which of these it keeps.
    learned: which of its adapters' numbers get a gradient. attentions: how many joint attentions it
    has.
    """

    outputs: tuple[Any, ...]
    spec: Any
    forward: int
    backward: int
    held: int
    kept: tuple[bool, ...]
    kept_outputs: tuple[bool, ...]
    learned: tuple[bool, ...]
    attentions: int


@contextlib.contextmanager
def rehearsed_once(blocks: Iterable[nn.Module], ledger: Ledger) -> Iterator[None]:
    """As long as this is open, of blocks that are alike and are given inputs of the same forms only
    the first is done. To be opened among tensors without numbers."""
    costs: dict[Hashable, _Cost] = {}
    before = {block: block.__dict__.get("forward") for block in blocks}
    try:
        for block in before:
            block.forward = functools.partial(_rehearsed, block, block.forward, ledger, costs)
        yield
    finally:
        for block, forward in before.items():
            if forward is None:
                del block.__dict__["forward"]
            else:
                block.forward = forward


def _rehearsed(
    block: nn.Module,
    forward: Callable[..., Any],
    ledger: Ledger,
    costs: dict[Hashable, _Cost],
    *args: Any,
    **kwargs: Any,
) -> Any:
    names = tuple(kwargs)
    leaves, spec = tree_flatten((*args, *kwargs.values()), is_leaf=_is_table)
    options = next((leaf for leaf in leaves if isinstance(leaf, dict)), {})
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    inputs = [leaves[i] for i in places]
    learned = [each for adapter in _adapters_on(block) for each in adapter.learned]

    def run(given: Sequence[Tensor]) -> Any:
        shown = list(leaves)
        for place, tensor in zip(places, given, strict=True):
            shown[place] = tensor
        values = tree_unflatten(shown, spec)
        return forward(*values[: len(args)], **dict(zip(names, values[len(args) :], strict=True)))

    plain = tuple(leaf for leaf in leaves if isinstance(leaf, (int, float, str, type(None))))
    device = inputs[0].device.type
    key = (
        _kind_of(block),
        tuple(map(_Form.of, inputs)),
        (names, str(spec), plain),
        (torch.is_grad_enabled(), torch.is_autocast_enabled(device)),
    )
    if key not in costs:
        costs[key] = _cost_of(run, inputs, learned, options, ledger)
    cost = costs[key]
    set_attentions(options, attentions_in(options) + cost.attentions)
    made = iter(_Taken.apply(ledger, cost, *inputs, *learned))  # type: ignore[no-untyped-call]
    outputs = [
        next(made)
        if isinstance(out, _Form)
        else inputs[out.place]
        if isinstance(out, _Back)
        else out
        for out in cost.outputs
    ]
    return tree_unflatten(outputs, cost.spec)


def _is_table(value: Any) -> bool:
    """The host's options, which blocks read and write."""
    return isinstance(value, dict)


def _adapters_on(block: nn.Module) -> Iterator[Adapter]:
    """Those that act, by their hooks."""
    for module in block.modules():
        for hook in module._forward_hooks.values():
            owner = getattr(hook, "__self__", None)
            if isinstance(owner, Adapter) and owner.strength:
                yield owner


def _kind_of(block: nn.Module) -> Hashable:
    """Equal for blocks that do the same."""
    tensors = (*block.named_parameters(), *block.named_buffers())
    return (
        tuple(type(module).__qualname__ for module in block.modules()),
        tuple((name, tensor.shape, tensor.dtype) for name, tensor in tensors),
        tuple(
            (type(adapter), adapter.strength, *(each.shape for each in adapter.learned))
            for adapter in _adapters_on(block)
        ),
    )


def _cost_of(
    run: Callable[[Sequence[Tensor]], Any],
    inputs: Sequence[Tensor],
    learned: Sequence[Tensor],
    options: dict[str, Any],
    ledger: Ledger,
) -> _Cost:
    """Of a block that is done on tensors like its inputs, and its gradient after it."""
    attentions, before, peak = attentions_in(options), ledger.now, ledger.peak
    seed = torch.zeros((), device=inputs[0].device, requires_grad=torch.is_grad_enabled())
    given = [
        _Seed.apply(seed, form) if form.requires_grad else form.new()  # type: ignore[no-untyped-call]
        for form in map(_Form.of, inputs)
    ]
    at = [_place_of(tensor) for tensor in given]
    ledger.peak = start = ledger.now
    versions = [tensor._version for tensor in given]
    leaves, spec = tree_flatten(run(given))
    forward = ledger.peak - start
    # One that is written into is another.
    same = [
        x if x._version == version else None for x, version in zip(given, versions, strict=True)
    ]
    outputs = tuple(_described(leaf, same) for leaf in leaves)
    new = [leaf for leaf, out in zip(leaves, outputs, strict=True) if isinstance(out, _Form)]
    out_at = [_place_of(tensor) for tensor in new]
    ends = [tensor for tensor in new if tensor.requires_grad]
    bases: list[int] = []
    sink = _End.apply(ledger, bases, *ends) if ends else None  # type: ignore[no-untyped-call]
    del given, same, leaves, new, ends
    kept = tuple(bool(ledger.size_at(place)) and place not in out_at for place in at)
    kept_outputs = tuple(bool(ledger.size_at(place)) for place in out_at)
    of_ends = sum(ledger.size_at(place) for place in {*at, *out_at})
    held = ledger.now - before - of_ends
    took, backward = (False,) * len(learned), 0
    if sink is not None:
        grads = torch.autograd.grad(sink, [seed, *learned], allow_unused=True)
        took = tuple(grad is not None for grad in grads[1:])
        backward = ledger.peak - bases[0]
    count = attentions_in(options) - attentions
    set_attentions(options, attentions)
    ledger.peak = peak
    return _Cost(outputs, spec, forward, backward, held, kept, kept_outputs, took, count)


def _place_of(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _described(leaf: Any, given: Sequence[Tensor | None]) -> Any:
    """given: what the block was given and did not write into."""
    if not isinstance(leaf, Tensor):
        return leaf
    place = next((i for i, tensor in enumerate(given) if tensor is leaf), None)
    return _Form.of(leaf) if place is None else _Back(place)


class _Seed(torch.autograd.Function):
    """An input of a block that is done: nothing is known of what it was made of."""

    @staticmethod
    def forward(ctx: Any, seed: Tensor, form: _Form) -> Tensor:
        return form.new()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, None]:
        return None, None


class _End(torch.autograd.Function):
    """What a block gave, let go of: its gradient begins here. bases: takes the bytes that are alive
    then."""

    @staticmethod
    def forward(ctx: Any, ledger: Ledger, bases: list[int], *ends: Tensor) -> Tensor:
        ctx.ledger, ctx.bases, ctx.forms = ledger, bases, [*map(_Form.of, ends)]
        return torch.zeros((), device=ends[0].device)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        made = [form.new() for form in ctx.forms]
        ctx.bases.append(ctx.ledger.now)
        ctx.ledger.peak = ctx.ledger.now
        return (None, None, *made)


class _Taken(torch.autograd.Function):
    """A block that is not done: takes and gives back what one of its kind did."""

    @staticmethod
    def forward(ctx: Any, ledger: Ledger, cost: _Cost, *tensors: Tensor) -> tuple[Tensor, ...]:
        ledger.peak = max(ledger.peak, ledger.now + cost.forward)
        forms = [out for out in cost.outputs if isinstance(out, _Form)]
        made = [form.new() for form in forms]
        inputs = tensors[: len(cost.kept)]
        ctx.ledger, ctx.cost, ctx.forms = ledger, cost, [*map(_Form.of, tensors)]
        ctx.set_materialize_grads(False)
        constant = [each for each, form in zip(made, forms, strict=True) if not form.requires_grad]
        ctx.mark_non_differentiable(*constant)
        if any(ctx.needs_input_grad):
            ledger.now += cost.held
            kept = (
                *(each for each, is_kept in zip(inputs, cost.kept, strict=True) if is_kept),
                *(each for each, is_kept in zip(made, cost.kept_outputs, strict=True) if is_kept),
            )
            ctx.save_for_backward(*kept)
        return tuple(made)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        ledger, cost = ctx.ledger, ctx.cost
        ledger.peak = max(ledger.peak, ledger.now + cost.backward)
        ledger.now -= cost.held
        is_taken = (True,) * len(cost.kept) + cost.learned
        made = (
            form.new() if needs_grad and taken else None
            for form, needs_grad, taken in zip(
                ctx.forms, ctx.needs_input_grad[2:], is_taken, strict=True
            )
        )
        return (None, None, *made)
