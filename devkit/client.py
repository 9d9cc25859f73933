"""Runs a prompt on a server and follows it to its end."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import socket
import uuid
from collections.abc import Iterator
from typing import Any

from devkit.pack import DevError
from devkit.progress import Progress
from devkit.server import Server


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
