"""dev.py on machines that are not as they should be."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import dev
from devkit import demo, environment, serve
from devkit.environment import ask_python, create_venv
from devkit.pack import ROOT, DevError, link_pack
from devkit.progress import Progress
from devkit.server import Server, is_taken


class Terminal:
    def __init__(self) -> None:
        self.lines = [""]

    def isatty(self) -> bool:
        return True

    def flush(self) -> None:
        pass

    def write(self, text: str) -> None:
        """As a console without escape sequences does it: a carriage return goes back, and what is
        there stays until written over."""
        for line in text.split("\r")[1:]:
            self.lines.append(line + self.lines[-1][len(line) :])


def test_a_port_that_is_taken_is_an_error_before_anything_starts(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        comfyui = Server(tmp_path, Path(sys.executable), tmp_path / "base", cpu=True, port=port)
        with pytest.raises(DevError, match=f"port {port} is in use: pass --port"):
            comfyui.__enter__()
    assert not is_taken(port)
    assert not (tmp_path / "base").exists()


class WithoutPack(Server):
    def __enter__(self) -> WithoutPack:
        self.log_path = None
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def object_info(self) -> dict[str, Any]:
        return {"KSampler": {}}


@pytest.mark.parametrize("command", ["serve", "demo"])
def test_a_comfyui_without_the_pack_is_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: str
) -> None:
    (tmp_path / "comfyui_version.py").write_text('__version__ = "1"')
    for module in (demo, serve):
        monkeypatch.setattr(module, "needs_cpu_flag", lambda python: True)
        monkeypatch.setattr(module, "Server", WithoutPack)
    with pytest.raises(DevError, match="did not load"):
        if command == "demo":
            workflow = ROOT / "workflows" / "MagicFace-1-one-concept.json"
            demo.demo(tmp_path, workflow, tmp_path / "output")
        else:
            serve.serve(tmp_path, 1)


@pytest.mark.parametrize(
    "error",
    [subprocess.CalledProcessError(1, "python -m venv"), FileNotFoundError(), KeyboardInterrupt()],
)
def test_a_half_made_environment_is_removed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: BaseException
) -> None:
    venv = tmp_path / ".venv"

    def fails(command: list[str], **_: Any) -> None:
        (venv / "bin").mkdir(parents=True)
        (venv / "bin" / "python").touch()
        raise error

    monkeypatch.setattr(environment, "VENV", venv)
    monkeypatch.setattr(subprocess, "run", fails)
    expected: Any = KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else DevError
    with pytest.raises(
        expected, match=None if expected is KeyboardInterrupt else "python3-venv.*--python EXE"
    ):
        create_venv()
    assert not venv.exists()


def test_an_interpreter_is_looked_up_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def which(name: Any) -> str:
        # What Windows does before Python 3.12.
        return str(Path(sys.executable).with_name(name.lower()))

    monkeypatch.setattr(shutil, "which", which)
    assert dev.interpreter("python") == Path(os.path.abspath(sys.executable)).with_name("python")


def test_a_junction_whose_target_is_gone_is_replaced(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    link, pack = tmp_path / "link", tmp_path / "pack"
    link.mkdir()
    pack.mkdir()
    exists = Path.exists
    monkeypatch.setattr(Path, "exists", lambda path: path != link and exists(path))

    link_pack(link, pack)

    monkeypatch.undo()
    assert link.samefile(pack)


def test_progress_leaves_a_clean_line_without_escape_sequences(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shutil, "get_terminal_size", lambda: os.terminal_size((40, 20)))
    terminal = Terminal()
    with contextlib.redirect_stdout(terminal):  # type: ignore[type-var]
        progress = Progress()
        progress.node("KSampler")
        progress.step(3, 6)
        progress.node("VAE")
        assert terminal.lines[-1].rstrip() == "VAE"
        progress.end()
    assert not terminal.lines[-1].strip()
    assert not any("\x1b" in line or len(line) > 39 for line in terminal.lines)


def test_progress_that_is_not_on_a_terminal_is_a_line_for_each_fifth(
    capsys: pytest.CaptureFixture[str],
) -> None:
    progress = Progress()
    progress.node("KSampler")
    for step in range(1, 26):
        progress.step(step, 25)
    progress.node("VAEDecode")
    progress.step(1, 1)
    progress.end()
    assert capsys.readouterr().out.splitlines() == [
        "KSampler",
        *(f"KSampler: {step} of 25" for step in (5, 10, 15, 20, 25)),
        "VAEDecode",
        "VAEDecode: 1 of 1",
    ]


def test_what_a_python_says_is_read_whatever_the_system_writes_in() -> None:
    """Forced: where UTF-8 is the system's encoding anyway, only a broken letter tells."""
    said = ask_python(
        Path(sys.executable),
        "import sys; sys.stdout.buffer.write(b'caf\\xe9'); print('é', sys.stdout.encoding)",
    )
    assert said == "caf\ufffdé utf-8"
