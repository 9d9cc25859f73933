"""What the registry gets, unpacked somewhere else, is a whole pack."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from devkit.comfyui import find_comfyui
from devkit.pack import ROOT, packed_files
from magicportrait.nodes import NODES

# Nothing of the checkout is on this process's path: what the archive lacks cannot be imported.
TRY = """
import asyncio, importlib.util, sys
from pathlib import Path

folder = Path(sys.argv[1])
sys.path[0] = sys.argv[2]
from comfy.cli_args import args
args.cpu = True
spec = importlib.util.spec_from_file_location(
    "installed", folder / "__init__.py", submodule_search_locations=[str(folder)]
)
sys.modules["installed"] = pack = importlib.util.module_from_spec(spec)
spec.loader.exec_module(pack)
extension = asyncio.run(pack.comfy_entrypoint())
nodes = {node.__name__: node for node in asyncio.run(extension.get_node_list())}
nodes["MagicToyCheckpoint"].execute()
elsewhere = {name for name in sys.modules if name.split(".")[0] in ("bench", "devkit", "tests")}
print(len(nodes), sorted(elsewhere))
"""


@pytest.mark.skipif(not (ROOT / ".git").exists() or not shutil.which("git"), reason="no git")
def test_an_unpacked_archive_loads_and_has_its_checkpoint(tmp_path: Path) -> None:
    for file in packed_files():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / file, tmp_path / file)
    answer = subprocess.run(
        [sys.executable, "-c", TRY, str(tmp_path), str(find_comfyui())],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": ""},
        capture_output=True,
        text=True,
    )
    assert answer.stdout.splitlines()[-1:] == [f"{len(NODES)} []"], answer.stderr
