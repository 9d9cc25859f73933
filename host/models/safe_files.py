"""Files of ours on disk: whole or not there at all, whatever happens to the process, the disk or
the name.

What is written goes to a part file in the same folder, which takes the final name once the disk has
it. A killed process leaves the old file as it was, and a part file, which a later writer in that
folder removes.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import re
import unicodedata
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

from torch import Tensor

from ...magic.typed import unseen_in

ABANDONED_AFTER = 3600.0
"""Seconds without a change after which nobody writes to a part file any more."""

_PART = re.compile(r"magicportrait-[0-9a-f]{32}\.part")
_LONGEST_NAME = 255
_NUMBER = "_00001_"
_SHOWN = 60

_REASONS = {
    errno.ENOSPC: "the disk is full: make room there",
    errno.EDQUOT: "what you may use of that disk is used up: make room there",
    errno.EFBIG: "it is larger than one file may be there (the disk's format, or ulimit -f)",
    errno.EROFS: "that disk is read-only: choose another place, or allow writing",
    errno.EACCES: "ComfyUI may not write there: choose another place, or allow it",
    errno.EPERM: "ComfyUI may not write there: choose another place, or allow it",
    errno.ENAMETOOLONG: "the name is too long for that disk: take a shorter one",
    errno.ENOTDIR: "there is a file where a folder is needed: move it, or take another name",
    errno.EEXIST: "there is a file where a folder is needed: move it, or take another name",
    errno.EISDIR: "there is a folder of that name: move it, or take another name",
}


class UnwritableFile(OSError):
    """A file could not be written; the text says which, why, and what to do."""


def write_file(path: Path, content: bytes, is_lasting: bool = True) -> None:
    """Writes a file, in the place of one that is there, with the rights that the umask gives.

    is_lasting: waits until the disk has it, so that not even a power cut undoes it; False for what
    does not outlive the process. UnwritableFile for any reason.
    """
    with _saying_why(path), _part(path, content, is_lasting) as part:
        os.replace(part, path)


def write_new_file(path: Path, content: bytes) -> bool:
    """As `write_file`, but a file that is there already stays, and False says so."""
    with _saying_why(path), _part(path, content, is_lasting=True) as part:
        try:
            os.link(part, path)
        except FileExistsError:
            return False
        except OSError:
            # Not every file system has links.
            if path.exists():
                return False
            os.replace(part, path)
        return True


def write_numbered(root: Path, prefix: str, contents: Mapping[str, bytes]) -> list[Path]:
    """Writes files of one new name, numbered as the host numbers pictures: all of them, or none.

    prefix: what the user wrote, such as 'sub/face' for root/sub/face_00001_.csv, with or without
    the suffix; contents: what goes into each file, by suffix ('.csv'). UnwritableFile as in
    `write_file`, for a prefix that leads out of `root`, and for names that hide a file: with a dot
    in front, or with characters that nobody sees.
    """
    import folder_paths

    *above, last = os.path.normpath(prefix).split(os.sep)
    for part in [*(part for part in above if part != os.pardir), last]:
        if part.startswith("."):
            of = "" if part == prefix else f" in {_quote(prefix)}"
            raise UnwritableFile(
                f"the name {_quote(part)}{of} begins with a dot, and its file would be hidden: take"
                " another one"
            )
    if unseen := unseen_in(prefix):
        raise UnwritableFile(
            f"the name {_quote(prefix)} has a character in it that nobody sees ({unseen}): type it"
            " anew, or take another one"
        )
    for suffix in contents:
        # Whoever writes it means the same file.
        if prefix.lower().endswith(suffix):
            prefix = prefix[: -len(suffix)].rstrip()
            break
    longest = max(map(len, contents), default=0) + len(_NUMBER)
    _check_name(root / prefix, _LONGEST_NAME - longest)
    with _saying_why(root / prefix):
        try:
            folder, stem, first, *_ = folder_paths.get_save_image_path(prefix, str(root))
        except OSError:
            raise
        # The host raises no class of its own.
        except Exception as error:
            raise UnwritableFile(
                f"the name {_quote(prefix)} leads out of {root}: take one that stays inside"
            ) from error
    for number in itertools.count(first):
        paths = [Path(folder) / f"{stem}_{number:05}_{suffix}" for suffix in contents]
        with contextlib.ExitStack() as undo:
            for path, content in zip(paths, contents.values(), strict=True):
                if not write_new_file(path, content):
                    break
                undo.callback(path.unlink)
            else:
                undo.pop_all()
                return paths
    raise AssertionError("numbers do not end")


def tensor_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """Tensors of any device as the content of a safetensors file. It is in memory as a whole: for
    some hundred MB."""
    from safetensors.torch import save

    content: dict[str, Tensor] = {}
    places: set[int] = set()
    for name, tensor in tensors.items():
        own = tensor.detach().cpu().contiguous()
        place = own.untyped_storage().data_ptr()
        # safetensors refuses tensors that share memory.
        content[name] = own.clone() if place in places else own
        places.add(place)
    return save(content, None if metadata is None else dict(metadata))


@contextlib.contextmanager
def _part(path: Path, content: bytes, is_lasting: bool) -> Iterator[Path]:
    """A file with the content beside `path`. It is gone afterwards, if it has not been moved."""
    _check_name(path, _LONGEST_NAME)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"magicportrait-{uuid.uuid4().hex}.part")
    try:
        # A new file as any program makes one, so with the umask's rights.
        with open(part, "xb") as file:
            file.write(content)
            file.flush()
            if is_lasting:
                os.fsync(file.fileno())
        _remove_abandoned(path.parent, part.stat().st_mtime)
        yield part
        if is_lasting:
            _settle(path.parent)
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def _remove_abandoned(folder: Path, now: float) -> None:
    """now: by the clock that dates the files of that folder, which may be another machine's."""
    with os.scandir(folder) as entries:
        parts = [entry for entry in entries if _PART.fullmatch(entry.name)]
    for entry in parts:
        # Another writer may remove it in this moment, and another user may own it.
        with contextlib.suppress(OSError):
            if now - entry.stat().st_mtime > ABANDONED_AFTER:
                os.unlink(entry)


def _settle(folder: Path) -> None:
    """Waits until the disk knows the names in a folder. Not every system can open one for that."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def _saying_why(path: Path) -> Iterator[None]:
    try:
        yield
    except UnwritableFile:
        raise
    except OSError as error:
        reason = _REASONS.get(error.errno or 0, error.strerror or str(error))
        raise UnwritableFile(
            f"{_quote(path.name)} could not be written into {path.parent}: {reason}"
        ) from error


def _check_name(path: Path, longest: int) -> None:
    """UnwritableFile for names that no disk takes. longest: bytes that the last name may have."""
    for name in path.parts:
        try:
            size = len(os.fsencode(name))
        except UnicodeEncodeError as error:
            raise UnwritableFile(
                f"the name {_quote(name)} has characters that cannot be written: take another one"
            ) from error
        if "\0" in name:
            raise UnwritableFile(
                f"the name {_quote(name)} has a NUL character in it: take another one"
            )
        if any(unicodedata.category(character) == "Cc" for character in name):
            raise UnwritableFile(
                f"the name {_quote(name)} has a control character in it, such as the end of a line:"
                " take another one"
            )
        if size > (longest if name == path.name else _LONGEST_NAME):
            raise UnwritableFile(
                f"the name {_quote(name)} has {size} bytes, {longest} are the most: take a shorter"
                " one"
            )


def _quote(name: str) -> str:
    """A name for a message, without control characters and not too long."""
    plain = ascii(name)[1:-1] if not name.isprintable() else name
    return f"'{plain if len(plain) <= _SHOWN else plain[:_SHOWN] + '...'}'"
