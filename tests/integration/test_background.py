"""Runs in the background: with the notebook, without it, after it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.integration.kernel import Kernel, frames_of_ours, is_alive, plain, wait_gone
from tests.limits import HANG_S

FOREVER = "import time\nprint('begun', rank, flush=True)\ntime.sleep(1000)"

NewKernel = Callable[..., Kernel]


@pytest.fixture(scope="module")
def shared_kernel_env() -> Iterator[dict[str, str]]:
    """A cache directory of the module's own: what goes on elsewhere does not matter."""
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:  # short, for sockets
        yield {"XDG_CACHE_HOME": directory}


@pytest.fixture
def runs(shared_kernel_env: dict[str, str]) -> Path:
    return Path(shared_kernel_env["XDG_CACHE_HOME"]) / "ddp_magic"


def _started(kernel: Kernel, line: str, body: str) -> str:
    """Start a background run; return its id."""
    result = kernel.run(f"%%ddp {line}\n{body}")
    assert result.status == "ok", result
    return re.findall(r"^run (\S+) ", result.text)[0]


def _until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + HANG_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _until_begun(directory: Path) -> None:
    journal = directory / "journal.jsonl"
    _until(lambda: journal.exists() and "begun" in journal.read_text())


def _family(pid: int) -> list[int]:
    process = psutil.Process(pid)
    return [p.pid for p in (process, *process.children(recursive=True))]


def _forked(kernel: Kernel) -> list[int]:
    """Return what the notebook's forkserver has forked: a host's forkserver, agents, ranks."""
    forkserver = kernel.forkserver()
    assert forkserver is not None
    return [p.pid for p in forkserver.children(recursive=True)]


def _host(directory: Path) -> int:
    head = json.loads((directory / "journal.jsonl").read_text().partition("\n")[0])
    return int(head["kernel"])


def test_a_run_in_the_background(kernel: Kernel, runs: Path) -> None:
    """Values go in and come back, its text goes to its cell; the notebook is free meanwhile."""
    kernel.run("import numpy as np\ndata = np.arange(3_000_000)\nfree = False")
    message = kernel.start(
        "%%ddp -n 2 --bg --pull total@all,model -o r\n"
        "import os\nwhile not os.path.exists('go'): pass\n"
        "print('sum', data.sum(), rank)\ntotal = data.sum() + rank\nmodel = nn.Linear(2, 1)"
    )
    assert kernel.finish(message).status == "ok"
    assert kernel.run("%%ddp -n 1\nprint('foreground')").lines == ["[rank 0] foreground"]
    _until(lambda: "line 3" in kernel.run("%ddp_status --stacks").text)
    kernel.start("open('go', 'w').close()")  # `run` would drop what the ranks write at once
    late = ""
    while late.count("sum") < 2:  # in the cell that has ended
        shown = kernel.client.get_iopub_msg(timeout=HANG_S)
        if shown["msg_type"] == "stream" and shown["parent_header"]["msg_id"] == message:
            late += shown["content"]["text"]
    assert "[rank 1] sum 4499998500000 1" in plain(late)
    waited = kernel.run("%ddp_wait")
    assert waited.status == "ok", waited
    assert "[rank 1] sum 4499998500000 1" in waited.lines
    assert waited.summary.endswith("ok")
    assert kernel.value("(total == [data.sum(), data.sum() + 1], type(model).__name__)") == (
        True,
        "Linear",
    )
    assert kernel.value("r.state.value") == "SUCCEEDED"
    host = _host(runs / kernel.value("r.id"))
    _until(lambda: not psutil.pid_exists(host))  # not even a zombie


def test_its_forkserver_is_a_fork_of_the_notebooks(kernel: Kernel, runs: Path) -> None:
    """It has the notebook's libraries already, starts at once, and ends with the run."""
    kernel.run("%%ddp -n 1\nDiceLoss")  # has monai imported
    body = "import os, sys\nprint('begun', 'monai.losses' in sys.modules)"
    for option in ("--bg", "--detach"):
        run = _started(kernel, f"-n 2 {option}", f"{body}\nimport time; time.sleep(1000)")
        _until_begun(runs / run)
        family = [_host(runs / run), *_forked(kernel)]
        assert len(family) == 5  # a forkserver, an agent, two ranks
        kernel.run(f"%ddp_stop {run}")
        assert "stopped" in kernel.run(f"%ddp_attach {run}").traceback
        assert "begun True" in (runs / run / "journal.jsonl").read_text()
        assert wait_gone(family, 3) == []
    assert kernel.run("%%ddp -n 1\nprint('next')").lines == ["[rank 0] next"]


def test_unloading_does_not_wait_for_a_detached_run(kernel: Kernel, runs: Path) -> None:
    """Nor does it end the run, whose forkserver the notebook's has forked."""
    run = _started(kernel, "-n 2 --detach", FOREVER)
    _until_begun(runs / run)
    forkserver = kernel.forkserver()
    assert forkserver is not None
    kernel.run("%unload_ext ddp_magic")
    assert wait_gone([forkserver.pid], 3) == []
    kernel.run("%load_ext ddp_magic")
    assert "running" in kernel.run("%ddp_status").text + repr(kernel.run("%ddp_status").outputs)
    kernel.run(f"%ddp_stop {run}")
    assert "stopped" in kernel.run(f"%ddp_attach {run}").traceback


def test_a_notebook_with_many_files_open(new_kernel: NewKernel) -> None:
    """`select` knows descriptors up to 1023 only."""
    kernel = new_kernel()
    opened = kernel.run(
        "import resource\n"
        "hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))\n"
        "files = [open('/dev/null') for _ in range(1200)]"
    )
    assert opened.status == "ok", opened
    for option, wait in (("", ""), ("--bg", "%ddp_wait"), ("--session lab", "")):
        result = kernel.run(f"%%ddp -n 2 {option} --pull x@all\nx = rank")
        assert result.status == "ok", result
        assert not wait or kernel.run(wait).status == "ok"
        assert kernel.value("x") == [0, 1]


def test_without_a_forkserver_of_the_notebooks(new_kernel: NewKernel) -> None:
    kernel = new_kernel()
    kernel.run("%config DDPMagics.preload = False")
    result = kernel.run("%%ddp -n 2 --bg\nprint('here')")
    assert result.status == "ok", result
    waited = kernel.run("%ddp_wait")
    assert sorted(waited.lines) == ["[rank 0] here", "[rank 1] here"], waited


def test_a_killed_forkserver_does_not_end_the_run(kernel: Kernel, runs: Path) -> None:
    """Neither its own nor, after that, the end of another agent of the notebook's."""
    body = "import os, time\nprint('begun')\nwhile not os.path.exists('go_on'): time.sleep(0.05)"
    run = _started(kernel, "-n 2 --bg", f"{body}\nprint('whole')")
    _until_begun(runs / run)
    forkserver, *_ = _forked(kernel)
    psutil.Process(forkserver).kill()
    assert kernel.run("%%ddp -n 1\nprint('next')").lines == ["[rank 0] next"]
    kernel.run("open('go_on', 'w').close()")
    waited = kernel.run("%ddp_wait")
    assert waited.status == "ok", waited
    assert waited.text.count("whole") == 2 or "[ranks 0-1] whole" in waited.text


def test_a_failure_is_raised_where_it_is_waited_for(kernel: Kernel) -> None:
    """By its own class, with its own traceback; and said in the cell that started the run."""
    kernel.run("class Mine(Exception): pass")
    message = kernel.start("%%ddp -n 2 --bg\nif rank == 1:\n    raise Mine('no')")
    assert kernel.finish(message).status == "ok"
    result = kernel.run("%ddp_wait")
    assert result.status == "error"
    assert "Cell In[" in result.traceback
    assert "line 3" in result.traceback
    assert "Mine: no" in result.traceback
    assert frames_of_ours(result.traceback) == []
    caught = kernel.run(
        "try:\n    get_ipython().run_line_magic('ddp_wait', '')\n"
        "except Mine as error:\n    print('caught', error.rank)"
    )
    assert caught.lines[-1] == "caught 1"


def test_what_is_wrong_is_found_before_anything_starts(kernel: Kernel) -> None:
    kernel.run("import threading; lock = threading.Lock()")
    before = psutil.Process(kernel.pid).children()
    for cell, words in (
        ("%%ddp -n 2 --bg\nprint((", "SyntaxError"),
        ("%%ddp -n 2 --detach\nprint(lock)", "cannot send `lock`"),
        ("%%ddp -n 2 --bg -s lab\nprint(1)", "the ranks of a session are the notebook's"),
    ):
        result = kernel.run(cell)
        assert result.status == "error"
        assert words in result.traceback + result.text
    # A host of an earlier test may have ended meanwhile.
    assert [p for p in psutil.Process(kernel.pid).children() if p not in before] == []


def test_stop_ends_the_wait_and_ddp_stop_the_run(kernel: Kernel, runs: Path) -> None:
    run = _started(kernel, "-n 2 --bg", FOREVER)
    message = kernel.start("%ddp_wait")
    kernel.finish(message, until="begun")
    kernel.interrupt()
    stopped = kernel.finish(message)
    assert f"stopped following run {run}, which goes on; %ddp_stop {run} ends it" in (
        stopped.traceback
    )
    family = _family(_host(runs / run))
    status = kernel.run("%ddp_status").outputs[-1][1]["data"]["text/plain"]
    assert f"run {run} · Cell In[" in status
    assert "RUNNING · 2 ranks · in the background" in status
    ended = kernel.run("%ddp_stop")
    assert re.fullmatch(rf"run {run} ended: 2 ranks · .* s · stopped\n", ended.text), ended
    assert wait_gone(family, 3) == []
    assert "ranks 0-1 stopped at line 4" in kernel.run("%ddp_wait").traceback
    assert kernel.run(f"%ddp_logs {run}").lines == ["[rank 0] begun 0", "[rank 1] begun 1"]


@pytest.mark.parametrize("how", ["killed", "restarted", "killed, and its children are stopped"])
def test_a_background_run_ends_with_its_kernel(
    new_kernel: NewKernel, shared_kernel_env: dict[str, str], runs: Path, how: str
) -> None:
    """Also with ranks that answer no interrupt. The journal says why."""
    kernel = new_kernel(shared_kernel_env)
    deaf = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
    run = _started(kernel, "-n 2 --bg", deaf + FOREVER)
    _until_begun(runs / run)
    family = _family(kernel.pid)
    assert len(family) >= 6
    if how != "restarted":
        for child in psutil.Process(kernel.pid).children() if "stopped" in how else ():
            child.suspend()
        kernel.kill()
    else:
        kernel.manager.restart_kernel(now=True)
    assert wait_gone(family, 3) == []
    last = json.loads((runs / run / "journal.jsonl").read_text().splitlines()[-1])
    assert last["state"] == "CANCELLED"
    assert "the notebook's kernel ended, and this background run with it" in last["error"][-1]


def test_ranks_do_not_outlive_their_host(kernel: Kernel, runs: Path) -> None:
    """Whoever waits is told."""
    run = _started(kernel, "-n 2 --bg", FOREVER)
    _until_begun(runs / run)
    host = _host(runs / run)
    family = _family(host)
    psutil.Process(host).kill()
    assert wait_gone(family, 3) == []
    result = kernel.run("%ddp_wait")
    assert result.status == "error"
    assert f"HostLostError: the host process of run {run} ended (killed by SIGKILL: often" in (
        result.traceback
    )
    assert "its host process ended before the run" in kernel.run(f"%ddp_show {run}").lines[-1]


def test_a_detached_run_outlives_its_kernel(
    tmp_path: Path, new_kernel: NewKernel, shared_kernel_env: dict[str, str], runs: Path
) -> None:
    """Another notebook, and a terminal, follow it to its end; the notebook gets its values."""
    first = new_kernel(shared_kernel_env)
    first.run("secret = [1, 2, 3]")
    body = (
        "import os, time\nprint('begun', rank, flush=True)\n"
        "while not os.path.exists('go'): time.sleep(0.05)\n"
        "plt.plot(secret); plt.show()\nx = {'sum': sum(secret) + rank}"
    )
    run = _started(first, "-n 2 --detach --pull x", body)
    _until_begun(runs / run)
    first.kill()
    first.stop()
    host = _host(runs / run)
    assert is_alive(host)
    second = new_kernel(shared_kernel_env)
    assert f"run {run} · Cell In[" in repr(second.run("%ddp_status").outputs[-1])
    message = second.start("%ddp_attach")
    second.finish(message, until="begun")
    terminal = _terminal(shared_kernel_env, "attach")
    (tmp_path / "go").touch()
    attached = second.finish(message)
    assert attached.status == "ok", attached
    assert len(attached.displays) == 2
    assert second.value("x") == {"sum": 6}
    text, _ = terminal.communicate(timeout=HANG_S)
    assert terminal.returncode == 0, text
    assert "[rank 1] begun 1" in text
    assert text.count("figure: ") == 2
    assert wait_gone([host], 3) == []


def test_a_terminal_stops_a_detached_run(
    kernel: Kernel, shared_kernel_env: dict[str, str], runs: Path
) -> None:
    """And has its end as an exit code."""
    run = _started(kernel, "-n 2 --detach", FOREVER)
    _until_begun(runs / run)
    family = _family(_host(runs / run))
    text, _ = _terminal(shared_kernel_env, "status").communicate(timeout=HANG_S)
    assert f"host {family[0]}\n" in text
    stacks, _ = _terminal(shared_kernel_env, "stacks", run).communicate(timeout=HANG_S)
    assert "line 4, in <module>" in stacks
    stop = _terminal(shared_kernel_env, "stop", run)
    assert "was asked to stop" in stop.communicate(timeout=HANG_S)[0]
    attach = _terminal(shared_kernel_env, "attach", run)
    text, _ = attach.communicate(timeout=HANG_S)
    assert attach.returncode == 1
    assert "KeyboardInterrupt: ranks 0-1 stopped at line 4" in plain(text)
    assert wait_gone(family, 3) == []


def _terminal(env: dict[str, str], *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [Path(sys.executable).with_name("ddp-magic"), *words],
        env={**os.environ, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_from_python(tmp_path: Path, shared_kernel_env: dict[str, str]) -> None:
    """A script waits for a run, or ends it with itself."""
    (tmp_path / "script.py").write_text(
        "import ddp_magic\n"
        "run = ddp_magic.launch(lambda x: print('in', rank) or x + rank, 3, nproc_per_node=2,"
        " bg=True)\n"
        "print(run.wait().results)\n"
        "print(ddp_magic.run('import time; time.sleep(1000)', nproc_per_node=2, bg=True).id)\n"
    )
    done = subprocess.run(
        [sys.executable, "script.py"],
        cwd=tmp_path,
        env={**os.environ, **shared_kernel_env},
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=True,
    )
    assert "[3, 4]" in done.stdout.splitlines()
    assert done.stdout.index("[rank 1] in 1") < done.stdout.index("[3, 4]")
    assert "the notebook's kernel ended, and this background run" in done.stdout.splitlines()[-1]
