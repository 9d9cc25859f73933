"""Which rows of a batch belong to our prompt, whatever guider, order and splitting the host
uses."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ..text.prompts import TAG
from .options import AttentionOptions


@dataclass(frozen=True)
class SamplingRows:
    """The conds of one sampling run by the ids that the host gives them.

    ours: of our prompt; negative: of the negative prompt; areas: of conds that cover a part of the
    picture only: height, width, top and left in latent pixels; lengths: of ours, in tokens.
    """

    ours: frozenset[Any] = frozenset()
    negative: frozenset[Any] = frozenset()
    areas: Mapping[Any, tuple[int, ...]] = field(default_factory=dict)
    lengths: Mapping[Any, int] = field(default_factory=dict)


class Chunk(NamedTuple):
    """The rows of a model call that are one prompt's. cond: its id; rows: one for each picture."""

    cond: Any
    rows: slice


def roles_of(guider: Any, tag: str) -> frozenset[str]:
    """The names of the guider's lists ('positive', ...) that hold our tagged conditioning.
    ValueError when none does."""
    roles = frozenset(
        role for role, conds in guider.conds.items() if any(cond.get(TAG) == tag for cond in conds)
    )
    if not roles:
        raise ValueError(
            "the sampler's positive input does not come from the node that patched this MODEL:"
            " connect the CONDITIONING output of that node to the sampler (through other"
            " conditioning nodes if you like)"
        )
    return roles


def separate_copies(guider: Any, tag: str, roles: Collection[str]) -> None:
    """Gives each processed cond of the guider an id of its own, and takes our tag off foreign ones.

    The host copies conds with an area, id included, into the other lists, to give the negative
    prompt the same area, and the other way round. Ours keep their ids.
    """
    taken = set()
    for role in sorted(guider.conds, key=lambda role: role not in roles):
        for cond in guider.conds[role] or ():
            if cond["uuid"] in taken:
                cond["uuid"] = uuid.uuid4()
            if role not in roles:
                cond.pop(TAG, None)
            taken.add(cond["uuid"])


def rows_of_prompt(guider: Any, tag: str, roles: Collection[str]) -> SamplingRows:
    """The rows of our prompt, once the host has processed the conds and they are separate
    (`separate_copies`)."""
    ours = [cond for role in roles for cond in guider.conds[role] if cond.get(TAG) == tag]
    negative = () if "negative" in roles else guider.conds.get("negative") or ()
    return SamplingRows(
        ours=frozenset(cond["uuid"] for cond in ours),
        negative=frozenset(cond["uuid"] for cond in negative),
        areas={cond["uuid"]: tuple(cond["area"]) for cond in (*ours, *negative) if "area" in cond},
        lengths={cond["uuid"]: cond["cross_attn"].shape[1] for cond in ours},
    )


def rows_of_roles(guider: Any, roles: Iterable[str]) -> frozenset[Any]:
    """The ids of all conds of some of the guider's lists, once the host has processed them."""
    return frozenset(cond["uuid"] for role in roles for cond in guider.conds.get(role) or ())


def chunks_of(options: AttentionOptions, rows: int, batch: int) -> list[Chunk]:
    """The chunks of a model call, each with a row for all `batch` pictures. ValueError when another
    node runs the model on something else than them."""
    conds: Sequence[Any] = options["uuids"]
    if rows != len(conds) * batch:
        raise ValueError(
            f"the model runs on {rows} rows for {len(conds)} prompts and {batch} pictures: another"
            " node cuts the picture into tiles (Tiled Diffusion, MultiDiffusion). Remove it, or"
            " set its tile batch to 1"
        )
    return [Chunk(cond, slice(i * batch, (i + 1) * batch)) for i, cond in enumerate(conds)]
