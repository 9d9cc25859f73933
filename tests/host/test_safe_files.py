"""Files are written whole or not at all, and what cannot be written is said in words."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from magicportrait.host.models.safe_files import (
    ABANDONED_AFTER,
    UnwritableFile,
    tensor_bytes,
    write_file,
    write_new_file,
    write_numbered,
)

ROOT = Path(__file__).resolve().parents[2]
PREPARED = """
import os, resource, signal, sys
from pathlib import Path
sys.path.append(sys.argv[1])
from devkit.pack import load_pack
load_pack()
from magicportrait.host.models import safe_files
path = Path(sys.argv[2])
"""
KILLED = f"""{PREPARED}
safe_files.os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)
safe_files.write_file(path, b"new" * 1000)
"""
LIMITED = f"""{PREPARED}
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    safe_files.write_file(path, b"new" * 1000)
except safe_files.UnwritableFile as error:
    print(error)
"""
needs_unix = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such thing")


def child(code: str, path: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, str(ROOT), str(path)]
    return subprocess.run(command, capture_output=True, text=True)


def test_a_file_takes_the_place_of_the_old_one(tmp_path):
    path = tmp_path / "new" / "folder" / "file.bin"
    for content in (b"old", b"new"):
        write_file(path, content)
        assert path.read_bytes() == content and list(path.parent.iterdir()) == [path]


@needs_unix
@pytest.mark.parametrize(("mask", "rights"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
@pytest.mark.parametrize("write", [write_file, write_new_file])
def test_a_file_has_the_rights_of_the_umask(write, mask, rights, tmp_path):
    before = os.umask(mask)
    try:
        write(tmp_path / "file", b"content")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == rights


@needs_unix
def test_a_writer_that_is_killed_leaves_the_old_file_and_nothing_for_good(tmp_path):
    path = tmp_path / "file"
    write_file(path, b"old")
    assert child(KILLED, path).returncode == -signal.SIGKILL
    assert path.read_bytes() == b"old"
    [part] = set(tmp_path.iterdir()) - {path}

    write_file(path, b"of another writer")
    assert part.exists(), "its writer may be alive"
    dead_since = path.stat().st_mtime - ABANDONED_AFTER - 1
    os.utime(part, (dead_since, dead_since))
    (tmp_path / "another.part").touch()
    os.utime(tmp_path / "another.part", (0, 0))
    write_file(path, b"new")
    assert {entry.name for entry in tmp_path.iterdir()} == {"file", "another.part"}


@needs_unix
def test_a_file_beyond_the_systems_limit_is_refused_in_words(tmp_path):
    path = tmp_path / "file"
    write_file(path, b"old")
    result = child(LIMITED, path)
    assert "'file' could not be written into" in result.stdout, result.stderr
    assert "larger than one file may be" in result.stdout
    assert list(tmp_path.iterdir()) == [path] and path.read_bytes() == b"old"


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.ENOSPC, "the disk is full: make room"),
        (errno.EROFS, "that disk is read-only"),
        (errno.EACCES, "ComfyUI may not write there"),
        (errno.EIO, os.strerror(errno.EIO)),
    ],
)
@pytest.mark.parametrize("write", [write_file, write_new_file])
def test_what_the_disk_says_is_said_in_words(write, code, words, tmp_path, monkeypatch):
    def fail(*_: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(UnwritableFile, match=rf"^'file' could not be written into .*: {words}"):
        write(tmp_path / "file", b"content")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("write", [write_file, write_new_file])
def test_a_file_where_a_folder_is_needed_is_named(write, tmp_path):
    (tmp_path / "taken").touch()
    for path in (tmp_path / "taken" / "file", tmp_path / "taken" / "deeper" / "file"):
        with pytest.raises(UnwritableFile, match="there is a file where a folder is needed"):
            write(path, b"content")


def test_a_folder_of_the_files_name_is_named(tmp_path):
    (tmp_path / "file").mkdir()
    with pytest.raises(UnwritableFile, match="there is a folder of that name"):
        write_file(tmp_path / "file", b"content")
    assert not write_new_file(tmp_path / "file", b"content")
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("x" * 256, r"'x{60}\.\.\.' has 256 bytes, 255 are the most: take a shorter one"),
        ("帽" * 100, r"has 300 bytes, 255 are the most"),
        ("a\0b", r"the name 'a\\x00b' has a NUL character"),
        ("a\ud800b", r"the name 'a\\ud800b' has characters that cannot be written"),
    ],
)
@pytest.mark.parametrize("is_folder", [False, True])
def test_a_name_that_no_disk_takes_is_refused_in_words(name, words, is_folder, tmp_path):
    with pytest.raises(UnwritableFile, match=words):
        write_file(tmp_path / name / "file" if is_folder else tmp_path / name, b"content")


def test_the_longest_name_is_written(tmp_path):
    write_file(tmp_path / ("x" * 255), b"content")


def test_a_new_file_does_not_take_the_place_of_another(tmp_path):
    assert write_new_file(tmp_path / "file", b"first")
    assert not write_new_file(tmp_path / "file", b"second")
    assert [entry.read_bytes() for entry in tmp_path.iterdir()] == [b"first"]


def test_a_new_file_is_written_where_there_are_no_links(tmp_path, monkeypatch):
    def fail(*_: Any) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", fail)
    test_a_new_file_does_not_take_the_place_of_another(tmp_path)


def test_files_are_numbered_together(tmp_path):
    contents = {".csv": b"table", ".json": b"{}"}
    assert write_numbered(tmp_path, "sub/face", contents) == [
        tmp_path / "sub" / "face_00001_.csv",
        tmp_path / "sub" / "face_00001_.json",
    ]
    (tmp_path / "sub" / "face_00001_.csv").unlink()
    assert write_numbered(tmp_path, "sub/face", contents)[0].name == "face_00002_.csv"
    assert write_numbered(tmp_path, "sub/face.CSV", contents)[0].name == "face_00003_.csv"


def test_a_number_that_another_takes_in_this_moment_stays_its(tmp_path, monkeypatch):
    import folder_paths

    first = (str(tmp_path), "face", 1, "", "face")
    monkeypatch.setattr(folder_paths, "get_save_image_path", lambda *_: first)
    (tmp_path / "face_00001_.json").write_bytes(b"another's")
    written = write_numbered(tmp_path, "face", {".csv": b"table", ".json": b"{}"})
    assert [path.name for path in written] == ["face_00002_.csv", "face_00002_.json"]
    assert not (tmp_path / "face_00001_.csv").exists()
    assert (tmp_path / "face_00001_.json").read_bytes() == b"another's"


def test_on_a_full_disk_none_of_several_files_is_written(tmp_path, monkeypatch):
    written, fsync = [], os.fsync

    def fill_up(descriptor: int) -> None:
        written.append(descriptor)
        # Each file is settled, then its folder.
        if len(written) > 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fill_up)
    with pytest.raises(UnwritableFile, match=r"'face_00001_\.json' .* the disk is full"):
        write_numbered(tmp_path, "face", {".csv": b"table", ".json": b"{}"})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["x" * 250, "sub/" + "x" * 250, "y" * 256 + "/face", "a\0b"])
def test_a_numbered_name_that_no_disk_takes_is_refused_in_words(name, tmp_path):
    with pytest.raises(UnwritableFile, match=r"take a shorter one|NUL character"):
        write_numbered(tmp_path, name, {".safetensors": b""})
    assert not list(tmp_path.iterdir())


def test_a_numbered_name_may_be_as_long_as_its_number_and_suffix_leave_room(tmp_path):
    [path] = write_numbered(tmp_path, "x" * 236, {".safetensors": b""})
    assert len(path.name) == 255


def test_tensors_that_share_memory_or_are_not_contiguous_are_written(tmp_path):
    grid = torch.arange(12.0).reshape(3, 4)
    tensors = {"grid": grid, "alike": grid, "row": grid[1], "turned": grid.T, "none": grid[:0]}
    read = safetensors.torch.load(tensor_bytes(tensors, {"mark": "text"}))
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())
