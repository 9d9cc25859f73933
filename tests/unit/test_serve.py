"""What `dev.py serve` prepares for a newcomer."""

from __future__ import annotations

from pathlib import Path

from devkit.pack import ROOT
from devkit.serve import FIRST_TEMPLATE, give_example, template_link, welcome
from devkit.server import Server


def test_the_link_opens_a_template_that_is_there() -> None:
    assert (ROOT / "workflows" / f"{FIRST_TEMPLATE}.json").is_file()
    assert template_link("http://here").endswith(
        "/?template=MagicFace-1-one-concept&source=ComfyUI-MagicPortrait"
    )
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert template_link("http://127.0.0.1:8188") in readme


def test_a_newcomer_is_told_where_the_pictures_go(tmp_path: Path) -> None:
    server = Server(tmp_path / "host", Path("python"), tmp_path / "base", cpu=True)
    said = welcome(server.url, server.output_dir)
    assert template_link(server.url) in said
    assert f"saved pictures go to {tmp_path / 'base' / 'output'}" in said.splitlines()


def test_the_hosts_example_is_copied_and_the_users_is_kept(tmp_path: Path) -> None:
    host, inputs = tmp_path / "host", tmp_path / "inputs"
    (host / "input").mkdir(parents=True)
    inputs.mkdir()
    give_example(host, inputs)
    assert not list(inputs.iterdir()), "a host without one"
    (host / "input" / "example.png").write_bytes(b"the host's")
    give_example(host, inputs)
    assert (inputs / "example.png").read_bytes() == b"the host's"
    (inputs / "example.png").write_bytes(b"the user's")
    give_example(host, inputs)
    assert (inputs / "example.png").read_bytes() == b"the user's"
