"""Imports on trial: what they do to a process is known, and does nothing to this one."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from tests.unit.node.test_imports import THREAD, install_record


def _try(directory: Path, modules: dict[str, str], module: str) -> dict[str, Any]:
    """Try an import in a process of its own; return what the trial says."""
    install_record(directory)
    for name, source in modules.items():
        file = directory / f"{name}.py"
        file.parent.mkdir(exist_ok=True)
        file.write_text(textwrap.dedent(source))
    program = f"""
        import json, os, select, sys
        from ddp_magic.node import trial

        sys.path.insert(0, {str(directory)!r})
        tried = trial.Trial({module!r})
        while not tried.over():
            select.select([tried, tried.pidfd], [], [], tried.left_s)
        words = {{name: getattr(tried, name) for name in ("failed", "obstacle", "environ", "good")}}
        words |= {{"importable": tried.importable(), "here": {module!r} in sys.modules}}
        words["threads"] = len(os.listdir("/proc/self/task"))
        print(json.dumps(words))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    assert not found["here"]
    assert found["threads"] == 1
    return found


@pytest.mark.parametrize(
    ("source", "failed", "obstacle"),
    [
        ("x = 1", "", ""),
        ("raise RuntimeError('no')", "RuntimeError: no", ""),
        ("raise SystemExit('no')", "SystemExit: no", ""),
        (f"import threading\n{THREAD}.start()", "", "it starts threads"),
        ("import os\nos._exit(3)", "", "its import ended the process (exit code 3)"),
        ("import os\nos.kill(os.getpid(), 11)", "", "(killed by SIGSEGV)"),
        ("import signal as s\ns.signal(s.SIGCHLD, s.SIG_IGN)", "", "it handles signals"),
        ("import os\nif os.fork() == 0:\n    os._exit(0)", "", ""),
        ("import os\nos.closerange(3, 99)", "", "its import ended the process"),
    ],
)
def test_what_it_finds(tmp_path: Path, source: str, failed: str, obstacle: str) -> None:
    """Whatever an import does to its process is told of it, and has not been done to ours."""
    found = _try(tmp_path, {"lib": source}, "lib")
    assert found["failed"] == failed, found
    assert obstacle in found["obstacle"], found
    assert bool(found["obstacle"]) == bool(obstacle), found


def test_what_a_library_imports_first_is_good(tmp_path: Path) -> None:
    """All that was there before its thread, unless it lies in a package that was not."""
    modules = {
        "outer": "import harmless, pack",
        "harmless": "",
        "pack/__init__": "import pack.first, thread",
        "pack/first": "",
        "thread": f"import last, threading\n{THREAD}.start()\nimport too_late",
        "last": "",
        "too_late": "",
    }
    found = _try(tmp_path, modules, "outer")
    assert found["obstacle"] == "it starts threads"
    own = [name for name in found["good"] if name.partition(".")[0] in {*modules, "pack"}]
    assert own == ["harmless", "pack.first", "last"]
    assert [name for name in found["importable"] if name in own] == ["harmless", "last"]


def test_the_variables_that_it_sets(tmp_path: Path) -> None:
    """They are told, since the notebook's own import has set them there."""
    source = f"import os, threading\nos.environ['SET_BY_LIB'] = 'x'\n{THREAD}.start()"
    assert _try(tmp_path, {"lib": source}, "lib")["environ"] == {"SET_BY_LIB": "x"}
