"""Which rows of a batch belong to our prompt, whatever guider, order and splitting the host
uses."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..text.prompts import TAG


@dataclass(frozen=True)
class SamplingRows:
    """The ids that the host gives to the conds of one sampling run: ours, and those of the negative
    prompt.

    areas: of conds that cover a part of the picture only: height, width, top and left in latent
    pixels; lengths: of ours, in tokens.
    """

    ours: frozenset[Any] = frozenset()
    negative: frozenset[Any] = frozenset()
    areas: Mapping[Any, tuple[int, ...]] = field(default_factory=dict)
    lengths: Mapping[Any, int] = field(default_factory=dict)


def holders_of(guider: Any, tag: str) -> set[str]:
    """The names of the guider's lists ('positive', ...) that hold our tagged conditioning.
    ValueError when none does."""
    names = {
        name for name, conds in guider.conds.items() if any(cond.get(TAG) == tag for cond in conds)
    }
    if not names:
        raise ValueError(
            "the sampler's positive input does not come from the node that patched this MODEL:"
            " connect the CONDITIONING output of that node to the sampler (through other"
            " conditioning nodes if you like)"
        )
    return names


def identify_rows(guider: Any, tag: str, holders: set[str]) -> SamplingRows:
    """Reads the ids once the host has processed the conds.

    The host copies conds with an area, id included, into the other lists, to give the negative
    prompt the same area, and the other way round. Such copies get an id of their own, and those of
    ours are not ours.
    """
    taken = set()
    # Ours first: they keep their ids.
    for name in sorted(guider.conds, key=lambda name: name not in holders):
        for cond in guider.conds[name] or ():
            if cond["uuid"] in taken:
                cond["uuid"] = uuid.uuid4()
            if name not in holders:
                cond.pop(TAG, None)
            taken.add(cond["uuid"])
    ours = [cond for name in holders for cond in guider.conds[name] if cond.get(TAG) == tag]
    negative = () if "negative" in holders else guider.conds.get("negative") or ()
    return SamplingRows(
        ours=frozenset(cond["uuid"] for cond in ours),
        negative=frozenset(cond["uuid"] for cond in negative),
        areas={cond["uuid"]: tuple(cond["area"]) for cond in (*ours, *negative) if "area" in cond},
        lengths={cond["uuid"]: cond["cross_attn"].shape[1] for cond in ours},
    )


def rows_of(guider: Any, names: Iterable[str]) -> frozenset[Any]:
    """The ids of all conds of some of the guider's lists, once the host has processed them."""
    return frozenset(cond["uuid"] for name in names for cond in guider.conds.get(name) or ())


def chunk_slices(extra_options: dict[str, Any], rows: int, batch: int) -> list[tuple[Any, slice]]:
    """The chunks of a model call as (id, its rows). Every chunk holds all `batch` images.
    ValueError when another node runs the model on something else than them."""
    ids: Sequence[Any] = extra_options["uuids"]
    if rows != len(ids) * batch:
        raise ValueError(
            f"the model runs on {rows} rows for {len(ids)} prompts and {batch} pictures: another"
            " node cuts the picture into tiles (Tiled Diffusion, MultiDiffusion). Remove it, or"
            " set its tile batch to 1"
        )
    return [(chunk_id, slice(i * batch, (i + 1) * batch)) for i, chunk_id in enumerate(ids)]
