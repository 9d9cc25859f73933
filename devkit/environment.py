"""The Python environment: .venv, or one that the user has."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from devkit.pack import ROOT, WINDOWS, DevError

VENV = ROOT / ".venv"

TORCH = ["torch==2.11.0", "torchvision==0.26.0", "torchaudio==2.11.0"]

REQUIREMENTS = ROOT / "requirements.txt"
OPTIONAL_REQUIREMENTS = ROOT / "requirements-optional.txt"
TEST_REQUIREMENTS = ROOT / "tests" / "requirements.txt"

STOP_TIMEOUT = 30.0
LIST_MISSING = """
import importlib.metadata, sys
for name in sys.argv[1:]:
    try:
        importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        print(name)
"""


def venv_program(name: str) -> Path:
    return VENV / "Scripts" / f"{name}.exe" if WINDOWS else VENV / "bin" / name


def create_venv() -> None:
    if venv_program("python").exists():
        return
    # A newcomer's Python may be older than the project allows.
    if sys.version_info < (3, 10):  # noqa: UP036
        raise DevError(f"Python 3.10 or newer is needed, this is {platform.python_version()}")
    print(f"creating {VENV}", flush=True)
    with contextlib.ExitStack() as undo:
        # A half-made one would be taken for whole the next time.
        if not VENV.exists():
            undo.callback(shutil.rmtree, VENV, ignore_errors=True)
        try:
            subprocess.run([sys.executable, "-m", "venv", str(VENV)], check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            hint = (
                "install its venv module (Debian, Ubuntu: `apt install python3-venv`), or pass"
                " --python EXE"
            )
            raise DevError(
                f"{sys.executable or 'this Python'} cannot create {VENV}: {hint}"
            ) from error
        undo.pop_all()


def pip_command(python: Path, arguments: Iterable[str]) -> list[str]:
    return [str(python), "-m", "pip", "install", "--disable-pip-version-check", *arguments]


def pip_install(python: Path, arguments: Iterable[str]) -> None:
    command = pip_command(python, arguments)
    if subprocess.run(command).returncode:
        raise DevError(f"this failed: {subprocess.list2cmdline(command)}")


def utf8(environment: Mapping[str, str]) -> dict[str, str]:
    """For a Python whose output is read: elsewhere than on a terminal it would write in the
    encoding of the system."""
    return {**environment, "PYTHONIOENCODING": "utf-8"}


def ask_python(python: Path, code: str, *arguments: str) -> str:
    answer = subprocess.run(
        [str(python), "-c", code, *arguments],
        capture_output=True,
        env=utf8(os.environ),
        encoding="utf-8",
        errors="replace",
    )
    if answer.returncode:
        raise DevError(f"{python} failed:\n{answer.stderr.strip()}")
    return answer.stdout.strip()


def has_torch(python: Path) -> bool:
    return (
        ask_python(python, "import importlib.util as u; print(u.find_spec('torch') is not None)")
        == "True"
    )


def needs_cpu_flag(python: Path) -> bool:
    return (
        ask_python(
            python,
            "import torch; print(torch.cuda.is_available() or torch.backends.mps.is_available())",
        )
        == "False"
    )


def missing_packages(python: Path, files: Iterable[Path]) -> list[str]:
    """Looks for distributions rather than modules: those are the names that requirement files
    use."""
    names = re.findall(
        r"^[A-Za-z][\w.-]*",
        "\n".join([*TORCH, *(file.read_text(encoding="utf-8") for file in files)]),
        re.MULTILINE,
    )
    return ask_python(python, LIST_MISSING, *names).split()


def prepare_python(interpreter: Path | None, host: Path | None, with_tests: bool = False) -> Path:
    """The Python to work with: `interpreter` as it is, or the one of .venv with everything
    installed. DevError when something is missing, or cannot be installed."""
    files = {"host": host / "requirements.txt"} if host else {}
    files["pack"] = REQUIREMENTS
    if with_tests:
        files.update(optional=OPTIONAL_REQUIREMENTS, tests=TEST_REQUIREMENTS)
    if interpreter:
        if missing := missing_packages(interpreter, files.values()):
            arguments = [*TORCH] if "torch" in missing else []
            for file in files.values():
                arguments += ["-r", str(file)]
            command = subprocess.list2cmdline(pip_command(interpreter, arguments))
            raise DevError(
                f"{interpreter} lacks {', '.join(dict.fromkeys(missing))}; this installs them:\n "
                f" {command}"
            )
        return interpreter

    create_venv()
    python = venv_program("python")
    stamp = VENV / "magicportrait.json"
    installed = json.loads(stamp.read_text(encoding="utf-8")) if stamp.exists() else {}
    if not has_torch(python):
        print("installing torch, a large download", flush=True)
        pip_install(python, TORCH)
    for role, file in files.items():
        digest = hashlib.sha256(" ".join(TORCH).encode() + file.read_bytes()).hexdigest()
        if installed.get(role) != digest:
            print(f"installing {file}", flush=True)
            pip_install(python, ["--quiet", "-r", str(file)])
            installed[role] = digest
            stamp.write_text(json.dumps(installed), encoding="utf-8")
    return python


def run_module(python: Path, module: str, arguments: Iterable[str]) -> int:
    """Runs a module of this project to its end and returns its exit code; it ends with us."""
    process = subprocess.Popen([str(python), "-m", module, *arguments], cwd=ROOT)
    try:
        return process.wait()
    except KeyboardInterrupt:
        # Ctrl-C reaches every process of a terminal: it is stopping its server.
        try:
            process.wait(timeout=STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            process.terminate()
        raise
    except BaseException:
        process.terminate()
        process.wait(timeout=STOP_TIMEOUT)
        raise
