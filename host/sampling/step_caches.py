"""Nodes that leave out model calls and give again what an earlier step gave."""

from __future__ import annotations

from typing import Any

_WRAPPERS = ("easycache", "lazycache")
"""Keys of the host's own wrappers of that kind."""
_STATE = "easycache"


def without_step_caches(model: Any) -> Any:
    """MODEL for runs in which every call counts, or whose noise rises, which step caches do not
    expect: without the host's EasyCache and LazyCache. The same object when it has none."""
    if not any(key in wrappers for wrappers in model.wrappers.values() for key in _WRAPPERS):
        return model
    plain = model.clone()
    for kind, wrappers in list(plain.wrappers.items()):
        for key in _WRAPPERS:
            wrappers.pop(key, None)
        if not wrappers:
            del plain.wrappers[kind]
    plain.model_options.get("transformer_options", {}).pop(_STATE, None)
    return plain
