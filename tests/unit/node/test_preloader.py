"""What a forkserver imports and reports, in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
import weakref
from pathlib import Path
from typing import Any

from tests.unit.node.test_imports import THREAD, install_record


def _preload(
    directory: Path, modules: dict[str, str], wanted: list[str], trusted: list[str] | None = None
) -> list[dict[str, Any]]:
    """Import these, until all is reported; return the reports."""
    install_record(directory)
    for name, source in modules.items():
        (directory / f"{name}.py").write_text(textwrap.dedent(source))
    program = f"""
        import dataclasses, json, os, select, sys
        from ddp_magic.node.preloader import ForkObstacleError, Preloader

        sys.path.insert(0, {str(directory)!r})
        reports = []
        def report(event):
            reports.append({{"type": type(event).__name__, **dataclasses.asdict(event)}})
        kernel = os.pidfd_open(os.getppid())
        preloader = Preloader(report, kernel, {trusted!r}, {{}}, wanted={wanted!r})
        try:
            while not preloader.reported:
                preloader.step((), ())
        except ForkObstacleError as error:
            reports.append({{"type": "obstacle", "module": error.module, "reason": error.reason}})
        print(json.dumps(reports), flush=True)
        os._exit(0)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def test_each_import_is_announced(tmp_path: Path) -> None:
    """So that the kernel knows what to blame; at the end it gets the files."""
    modules = {"one": "import os\nos.environ['SET_BY_ONE'] = 'x'", "two": "raise ValueError('no')"}
    *imports, report = _preload(tmp_path, modules, ["one", "two"])
    assert [event["module"] for event in imports] == ["one", "two"]
    assert report["type"] == "Preloaded"
    assert report["files"]["one"][0] == str(tmp_path / "one.py")
    assert report["failed"] == {"two": "ValueError: no"}
    assert report["environ"]["SET_BY_ONE"] == "x"  # beside what torch may set


def test_a_library_that_starts_threads_is_an_obstacle(tmp_path: Path) -> None:
    """Where none is tried first."""
    last = _preload(tmp_path, {"bad": f"import threading\n{THREAD}.start()"}, ["bad"])[-1]
    assert last == {"type": "obstacle", "module": "bad", "reason": "it starts threads"}


def test_on_trial_it_is_left_out(tmp_path: Path) -> None:
    """And what it imports before its thread is imported here."""
    modules = {"bad": f"import inner, threading\n{THREAD}.start()", "inner": ""}
    last = _preload(tmp_path, modules, ["bad"], trusted=[])[-1]
    assert last["left_out"] == {"bad": "it starts threads"}
    assert "inner" in last["good"]
    assert "inner" in last["files"]
    assert "bad" not in last["files"]


def test_where_finalizers_are_kept() -> None:
    """The private name of the standard library that `freeze` clears."""

    class Thing: ...

    thing = Thing()
    finalizer = weakref.finalize(thing, print)
    assert finalizer in weakref.finalize._registry  # type: ignore[attr-defined]
    finalizer.detach()
    assert finalizer not in weakref.finalize._registry  # type: ignore[attr-defined]
