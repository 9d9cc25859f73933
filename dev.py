"""Runs this pack in a headless ComfyUI: `python dev.py demo`, `serve` or `test`. Standard library
only."""

from __future__ import annotations

import argparse
import base64
import concurrent.futures
import contextlib
import hashlib
import importlib.util
import io
import json
import os
import platform
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

from workflow_format import WorkflowError, to_api_prompt

ROOT = Path(__file__).resolve().parent
CACHE = ROOT / ".cache"
VENV = ROOT / ".venv"
PACK_NAME = "ComfyUI-MagicPortrait"
PACK_NODE = "MagicFaceApply"
TESTED_VERSION = "0.33.0"
TORCH = ["torch==2.11.0", "torchvision==0.26.0", "torchaudio==2.11.0"]
TEST_REQUIREMENTS = ROOT / "tests" / "requirements.txt"
START_TIMEOUT = 300.0
LIST_MISSING = """
import importlib.metadata, sys
for name in sys.argv[1:]:
    try:
        importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        print(name)
"""
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
WINDOWS = os.name == "nt"
FIND_HINT = (
    "set COMFYUI_PATH, pass --comfyui DIR, or install ComfyUI with `pip install comfy-cli` and"
    " `comfy install`"
)

# A proxy set in the environment must not get between us and the loopback interface.
http = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class DevError(Exception):
    """Something the user can act on: printed without a traceback."""


class HostNotFound(DevError):
    pass


# ---- the host ----


def is_comfyui(folder: Path) -> bool:
    return (
        (folder / "main.py").is_file()
        and (folder / "nodes.py").is_file()
        and (folder / "comfy").is_dir()
    )


def default_comfyui() -> Path:
    """Where comfy-cli installs when it is not told otherwise."""
    home = Path.home() if platform.system() == "Linux" else Path.home() / "Documents"
    return home / "comfy" / "ComfyUI"


def find_comfyui(chosen: Path | None = None) -> Path:
    """The ComfyUI folder: `chosen`, COMFYUI_PATH, the one this pack is installed in, or comfy-cli's
    default place."""
    named = chosen or os.environ.get("COMFYUI_PATH")
    if named:
        host = Path(named).expanduser().resolve()
        if not is_comfyui(host):
            raise DevError(
                f"{host} is not a ComfyUI folder (main.py, nodes.py and comfy/ expected)"
            )
        return host
    # A pack that is linked into custom_nodes has its host beside the link, not beside the link's
    # target.
    for pack in (Path(os.path.abspath(__file__)).parent, ROOT):
        if pack.parent.name == "custom_nodes" and is_comfyui(pack.parent.parent):
            return pack.parent.parent.resolve()
    if is_comfyui(default_comfyui()):
        return default_comfyui().resolve()
    raise HostNotFound(f"no ComfyUI found: {FIND_HINT}")


def load_pack() -> None:
    """Makes this folder importable as the package `magicportrait`, whatever it is called: for tests
    and benchmarks."""
    if "magicportrait" in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(
        "magicportrait", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    assert spec and spec.loader
    package = importlib.util.module_from_spec(spec)
    sys.modules["magicportrait"] = package
    spec.loader.exec_module(package)


def use_host() -> None:
    """Makes ComfyUI importable in this process, on the CPU when torch has nothing better."""
    import torch

    sys.path.insert(0, str(find_comfyui()))
    from comfy.cli_args import args

    # comfy.model_management reads this when it is imported, and refuses to work without a device.
    args.cpu = not (torch.cuda.is_available() or torch.backends.mps.is_available())


def host_version(host: Path) -> str:
    match = re.search(
        r'__version__ = "(.+?)"', (host / "comfyui_version.py").read_text(encoding="utf-8")
    )
    return match[1] if match else "unknown"


def install_comfyui() -> Path:
    """Installs the tested ComfyUI version with comfy-cli; its requirements are left to
    `prepare_python`."""
    print(f"no ComfyUI found, installing {TESTED_VERSION} into {default_comfyui()}")
    if platform.system() == "Darwin":
        hardware = "--m-series" if platform.machine() == "arm64" else "--cpu"
    else:
        hardware = "--nvidia" if shutil.which("nvidia-smi") else "--cpu"
    create_venv()
    comfy = venv_program("comfy")
    options = [
        "--skip-manager",
        "--skip-torch-or-directml",
        "--skip-requirement",
        "--version",
        TESTED_VERSION,
        hardware,
    ]
    workspace = ["--workspace", str(default_comfyui())]
    try:
        pip_install(venv_program("python"), ["comfy-cli"])
        subprocess.run([comfy, "--skip-prompt", *workspace, "install", *options], check=True)
        return find_comfyui()
    except (OSError, subprocess.CalledProcessError, DevError) as error:
        raise DevError(f"comfy-cli could not install ComfyUI ({error}): {FIND_HINT}") from error


# ---- the Python environment ----


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


def prepare_python(chosen: Path | None, host: Path | None, with_tests: bool = False) -> Path:
    """The interpreter to work with: `chosen` as it is, or the one of .venv with everything
    installed."""
    files = {"host": host / "requirements.txt"} if host else {}
    if with_tests:
        files["tests"] = TEST_REQUIREMENTS
    if chosen:
        if missing := missing_packages(chosen, files.values()):
            arguments = [*TORCH] if "torch" in missing else []
            for file in files.values():
                arguments += ["-r", str(file)]
            command = subprocess.list2cmdline(pip_command(chosen, arguments))
            raise DevError(
                f"{chosen} lacks {', '.join(dict.fromkeys(missing))}; this installs them:\n "
                f" {command}"
            )
        return chosen

    create_venv()
    python = venv_program("python")
    stamp = VENV / "magicportrait.json"
    wanted = {
        role: hashlib.sha256(" ".join(TORCH).encode() + file.read_bytes()).hexdigest()
        for role, file in files.items()
    }
    installed = json.loads(stamp.read_text(encoding="utf-8")) if stamp.exists() else {}
    if not has_torch(python):
        print("installing torch, a large download", flush=True)
        pip_install(python, TORCH)
    for role, file in files.items():
        if installed.get(role) != wanted[role]:
            print(f"installing {file}", flush=True)
            pip_install(python, ["--quiet", "-r", str(file)])
            installed[role] = wanted[role]
            stamp.write_text(json.dumps(installed), encoding="utf-8")
    return python


# ---- the server ----


def link_pack(link: Path, pack: Path) -> None:
    """Links the pack into custom_nodes. The link lies inside the pack, which is harmless: ComfyUI
    looks only at its top level."""
    if link.exists() and link.samefile(pack):
        return
    if link.is_symlink():
        link.unlink()
    elif os.path.lexists(
        link
    ):  # a junction whose target is gone does not exist for Path, and is no symlink
        try:
            os.rmdir(link)  # removes a Windows junction without touching its target
        except OSError:
            shutil.rmtree(link)
    try:
        if WINDOWS:
            subprocess.run(
                ["cmd", "/c", "mklink", "/J", str(link), str(pack)], check=True, capture_output=True
            )
        else:
            link.symlink_to(pack, target_is_directory=True)
    except (OSError, subprocess.CalledProcessError):
        shutil.copytree(
            pack, link, ignore=shutil.ignore_patterns(".*", "__pycache__", "output", "training")
        )


def find_browser() -> str:
    """A program that Playwright can drive."""
    if program := next(filter(None, map(shutil.which, BROWSERS)), None):
        return program
    raise DevError(
        f"no browser: install one of {', '.join(BROWSERS)}, such as with `apt install chromium`"
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def is_taken(port: int) -> bool:
    """Whether something answers there: a ComfyUI of the user would be taken for ours."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


class Server:
    """ComfyUI with the pack linked in, as a context manager: it answers on entry and is stopped on
    exit, whatever happens."""

    def __init__(
        self,
        host: Path,
        python: Path,
        base: Path,
        *,
        cpu: bool,
        port: int | None = None,
        log_to_file: bool = True,
        pack: Path = ROOT,
    ) -> None:
        self.host, self.python, self.base, self.cpu, self.pack = (
            host,
            python,
            base.resolve(),
            cpu,
            pack,
        )
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.input_dir = self.base / "input"
        self.log_path = self.base / "server.log" if log_to_file else None

    def __enter__(self) -> Server:
        if is_taken(self.port):
            raise DevError(f"port {self.port} is in use: pass --port")
        for name in ("custom_nodes", "input", "output", "models", "user"):
            (self.base / name).mkdir(parents=True, exist_ok=True)
        link_pack(self.base / "custom_nodes" / PACK_NAME, self.pack)
        command = [
            str(self.python),
            "main.py",
            "--base-directory",
            str(self.base),
            "--port",
            str(self.port),
            "--disable-auto-launch",
        ]
        # --base-directory does not move the database, which would end up in the host's folder.
        command += ["--database-url", f"sqlite:///{(self.base / 'user' / 'comfyui.db').as_posix()}"]
        if self.cpu:
            command.append("--cpu")
        with contextlib.ExitStack() as stack:
            output = stack.enter_context(self.log_path.open("wb")) if self.log_path else None
            self.process = subprocess.Popen(
                command, cwd=self.host, env=utf8(os.environ), stdout=output, stderr=output
            )
        try:
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise self.failure(
                    f"ComfyUI ended with exit code {self.process.returncode} while starting"
                )
            try:
                self.object_info()
                return
            except OSError:
                time.sleep(0.3)
        raise self.failure(f"ComfyUI did not answer within {START_TIMEOUT:.0f} seconds")

    @property
    def log(self) -> str:
        text = self.log_path.read_text(encoding="utf-8", errors="replace") if self.log_path else ""
        return re.sub(r"\x1b\[[\d;]*m", "", text)

    def failure(self, reason: str) -> DevError:
        tail = "\n".join(f"  | {line}" for line in self.log.splitlines()[-40:])
        return DevError(f"{reason}\n{tail}\nlog: {self.log_path}" if self.log_path else reason)

    def get(self, path: str) -> bytes:
        with http.open(self.url + path, timeout=60) as answer:
            content: bytes = answer.read()
            return content

    def post(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        request = urllib.request.Request(
            self.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            with http.open(request, timeout=60) as answer:
                return answer.status, json.loads(answer.read() or b"{}")
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def object_info(self) -> dict[str, Any]:
        info: dict[str, Any] = json.loads(self.get("/object_info"))
        return info

    def info_with_pack(self) -> dict[str, Any]:
        """What nodes there are, ours among them."""
        info = self.object_info()
        if PACK_NODE not in info:
            raise self.failure(f"ComfyUI runs, but {PACK_NAME} did not load")
        return info

    def fetch(self, picture: dict[str, str]) -> bytes:
        """The file that one entry of a node's `images` output refers to."""
        return self.get(f"/view?{urllib.parse.urlencode(picture)}")


class EventStream:
    """Reads ComfyUI's JSON messages: as much of a WebSocket client (RFC 6455) as that needs."""

    def __init__(self, port: int, path: str) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.stream = self.socket.makefile("rb")
        key = base64.b64encode(os.urandom(16)).decode()
        headers = f"Host: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        self.socket.sendall(
            f"GET {path} HTTP/1.1\r\n{headers}Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version:"
            " 13\r\n\r\n".encode()
        )
        status = self.stream.readline()
        if b" 101 " not in status:
            raise DevError(
                f"ComfyUI refused the event stream: {status.decode(errors='replace').strip()}"
            )
        while self.stream.readline().strip():
            pass

    def close(self) -> None:
        self.stream.close()
        self.socket.close()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        message, is_text = b"", False
        while len(header := self.stream.read(2)) == 2:
            last, opcode, length = header[0] & 0x80, header[0] & 0x0F, header[1] & 0x7F
            if length >= 126:
                length = int.from_bytes(self.stream.read(2 if length == 126 else 8), "big")
            payload = self.stream.read(length)
            if opcode == 8:
                return
            if opcode == 9:
                # A pong; a client's frames must be masked, and four zero bytes are a valid mask.
                self.socket.sendall(bytes([0x8A, 0x80 | length]) + bytes(4) + payload)
            if opcode > 2:
                continue
            if opcode:
                message, is_text = b"", opcode == 1
            message += payload
            if last and is_text:
                yield json.loads(message)


# ---- demo ----


class Progress:
    """One line that is rewritten on a terminal, one line for each node elsewhere."""

    def __init__(self) -> None:
        self.interactive = sys.stdout.isatty()
        self.title = ""
        self.width = 0

    def node(self, title: str) -> None:
        self.title = title
        if self.interactive:
            self._rewrite(title)
        else:
            print(title, flush=True)

    def step(self, value: float, maximum: float) -> None:
        if self.interactive and maximum:
            done = min(30, int(30 * value / maximum))
            self._rewrite(
                f"[{'#' * done}{'-' * (30 - done)}] {value:.0f}/{maximum:.0f} {self.title}"
            )

    def end(self) -> None:
        if self.interactive:
            self._rewrite("")
            print("\r", end="", flush=True)

    def _rewrite(self, line: str) -> None:
        """With spaces over what was there: an old Windows console knows no escape sequences, and
        prints them."""
        line = line[: shutil.get_terminal_size().columns - 1]
        print(f"\r{line.ljust(self.width)}", end="", flush=True)
        self.width = len(line)


def describe_rejection(answer: dict[str, Any]) -> str:
    """ComfyUI's answer to an invalid prompt, one line for each complaint."""
    lines = ["ComfyUI rejects the workflow"]
    if error := answer.get("error"):
        lines[0] += f": {error['message']} {error.get('details') or ''}".rstrip()
    for node_id, node in (answer.get("node_errors") or {}).items():
        for error in node["errors"]:
            lines.append(
                f"  {node['class_type']} (node {node_id}): {error['message']}:"
                f" {error.get('details') or ''}".rstrip(": ")
            )
    return "\n".join(lines)


def describe_failure(error: dict[str, Any]) -> str:
    """What went wrong in which node, and the innermost calls; the whole traceback is in the
    server's log."""
    where = f"{error['node_type']} (node {error['node_id']})"
    calls = re.sub(r"^[ ~^]+\n", "", "".join(error["traceback"][-3:]), flags=re.MULTILINE)
    message = f"{error['exception_type']}: {error['exception_message'].strip()}"
    return f"{where} failed: {message}\n{calls}".rstrip()


def run_prompt(server: Server, prompt: dict[str, Any]) -> list[dict[str, str]]:
    """Runs an API prompt to its end and returns references to its pictures."""
    client = uuid.uuid4().hex
    pictures: list[dict[str, str]] = []
    progress = Progress()
    with contextlib.closing(EventStream(server.port, f"/ws?clientId={client}")) as events:
        status, answer = server.post("/prompt", {"prompt": prompt, "client_id": client})
        # Status 200 with node errors means that ComfyUI would run only a part of the workflow.
        if status != 200 or answer.get("node_errors"):
            raise DevError(describe_rejection(answer))
        try:
            for event in events:
                kind, data = event["type"], event["data"]
                if data.get("prompt_id") != answer["prompt_id"]:
                    continue
                if kind == "executing" and data["node"] is None:
                    return pictures
                if kind == "executing":
                    progress.node(
                        prompt.get(data["display_node"], {}).get("class_type", data["display_node"])
                    )
                elif kind == "progress":
                    progress.step(data["value"], data["max"])
                elif kind == "executed":
                    pictures += (data["output"] or {}).get("images", [])
                elif kind == "execution_error":
                    progress.end()
                    raise DevError(describe_failure(data))
                elif kind == "execution_interrupted":
                    raise DevError("the execution was interrupted")
        finally:
            progress.end()
    raise server.failure("ComfyUI ended during the execution")


def find_or_install_comfyui(chosen: Path | None) -> Path:
    try:
        return find_comfyui(chosen)
    except HostNotFound:
        return install_comfyui()


def host_and_python(options: argparse.Namespace) -> tuple[Path, Path]:
    host = find_or_install_comfyui(options.comfyui)
    return host, prepare_python(options.python, host)


def demo(options: argparse.Namespace) -> int:
    try:
        workflow = json.loads(options.workflow.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DevError(f"cannot read {options.workflow}: {error}") from error
    host, python = host_and_python(options)
    cpu = needs_cpu_flag(python)
    print(f"ComfyUI {host_version(host)} in {host}, on the {'CPU' if cpu else 'GPU'}", flush=True)
    with Server(host, python, CACHE / "comfyui", cpu=cpu) as server:
        pictures = run_prompt(server, to_api_prompt(workflow, server.info_with_pack()))
        options.output.mkdir(parents=True, exist_ok=True)
        for picture in pictures:
            path = options.output / Path(picture["filename"]).name
            path.write_bytes(server.fetch(picture))
            print(path)
    return 0


def serve(options: argparse.Namespace) -> int:
    host, python = host_and_python(options)
    cpu = needs_cpu_flag(python)
    with Server(
        host, python, CACHE / "comfyui", cpu=cpu, port=options.port, log_to_file=False
    ) as server:
        server.info_with_pack()
        print(f"\nopen {server.url} (workflows: Templates > {PACK_NAME}; Ctrl-C stops)", flush=True)
        return server.process.wait()


# ---- test ----


HOST_HARDLY_MATTERS = (
    "test_analysis.py",
    "test_devices.py",
    "test_exploration.py",
    "test_help_pages.py",
    "test_locales.py",
    "test_magicapture.py",
    "test_masks.py",
    "test_metrics.py",
    "test_suite.py",
)
"""Tests of ours that ask little of ComfyUI's version (run them with COMFYUI_PATH): on the second
one the minutes go to the others."""


class Outcome(NamedTuple):
    passed: int = 0
    failed: int = 0
    skipped: int = 0

    def __str__(self) -> str:
        return f"{self.passed} passed, {self.failed} failed" + (
            f", {self.skipped} skipped" if self.skipped else ""
        )


def check(command: list[str], environment: dict[str, str], output: IO[str] | None) -> Outcome:
    return Outcome(
        failed=(
            1
            if subprocess.run(
                command, cwd=ROOT, env=environment, stdout=output, stderr=output
            ).returncode
            else 0
        )
    )


def pytest(command: list[str], environment: dict[str, str], output: IO[str] | None) -> Outcome:
    handle, name = tempfile.mkstemp(suffix=".xml", dir=CACHE)
    os.close(handle)
    report = Path(name)
    report.unlink()
    code = subprocess.run(
        [*command, "--durations=12", f"--junitxml={report}"],
        cwd=ROOT,
        env=environment,
        stdout=output,
        stderr=output,
    ).returncode
    if not report.exists():
        return Outcome(failed=1)
    suites = list(ElementTree.parse(report).iter("testsuite"))
    report.unlink()
    keys = ("tests", "failures", "errors", "skipped")
    tests, failures, errors, skipped = (
        sum(int(suite.get(key, 0)) for suite in suites) for key in keys
    )
    # A test that fails and then errors in its teardown is reported twice; a crash or a usage error
    # not at all.
    failed = max(failures + errors, 1 if code not in (0, 5) else 0)
    return Outcome(max(0, tests - failures - errors - skipped), failed, skipped)


def test(options: argparse.Namespace) -> int:
    host, problem = None, ""
    try:
        host = find_or_install_comfyui(options.comfyui)
    except DevError as error:
        problem = str(error)
    try:
        python = str(prepare_python(options.python, host, with_tests=True))
    except DevError as error:
        print(f"error: {error}\n\n{Outcome(failed=1)}")
        return 1
    CACHE.mkdir(exist_ok=True)
    outcomes: list[tuple[str, Outcome]] = []

    def part(
        name: str,
        kind: Any,
        command: list[str],
        against: Path | None = None,
        output: IO[str] | None = None,
    ) -> None:
        print(f"\n== {name}", file=output, flush=True)
        started = time.monotonic()
        # The models of the tests are tiny: more threads only get in each other's way.
        environment = utf8(
            {
                "OMP_NUM_THREADS": "1",
                **os.environ,
                **({"COMFYUI_PATH": str(against)} if against else {}),
            }
        )
        behind = ["nice", "-n", "10"] if "tests/host" in command and shutil.which("nice") else []
        outcome: Outcome = kind([*behind, python, "-m", *command], environment, output)
        outcomes.append((name, outcome))
        print(
            f"== {name}: {'FAILED' if outcome.failed else 'ok'} after"
            f" {time.monotonic() - started:.1f} s",
            file=output,
            flush=True,
        )

    expression = ["-k", options.k] if options.k else []
    part("ruff check", check, ["ruff", "check", "."])
    part("ruff format", check, ["ruff", "format", "--check", "."])
    part("mypy", check, ["mypy"])
    part("tests/unit", pytest, ["pytest", "tests/unit", *expression])
    if host:
        version = host_version(host)
        others = [
            other.resolve()
            for other in sorted(host.parent.glob("ComfyUI-*"))
            if is_comfyui(other) and other.resolve() != host
        ]
        # At once: the browser tests wait a lot, and the host tests make way for them. What the
        # others print follows when all are done.
        text = {"encoding": "utf-8", "errors": "replace"}
        ignored = [f"--ignore=tests/host/{file}" for file in HOST_HARDLY_MATTERS]
        beside = [(f"tests/e2e on ComfyUI {version}", ["pytest", "tests/e2e", *expression], host)]
        for other in others:
            name = (
                f"tests/host on ComfyUI {host_version(other)} without"
                f" {', '.join(HOST_HARDLY_MATTERS)}"
            )
            beside.append((name, ["pytest", "tests/host", *ignored, *expression], other))
        with contextlib.ExitStack() as stack, concurrent.futures.ThreadPoolExecutor(3) as lanes:
            first = lanes.submit(
                part,
                f"tests/host on ComfyUI {version}",
                pytest,
                ["pytest", "tests/host", *expression],
                host,
            )
            outputs = [
                stack.enter_context(tempfile.TemporaryFile("w+", dir=CACHE, **text)) for _ in beside
            ]
            waiting = [
                lanes.submit(part, name, pytest, command, against, output)
                for (name, command, against), output in zip(beside, outputs)
            ]
            for each in (first, *waiting):
                each.result()
            for output in outputs:
                output.seek(0)
                shutil.copyfileobj(output, sys.stdout)
        if not others:
            print(f"\nsecond host version: none beside {host}, tests/host ran on {version} only")
    else:
        print(f"\n== tests/host and tests/e2e: FAILED, {problem}")
        outcomes.append(("host", Outcome(failed=1)))

    total = Outcome(*(sum(counts) for counts in zip(*(outcome for _, outcome in outcomes))))
    failed = [name for name, outcome in outcomes if outcome.failed]
    print(f"\nfailed: {', '.join(failed)}" if failed else "")
    print(total)
    return 1 if failed else 0


# ---- command line ----


def interpreter(name: str) -> Path:
    # On Windows a Path is refused before Python 3.12.
    if found := shutil.which(str(Path(name).expanduser())):
        return Path(os.path.abspath(found))
    raise argparse.ArgumentTypeError(f"{name} is no program")


def parse_arguments() -> argparse.Namespace:
    environment = (
        "Without --python, .venv in the project's folder is created and filled on the first start"
        " and reused afterwards. A torch that is already in it is kept, whatever its version: to"
        " run on a GPU, install your own build there first."
    )
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--comfyui",
        type=Path,
        metavar="DIR",
        help="default: COMFYUI_PATH, the one around this pack, comfy-cli's",
    )
    common.add_argument(
        "--python",
        type=interpreter,
        metavar="EXE",
        help="used as it is: must have ComfyUI's requirements",
    )
    parser = argparse.ArgumentParser(description=__doc__, epilog=environment)
    commands = parser.add_subparsers(dest="command", required=True)
    summary = "run a workflow and save its pictures"
    command = commands.add_parser(
        "demo", parents=[common], help=summary, description=summary, epilog=environment
    )
    command.add_argument(
        "--workflow",
        type=Path,
        default=ROOT / "workflows" / "magicface_three_concepts.json",
        metavar="FILE",
    )
    command.add_argument("--output", type=Path, default=ROOT / "output", metavar="DIR")
    command.set_defaults(run=demo)
    summary = "start ComfyUI with this pack for the browser"
    command = commands.add_parser(
        "serve", parents=[common], help=summary, description=summary, epilog=environment
    )
    command.add_argument("--port", type=int, default=8188)
    command.set_defaults(run=serve)
    summary = "lint, type check and run every test"
    command = commands.add_parser(
        "test", parents=[common], help=summary, description=summary, epilog=environment
    )
    command.add_argument("-k", metavar="EXPR", help="only the tests that match, as for pytest")
    command.set_defaults(run=test)
    return parser.parse_args()


def main() -> int:
    options = parse_arguments()
    # Ends the server as Ctrl-C does: the default action would leave it running.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    # What a child says may have letters that a redirected stdout of Windows has not.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        code: int = options.run(options)
        return code
    except (DevError, WorkflowError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
