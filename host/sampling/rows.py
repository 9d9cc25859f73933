"""Which rows of a batch belong to our prompt, whatever guider, order and splitting the host
uses."""

from __future__ import annotations

import math
import uuid
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ..text.prompts import TAG
from .options import AttentionOptions
from .range import SigmaRange


@dataclass(frozen=True)
class SamplingRows:
    """The conds of one sampling run by the ids that the host gives them.

    ours: of our prompt; negative: of the negative prompt; areas: of conds that cover a part of the
    picture only: height, width, top and left in latent pixels; lengths: of ours, in tokens, in
    their order; times: of ours that do not act all the time, the sigmas between which they do;
    hooks: of ours, what they change of the model's weights (the host's HookGroup).
    """

    ours: frozenset[Any] = frozenset()
    negative: frozenset[Any] = frozenset()
    areas: Mapping[Any, tuple[int, ...]] = field(default_factory=dict)
    lengths: Mapping[Any, int] = field(default_factory=dict)
    times: Mapping[Any, SigmaRange] = field(default_factory=dict)
    hooks: Mapping[Any, Any] = field(default_factory=dict)

    def active(self, sigma: float) -> list[Any]:
        """Those of ours that act at a noise level."""
        return [
            cond
            for cond in self.lengths
            if cond not in self.times or self.times[cond].covers(sigma)
        ]

    def hooks_at(self, sigma: float) -> Any:
        """What our prompt changes of the weights at a noise level; None for nothing."""
        return next((self.hooks[c] for c in self.active(sigma) if c in self.hooks), None)


class Chunk(NamedTuple):
    """The rows of a model call that are one prompt's. cond: its id; rows: one for each picture."""

    cond: Any
    rows: slice


def roles_of(guider: Any, tag: str) -> frozenset[str]:
    """The names of the guider's lists ('positive', ...) that hold our tagged conditioning, which
    the host has not processed yet. A list of negatives is never ours, whatever copy of ours it
    holds. ValueError when none is left."""
    roles = frozenset(
        role
        for role, conds in guider.conds.items()
        if "negative" not in role and any(is_of_prompt(cond, tag) for cond in conds or ())
    )
    if not roles:
        raise ValueError(
            "the sampler's positive input does not come from the node that patched this MODEL:"
            " connect the output positive of that node to the sampler. Other conditioning nodes"
            " may stand between; in ConditioningConcat and ConditioningAverage ours comes first"
            " (conditioning_to)"
        )
    return roles


def is_of_prompt(cond: Mapping[str, Any], tag: str) -> bool:
    """Whether a cond is the prompt with that tag. Tags go along with copies: what was zeroed out
    says nothing any more."""
    return cond.get(TAG) == tag and bool(cond["cross_attn"].any())


def separate_copies(guider: Any, tag: str, roles: Collection[str]) -> None:
    """Gives each processed cond of the guider an id of its own, and takes our tag off foreign ones.

    The host copies conds with an area, id included, into the other lists, to give the negative
    prompt the same area, and the other way round. Ours keep their ids.
    """
    ids = set()
    for role in sorted(guider.conds, key=lambda role: role not in roles):
        for cond in guider.conds[role] or ():
            if cond["uuid"] in ids:
                cond["uuid"] = uuid.uuid4()
            if role not in roles:
                cond.pop(TAG, None)
            ids.add(cond["uuid"])


def rows_of_prompt(guider: Any, tag: str, roles: Collection[str]) -> SamplingRows:
    """The rows of our prompt, once the host has processed the conds and they are separate
    (`separate_copies`)."""
    ours = [
        cond for role in sorted(roles) for cond in guider.conds[role] if is_of_prompt(cond, tag)
    ]
    negative = () if "negative" in roles else guider.conds.get("negative") or ()
    return SamplingRows(
        ours=frozenset(cond["uuid"] for cond in ours),
        negative=frozenset(cond["uuid"] for cond in negative),
        areas={cond["uuid"]: tuple(cond["area"]) for cond in (*ours, *negative) if "area" in cond},
        lengths={cond["uuid"]: cond["cross_attn"].shape[1] for cond in ours},
        times={
            cond["uuid"]: SigmaRange(
                cond.get("timestep_start", math.inf), cond.get("timestep_end", -math.inf)
            )
            for cond in ours
            if "timestep_start" in cond or "timestep_end" in cond
        },
        hooks={cond["uuid"]: cond["hooks"] for cond in ours if cond.get("hooks") is not None},
    )


def rows_of_roles(guider: Any, roles: Iterable[str]) -> frozenset[Any]:
    """The ids of all conds of some of the guider's lists, once the host has processed them."""
    return frozenset(cond["uuid"] for role in roles for cond in guider.conds.get(role) or ())


def chunks_of(options: AttentionOptions, rows: int, batch: int) -> list[Chunk]:
    """The chunks of a model call, each with a row for all `batch` pictures. ValueError when another
    node runs the model on something else than them."""
    conds: Sequence[Any] | None = options.get("uuids")
    if conds is None:
        raise ValueError(
            "another node calls the model in a way of its own and does not say whose rows are"
            " whose (transformer_options has no uuids): update or remove it"
        )
    if rows < len(conds) * batch:
        raise ValueError(
            f"the model runs on {rows} rows for {len(conds)} prompts and {batch} pictures: another"
            " node runs a part of the batch at a time and does not say whose (cond_or_uncond and"
            " uuids in transformer_options): update or remove it"
        )
    if rows != len(conds) * batch:
        raise ValueError(
            f"the model runs on {rows} rows for {len(conds)} prompts and {batch} pictures: another"
            " node cuts the picture into tiles (Tiled Diffusion, MultiDiffusion). Remove it, or"
            " set its tile batch to 1"
        )
    return [Chunk(cond, slice(i * batch, (i + 1) * batch)) for i, cond in enumerate(conds)]


def coupled_chunks_of(options: AttentionOptions, rows: int, batch: int) -> list[Chunk]:
    """As `chunks_of`, in a layer where another node (an attention couple) repeats the rows of each
    positive prompt, once for each prompt that it couples: the first of each are taken."""
    kinds = options["cond_or_uncond"]
    positive, negative = kinds.count(0), len(kinds) - kinds.count(0)
    left = rows - negative * batch
    if rows == len(kinds) * batch or not positive or left % (positive * batch):
        return chunks_of(options, rows, batch)
    repeats, start, chunks = left // (positive * batch), 0, []
    for cond, kind in zip(options["uuids"], kinds, strict=True):
        chunks.append(Chunk(cond, slice(start, start + batch)))
        start += batch * (repeats if kind == 0 else 1)
    return chunks
