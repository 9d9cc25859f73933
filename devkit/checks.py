"""The command `test`: formatting, types, JavaScript, and every test. Standard library only: it also
reports what keeps .venv from being made."""

from __future__ import annotations

import argparse
import concurrent.futures
import hashlib
import os
import shutil
import signal
import subprocess
import threading
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from devkit.browser import get_browser
from devkit.comfyui import find_or_install_comfyui, host_version, is_comfyui
from devkit.environment import prepare_python, utf8
from devkit.pack import CACHE, ROOT, WINDOWS, DevError, link_pack

LOGS = CACHE / "logs"
TYPED = CACHE / "typed"
"""A folder in which the type checker finds this project under the names that it is imported by."""

LANES = 3
"""Steps at once: the browser tests wait a lot, and the tests of the host make way for them."""

IN_PROCESSES = ("-n", "logical", "--maxprocesses", "4", "--dist", "loadfile")
"""How the tests that need ComfyUI, the longest part, use the processor: those of the host compute
all the time, those in the page mostly wait. A file is not split, since its tests share what is
built once."""

HOST_HARDLY_MATTERS = (
    "test_analysis.py",
    "test_archive.py",
    "test_benches.py",
    "test_captions.py",
    "test_capture_checkpoints.py",
    "test_capture_rules.py",
    "test_coexistence.py",
    "test_concept_files.py",
    "test_concept_folder.py",
    "test_devices.py",
    "test_exploration.py",
    "test_fingerprint.py",
    "test_flow_style.py",
    "test_guards.py",
    "test_help_pages.py",
    "test_identity.py",
    "test_inversion.py",
    "test_live_layout.py",
    "test_locales.py",
    "test_magicapture.py",
    "test_magicstyle.py",
    "test_masks.py",
    "test_matrix.py",
    "test_metrics.py",
    "test_model_folders.py",
    "test_own_picture.py",
    "test_parity.py",
    "test_picture_files.py",
    "test_placement.py",
    "test_portrait_nodes.py",
    "test_ranges.py",
    "test_reference_passes.py",
    "test_requirements.py",
    "test_restore.py",
    "test_safe_files.py",
    "test_suite.py",
    "test_toy.py",
    "test_toy_transformer.py",
    "test_training_watch.py",
)
"""Tests that ask little of ComfyUI's version, or whose minutes are better spent on the others (run
them with COMFYUI_PATH): left out on the second one."""


QUICK: dict[str, tuple[str, ...]] = {
    "tests/host": (
        "test_capture_nodes.py",
        "test_coexistence.py",
        "test_fingerprint.py",
        "test_help_pages.py",
        "test_live_layout.py",
        "test_locales.py",
        "test_own_picture.py",
        "test_parity.py",
        "test_ranges.py",
        "test_safe_files.py",
        "test_without_concepts.py",
    ),
    "tests/e2e": ("test_listening.py", "test_registration.py", "test_validation.py"),
}
"""What the quick lane runs in ComfyUI."""


class Outcome(NamedTuple):
    """How many tests passed, failed, and were left out; a check that is no test only fails."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0

    def __str__(self) -> str:
        return f"{self.passed} passed, {self.failed} failed" + (
            f", {self.skipped} skipped" if self.skipped else ""
        )


@dataclass(frozen=True)
class Step:
    """One part of the test command.

    name: what it is called in the output.
    command: the program and its arguments.
    environment: variables that it gets beside ours.
    folder: where it runs.
    is_pytest: whether its tests are counted.
    behind: whether it makes way for the other steps.
    """

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    folder: Path = ROOT
    is_pytest: bool = False
    behind: bool = False


class Processes:
    """What runs now: it ends when we do, servers and browsers of its own included."""

    def __init__(self) -> None:
        self._running: set[subprocess.Popen[bytes]] = set()
        self._ended = False
        self._lock = threading.Lock()

    def run(self, step: Step, log: Path, *more: str) -> int:
        """Runs a step's command to its end and returns its exit code."""
        nice = ["nice", "-n", "10"] if step.behind and shutil.which("nice") else []
        # The models of the tests are tiny: more threads only get in each other's way.
        environment = utf8({"OMP_NUM_THREADS": "1", **os.environ, **step.environment})
        command = [*nice, *step.command, *more]
        with log.open("ab") as output:
            with self._lock:
                if self._ended:
                    return 1
                process = subprocess.Popen(
                    command, cwd=step.folder, env=environment, stdout=output, stderr=output
                )
                self._running.add(process)
            code = process.wait()
            with self._lock:
                self._running.discard(process)
            return code

    def end(self) -> None:
        """As Ctrl-C does, after which pytest tears down what its tests have started."""
        with self._lock:
            self._ended = True
            for process in self._running:
                process.send_signal(signal.SIGTERM if WINDOWS else signal.SIGINT)


def run_step(step: Step, processes: Processes) -> Outcome:
    """Runs a step and prints what it said, at its end and in one piece."""
    LOGS.mkdir(parents=True, exist_ok=True)
    log = LOGS / f"{''.join(letter if letter.isalnum() else '_' for letter in step.name)}.log"
    log.write_bytes(b"")
    print(f"== {step.name}: starts", flush=True)
    start = time.monotonic()
    if step.is_pytest:
        outcome = count_tests(step, processes, log)
    else:
        outcome = Outcome(failed=1 if processes.run(step, log) else 0)
    said = log.read_text(encoding="utf-8", errors="replace").strip()
    word = "FAILED" if outcome.failed else "ok"
    print(
        f"{said}\n== {step.name}: {word} after {time.monotonic() - start:.1f} s\n",
        flush=True,
    )
    return outcome


def count_tests(step: Step, processes: Processes, log: Path) -> Outcome:
    report = log.with_suffix(".xml")
    report.unlink(missing_ok=True)
    code = processes.run(step, log, "--durations=12", f"--junitxml={report}")
    if not report.exists():
        return Outcome(failed=1)
    suites = list(ElementTree.parse(report).iter("testsuite"))
    keys = ("tests", "failures", "errors", "skipped")
    tests, failures, errors, skipped = (
        sum(int(suite.get(key, 0)) for suite in suites) for key in keys
    )
    # A test that fails and then errors in its teardown is reported twice; a crash or a usage error
    # not at all. Code 5: no test was selected.
    failed = max(failures + errors, 1 if code not in (0, 5) else 0)
    return Outcome(max(0, tests - failures - errors - skipped), failed, skipped)


# ---- the steps ----


def ruff_steps(python: str) -> Iterator[Step]:
    yield Step("ruff check", (python, "-m", "ruff", "check", "."), {})
    yield Step("ruff format", (python, "-m", "ruff", "format", "--check", "."), {})


def mypy_step(python: str, host: Path) -> Step:
    """In a folder of links: this project is imported as `magicportrait` whatever its folder is
    called, and its folder `nodes` must not hide ComfyUI's module."""
    TYPED.mkdir(parents=True, exist_ok=True)
    link_pack(TYPED / "magicportrait", ROOT)
    for name in ("bench", "devkit"):
        link_pack(TYPED / name, ROOT / name)
    shutil.copy(ROOT / "dev.py", TYPED)
    path = os.pathsep.join([str(TYPED), str(host)])
    options = ("--config-file", str(ROOT / "pyproject.toml"), "--cache-dir", str(CACHE / "mypy"))
    return Step("mypy", (python, "-m", "mypy", *options), {"MYPYPATH": path}, TYPED)


def javascript_steps() -> Iterator[Step]:
    """eslint and the types of js/, with the versions of package-lock.json; DevError without
    npm."""
    npm = shutil.which("npm")
    if not npm:
        raise DevError("Node.js is not installed: js/ is not checked")
    lock = (ROOT / "package-lock.json").read_bytes()
    stamp = CACHE / "javascript.sha256"
    digest = hashlib.sha256(lock).hexdigest()
    if not (ROOT / "node_modules").exists() or not stamp.exists() or stamp.read_text() != digest:
        options = ["--no-audit", "--no-fund", "--cache", str(CACHE / "npm")]
        print("installing what checks js/", flush=True)
        if subprocess.run([npm, "ci", *options], cwd=ROOT).returncode:
            raise DevError("npm could not install what package-lock.json lists")
        stamp.write_text(digest)
    yield Step("eslint", (npm, "run", "--silent", "lint"), {})
    yield Step("types of js/", (npm, "run", "--silent", "types"), {})


def pytest_step(
    name: str,
    python: str,
    arguments: Iterable[str],
    host: Path | None = None,
    behind: bool = False,
) -> Step:
    environment = {"COMFYUI_PATH": str(host)} if host else {}
    command = (python, "-m", "pytest", *(IN_PROCESSES if host else ()), *arguments)
    return Step(name, command, environment, is_pytest=True, behind=behind)


def other_hosts(host: Path) -> list[Path]:
    """The folders ComfyUI-* beside the host that are ComfyUI too."""
    folders = [folder.resolve() for folder in sorted(host.parent.glob("ComfyUI-*"))]
    return [folder for folder in folders if is_comfyui(folder) and folder != host]


# ---- the command ----


def test(options: argparse.Namespace) -> int:
    """Runs the steps, prints what each said, and at the end how many tests passed and failed."""
    outcomes: dict[str, Outcome] = {}

    def fail(name: str, problem: object) -> None:
        print(f"== {name}: FAILED, {problem}\n", flush=True)
        outcomes[name] = Outcome(failed=1)

    host = None
    try:
        host = find_or_install_comfyui(options.comfyui)
    except DevError as error:
        fail("tests/host and tests/e2e", error)
    try:
        python = str(prepare_python(options.python, host, with_tests=True))
    except DevError as error:
        fail("environment", error)
        return summary(outcomes)
    CACHE.mkdir(exist_ok=True)
    selection = ["-k", options.k] if options.k else []
    page = [*selection]
    if host:
        try:
            print(f"browser: {get_browser(Path(python))}\n", flush=True)
        except DevError as error:
            fail("browser", error)
            page += ["-m", "not page"]

    steps = list(ruff_steps(python))
    try:
        steps += javascript_steps()
    except DevError as error:
        if os.environ.get("CI"):
            fail("javascript", error)
        else:
            print(f"== javascript: LEFT OUT, {error}\n", flush=True)
            outcomes["javascript"] = Outcome(skipped=1)
    others = other_hosts(host) if host and not options.quick else []
    if host:
        version = host_version(host)
        part = " (a selection)" if options.quick else ""
        for folder, expression in (("tests/host", selection), ("tests/e2e", page)):
            files = [f"{folder}/{name}" for name in QUICK[folder]] if options.quick else [folder]
            name = f"{folder} on ComfyUI {version}{part}"
            behind = folder == "tests/host"
            steps.append(pytest_step(name, python, [*files, *expression], host, behind))
        steps.append(mypy_step(python, host))
    steps.append(pytest_step("tests/unit", python, ["tests/unit", *selection]))
    for other in others:
        files = [f"--ignore=tests/host/{file}" for file in HOST_HARDLY_MATTERS]
        name = f"tests/host on ComfyUI {host_version(other)}"
        arguments = ["tests/host", *files, *selection]
        steps.append(pytest_step(name, python, arguments, other, behind=True))
    outcomes.update(run_steps(steps))
    if host and not others and not options.quick:
        print(f"second host version: none beside {host}")
    return summary(outcomes)


def run_steps(steps: list[Step]) -> dict[str, Outcome]:
    """Runs them in lanes, in this order; the outcome of each by its name."""
    processes = Processes()
    with concurrent.futures.ThreadPoolExecutor(LANES) as lanes:
        try:
            running = {step.name: lanes.submit(run_step, step, processes) for step in steps}
            return {name: each.result() for name, each in running.items()}
        finally:
            processes.end()


def summary(outcomes: Mapping[str, Outcome]) -> int:
    """Prints what failed and, as the last line, the sum; returns the exit code."""
    failed = [name for name, outcome in outcomes.items() if outcome.failed]
    if failed:
        print(f"\nfailed: {', '.join(failed)}")
    print(Outcome(*(sum(counts) for counts in zip(*outcomes.values()))))
    return 1 if failed else 0
