"""The events of the last runs and what nodes showed last, so that a page that is loaded again shows
them as before."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from typing import Any

Event = tuple[str, dict[str, Any]]
"""Name and data."""

_RUN, _OUTPUT = "run", "output"
_Key = tuple[str, str, str]
"""The page, which of the two, and what tells it from others of its kind."""


class KeptEvents:
    """What pages were told, by page and run, and never more than a fixed amount: the oldest runs go
    first, and of a long run every second event. The last output of a node is kept as a run of one
    event, beside the runs: many of them must not push these out.

    pages: how many pages, runs: of each page, events: of each run, characters: of all together,
    outputs: nodes of each page.
    """

    def __init__(
        self,
        pages: int = 4,
        runs: int = 8,
        events: int = 2000,
        characters: int = 16_000_000,
        outputs: int = 64,
    ):
        self._limits = (pages, events, characters)
        self._at_most = {_RUN: runs, _OUTPUT: outputs}
        self._runs: OrderedDict[_Key, list[Event]] = OrderedDict()
        self._sizes: dict[_Key, int] = {}
        # Events come from the thread that executes, questions from the one that serves.
        self._lock = threading.Lock()

    def add(self, page: str, event: str, data: dict[str, Any]) -> None:
        """data['run'] tells the runs of a page apart. What has no run is not kept."""
        run = data.get("run")
        if run is None:
            return
        key = (page, _RUN, str(run))
        with self._lock:
            events = self._runs.setdefault(key, [])
            self._runs.move_to_end(key)
            events.append((event, data))
            self._sizes[key] = self._sizes.get(key, 0) + _size(data)
            self._shrink(key)

    def put(self, page: str, node: str, event: str, data: dict[str, Any]) -> None:
        """What a node of the page shows: takes the place of what it showed before."""
        key = (page, _OUTPUT, node)
        with self._lock:
            self._runs[key] = [(event, data)]
            self._runs.move_to_end(key)
            self._sizes[key] = _size(data)
            self._shrink(key)

    def of(self, page: str) -> list[Event]:
        """All that is kept of a page, in the order in which it was told."""
        with self._lock:
            return [
                event
                for (owner, *_), events in self._runs.items()
                if owner == page
                for event in events
            ]

    def _shrink(self, key: _Key) -> None:
        pages, events, characters = self._limits
        if len(self._runs[key]) > events:
            # The first says what the run is, the last where it stands.
            first, *between, last = self._runs[key]
            self._runs[key] = [first, *between[1::2], last]
            self._sizes[key] = sum(_size(data) for _, data in self._runs[key])
        while sum(self._sizes.values()) > characters and len(self._runs) > 1:
            self._drop(next(iter(self._runs)))
        if self._sizes[key] > characters:
            self._drop(key)
            return
        own = [other for other in self._runs if other[:2] == key[:2]]
        for other in own[: -self._at_most[key[1]]]:
            self._drop(other)
        owners = list(OrderedDict.fromkeys(owner for owner, *_ in reversed(self._runs)))
        for other in [other for other in self._runs if other[0] in owners[pages:]]:
            self._drop(other)

    def _drop(self, key: _Key) -> None:
        del self._runs[key], self._sizes[key]


def _size(data: dict[str, Any]) -> int:
    return len(json.dumps(data))
