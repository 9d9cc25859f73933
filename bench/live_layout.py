"""What it costs that a page watches the layout while a picture is sampled: `python -m
bench.live_layout`

The three-concept picture of the toy checkpoint, with a page that listens and without one in turn,
in one process; what would go through the websocket is written as JSON and counted. The toy's steps
are short, so that a real model's share is smaller.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any

from . import toy
from .command_line import bench_parser, parse_with_quick
from .report import Report
from .toy_references import apply_concepts, concepts_of, reference_sets

# ruff: isort: split
import torch

from magicportrait.host.page import listening_page
from magicportrait.nodes.magicface_apply import MagicFaceApply


class Page:
    """The host's server with one page, which listens or does not."""

    client_id = "page"

    def __init__(self) -> None:
        self.sockets_metadata: dict[str, dict[str, Any]] = {self.client_id: {}}
        self.prompt_queue = argparse.Namespace(currently_running={})
        self.sizes: list[int] = []
        """Of what was sent, in bytes."""

    def send_sync(self, event: str, data: dict[str, Any], client: str) -> None:
        self.sizes.append(len(json.dumps({"type": event, "data": data})))


@torch.inference_mode()
def main() -> None:
    parser = bench_parser(__doc__)
    parser.add_argument("--runs", type=int, default=15, help="with and without")
    args = parse_with_quick(parser, runs=1)
    checkpoint, page = toy.Toy.load(), Page()
    listening_page.running_server = lambda: page
    # Outside of a graph nothing has an id, and what has none is not shown.
    MagicFaceApply.hidden = argparse.Namespace(unique_id="1")  # type: ignore[assignment]
    model, positive, _ = apply_concepts(checkpoint, concepts_of(reference_sets()[0]))
    noise = checkpoint.noise([0])
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for run in range(2 * args.runs + 2):
        listens = run % 2 == 1
        page.sockets_metadata[page.client_id]["magicportrait"] = listens
        page.sizes.clear()
        began = time.perf_counter()
        checkpoint.sample(model, positive, noise)
        # The first of both kinds warm up.
        if run >= 2:
            seconds[listens].append(time.perf_counter() - began)
        assert bool(page.sizes) == listens
        if listens:
            events, size = len(page.sizes), sum(page.sizes)
    alone, with_page = (statistics.median(seconds[listens]) for listens in (False, True))
    ratios = sorted(b / a for a, b in zip(seconds[False], seconds[True], strict=True))
    quarter = len(ratios) // 4
    middle = f"{ratios[quarter]:.3f} to {ratios[-1 - quarter]:.3f}"
    report = Report(
        "live_layout",
        "Cost of watching the layout live",
        f"`python -m bench.live_layout --runs {args.runs}`, 25 steps of the toy checkpoint with"
        " three concepts",
    )
    report.write(
        f"A picture takes {alone:.2f} s unwatched and {with_page:.2f} s watched (medians); the"
        f" median of {len(ratios)} pairs is {statistics.median(ratios):.3f} x (middle half:"
        f" {middle}). {events} events, {size / 1000:.0f} kB in all, to the page that queued."
    )
    report.finish(kept=not args.quick)


if __name__ == "__main__":
    main()
