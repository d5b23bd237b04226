"""The magics come with the extension and go with it; IPython's own stand in their places again."""

from __future__ import annotations

import builtins
import sys
from collections.abc import Iterator

import pytest
from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell

from ddp_magic.errors import CaptureError, RunInterrupted, WorkerError
from ddp_magic.kernel import controller
from ddp_magic.kernel.notebook.magics import register, unregister

NAMES = {
    "line": {
        "%ddp", "ddp", "ddp_attach", "ddp_logs", "ddp_show", "ddp_status", "ddp_stop", "ddp_wait",
        "debug",
    },
    "cell": {"ddp", "debug"},
}  # fmt: skip


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch) -> Iterator[InteractiveShell]:
    """A shell with the magics, and without a forkserver."""
    for prompt in ("ps1", "ps2", "ps3"):  # a shell sets them for the whole process
        monkeypatch.setattr(sys, prompt, "", raising=False)
    for name in ("__IPYTHON__", "display"):
        monkeypatch.setattr(builtins, name, None, raising=False)
    shell = InteractiveShell()
    shell.config.DDPMagics.preload = False
    shell.config.DDPMagics.hang_s = 7.0
    register(shell)
    yield shell
    unregister(shell)


def _ours(shell: InteractiveShell, kind: str) -> set[str]:
    found = shell.magics_manager.magics[kind].items()
    return {name for name, magic in found if magic.__module__.startswith("ddp_magic")}


def test_what_is_registered(shell: InteractiveShell) -> None:
    for kind, names in NAMES.items():
        assert _ours(shell, kind) == names
    assert controller.current is not None


def test_only_comments_may_stand_above_the_magic(
    shell: InteractiveShell, capsys: pytest.CaptureFixture[str]
) -> None:
    """IPython would look for a line magic of this name, and say that there is none."""
    shell.run_cell("# Help.\n\n%%ddp --help")
    assert capsys.readouterr().out.startswith("Run the cell as a distributed PyTorch program")
    error = shell.run_cell("x = 1\n%%ddp -n 2\nx").error_in_exec
    assert str(error).startswith("%%ddp must be the first line of its cell")


def test_the_configuration_of_ipython_is_in_force(shell: InteractiveShell) -> None:
    """And what `%config` sets later."""
    magics = shell.magics_manager.registry["DDPMagics"]
    assert magics.controller.hang_s == 7.0
    shell.run_line_magic("config", "DDPMagics.hang_s = 9.0")
    assert magics.controller.hang_s == 9.0


def test_unregistering_brings_back_ipythons_own(shell: InteractiveShell) -> None:
    """Once is enough, and twice does no harm."""
    before = len(shell.configurables)
    for _ in range(2):
        unregister(shell)
        for kind in NAMES:
            assert _ours(shell, kind) == set()
            assert "debug" in shell.magics_manager.magics[kind]
    assert len(shell.configurables) == before - 2
    assert controller.current is None
    assert "ddp_status" not in shell.magics_manager.lsmagic()["line"]


def test_the_failure_of_a_rank_cannot_be_debugged_afterwards(
    shell: InteractiveShell, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = WorkerError("boom", rank=1, ename="E", evalue="", traceback=[], details=[], shown="")
    monkeypatch.setattr("sys.last_value", error, raising=False)
    with pytest.raises(UsageError, match="the failure was in rank 1, a process of its own"):
        shell.run_line_magic("debug", "")


@pytest.mark.parametrize("error", [CaptureError("an open file"), RunInterrupted("Stop")])
def test_an_error_of_a_run_has_no_frame_to_debug(
    shell: InteractiveShell, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    """The debugger would open in ddp_magic."""
    monkeypatch.setattr("sys.last_value", error, raising=False)
    with pytest.raises(UsageError, match="no code of the notebook raised"):
        shell.run_line_magic("debug", "")


@pytest.mark.parametrize("again", [False, True])
def test_an_error_of_the_notebook_is_debugged_as_before(
    shell: InteractiveShell, monkeypatch: pytest.MonkeyPatch, *, again: bool
) -> None:
    """By IPython's own magic, also if nothing had used that before, and after a `%reload_ext`."""
    opened: list[bool] = []
    monkeypatch.setattr("sys.last_value", ValueError(), raising=False)
    monkeypatch.setattr(shell, "debugger", lambda *, force: opened.append(force))
    if again:
        unregister(shell)
        register(shell)
    shell.run_line_magic("debug", "")
    assert opened == [True]


@pytest.mark.parametrize(
    ("magic", "line", "message"),
    [
        ("ddp_status", "--stack", "%ddp_status"),
        ("ddp_stop", "a --all", "%ddp_stop: give a session or --all, not both"),
        ("ddp_stop", "a", "%ddp_stop: "),
        ("ddp_wait", "", "%ddp_wait: there is no background run of this notebook"),
        ("ddp_logs", "nothing", "%ddp_logs: "),
        ("ddp", "-n 2", "%ddp runs a cell: write %%ddp, in the first line of the cell"),
    ],
)
def test_a_wrong_line_is_a_usage_error(
    shell: InteractiveShell, magic: str, line: str, message: str
) -> None:
    """In one line, with the magic's name."""
    with pytest.raises(UsageError, match=f"^{message}"):
        shell.run_line_magic(magic, line)
