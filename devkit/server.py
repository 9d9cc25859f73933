"""ComfyUI with the pack, as a process that is stopped whatever happens."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

from devkit.client import Client
from devkit.environment import utf8
from devkit.pack import PACK_NAME, ROOT, DevError, link_pack

START_TIMEOUT = 300.0


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


class Server(Client):
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
        others: Mapping[str, Path] | None = None,
    ) -> None:
        """`host`, `python`: the folder of ComfyUI and the program that runs it. `base`: what it
        reads and writes lies there. `others`: further packs by the name of their link."""
        self.port = port or free_port()
        super().__init__(f"http://127.0.0.1:{self.port}")
        self.host, self.python, self.base, self.cpu = host, python, base.resolve(), cpu
        self.packs = {PACK_NAME: pack, **(others or {})}
        self.input_dir, self.output_dir = self.base / "input", self.base / "output"
        self.log_path = self.base / "server.log" if log_to_file else None

    def __enter__(self) -> Server:
        if is_taken(self.port):
            raise DevError(f"port {self.port} is in use: pass --port")
        for name in ("custom_nodes", "input", "output", "models", "user"):
            (self.base / name).mkdir(parents=True, exist_ok=True)
        for name, pack in self.packs.items():
            link_pack(self.base / "custom_nodes" / name, pack)
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
        # Threads that wait turn in circles otherwise, and on a busy machine take from those that
        # compute what they wait for: five to ten times slower.
        environment = utf8({"OMP_WAIT_POLICY": "PASSIVE", **os.environ})
        with contextlib.ExitStack() as stack:
            output = stack.enter_context(self.log_path.open("wb")) if self.log_path else None
            self.process = subprocess.Popen(
                command, cwd=self.host, env=environment, stdout=output, stderr=output
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
