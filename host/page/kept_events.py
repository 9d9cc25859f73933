"""The events of the last runs, so that a page that is loaded again shows them as before."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from typing import Any

Event = tuple[str, dict[str, Any]]
"""Name and data."""


class KeptEvents:
    """What pages were told, by page and run, and never more than a fixed amount: the oldest runs go
    first, and of a long run every second event.

    pages: how many pages, runs: of each page, events: of each run, characters: of all together.
    """

    def __init__(
        self, pages: int = 4, runs: int = 8, events: int = 2000, characters: int = 16_000_000
    ):
        self._limits = (pages, runs, events, characters)
        self._runs: OrderedDict[tuple[str, str], list[Event]] = OrderedDict()
        self._sizes: dict[tuple[str, str], int] = {}
        # Events come from the thread that executes, questions from the one that serves.
        self._lock = threading.Lock()

    def add(self, page: str, event: str, data: dict[str, Any]) -> None:
        """data['run'] tells the runs of a page apart. What has no run is not kept."""
        run = data.get("run")
        if run is None:
            return
        key = (page, str(run))
        with self._lock:
            events = self._runs.setdefault(key, [])
            self._runs.move_to_end(key)
            events.append((event, data))
            self._sizes[key] = self._sizes.get(key, 0) + _size(data)
            self._shrink(key)

    def of(self, page: str) -> list[Event]:
        """All that is kept of a page, in the order in which it was told."""
        with self._lock:
            return [
                event
                for (owner, _), events in self._runs.items()
                if owner == page
                for event in events
            ]

    def _shrink(self, key: tuple[str, str]) -> None:
        pages, runs, events, characters = self._limits
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
        own = [other for other in self._runs if other[0] == key[0]]
        for other in own[:-runs]:
            self._drop(other)
        owners = list(OrderedDict.fromkeys(owner for owner, _ in reversed(self._runs)))
        for other in [other for other in self._runs if other[0] in owners[pages:]]:
            self._drop(other)

    def _drop(self, key: tuple[str, str]) -> None:
        del self._runs[key], self._sizes[key]


def _size(data: dict[str, Any]) -> int:
    return len(json.dumps(data))
