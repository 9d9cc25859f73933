"""Who wants to see the layout while a picture is sampled."""

from __future__ import annotations

from typing import Protocol

from .record import LayoutStep, LayoutSteps


class LayoutRunObserver(Protocol):
    """Follows one sampling run."""

    def show(self, step: int, layout: LayoutStep) -> None:
        """A step has been measured; the same one again when the model is called twice in it."""
        ...

    def close(self, steps: LayoutSteps) -> None:
        """The run is over, cancelled or not; `steps` is all that was measured."""
        ...


class LayoutObserver(Protocol):
    """Belongs to a patch. Opened at the start of each of its runs."""

    def open(self, steps: int) -> LayoutRunObserver | None:
        """A sampling run begins that ends with step `steps` - 1. None when there is nobody to show
        it to."""
        ...
