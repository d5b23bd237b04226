"""Background runs as a notebook sees them: by their journals, with hosts that are not there."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from IPython.core.error import UsageError

from ddp_magic.display.journal.journal import Journal
from ddp_magic.display.outputs import Outputs
from ddp_magic.display.rank import Rank
from ddp_magic.display.record import Background, RunRecord
from ddp_magic.errors import HostLostError, LaunchError, PullError, RunInterrupted, WorkerError
from ddp_magic.kernel.background.run import BackgroundRun
from ddp_magic.kernel.background.runs import BackgroundRuns
from ddp_magic.kernel.control import server as control
from ddp_magic.kernel.control.server import ControlServer
from ddp_magic.kernel.execution import call
from ddp_magic.kernel.past_runs import PastRuns
from ddp_magic.kernel.values.capture import Value
from ddp_magic.kernel.values.pull import KeptPulls, parse
from ddp_magic.system.run_directory import RunDirectory
from ddp_magic.wire.states import State
from ddp_magic.worker.values import sent_values
from tests.limits import HANG_S
from tests.unit.fakes import FakeShell
from tests.unit.kernel.test_past_runs import DEAD

ERROR = WorkerError("boom", rank=1, ename="E", evalue="boom", traceback=["E: boom"])


@pytest.fixture
def root() -> Iterator[Path]:
    """Where runs lie. Its path is short: it is that of sockets."""
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        yield Path(directory)


def _leave(
    root: Path,
    run_id: str,
    *,
    error: Any = None,
    ends: bool = True,
    host: int = DEAD,
    **background: Any,
) -> RunDirectory:
    """Leave the journal of a background run of two ranks."""
    directory = RunDirectory(root / run_id)
    directory.make_again()
    record = RunRecord(
        id=run_id,
        label="Cell In[1]",
        log_directory=directory,
        journal=directory.journal,
        devices="2 ranks on the CPU",
        background=Background(**background),
        ranks=[Rank(rank=r, log=directory.rank_log(r)) for r in range(2)],
    )
    journal = Journal(directory.journal)
    journal.begin(record)
    if ends:
        interrupted = isinstance(error, KeyboardInterrupt)
        record.state = State.CANCELLED if interrupted else State.FAILED
        record.state = record.state if error else State.SUCCEEDED
        record.error, record.ended = error, record.started + 1
        journal.end(record)
    content = directory.journal.read_text()
    content = content.replace(f'"kernel": {os.getpid()}, "quiet"', f'"kernel": {host}, "quiet"')
    directory.journal.write_text(content)
    return directory


def _attach(root: Path, run_id: str) -> BackgroundRun:
    return BackgroundRuns(PastRuns(lambda: (), [root])).choose(run_id, of_any=True)


# --- how it ended ---------------------------------------------------------------------------------


def test_a_run_that_succeeded(root: Path) -> None:
    _leave(root, "0101-000000-7-1")
    run = _attach(root, "7-1")
    assert (run.state, run.is_over()) == (State.SUCCEEDED, True)
    assert run.wait() is run
    assert (run.results, run.error) == ({}, None)
    assert repr(run).startswith("Run 0101-000000-7-1: SUCCEEDED · 2 ranks · 1.0 s · ok")


def test_a_run_that_failed_raises_its_error(root: Path) -> None:
    _leave(root, "0101-000000-7-1", error=ERROR)
    run = _attach(root, "7-1")
    with pytest.raises(WorkerError, match="boom") as caught:
        run.wait()
    assert caught.value.rank == 1
    assert (run.state, run.error) == (State.FAILED, caught.value)


def test_a_run_that_was_stopped_raises_an_interrupt(root: Path) -> None:
    _leave(root, "0101-000000-7-1", error=RunInterrupted("rank 0 stopped"))
    run = _attach(root, "7-1")
    assert run.state is State.CANCELLED
    with pytest.raises(KeyboardInterrupt, match="rank 0 stopped"):
        run.wait()


def test_a_failure_that_is_not_to_be_raised(root: Path) -> None:
    _leave(root, "0101-000000-7-1", error=ERROR, raises=False)
    assert str(_attach(root, "7-1").wait().error) == "boom"


def test_an_error_from_a_full_disk_is_one_nevertheless(root: Path) -> None:
    """The journal has then only the lines of it."""
    directory = _leave(root, "0101-000000-7-1", error=ERROR)
    lines = directory.journal.read_text().splitlines(keepends=True)
    directory.journal.write_text("".join(line for line in lines if '"raised"' not in line))
    with pytest.raises(Exception, match="WorkerError: boom"):
        _attach(root, "7-1").wait()


def test_a_host_that_died(root: Path) -> None:
    """Nobody has written the end."""
    directory = _leave(root, "0101-000000-7-1", ends=False)
    directory.host_log.write_text("MemoryError\n")
    run = _attach(root, "7-1")
    assert (run.state, run.is_over()) == (State.FAILED, True)
    assert run.outcome == "2 ranks · its host process ended before the run, and its ranks with it"
    with pytest.raises(HostLostError, match="ended before the run") as caught:
        run.wait()
    assert caught.value.details == ("MemoryError",)
    assert run.stop().startswith("run 0101-000000-7-1 has ended already")


def _process(code: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE)


def test_a_host_that_could_not_start(root: Path) -> None:
    directory = RunDirectory(root / "0101-000000-7-1")
    directory.make_again()
    directory.host_log.write_text("no module named json\n")
    process = _process("raise SystemExit(3)")
    run = BackgroundRun(directory, Background(), process=process, label="Cell In[1]")
    with pytest.raises(LaunchError, match=r"could not start: .* \(exit code 3\)") as caught:
        run.wait()
    assert caught.value.details == ("no module named json",)
    assert run.state is State.FAILED


def test_before_its_journal_begins_a_run_is_pending(root: Path) -> None:
    process = _process("input()")
    run = BackgroundRun(RunDirectory(root / "0101-000000-7-1"), Background(), process=process)
    assert (run.state, run.outcome, run.is_over()) == (State.PENDING, "starting", False)
    assert run.status().endswith("starting")
    assert run.stacks().endswith("starting")
    process.communicate(b"\n")
    assert run.is_over()


@pytest.mark.parametrize("detached", [True, False])
def test_only_a_run_that_is_not_detached_ends_with_its_kernel(root: Path, detached: bool) -> None:
    """`%reload_ext` says which did."""
    process = _process("input()")
    runs = BackgroundRuns(PastRuns(lambda: (), [root]))
    background = Background(detached=detached)
    runs.add(BackgroundRun(RunDirectory(root / "0101-000000-7-1"), background, process=process))
    ended = runs.close()
    assert (process.poll() is None) is detached
    said = "run 0101-000000-7-1 ended, which was in the background"
    assert ended == ([] if detached else [said])
    process.communicate(b"\n")


class PressesStop(FakeShell):
    """A notebook in which somebody presses Stop once a table is shown."""

    def _publish(self, data: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        super()._publish(data, *args, **kwargs)
        if data["text/plain"] == "TABLE":
            raise KeyboardInterrupt


def test_who_stops_following_is_left_with_no_table(root: Path) -> None:
    """It would say for ever what the ranks were doing then."""
    directory = _leave(root, "0101-000000-7-1", ends=False, host=os.getpid())
    directory.table.write_text(json.dumps({"text": "TABLE", "html": "TABLE"}))
    shell = PressesStop()
    with pytest.raises(KeyboardInterrupt):
        _attach(root, "7-1").follow(Outputs(shell))  # type: ignore[arg-type]
    assert [text for _, text in shell.visible] == ["2 ranks · running"]


# --- what it brings -------------------------------------------------------------------------------


def _send(directory: RunDirectory, asked: str, ranks: list[dict[str, Any]]) -> KeptPulls:
    pulls = KeptPulls(parse(asked), len(ranks), directory)
    for rank, namespace in enumerate(ranks):
        paths = [p.path for p in pulls.asked if p.rank in (rank, None)]
        event, segment = sent_values.send(rank, paths, namespace, directory)
        pulls.take(event, segment.fd if segment is not None else None)
    return pulls


def test_values_are_fetched_from_the_runs_directory(root: Path) -> None:
    """By every notebook that attaches, arrays too."""
    directory = _leave(root, "0101-000000-7-1", pull="a,b@all")
    big = np.arange(1_000_000)
    kept = _send(directory, "a,b@all", [{"a": big + r, "b": r} for r in range(2)])
    values, missing = kept.finish(succeeded=True)
    assert set(values or ()) == {"a", "b"}
    assert missing is None
    for _ in range(2):
        results = _attach(root, "7-1").wait().results
        assert (results["a"] == big).all()
        assert results["b"] == [0, 1]


def test_values_of_launch_are_a_list(root: Path) -> None:
    directory = _leave(root, "0101-000000-7-1", pull=str(call.PULL), call=True)
    _send(directory, str(call.PULL), [{call.PULL.path: 10 * r} for r in range(2)])
    assert _attach(root, "7-1").wait().results == [0, 10]


def test_a_value_that_is_gone_is_named(root: Path) -> None:
    directory = _leave(root, "0101-000000-7-1", pull="a")
    _send(directory, "a", [{"a": 1}, {}])
    directory.kept_values(0).unlink()
    with pytest.raises(PullError, match="`a` of rank 0 is not there any more"):
        _attach(root, "7-1").wait()


def test_a_value_that_could_not_be_kept_fails_the_run(root: Path) -> None:
    """As on a full disk."""
    directory = RunDirectory(root / "0101-000000-7-1")
    kept = _send(RunDirectory(root / "nowhere"), "a", [{"a": 1}, {}])
    values, missing = kept.finish(succeeded=True)
    assert values == {}
    assert "`a` of rank 0 could not be kept for the notebook (No such file" in str(missing)
    assert not directory.path.exists()


def test_values_of_an_attempt_before_a_restart_are_gone(root: Path) -> None:
    directory = _leave(root, "0101-000000-7-1", pull="a")
    _send(directory, "a", [{"a": 1}, {}])
    KeptPulls(parse("a"), 2, directory)
    assert not directory.has_values


# --- which run ------------------------------------------------------------------------------------


class Home:
    """The background runs of a notebook, and what its hosts and others' say."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.runs = BackgroundRuns(PastRuns(lambda: (), [root]))
        self.answering: list[ControlServer] = []

    def choose(self, run_id: str | None = None, *, of_any: bool = True) -> str:
        return self.runs.choose(run_id, of_any=of_any).id

    def live(self, *ids: str) -> None:
        """Let this process be the host of these runs: it can be asked before a journal begins."""
        server = ControlServer(lambda _words: "\n".join(ids), is_host=True)
        server.start(self.root)
        self.answering.append(server)
        for run_id in ids:
            _leave(self.root, run_id, ends=False, host=os.getpid())


@pytest.fixture
def home(root: Path) -> Iterator[Home]:
    home = Home(root)
    yield home
    for server in home.answering:
        server.close()


def test_without_an_id_it_is_the_only_one_that_goes_on(home: Home) -> None:
    _leave(home.root, "0101-000000-7-2")
    home.live("0101-000000-7-1")
    assert home.choose() == "0101-000000-7-1"


def test_of_several_that_go_on_none_is_meant(home: Home) -> None:
    home.live("0101-000000-7-1", "0101-000000-7-2")
    with pytest.raises(ValueError, match=r"several .*\n  run 0101.*\n  run 0101"):
        home.choose()
    assert home.choose("7-1") == "0101-000000-7-1"


def test_a_run_of_another_notebook_that_was_followed_goes_on(home: Home) -> None:
    home.live("0101-000000-7-1")
    home.choose("7-1")
    assert home.runs.close() == []


def test_if_none_goes_on_it_is_the_newest(home: Home) -> None:
    """Of this notebook first, and of these one that nobody has waited for."""
    _leave(home.root, "0101-000000-7-1")
    _leave(home.root, "0101-000000-7-2")
    assert home.choose() == "0101-000000-7-2"
    assert home.choose("7-1") == "0101-000000-7-1"
    assert home.choose(of_any=False) == "0101-000000-7-1"
    home.runs.choose("7-1", of_any=True).wait()
    assert home.choose() == "0101-000000-7-2"


def test_one_that_was_followed_is_not_older_than_it_is(home: Home) -> None:
    """Of another notebook: once it has ended it is the newest, and not a run taken before it."""
    _leave(home.root, "0101-000000-7-1")
    home.runs.choose("7-1", of_any=True).wait()
    home.live("0101-000000-7-2")
    assert home.choose() == "0101-000000-7-2"
    home.answering.pop().close()
    _leave(home.root, "0101-000000-7-2")
    assert home.choose() == "0101-000000-7-2"


def test_a_newer_run_that_nobody_has_taken_comes_before_one_that_was(home: Home) -> None:
    _leave(home.root, "0101-000000-7-1")
    home.runs.choose("7-1", of_any=True).wait()
    _leave(home.root, "0101-000000-7-3")
    assert home.choose() == "0101-000000-7-3"
    assert home.choose(of_any=False) == "0101-000000-7-3"  # known from now on, and not taken


def test_a_host_that_is_not_up_yet_is_waited_for(home: Home) -> None:
    """Its run is meant, and no older one."""
    _leave(home.root, "0101-000000-7-1")
    starting = RunDirectory(home.root / "0101-000000-7-2")
    starting.path.mkdir()
    starting.host_log.touch()
    up = threading.Timer(0.3, home.live, ["0101-000000-7-2"])
    up.start()
    assert home.choose() == "0101-000000-7-2"
    up.join(HANG_S)


def test_a_host_that_does_not_answer_is_killed_the_second_time(root: Path) -> None:
    """Somebody has stopped it (SIGSTOP)."""
    host = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
    _leave(root, "0101-000000-7-1", ends=False, host=host.pid)
    deaf = socket.socket(socket.AF_UNIX)
    deaf.bind(str(control.host_socket(root, host.pid)))
    deaf.listen()
    run = BackgroundRun.of(PastRuns(lambda: (), [root]).find("7-1"))
    assert run.stop().endswith("does not answer: stop it again to kill it")
    assert host.poll() is None
    assert run.stop().endswith("ended: its host process did not answer, and was killed")
    assert host.wait(HANG_S) == -signal.SIGKILL
    deaf.close()


@pytest.mark.parametrize("line", ["-n x --bg", "--detach"])
def test_after_a_cell_that_was_refused_no_other_run_is_meant(home: Home, line: str) -> None:
    """`%ddp_wait` would tell the error of an earlier run as if it were the cell's."""
    _leave(home.root, "0101-000000-7-1")
    assert home.choose() == "0101-000000-7-1"
    with pytest.raises(UsageError), home.runs.noting_refusal(line):
        raise UsageError("invalid rank count 'x'\nand more")
    for of_any in (True, False):
        with pytest.raises(ValueError, match=r"no run \(invalid rank count 'x' \.\.\.\)"):
            home.choose(of_any=of_any)
    assert home.choose("7-1") == "0101-000000-7-1"
    home.runs.add(home.runs.choose("7-1", of_any=True))
    assert home.choose() == "0101-000000-7-1"


def test_a_refused_cell_that_would_not_have_been_in_the_background(home: Home) -> None:
    _leave(home.root, "0101-000000-7-1")
    with pytest.raises(UsageError), home.runs.noting_refusal("-n x"):
        raise UsageError("invalid rank count 'x'")
    assert home.choose() == "0101-000000-7-1"


def test_what_is_not_there_is_refused(home: Home) -> None:
    for of_any in (True, False):
        with pytest.raises(ValueError, match="there is no background run"):
            home.choose(of_any=of_any)
    with pytest.raises(ValueError, match="no run 'x' is left"):
        home.choose("x")


def test_a_run_of_a_notebooks_own_process_is_shown_not_followed(home: Home) -> None:
    directory = _leave(home.root, "0101-000000-7-1")
    head, _, rest = directory.journal.read_text().partition("\n")
    fields = {**json.loads(head), "background": None}
    directory.journal.write_text(f"{json.dumps(fields)}\n{rest}")
    with pytest.raises(ValueError, match="is not a background run: %ddp_show"):
        home.choose("7-1")
    assert home.runs.find_any("7-1") is None


# --- what is said ---------------------------------------------------------------------------------


@pytest.mark.parametrize("detached", [True, False])
def test_it_says_what_it_holds_and_how_to_end_it(root: Path, detached: bool) -> None:
    run = BackgroundRun(
        RunDirectory(root / "0101-000000-7-1"),
        Background(detached=detached),
        devices="2 ranks on cuda:0 H100, cuda:1 H100",
        captured=(Value(name="x", type="ndarray", nbytes=2 * 10**8),),
    )
    text = "\n".join(run.announcement())
    for words in ("cuda:0 H100, cuda:1 H100", "200 MB", "%ddp_stop 0101-000000-7-1"):
        assert words in text
    terminal = ("ddp-magic attach 0101-000000-7-1", "ddp-magic stop 0101-000000-7-1")
    assert all((words in text) is detached for words in terminal)
    assert ("ends with this kernel" in text) is not detached
