"""What an import does to a process from which ranks are forked."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

THREAD = "threading.Thread(target=threading.Event().wait, args=(9,), daemon=True)"
NAMED = """
started = threading.Event()
def run():
    with open(f"/proc/self/task/{threading.get_native_id()}/comm", "w") as comm:
        comm.write("jemalloc_bg_thd")
    started.set()
    threading.Event().wait(9)
threading.Thread(target=run, daemon=True).start()
started.wait()
"""


def install_record(directory: Path) -> None:
    """Make a directory of libraries: there is the record of an installed one."""
    record = directory / "lib-1.0.dist-info"
    record.mkdir(parents=True)
    (record / "METADATA").write_text("Metadata-Version: 2.1\nName: lib\nVersion: 1.0\n")


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("x = 1", ("", "")),
        ("raise RuntimeError('no')", ("RuntimeError: no", "")),
        (f"import threading\n{THREAD}.start()", ("", "it starts threads")),
        ("import threading\n" + NAMED, ("", "")),
        ("raise SystemExit(3)", ("SystemExit: 3", "")),
        ("import signal\nsignal.signal(signal.SIGCHLD, print)", ("", "it handles signals")),
        ("import os\nos.open('/dev/nvidia-uvm', os.O_RDONLY)", ("", "it opens a device")),
        ("import os\nos.open('/dev/nvidiactl', os.O_RDONLY)", ("", "")),
        ("import my_settings", ("", "it imports my_settings from")),
        ("import _remote_module_non_scriptable", ("", "")),  # torch's, written when it is imported
    ],
)
def test_what_an_import_leaves(source: str, words: tuple[str, str], tmp_path: Path) -> None:
    """Threads and device contexts do not survive a fork; NVML, jemalloc, and an error, do.

    And what imports the user's own modules would hide their next edit.
    """
    install_record(tmp_path / "site")
    (tmp_path / "site" / "lib.py").write_text(source)
    for name in ("my_settings", "_remote_module_non_scriptable"):
        (tmp_path / f"{name}.py").touch()
    program = """
        import os, sys
        from ddp_magic.node import imports

        sys.path[:0] = [sys.argv[1] + "/site", sys.argv[1]]
        # A machine without a GPU has no such file: one of the test's own has its name.
        real = os.readlink
        opened = {}
        def open_(path, flags):
            fd = os.dup(0)
            opened[f"/proc/self/fd/{fd}"] = path
            return fd
        os.open = open_
        os.readlink = lambda path: opened.get(path) or real(path)
        print(*imports.import_library("lib"), sep="|", flush=True)
        os._exit(0)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    failed, obstacle = done.stdout.strip().split("|")
    assert failed == words[0], done.stderr
    assert bool(obstacle) == bool(words[1]), obstacle
    assert words[1] in obstacle


def test_torch_knows_in_a_fork_whether_cuda_can_begin() -> None:
    """Its private function, which `cuda_survives_fork` asks; in a process that has asked no GPU."""
    program = """
        import torch
        from ddp_magic.node import imports

        print(torch.cuda._is_in_bad_fork(), imports.cuda_survives_fork())
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    assert done.stdout.split() == ["False", "True"], done.stderr
