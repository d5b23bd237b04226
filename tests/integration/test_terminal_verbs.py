"""What a terminal and a subshell learn, and do, while a cell blocks the notebook."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.integration.kernel import Kernel, frames_of_ours, plain, wait_gone
from tests.limits import HANG_S

STUCK = """%%ddp -n 3
import re, time
print('pid', __import__('os').getpid(), flush=True)
def wait():
    time.sleep(1000)
if rank == 0:
    dist.barrier()
if rank == 1:
    wait()
re.match(r'(a+)+$', 'a' * 60 + 'b')
"""


Verb = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def shared_kernel_env() -> Iterator[dict[str, str]]:
    """A cache directory of the module's own: a terminal asks all kernels that use it."""
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:  # short, for sockets
        yield {"XDG_CACHE_HOME": directory}


@pytest.fixture
def verb(shared_kernel_env: dict[str, str]) -> Verb:
    """Run `ddp-magic`; return its exit code and all it printed."""

    def run(*words: str) -> tuple[int, str]:
        done = subprocess.run(
            [Path(sys.executable).with_name("ddp-magic"), *words],
            env={**os.environ, **shared_kernel_env},
            capture_output=True,
            text=True,
            timeout=HANG_S,
            check=False,
        )
        return done.returncode, done.stdout + done.stderr

    return run


def _until_all_are_there(kernel: Kernel, message: str) -> list[int]:
    text = ""
    while len(pids := re.findall(r"pid (\d+)", text)) < 3:
        text += kernel.finish(message, until="\n").text
    return [int(pid) for pid in pids]


def test_a_terminal_sees_the_stacks_and_stops_the_run(kernel: Kernel, verb: Verb) -> None:
    """Also of a rank whose C code holds the interpreter lock."""
    message = kernel.start(STUCK)
    pids = _until_all_are_there(kernel, message)
    code, status = verb("status")
    assert code == 0
    assert f"kernel {kernel.pid}" in status
    run = re.search(r"run (\S+) · Cell In\[\d+\] · RUNNING · 3 ranks", status)
    assert run, status
    code, stacks = verb("stacks", run[1])
    assert code == 0
    for frame in (r"line 7, in <module>", r"line 5, in wait\n .*line 9, in <module>", r"in match"):
        assert re.search(frame, stacks), stacks
    assert frames_of_ours(stacks) == []
    code, logs = verb("logs", run[1], "-r", "1")
    assert code == 0
    assert int(logs.split()[1]) in pids
    assert verb("stop", run[1])[0] == 0
    result = kernel.finish(message)
    assert "rank 1 stopped at line 5; rank 2 did not answer at line 10" in result.traceback
    assert wait_gone(pids, 10) == []
    assert verb("stop", run[1]) == (1, f"run {run[1]} has ended\n")


def test_a_terminal_ends_a_session(kernel: Kernel, verb: Verb) -> None:
    kernel.run("%%ddp -n 1 -s shell\nx = 1")
    assert "session shell" in verb("status")[1]
    assert verb("stop", "shell") == (0, "session shell (1 rank) ended\n")
    assert verb("stop", "shell")[0] == 1


def test_the_magics_answer_in_a_subshell(kernel: Kernel) -> None:
    """As in JupyterLab's subshell console, of ipykernel 7."""
    shell = _new_subshell(kernel)
    message = kernel.start(STUCK)
    pids = _until_all_are_there(kernel, message)
    shell("_status = lambda: repr(get_ipython().run_line_magic('ddp_status', ''))")
    assert "in wait" in shell("%ddp_status --stacks")
    (run,) = re.findall(r"run (\S+) · .* · RUNNING", shell("print(_status())"))
    assert "was asked to stop" in shell(f"%ddp_stop {run}")
    assert "was asked to stop" in shell(f"%ddp_stop {run}")
    assert kernel.finish(message).status == "error"
    assert wait_gone(pids, 10) == []


def _new_subshell(kernel: Kernel) -> Callable[[str], str]:
    """Return a function that runs code in a subshell and returns what it printed."""
    client = kernel.client
    control = client.session.msg("create_subshell_request", {})
    client.control_channel.send(control)
    try:
        reply = client.get_control_msg(timeout=HANG_S)
        subshell = reply["content"]["subshell_id"]
    except KeyError:
        pytest.skip("this ipykernel has no subshells")

    def run(code: str) -> str:
        content = {
            "code": code,
            "silent": False,
            "store_history": False,
            "user_expressions": {},
            "allow_stdin": False,
            "stop_on_error": False,
        }
        request = client.session.msg("execute_request", content)
        request["header"]["subshell_id"] = subshell
        client.shell_channel.send(request)
        text = ""
        while True:
            message = client.get_iopub_msg(timeout=HANG_S)
            if message["parent_header"].get("msg_id") != request["header"]["msg_id"]:
                continue
            if message["msg_type"] == "stream":
                text += message["content"]["text"]
            if message["content"].get("execution_state") == "idle":
                client.get_shell_msg(timeout=HANG_S)
                return text

    return run


def test_a_run_is_shown_after_the_end_of_its_kernel(
    tmp_path: Path, shared_kernel_env: dict[str, str], verb: Verb
) -> None:
    """By another notebook and by a terminal: text, figures, the error, how it ended."""
    first = Kernel(tmp_path, shared_kernel_env)
    assert first.run("%load_ext ddp_magic").status == "ok"
    failed = first.run(
        "%%ddp -n 2\nprint('hello from', rank)\nplt.plot([1, 2]); plt.show()\ndist.barrier()\n"
        "if rank == 1: 1 / 0\ndist.barrier()"
    )
    assert failed.status == "error", failed
    message = first.start("%%ddp -n 1\nimport time\nprint('begun', flush=True)\ntime.sleep(1000)")
    first.finish(message, until="begun")
    os.kill(first.pid, signal.SIGKILL)
    pid = first.pid
    first.stop()

    second = Kernel(tmp_path, shared_kernel_env)
    assert second.run("%load_ext ddp_magic").status == "ok"
    listed = second.run("%ddp_status").outputs[-1][1]["data"]["text/plain"]
    cut, whole = re.findall(rf"run (\S+-{pid}-\d+) · Cell In\[\d+\] · ", listed)
    assert "1 rank · ended with its notebook" in listed
    newest = second.run(f"%ddp_show {cut}")
    assert newest.lines[-2:] == ["[rank 0] begun", "1 rank · ended with its notebook"], newest
    again = second.run(f"%ddp_show {whole}")
    assert again.status == "ok", again
    assert [d["data"]["image/png"] for d in again.displays] == [
        d["data"]["image/png"] for d in failed.displays
    ]
    for line in (*failed.lines, *failed.traceback.splitlines()):
        assert line in plain(again.text).splitlines()
    assert " · failed · rank 1 raised ZeroDivisionError" in again.lines[-1]
    second.stop()

    code, shown = verb("show", whole)
    assert code == 0, shown
    figures = re.findall(r"^figure: (.*)$", shown, re.MULTILINE)
    assert len(figures) == 2
    assert Path(figures[0]).read_bytes().startswith(b"\x89PNG")
    assert "ZeroDivisionError: division by zero" in plain(shown)
    code, logs = verb("logs", cut)
    assert (code, logs) == (0, "[rank 0] begun\n")


def test_logs_in_the_notebook(kernel: Kernel) -> None:
    """All that the ranks wrote, also what was not shown; a wrong run or rank is one line."""
    kernel.run("%%ddp -n 2 --show 0\nfor i in range(3): print(i, 'of', rank)")
    which, *lines = kernel.run("%ddp_logs -n 1").lines
    assert lines == ["[rank 0] 2 of 0", "[rank 1] 2 of 1"]
    assert kernel.run(f"%ddp_logs {which.split()[1]} -r 1").lines == ["0 of 1", "1 of 1", "2 of 1"]
    for line, wrong in (("%ddp_logs -r 5", "rank 5 of run"), ("%ddp_show nope", "no run 'nope'")):
        result = kernel.run(line)
        assert result.status == "error"
        assert result.text.startswith(f"UsageError: {line.split()[0]}: {wrong}"), result
