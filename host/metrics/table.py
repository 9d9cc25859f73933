"""The metrics of the papers, over pictures and their references. Every network is optional: what
cannot be measured is named, with why."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from ..models.folders import UnreadableModel
from .clip import aesthetic, clip_i, clip_t
from .comparison import Comparison, Missing
from .dino import dino
from .identity import copying, csim
from .perceptual import lpips, style

METRICS: dict[str, Callable[[Comparison], Tensor]] = {
    "CSIM": csim,
    "CLIP-I": clip_i,
    "CLIP-T": clip_t,
    "DINO": dino,
    "LPIPS": lpips,
    "style distance": style,
    "aesthetic": aesthetic,
}
"""For each metric a value for each picture: B, or Missing. In the order of the table."""
COPYING = "copying"
"""A column that is measured only where there are other pictures of the person."""
COLUMNS = (*METRICS, COPYING)
ARROWS = {name: "↓" if name in ("LPIPS", "style distance", COPYING) else "↑" for name in COLUMNS}
"""Which way is better."""


@dataclass(frozen=True)
class MetricTable:
    """What was measured. columns: metric -> a value for each picture, NaN where a single one could
    not be measured; missing: metric -> why it could not be."""

    columns: dict[str, tuple[float, ...]]
    missing: dict[str, str] = field(default_factory=dict)

    def means(self) -> dict[str, float]:
        """Over the pictures that have a value; NaN when none has."""
        means = {}
        for name, values in self.columns.items():
            numbers = [value for value in values if not math.isnan(value)]
            means[name] = sum(numbers) / len(numbers) if numbers else math.nan
        return means

    def markdown(self, labels: Sequence[str]) -> str:
        """A row for each picture and one of means, then what is missing. The arrows say which way
        is better."""
        names = list(self.columns)
        lines = [
            "| picture | " + " | ".join(f"{name} {ARROWS[name]}" for name in names) + " |",
            "| --- |" + " --- |" * len(names),
        ]
        rows = [
            (label, [self.columns[name][i] for name in names]) for i, label in enumerate(labels)
        ]
        if len(rows) > 1:
            rows.append(("mean", list(self.means().values())))
        lines += [
            f"| {label} | "
            + " | ".join("-" if math.isnan(v) else f"{v:.4f}" for v in values)
            + " |"
            for label, values in rows
        ]
        return "\n".join([*lines, *(["", *self.complaints()] if self.missing else [])])

    def complaints(self) -> list[str]:
        return [f"- {name}: {reason}" for name, reason in self.missing.items()]

    def csv(self, labels: Sequence[str]) -> str:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["picture", *self.columns])
        for i, label in enumerate(labels):
            values = (column[i] for column in self.columns.values())
            writer.writerow(
                [label, *("" if math.isnan(value) else f"{value:.6g}" for value in values)]
            )
        return text.getvalue()

    def json(self, labels: Sequence[str]) -> str:
        def or_null(value: float) -> float | None:
            return None if math.isnan(value) else value

        pictures = [
            {
                "picture": label,
                **{name: or_null(column[i]) for name, column in self.columns.items()},
            }
            for i, label in enumerate(labels)
        ]
        means = {name: or_null(value) for name, value in self.means().items()}
        return json.dumps({"pictures": pictures, "means": means, "missing": self.missing}, indent=1)


def measure(comparison: Comparison) -> MetricTable:
    """Everything that can be measured. ValueError when what is given does not fit together."""
    from comfy.utils import ProgressBar

    count = len(comparison.images)
    if len(comparison.prompts) not in (0, 1, count):
        raise ValueError(
            f"{len(comparison.prompts)} prompts for {count} pictures: give one for all, or one line"
            " for each"
        )
    for name, boxes, pictures in (
        ("boxes", comparison.boxes, count),
        (
            "reference_boxes",
            comparison.reference_boxes,
            0 if comparison.references is None else len(comparison.references),
        ),
        (
            "other_boxes",
            comparison.other_boxes,
            0 if comparison.others is None else len(comparison.others),
        ),
    ):
        if boxes is not None and len(boxes) != pictures:
            raise ValueError(f"{name} are for {len(boxes)} pictures, but {pictures} came")
    columns: dict[str, tuple[float, ...]] = {}
    missing: dict[str, str] = {}
    metrics = METRICS if comparison.others is None else {**METRICS, COPYING: copying}
    progress = ProgressBar(len(metrics))
    for name, work in metrics.items():
        try:
            columns[name] = tuple(work(comparison).float().cpu().tolist())
        except (Missing, UnreadableModel) as reason:
            missing[name] = str(reason)
        progress.update(1)
    return MetricTable(columns, missing)


def values_of_json(text: str, column: str) -> tuple[float, ...]:
    """A column of what `MetricTable.json` has written: a value for each picture, NaN where there is
    none. ValueError for another text, and with the reason for a column that was not measured."""
    try:
        table = json.loads(text)
        pictures, missing = table["pictures"], table["missing"]
        names = [name for name in COLUMNS if pictures and name in pictures[0]]
        if column in names:
            return tuple(
                math.nan if picture[column] is None else float(picture[column])
                for picture in pictures
            )
        reason = missing.get(column, "connect other pictures of the person to others")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError("json is no table of Portrait Metrics: connect its output json") from error
    raise ValueError(
        f"Portrait Metrics has not measured {column} ({reason}). It has {', '.join(names)}"
    )
