"""Inversions that are remembered: a folder that knows what was computed before, also after a
restart."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..models.safe_files import ABANDONED_AFTER
from ..sampling.step_caches import without_step_caches
from .files import UnreadableInversion, UnstorableInversion, read_inversion, write_inversion
from .fingerprint import Fingerprint, fingerprint, model_fingerprint
from .inputs import check_invertible
from .run import Inversion, Recipe, invert, resample

_FORMAT = 1
_SUFFIX = ".safetensors"
_PATCHES = (
    "model_options",
    "wrappers",
    "callbacks",
    "object_patches",
    "attachments",
    "hook_patches",
    "injections",
    "additional_models",
)
_NO_CACHE = (
    "MagicPortrait: an inversion is not remembered, for what another node put into the model or the"
    " conditioning cannot be recognised again"
)
"""What other nodes may have done to a MODEL, beside patches of its weights."""


@dataclass(frozen=True)
class InversionCache:
    """A folder of inversions by key, least recently used out first.

    folder: nobody else's; limit: bytes, of all that lies in the folder.
    """

    folder: Path
    limit: int

    def get(self, key: str) -> Inversion | None:
        """What was kept under a key. None, with a line in the log, when its file is no good."""
        path = self._path(key)
        try:
            inversion = read_inversion(path)
        except FileNotFoundError:
            return None
        except UnreadableInversion as error:
            logging.warning("MagicPortrait: an inversion in the cache is computed again: %s", error)
            return None
        if inversion.key != key:
            logging.warning(
                "MagicPortrait: an inversion in the cache is computed again: %s belongs to another"
                " picture",
                path.name,
            )
            return None
        # Another process may have thrown it out, another user may own it.
        with contextlib.suppress(OSError):
            os.utime(path)
        return inversion

    def keep(self, inversion: Inversion) -> None:
        """Stores what can be stored; a full or read-only disk costs no more than the cache."""
        try:
            path = self._path(inversion.key)
            write_inversion(path, inversion)
            self._trim(path)
        except UnstorableInversion as error:
            logging.info("MagicPortrait: an inversion is not remembered: %s", error)
        except OSError as error:
            logging.warning("MagicPortrait: an inversion could not be cached: %s", error)

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}{_SUFFIX}"

    def _trim(self, newest: Path) -> None:
        """Keeps to the limit. `newest` stays, even when it alone is larger."""
        files = sorted(self._files(), key=lambda item: item[0].st_mtime_ns)
        total = sum(status.st_size for status, _ in files)
        # By the clock that dates these files, which may be another machine's.
        now = max((status.st_mtime for status, _ in files), default=0.0)
        for status, path in files:
            if path.suffix == _SUFFIX:
                goes = total > self.limit and path != newest
            else:
                # Somebody writes to it, or has died over it.
                goes = now - status.st_mtime > ABANDONED_AFTER
            if goes:
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)
                total -= status.st_size

    def _files(self) -> Iterator[tuple[os.stat_result, Path]]:
        """Without those that another process removes in this moment."""
        for path in self.folder.iterdir():
            with contextlib.suppress(FileNotFoundError):
                if path.is_file():
                    yield path.stat(), path


def cache_folder() -> Path:
    """Where the cache lies: beside the user's settings, out of reach of the web server where the
    host knows such a place."""
    import folder_paths

    if hasattr(folder_paths, "get_system_user_directory"):
        return Path(folder_paths.get_system_user_directory("magicportrait")) / "inversions"
    return Path(folder_paths.get_user_directory()) / "__magicportrait" / "inversions"


@dataclass(frozen=True)
class InversionKey:
    """What an inversion depends on.

    parts: fingerprints by what they are of: 'weights' of the model's, 'latent' of the picture's,
    and so on.
    """

    parts: dict[str, Fingerprint]

    @property
    def model(self) -> str:
        """The text of `model_fingerprint`."""
        return self.parts["weights"].text

    @property
    def text(self) -> str:
        """Equal for inversions that come out alike, if nothing is unstable."""
        return fingerprint({name: part.text for name, part in self.parts.items()}).text

    @property
    def unstable(self) -> tuple[str, ...]:
        """Where the first parts lie that could not be read: see `Fingerprint`."""
        return tuple(name for part in self.parts.values() for name in part.unstable)

    def changes(self, other: InversionKey) -> list[str]:
        """Names of the parts in which the other one differs."""
        return [name for name, part in self.parts.items() if other.parts[name] != part]


def inversion_key(
    model: Any,
    latent: Tensor,
    conds: dict[str, list[Any]],
    sigmas: Tensor,
    recipe: Recipe,
    weights: Fingerprint | None = None,
) -> InversionKey:
    """Arguments as in `invert_with_cache`. weights: the model's fingerprint, if it is there
    already."""
    import comfy.patcher_extension as extension

    # At CFG 1 the host leaves the negative out, unless a node wants it all the same, or sets
    # another CFG as it samples.
    overridden = model.model_options.get("disable_cfg1_optimization") or model.wrappers.get(
        extension.WrappersMP.PREDICT_NOISE
    )
    if math.isclose(recipe.cfg, 1.0) and not overridden:
        conds = {name: cond for name, cond in conds.items() if name != "negative"}
    things = {
        **{name: getattr(model, name) for name in _PATCHES},
        "format": _FORMAT,
        "latent": latent,
        "conditioning": conds,
        "sigmas": sigmas,
        "recipe": recipe.as_used(),
    }
    parts = {name: fingerprint(**{name: thing}) for name, thing in things.items()}
    return InversionKey({"weights": weights or model_fingerprint(model), **parts})


def invert_with_cache(
    model: Any,
    samples: Tensor,
    conds: dict[str, list[Any]],
    sigmas: Tensor,
    recipe: Recipe,
    cache_mb: int,
    measures: bool,
) -> tuple[Inversion, bool]:
    """An inversion, and whether it was remembered. No model call when it was, but for what
    `measures` adds the first time.

    samples: B C h w as the VAE gives it; conds: CONDITIONING by name, 'positive' and 'negative';
    sigmas: N + 1, falling to 0; cache_mb: room for what is remembered, 0 for no cache; measures:
    whether the picture is sampled again. ValueError for a model of the wrong kind.
    """
    import latent_preview

    check_invertible(model)
    model = without_step_caches(model)
    key = inversion_key(model, samples, conds, sigmas, recipe)
    cache = InversionCache(cache_folder(), cache_mb * 1024**2) if cache_mb else None
    if cache and key.unstable:
        logging.info("%s. It cannot be read: %s", _NO_CACHE, "; ".join(key.unstable))
        cache = None
    entry = cache.get(key.text) if cache else None

    def step_callback() -> Any:
        return latent_preview.prepare_callback(model, len(sigmas) - 1)

    inversion = entry or invert(
        model, samples, conds, sigmas, recipe, step_callback(), (key.model, key.text)
    )
    if measures and inversion.resampled is None:
        again = resample(model, inversion, conds, recipe.cfg, step_callback())
        inversion = dataclasses.replace(inversion, resampled=again.cpu())
    if cache and inversion is not entry:
        weights = key.parts["weights"]
        # Under a key that is another one now nobody would look for it again.
        if changes := key.changes(inversion_key(model, samples, conds, sigmas, recipe, weights)):
            logging.info("%s. It changes as it runs: %s", _NO_CACHE, ", ".join(changes))
        else:
            cache.keep(inversion)
    return inversion, entry is not None
