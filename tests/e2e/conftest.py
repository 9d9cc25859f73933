from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import dev

sys.path.append(str(Path(__file__).parent))


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dev.Server]:
    from comfy_server import ComfyServer

    with ComfyServer(dev.find_comfyui(), Path(sys.executable), tmp_path_factory.mktemp("comfyui"), cpu=True) as started:
        yield started


@pytest.fixture(scope="session")
def object_info(server: dev.Server) -> dict[str, Any]:
    return server.object_info()
