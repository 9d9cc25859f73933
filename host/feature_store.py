"""Features kept between runs, so that a reference that was seen once costs nothing the next time: in main memory up to a budget, then on
disk until the store is gone."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections import OrderedDict
from collections.abc import Hashable
from pathlib import Path
from typing import Any

from torch import Tensor

DEFAULT_BUDGET = 2 * 1024**3

Bank = dict[Hashable, Tensor]


class FeatureStore:
    """Banks of tensors by all that they depend on. Belongs to one patch and goes with it, files included."""

    def __init__(self, budget: int = DEFAULT_BUDGET):
        self._budget = budget
        self._banks: OrderedDict[tuple[Any, ...], Bank] = OrderedDict()
        self._spilled: dict[tuple[Any, ...], tuple[Path, list[Hashable]]] = {}
        self._folder: Path | None = None

    def __contains__(self, key: tuple[Any, ...]) -> bool:
        return key in self._banks or key in self._spilled

    def get(self, key: tuple[Any, ...]) -> Bank | None:
        """The bank, on the CPU, or None."""
        if key in self._banks:
            return self._banks[key]
        if key not in self._spilled:
            return None
        from safetensors.torch import load_file

        path, names = self._spilled[key]
        tensors = load_file(path)
        return {name: tensors[str(index)] for index, name in enumerate(names)}

    def keep(self, key: tuple[Any, ...], bank: Bank) -> None:
        kept = {name: tensor.to("cpu") for name, tensor in bank.items()}
        if self.size_in_memory + _size(kept) > self._budget:
            self._spill(key, kept)
        else:
            self._banks[key] = kept

    @property
    def size_in_memory(self) -> int:
        """Bytes."""
        return sum(_size(bank) for bank in self._banks.values())

    def _spill(self, key: tuple[Any, ...], bank: Bank) -> None:
        from safetensors.torch import save_file

        if self._folder is None:
            import folder_paths

            Path(folder_paths.get_temp_directory()).mkdir(parents=True, exist_ok=True)
            self._folder = Path(tempfile.mkdtemp(prefix="magicportrait_", dir=folder_paths.get_temp_directory()))
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        path = self._folder / f"{len(self._spilled)}.safetensors"
        save_file({str(index): tensor.contiguous().clone() for index, tensor in enumerate(bank.values())}, path)
        self._spilled[key] = (path, list(bank))


def _size(bank: Bank) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in bank.values())
