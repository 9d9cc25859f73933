"""Features kept between runs, so that a reference that was seen once costs nothing the next time:
in main memory up to a budget, then on disk until the store is gone."""

from __future__ import annotations

import dataclasses
import logging
import shutil
import tempfile
import weakref
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..models.safe_files import tensor_bytes, write_file

DEFAULT_BUDGET = 2 * 1024**3
_RUNS_REMEMBERED = 4

Bank = dict[Hashable, list[Any]]
"""For every layer what it saw, picture by picture or concept by concept: dataclasses whose tensors
are kept."""


class FeatureStore:
    """Banks by all that they depend on. Belongs to one patch and goes with it, files included.

    Once the budget is spent, what the last few runs did not use is forgotten: other steps or
    another sampler have other sigmas.
    """

    def __init__(self, budget: int = DEFAULT_BUDGET):
        self._budget = budget
        self._banks: dict[tuple[Any, ...], Bank] = {}
        self._on_disk: dict[tuple[Any, ...], tuple[Path, Bank]] = {}
        self._folder: Path | None = None
        self._run, self._files, self._has_overflowed = 0, 0, False
        self._last_use: dict[tuple[Any, ...], int] = {}

    def get(self, key: tuple[Any, ...], device: torch.device) -> Bank | None:
        """The bank on a device, or None."""
        self._last_use[key] = self._run
        if key in self._banks:
            return _each(self._banks[key], lambda _, tensor: tensor.to(device))
        if key not in self._on_disk:
            return None
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        path, bank = self._on_disk[key]
        try:
            tensors = load_file(path)
        except (OSError, SafetensorError) as error:
            logging.warning(
                "MagicPortrait: features kept on disk are gone (%s): they are computed again", error
            )
            self._forget(key)
            return None
        return _each(bank, lambda name, _: tensors[name].to(device))

    def keep(self, key: tuple[Any, ...], bank: Mapping[Any, list[Any]]) -> None:
        """Takes a copy of a bank. On a full disk a warning: nothing depends on what is kept."""
        self._last_use[key] = self._run
        copy = _each(bank, lambda _, tensor: tensor.to("cpu"))
        if self.size_in_memory + _size(copy) > self._budget:
            self._has_overflowed = True
            self._spill(key, copy)
        else:
            self._banks[key] = copy

    def end_run(self) -> None:
        """A sampling run is over."""
        if self._has_overflowed:
            for key in [
                key for key, run in self._last_use.items() if self._run - run >= _RUNS_REMEMBERED
            ]:
                self._forget(key)
        self._run += 1

    def _forget(self, key: tuple[Any, ...]) -> None:
        del self._last_use[key]
        self._banks.pop(key, None)
        if key in self._on_disk:
            self._on_disk.pop(key)[0].unlink(missing_ok=True)

    @property
    def size_in_memory(self) -> int:
        """Bytes."""
        return sum(_size(bank) for bank in self._banks.values())

    def _spill(self, key: tuple[Any, ...], bank: Bank) -> None:
        tensors: dict[str, Tensor] = {}
        # A tensor's place stays in the bank, without its values.
        empty = _each(
            bank,
            lambda name, tensor: tensors.setdefault(name, tensor).to("meta"),
        )
        try:
            path = self._new_file()
            write_file(path, tensor_bytes(tensors), is_lasting=False)
        except OSError as error:
            logging.warning(
                "MagicPortrait: features cannot be kept on disk (%s): the next run computes them"
                " again",
                error,
            )
            return
        self._on_disk[key] = path, empty

    def _new_file(self) -> Path:
        if self._folder is None:
            import folder_paths

            Path(folder_paths.get_temp_directory()).mkdir(parents=True, exist_ok=True)
            self._folder = Path(
                tempfile.mkdtemp(prefix="magicportrait_", dir=folder_paths.get_temp_directory())
            )
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        self._files += 1
        return self._folder / f"{self._files}.safetensors"


def _each(bank: Mapping[Any, list[Any]], change: Callable[[str, Tensor], Tensor]) -> Bank:
    """A bank with every tensor changed. `change` gets a name that is the tensor's alone, and the
    tensor."""
    result: Bank = {}
    for i, (layer, entries) in enumerate(bank.items()):
        result[layer] = []
        for j, entry in enumerate(entries):
            tensors = {
                name: value for name, value in vars(entry).items() if isinstance(value, Tensor)
            }
            new = {name: change(f"{i}.{j}.{name}", tensor) for name, tensor in tensors.items()}
            result[layer].append(dataclasses.replace(entry, **new))
    return result


def _size(bank: Bank) -> int:
    tensors = (
        value
        for entries in bank.values()
        for entry in entries
        for value in vars(entry).values()
        if isinstance(value, Tensor)
    )
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
