"""What a transformer's attentions are told of the model call that they are in, how one of them is
called, and how they are counted where the host does not name them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .interface import CallSize

CALL = "magicportrait_call"
"""Under this name of the transformer options stands the `ModelCall`."""
FIRST = "magicportrait_first"
"""Under this one the place of each kind's first block, by the kind's name in the host's
replacements of blocks."""
_ARGUMENTS = ("q", "k", "v", "heads", "mask")


@dataclass
class ModelCall:
    """One call of the model. size: what it runs on; attentions: joint ones so far, on hosts that do
    not name them; image_block: whose picture has looked at itself and not yet at the text."""

    size: CallSize
    attentions: int = 0
    image_block: int | None = None


@dataclass(frozen=True, eq=False)
class AttentionCall:
    """One call of the host's attention in a model call.

    model: that one; q, k, v: B H N D; q may leave out the references, whose keys and values another
    node has kept; mask: of the host, additive or bool, or None; rest: what it gets beside these.
    """

    model: ModelCall
    q: Tensor
    k: Tensor
    v: Tensor
    heads: int
    mask: Tensor | None
    rest: Mapping[str, Any]

    @classmethod
    def read(cls, args: Sequence[Any], kwargs: Mapping[str, Any]) -> AttentionCall | None:
        """Of what the host calls its attention with; None outside of a model call that was
        told."""
        rest = {**dict(zip(_ARGUMENTS, args, strict=False)), **kwargs}
        options = rest.get("transformer_options") or {}
        model: ModelCall | None = options.get(CALL)
        q, k, v, heads, mask = (rest.pop(name, None) for name in _ARGUMENTS)
        if model is None or len(args) > len(_ARGUMENTS) or rest.get("skip_output_reshape"):
            return None
        if not rest.get("skip_reshape"):
            # B N C; SD3 has v as B N H D.
            split = (x if x.ndim == 4 else x.unflatten(-1, (heads, -1)) for x in (q, k, v))
            q, k, v = (x.transpose(1, 2) for x in split)
        return cls(model, q, k, v, heads, mask, {**rest, "transformer_options": options})

    @property
    def options(self) -> Any:
        """The host's transformer options."""
        return self.rest["transformer_options"]

    def mask_of(
        self,
        rows: Sequence[slice] | None = None,
        queries: Tensor | None = None,
        keys: Tensor | None = None,
    ) -> Tensor | None:
        """The mask of some rows, queries and keys; None: of all."""
        mask = self.mask
        if mask is None:
            return None
        if rows is not None and mask.ndim > 2 and mask.shape[0] == self.q.shape[0]:
            mask = torch.cat([mask[part] for part in rows])
        if queries is not None and mask.ndim > 1 and mask.shape[-2] == self.q.shape[2]:
            mask = mask[..., queries, :]
        return mask if keys is None else mask[..., keys]


def recount(options: Mapping[str, Any]) -> Callable[[], None]:
    """For a block that is computed twice, to be called before each time: sets the count of joint
    attentions to where it is now, on hosts and in classes that do not name them. options: the
    host's transformer options."""
    attentions = attentions_in(options)

    def again() -> None:
        set_attentions(options, attentions)

    return again


def attentions_in(options: Mapping[str, Any]) -> int:
    """How many joint attentions there were so far in the call of these transformer options."""
    call: ModelCall | None = options.get(CALL)
    return 0 if call is None else call.attentions


def set_attentions(options: Mapping[str, Any], count: int) -> None:
    """Sets that count: of blocks that are done twice, or not at all."""
    call: ModelCall | None = options.get(CALL)
    if call is not None:
        call.attentions = count


def tell_call(
    executor: Callable[..., Tensor],
    x: Tensor,
    t: Tensor,
    c_concat: Tensor | None = None,
    c_crossattn: Tensor | None = None,
    control: Any = None,
    transformer_options: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> Tensor:
    """An APPLY_MODEL wrapper: attention calls learn what the model runs on."""
    if kwargs.get("image_cond") is not None:
        raise ValueError(
            "a HiDream that edits a picture (HiDream-E1) draws it and another one side by side, and"
            " MagicPortrait's nodes do not know which tokens are whose: take HiDream-I1"
        )
    call = ModelCall(CallSize.of(x, c_crossattn, kwargs))
    options = {**(transformer_options or {}), CALL: call}
    if blocks := options.get("patches_replace", {}).get("dit"):
        inner = {
            key: _tell_block(call, key, patch, options[FIRST]) for key, patch in blocks.items()
        }
        options["patches_replace"] = {**options["patches_replace"], "dit": inner}
    return executor(x, t, c_concat, c_crossattn, control, options, **kwargs)


def _tell_block(
    call: ModelCall, key: tuple[Any, ...], patch: Callable[..., Any], first: Mapping[str, int]
) -> Callable[..., Any]:
    """A replacement of a block that leaves the count of attentions right, whether it runs the block
    or leaves it out (skip-layer guidance)."""
    if len(key) != 2 or key[0] not in first:
        return patch
    place = first[key[0]] + key[1]

    def replacement(*args: Any, **kwargs: Any) -> Any:
        call.attentions = place
        out = patch(*args, **kwargs)
        call.attentions = place + 1
        return out

    return replacement
