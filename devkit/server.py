"""ComfyUI with the pack, as a process that is stopped whatever happens."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from devkit.environment import WINDOWS, utf8
from devkit.pack import PACK_NAME, PACK_NODE, ROOT, DevError

# A proxy set in the environment must not get between us and the loopback interface.
http = urllib.request.build_opener(urllib.request.ProxyHandler({}))

START_TIMEOUT = 300.0


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
