"""A real ComfyUI for the tests in this folder: queues prompts, follows them to their end and
fetches the pictures."""

from __future__ import annotations

import contextlib
import io
import json
import uuid
from dataclasses import dataclass, field
from typing import Any

import websocket
from PIL import Image

from devkit.client import describe_rejection
from devkit.server import Server

Picture = dict[str, str]


class ValidationFailed(Exception):
    """ComfyUI refused the prompt; `body` is its answer, with `error` and `node_errors`."""

    def __init__(self, status: int, body: dict[str, Any]) -> None:
        super().__init__(describe_rejection(body))
        self.status, self.body = status, body


@dataclass
class Result:
    """steps: how often nodes reported progress, as sampling and inverting do: at least the first
    step and the last."""

    prompt_id: str
    outputs: dict[str, dict[str, Any]] = field(default_factory=dict)
    executed: list[str] = field(default_factory=list)
    cached: set[str] = field(default_factory=set)
    steps: int = 0

    @property
    def images(self) -> list[Picture]:
        return [picture for output in self.outputs.values() for picture in output.get("images", [])]


class ExecutionFailed(Exception):
    """A node raised; `details` is ComfyUI's execution_error message, `result` what happened until
    then."""

    def __init__(self, details: dict[str, Any], result: Result) -> None:
        super().__init__(
            f"{details['node_type']}:"
            f" {details['exception_message']}\n{''.join(details['traceback'])}"
        )
        self.details, self.result = details, result


class ComfyServer(Server):
    def restart(self) -> None:
        """Ends it and starts it again with the same folders and on the same port."""
        self.stop()
        self.__enter__()

    def queue(self, prompt: dict[str, Any], timeout: float = 600.0) -> Result:
        """Runs an API prompt to its end. `timeout` is the longest silence, in seconds."""
        client = uuid.uuid4().hex
        url = f"ws://127.0.0.1:{self.port}/ws?clientId={client}"
        events = websocket.create_connection(url, timeout=timeout, http_no_proxy=["127.0.0.1"])
        with contextlib.closing(events):
            status, answer = self.post("/prompt", {"prompt": prompt, "client_id": client})
            if status != 200 or answer.get("node_errors"):
                raise ValidationFailed(status, answer)
            return self._follow(events, Result(answer["prompt_id"]))

    def _follow(self, events: websocket.WebSocket, result: Result) -> Result:
        failure: ExecutionFailed | None = None
        while True:
            message = events.recv()
            if not message:
                raise self.failure("ComfyUI ended during the execution")
            if isinstance(message, bytes):  # a preview picture
                continue
            event = json.loads(message)
            kind, data = event["type"], event["data"]
            if data.get("prompt_id") != result.prompt_id:
                continue
            if kind == "execution_cached":
                result.cached.update(data["nodes"])
            elif kind == "executed":
                result.outputs[data["node"]] = data["output"] or {}
            elif kind == "execution_error":
                failure = ExecutionFailed(data, result)
            elif kind == "progress":
                result.steps += 1
            elif kind == "executing" and data["node"] is not None:
                result.executed.append(data["node"])
            elif kind == "executing":
                # The last message of every execution; only now does the server take the next
                # prompt.
                if failure:
                    raise failure
                return result

    def fetch_image(self, picture: Picture) -> Image.Image:
        image = Image.open(io.BytesIO(self.fetch(picture)))
        image.load()
        return image
