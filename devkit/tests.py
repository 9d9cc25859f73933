"""The command `test`."""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import IO, Any, NamedTuple

from devkit.comfyui import find_or_install_comfyui, host_version, is_comfyui
from devkit.environment import prepare_python, utf8
from devkit.pack import CACHE, ROOT, DevError

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
