"""A host as a notebook reaches it: its life, its end, what is said when it is lost."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ddp_magic.errors import HostLostError, LaunchError, RunInterrupted
from ddp_magic.kernel.background.host_process import HostProcess
from ddp_magic.system.run_directory import RunDirectory
from tests.limits import HANG_S


def _python(code: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE)


def test_a_host_that_no_journal_names_is_unknown(tmp_path: Path) -> None:
    """Its run is about to begin: whoever asks tries again."""
    host = HostProcess(RunDirectory(tmp_path))
    assert (host.is_ours, host.pid, host.lives()) == (False, None, False)
    with pytest.raises(ConnectionError):
        host.ask(["status"])
    host.end()
    assert not host.ended_here
    host.close()


def test_our_host_lives_until_it_is_ended(tmp_path: Path) -> None:
    process = _python("input()")
    host = HostProcess(RunDirectory(tmp_path), process)
    assert (host.is_ours, host.pid, host.lives()) == (True, process.pid, True)
    host.end()
    host.close()
    host.reap()
    assert not host.lives()
    error = host.loss(started=True)
    assert isinstance(error, RunInterrupted)
    assert "the notebook's kernel ended" in str(error)
    process.communicate()


@pytest.mark.parametrize(("started", "kind"), [(False, LaunchError), (True, HostLostError)])
def test_a_host_that_died_leaves_its_last_words(
    tmp_path: Path, *, started: bool, kind: type[Exception]
) -> None:
    directory = RunDirectory(tmp_path)
    directory.host_log.write_text("MemoryError\n")
    process = _python("import os; os.kill(os.getpid(), 9)")
    process.wait(HANG_S)
    error = HostProcess(directory, process).loss(started=started)
    assert isinstance(error, kind)
    assert "SIGKILL" in str(error)
    assert "often the machine ran out of memory" in str(error)
    assert "MemoryError" in "\n".join(error.details)
    process.communicate()
