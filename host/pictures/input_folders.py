"""Folders of pictures inside ComfyUI's input folder: which there are, and what is in them."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ...magic.messages import shown

_DEPTH = 3
"""Levels below the input folder that are looked at."""
_MOST_NAMES = 5
"""File names that a message has at most."""
_OF_THE_SYSTEM = {"thumbs.db", "desktop.ini"}

Suits = Callable[[Path], bool]


@dataclass(frozen=True)
class PictureFiles:
    """The files of one folder. pictures: those that the host takes for pictures, by name; others:
    names of the files beside them, as messages show them."""

    pictures: tuple[Path, ...]
    others: tuple[str, ...]


def input_root() -> Path:
    import folder_paths

    return Path(folder_paths.get_input_directory())


def folders_that(suit: Suits) -> list[str]:
    """Names of folders up to three levels down in the input folder that suit and are no links to
    elsewhere."""
    root = input_root()
    names = (path.relative_to(root).as_posix() for path in _below(root, _DEPTH))
    return sorted(name for name in names if find_folder(name, suit) is not None)


def find_folder(name: str, suit: Suits) -> Path | None:
    """The folder that `folders_that` calls so; None for any other name."""
    parts = PurePosixPath(name).parts
    if not 1 <= len(parts) <= _DEPTH or "/".join(parts) != name or {"..", "/"} & {*parts}:
        return None
    root = input_root()
    folder = root.joinpath(*parts)
    # A name that is no text cannot be sent to the page, nor come back from it. NUL is in no name.
    with contextlib.suppress(OSError, ValueError):
        if is_text(name) and folder.is_dir() and suit(folder):
            return folder if folder.resolve().is_relative_to(root.resolve()) else None
    return None


def has_pictures(folder: Path) -> bool:
    """Whether there is a picture in the folder: reads no further than the first."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        return any(_are_pictures([entry.name]) and entry.is_file() for entry in entries)
    return False


def files_in(folder: Path) -> PictureFiles:
    """What is in a folder, itself only."""
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if entry.is_file())
    pictures = set(_are_pictures(names))
    others = (name for name in names if name not in pictures and not _is_hidden(name))
    return PictureFiles(
        tuple(folder / name for name in names if name in pictures), tuple(map(shown, others))
    )


def state_of_files(paths: Iterable[Path]) -> str:
    """Changes when one of the files does. Folders stand for the files in them."""
    digest = hashlib.sha256()
    for path in paths:
        for name, status in _statuses(path):
            line = f"{name} {status.st_size} {status.st_mtime_ns}\n"
            digest.update(line.encode(errors="surrogateescape"))
    return digest.hexdigest()


def is_text(name: str) -> bool:
    """Whether a file's name is UTF-8, as everything that is shown or sent must be."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def some_of(names: Iterable[str]) -> str:
    """Names for a message, the first of many."""
    names = tuple(names)
    more = len(names) - _MOST_NAMES
    return ", ".join(names[:_MOST_NAMES]) + (f" and {more} more" if more > 0 else "")


def log_others(folder: str, others: Iterable[str]) -> None:
    """Says which files of a folder were not read."""
    names = tuple(others)
    if names:
        logging.warning("MagicPortrait: folder '%s': not read: %s", folder, some_of(names))


def _below(folder: Path, depth: int) -> Iterator[Path]:
    """Folders in a folder, down to `depth` levels. What may not be read is left out."""
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if entry.is_dir()]
    except OSError:
        return
    for name in names:
        yield folder / name
        if depth > 1 and not (folder / name).is_symlink():
            yield from _below(folder / name, depth - 1)


def _are_pictures(names: list[str]) -> list[str]:
    """Those of the names that the host's Load Image would offer."""
    import folder_paths

    return folder_paths.filter_files_content_types(names, ["image"])


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in _OF_THE_SYSTEM


def _statuses(path: Path) -> Iterator[tuple[str, os.stat_result]]:
    # A file may go while it is looked for.
    with contextlib.suppress(OSError):
        if path.is_file():
            yield path.name, path.stat()
            return
        with os.scandir(path) as entries:
            files = sorted((entry for entry in entries if entry.is_file()), key=lambda e: e.name)
        for entry in files:
            yield f"{path.name}/{entry.name}", entry.stat()
