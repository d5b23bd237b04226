"""Sessions: ranks that are kept."""

from __future__ import annotations

import re
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.integration.kernel import DEAF, Kernel, Result, pids_in, wait_gone
from tests.limits import within

SUM = "t = torch.ones(1) * (rank + 1); dist.all_reduce(t); print('sum', t.item())"


@pytest.fixture(scope="module")
def lab(shared_kernel: Kernel) -> Kernel:
    """The module's kernel."""
    return shared_kernel


@pytest.fixture(autouse=True)
def no_sessions(lab: Kernel) -> Iterator[None]:
    """After each test its sessions are ended, and nothing is left of them."""
    yield
    lab.run("%ddp_stop --all")
    lab.run("%reset -f")
    assert wait_gone([p.pid for p in lab.processes()], 3) == []


def _sums(kernel: Kernel, name: str = "lab") -> None:
    """The ranks of a session are in step: their sum is right, twice."""
    for _ in range(2):
        result = kernel.run(f"%%ddp -s {name}\n{SUM}")
        assert result.status == "ok", result.traceback
        assert result.text.count("sum 3.0") == 2, result.text


def _stopped(kernel: Kernel, cell: str, until: str, wait_s: float) -> Result:
    """Press Stop once a cell has printed something, and a while after that."""
    message = kernel.start(cell)
    kernel.finish(message, until=until)
    time.sleep(wait_s)
    kernel.interrupt()
    return kernel.finish(message)


def test_a_later_cell_finds_what_an_earlier_one_made(lab: Kernel) -> None:
    """Variables, functions, modules, the process group, in the same processes."""
    first = lab.run(
        "%%ddp -n 2 --session lab\n"
        "import math as m\n"
        "x = 10 * rank\n"
        "def double(v):\n    return 2 * v + offset\n"
        "offset = 1\n"
        "model = DDP(torch.nn.Linear(2, 2))\n"
        "import os; print(f'pid={os.getpid()}')"
    )
    second = lab.run(
        "%%ddp -s lab\noffset = 5\nprint(f'pid={os.getpid()};', double(x), m.pi > 3)\n"
        "model(torch.ones(1, 2)).sum().backward()"
    )
    assert second.status == "ok", second.traceback
    assert sorted(pids_in(first.text)) == sorted(pids_in(second.text))
    assert sorted(line.split("; ")[1] for line in second.lines) == ["25 True", "5 True"]
    assert "session lab" in str(second.outputs[0])


def test_a_failed_cell_keeps_the_session_and_the_sums_right(lab: Kernel) -> None:
    """Rank 0 raises while rank 1 waits in a collective: the next sum is not a stale one."""
    lab.run(f"%%ddp -n 2 -s lab\nkept = 'here'\n{SUM}")
    result = lab.run(
        "%%ddp -s lab\nif rank == 0: 1 / 0\nt = torch.full((1,), 100.0); dist.all_reduce(t)"
    )
    assert "ZeroDivisionError" in result.traceback
    assert "rank 1: was interrupted at line 3" in result.traceback
    assert "the process group was re-created" in result.text
    _sums(lab)
    result = lab.run("%%ddp -s lab\nprint(kept)")
    assert sorted(result.lines) == ["[rank 0] here", "[rank 1] here"]


def test_a_ddp_object_does_not_stand_in_the_way(lab: Kernel) -> None:
    """It holds the old group, and its peer in backward() is freed all the same."""
    lab.run("%%ddp -n 2 -s lab\nmodel = DDP(torch.nn.Linear(2, 2))")
    result = lab.run(
        "%%ddp -s lab\nif rank == 0: raise KeyError('x')\n"
        "for _ in range(3): model(torch.ones(1, 2)).sum().backward()"
    )
    assert "KeyError" in result.traceback
    _sums(lab)
    result = lab.run(
        "%%ddp -s lab\nmodel = DDP(model.module)\nmodel(torch.ones(1, 2)).sum().backward()"
    )
    assert result.status == "ok", result.traceback


@pytest.mark.slow
def test_many_failures(lab: Kernel) -> None:
    """Every one leaves a session whose ranks are in step."""
    lab.run("%%ddp -n 2 -s lab\nx = 1")
    for i in range(2):
        lab.run(f"%%ddp -s lab\nif rank == {i}: raise ValueError\ndist.barrier()")
    _sums(lab)


def test_a_subgroup_is_freed_too(lab: Kernel) -> None:
    """A rank that waits in a group the cell has made."""
    result = lab.run(
        "%%ddp -n 2 -s lab\ngroup = dist.new_group([0, 1])\nif rank == 1: raise OSError('no')\n"
        "dist.all_reduce(torch.ones(1), group=group)"
    )
    assert "OSError" in result.traceback
    _sums(lab)


def test_stop_interrupts_the_cell_and_keeps_the_session(lab: Kernel) -> None:
    """Ranks in Python code and ranks that wait in a collective alike."""
    lab.run("%%ddp -n 2 -s lab\nx = 7")
    result = _stopped(
        lab,
        "%%ddp -s lab\nimport time\nprint('started')\n"
        "if rank == 0: time.sleep(1000)\ndist.barrier()",
        until="[rank 1] started",
        wait_s=0.3,
    )
    assert "KeyboardInterrupt" in str(result.error)
    _sums(lab)
    assert lab.run("%%ddp -s lab\nprint(x)").text.count("7") == 2


def test_stop_between_cells_does_nothing(lab: Kernel) -> None:
    """An interrupt of the notebook itself never reaches idle ranks."""
    lab.run("%%ddp -n 2 -s lab\nx = 7")
    for _ in range(5):
        lab.interrupt()
        time.sleep(0.05)
    _sums(lab)


def test_a_deaf_rank_ends_the_session(lab: Kernel) -> None:
    """It shows its stack and is killed after 2 s, and the session with it; that is said."""
    lab.run("%%ddp -n 2 -s lab\nx = 7")
    result = _stopped(
        lab,
        "%%ddp -s lab\nprint('up', flush=True)\ndef deaf():\n"
        f"    {DEAF}\n"
        "if rank == 1: deaf()\nimport time; time.sleep(1000)",
        until="up",
        wait_s=0.7,
    )
    assert "line 4, in deaf" in result.text, result
    assert "rank 1 did not answer" in str(result.error)
    assert "session lab ended" in result.text
    assert lab.run("%%ddp -n 2 -s lab\nprint('x' in globals())").text.count("False") == 2


def test_a_rank_that_dies_ends_the_session(lab: Kernel) -> None:
    """With its reason; also between two cells."""
    lab.run("%%ddp -n 2 -s lab\nimport os, signal")
    result = lab.run("%%ddp -s lab\nif rank == 1: os.kill(os.getpid(), signal.SIGKILL)\nos.wait3")
    assert "rank 1 was killed by SIGKILL" in result.traceback
    assert "session lab ended" in result.text
    pids = pids_in(lab.run("%%ddp -n 2 -s lab\nimport os; print(f'pid={os.getpid()}')").text)
    psutil.Process(pids[0]).kill()
    assert wait_gone(pids, 3) == []
    result = lab.run("%%ddp -n 2 -s lab\nprint('anew')")
    assert result.text.count("anew") == 2
    assert re.search(r"lab had ended since its last cell: rank \d was killed by SIGK", result.text)
    assert "had ended" not in lab.run("%%ddp -s lab\nprint('anew')").text


def test_captured_names_follow_the_notebook(lab: Kernel) -> None:
    """What a session cell has bound is kept; what came from the notebook is refreshed."""
    lab.run(
        "import numpy as np\nown, data = 'notebook', [1]\narray = np.zeros(500_000)\n"
        "def f(): return 'old'"
    )
    lab.run("%%ddp -n 2 -s lab\nown = own + ' and ranks'\ndata.append(rank)\nf(), array[0]")
    show = "%%ddp -s lab\nprint(own, data[:1], len(data), f(), array[0])"
    result = lab.run(show)
    assert set(result.lines) == {
        f"[rank {r}] notebook and ranks [1] 2 old 0.0" for r in range(2)
    }, result.text
    lab.run("own = 'changed'\ndata.append(5)\narray[0] = 4\ndef f(): return 'new'")
    result = lab.run(show)
    lines = {line for line in result.lines if line.startswith("[rank")}  # a slow capture says so
    assert lines == {f"[rank {r}] notebook and ranks [1] 2 new 4.0" for r in range(2)}, result.text


def test_a_name_of_a_sessions(lab: Kernel) -> None:
    """Asked for outside of it: the error says where it is."""
    lab.run("%%ddp -n 1 -s lab\nweights = 1")
    result = lab.run("%%ddp -n 1\nprint(weights)")
    assert "in session lab: --session lab runs this cell there" in result.traceback
    lab.run("%ddp_stop lab")
    result = lab.run("%%ddp -n 1\nprint(weights)")
    assert "whose ranks have ended" in result.traceback


def test_spawned_children_find_what_earlier_cells_have(lab: Kernel) -> None:
    """A DataLoader's workers: the notebook's names of one cell, the definitions of another."""
    lab.run("table = [0, 10, 20]\ndef fetch(i): return table[i] + shift\nshift = 5")
    lab.run("%%ddp -n 1 --session lab\nprint(fetch(1))")
    rows = "class Rows:\n    def __len__(self): return 3\n    def __getitem__(self, i): "
    lab.run(f"%%ddp --session lab\n{rows}return fetch(i)")
    result = lab.run(
        """%%ddp --session lab
loader = DataLoader(Rows(), num_workers=1, multiprocessing_context='spawn', batch_size=3)
print(next(iter(loader)).tolist())"""
    )
    assert result.lines == ["[rank 0] [5, 15, 25]"], result.traceback


def test_results_come_back(lab: Kernel) -> None:
    """--pull from a kept rank, also what an earlier cell has made; the run has its own text."""
    lab.run("%%ddp -n 2 -s lab\nloss = torch.ones(3) * rank\nprint('first')")
    lab.run("%%ddp -s lab --pull loss@all -o run\nprint('second')")
    assert lab.value("[v.tolist() for v in loss]") == [[0.0] * 3, [1.0] * 3]
    assert lab.value("[r.stdout for r in run.ranks]") == ["second\n", "second\n"]
    assert lab.value("[r.exit for r in run.ranks]") == [0, 0]


def test_two_sessions_and_a_run_between(lab: Kernel) -> None:
    """Names, ranks and sums of each are its own."""
    for name, ranks in (("a", 1), ("b", 2)):
        lab.run(f"%%ddp -n {ranks} -s {name}\nwho = '{name}'")
    lab.run("%%ddp -n 2\nprint('fresh')")
    assert lab.run("%%ddp -s a\nprint(who, world_size)").lines == ["[rank 0] a 1"]
    _sums(lab, "b")
    status = lab.run("print(repr(get_ipython().run_line_magic('ddp_status', '')))").text
    assert "session a" in status
    assert "session b" in status
    assert lab.run("%ddp_stop a").text.strip() == "session a (1 rank) ended"
    assert lab.run("%ddp_stop --all").text.strip() == "session b (2 ranks) ended"
    unknown = str(lab.run("%ddp_stop a").error)
    assert "unknown session or run 'a' (nothing is running)" in unknown


@pytest.mark.slow
def test_threads_that_use_a_session_at_once(lab: Kernel) -> None:
    """One runs, whether it starts the session or not; the others are refused, a stop stops it."""
    result = lab.run(
        textwrap.dedent("""
        import ddp_magic, threading, time
        from concurrent.futures import ThreadPoolExecutor
        from IPython.core.error import UsageError
        shell = get_ipython()
        ddp = shell.magics_manager.registry["DDPMagics"]
        def outcome(call):
            try:
                call()
            except (ddp_magic.LaunchError, UsageError) as error:
                return "refused" if "in use by another thread" in str(error) else str(error)
            except KeyboardInterrupt:
                return "stopped"
            return "ok"
        def cell(ranks):
            text = "import time; time.sleep(60); made = rank"
            ddp_magic.run(text, session="lab", nproc_per_node=ranks)
        def stop():
            while not any(run.state.value == "RUNNING" for run in ddp.controller.runs):
                time.sleep(0.1)
            time.sleep(0.5)
            shell.run_line_magic("ddp_stop", "lab")
        def status():
            time.sleep(1)
            shell.run_line_magic("ddp_status", "")
        for ranks in (2, None):
            calls = [lambda: cell(ranks), lambda: cell(ranks), lambda: cell(ranks), stop, status]
            with ThreadPoolExecutor(len(calls)) as pool:
                print(sorted(pool.map(outcome, calls)), flush=True)
        """)
    )
    assert result.text.count("['ok', 'ok', 'refused', 'refused', 'stopped']") == 2, result
    _sums(lab)


def test_exit_handlers_run_at_the_end(lab: Kernel) -> None:
    lab.run(
        "%%ddp -n 1 -s lab\nimport atexit, pathlib\n"
        "atexit.register(lambda: pathlib.Path('ended').write_text('well'))"
    )
    lab.run("%ddp_stop lab")
    assert lab.value("open('ended').read()") == "well"


@pytest.mark.slow
def test_idle_ranks_cost_nothing(lab: Kernel) -> None:
    """Neither they nor their agent, but for gloo's own loop: it wakes 100 times a second."""
    lab.run("%%ddp -n 2 -s lab\nx = 1")
    processes = lab.processes()
    assert len(processes) == 3
    time.sleep(1)
    before = {p.pid: sum(p.cpu_times()[:2]) for p in processes}
    time.sleep(3)
    used = sum(sum(p.cpu_times()[:2]) - before[p.pid] for p in processes)
    assert within(used, 0.07)  # 1% of a core a rank


def test_text_between_cells_is_not_lost(lab: Kernel) -> None:
    """A thread of a rank writes on; the next cell shows it first."""
    lab.run(
        "%%ddp -n 1 -s lab\nimport threading, time\n"
        "def late():\n    time.sleep(1)\n    print('late', flush=True)\n"
        "threading.Thread(target=late).start()"
    )
    time.sleep(1.5)
    assert lab.run("%%ddp -s lab\nprint('next')").lines == ["[rank 0] late", "[rank 0] next"]


def test_sys_exit_ends_the_cell(lab: Kernel) -> None:
    """Not the rank, which is the session's."""
    lab.run("%%ddp -n 2 -s lab\nimport sys\nx = 3\nsys.exit()")
    assert lab.run("%%ddp -s lab\nprint(x)").text.count("3") == 2


@pytest.mark.slow
def test_cold(lab: Kernel) -> None:
    """Ranks started by torchrun can be kept too."""
    lab.run("%%ddp -n 2 -s lab --cold\nx = 5")
    result = lab.run("%%ddp -s lab\nprint(x)")
    assert sorted(result.lines) == ["[rank 0] 5", "[rank 1] 5"], result.traceback
    lab.run("%%ddp -s lab\nif rank: 1 / 0\ndist.barrier()")
    _sums(lab)
    assert "session lab (2 ranks) ended" in lab.run("%ddp_stop lab").text


# --- what a cell does to its own process ----------------------------------------------------------

HARM = {
    "streams": "import sys\nsys.stdout.close(); sys.stderr.close()",
    "no streams": "import sys\nsys.stdout = sys.stderr = None",
    "descriptors": "import os\nfor fd in range(3): os.close(fd)",
    "redirected": "import os\nfd = os.open('/dev/null', 1)\nos.dup2(fd, 1); os.dup2(fd, 2)",
    "process group": "dist.destroy_process_group()",
    "process group of one rank": "if rank == 1: dist.destroy_process_group()",
    "interrupts": "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)",
    "masked": "import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})",
}


@pytest.mark.parametrize("what", HARM)
def test_harm_to_the_own_process_ends_with_the_cell(lab: Kernel, what: str) -> None:
    """The next cell prints, in Python and below, reduces, and can be stopped."""
    lab.run("%%ddp -n 2 -s lab\nkept = 'kept'")
    assert lab.run(f"%%ddp -s lab\n{HARM[what]}").status == "ok"
    result = lab.run(
        "%%ddp -s lab\nimport sys, os\nprint(kept); print('error', file=sys.stderr)\n"
        "os.system('echo below')"
    )
    for word in ("kept", "error", "below"):
        assert result.text.count(word) == 2, result
    _sums(lab)
    stopped = _stopped(
        lab, "%%ddp -s lab\nimport time\nprint('up', flush=True)\ntime.sleep(1000)", "up", 0.5
    )
    assert stopped.error["evalue"] == "ranks 0-1 stopped at line 4"
    assert lab.run("%%ddp -s lab\nprint(kept)").text.count("kept") == 2


def test_a_failed_cell_keeps_the_users_handler_of_sigterm(lab: Kernel) -> None:
    """While the rank formats its error it ignores SIGTERM, and only then."""
    lab.run("%%ddp -n 2 -s lab\nimport signal\ndef mine(*_): pass\nsignal.signal(15, mine)")
    lab.run("%%ddp -s lab\n1 / 0")
    assert lab.run("%%ddp -s lab\nprint(signal.getsignal(15) is mine)").text.count("True") == 2


def test_heartbeats_in_a_later_cell(lab: Kernel) -> None:
    """State and line are those of the cell that runs now."""
    lab.run("%%ddp -n 2 -s lab\nimport time")
    for _ in range(2):
        message = lab.start("%%ddp -s lab\nprint('up')\n\n\nfor _ in range(15): time.sleep(0.1)")
        result = lab.finish(message)
        tables = [
            content["data"]["text/plain"]
            for kind, content in result.outputs
            if kind != "stream" and "· running ·" in content["data"]["text/plain"]
        ]
        # A rank has a column where it differs; what is the same for all stands above.
        before_the_end = [table for table in tables if "finished" not in table]
        assert before_the_end, result
        head, _, *rows = before_the_end[-1].splitlines()
        assert "all at line 5" in head or all("5" in row.split() for row in rows), tables
        assert not any("exiting" in table for table in before_the_end), tables


def test_a_rank_without_connections_ends_the_session(lab: Kernel) -> None:
    """Its peer, which sleeps, is ended with it; nobody waits for a new process group."""
    lab.run("%%ddp -n 2 -s lab\nimport os, time")
    result = lab.run("%%ddp -s lab\nif rank == 1: os.closerange(3, 2000)\ntime.sleep(1000)")
    assert result.error["evalue"].startswith("rank 1"), result.error
    assert "session lab ended because its ranks ended" in result.text
    assert "re-created" not in result.text
    assert lab.run(f"%%ddp -n 2 -s lab\n{SUM}").text.count("sum 3.0") == 2


def test_a_rank_that_leaves_a_session(lab: Kernel) -> None:
    """os._exit(0) is no failure; the session ends when the others have finished the cell."""
    lab.run("%%ddp -n 2 -s lab\nimport os, time")
    result = lab.run("%%ddp -s lab\nif rank == 1: os._exit(0)\ntime.sleep(1); print('end')")
    assert result.status == "ok", result
    assert "[rank 0] end" in result.lines
    assert "session lab ended because its ranks ended" in result.text


def test_files_that_a_session_names_are_there(lab: Kernel) -> None:
    """The log of lines that are left out, and that of the status, in every cell."""
    for _ in range(2):
        flood = lab.run("%%ddp -n 2 -s lab\nfor i in range(20000): print('line', i)")
        log = re.search(r"lines left out here; all are in (\S+)", flood.text)
        assert log is not None, flood.text[-300:]
        assert "line 19999" in Path(log.group(1)).read_text()
        status = lab.run("print(get_ipython().run_line_magic('ddp_status', ''))").text
        logs = re.search(r"logs in (\S+)", status)
        assert logs is not None
        assert (Path(logs.group(1)) / "rank0.log").exists()


def test_stop_while_a_session_formats_an_error(lab: Kernel) -> None:
    """What frees a rank from a collective of the stopped cell does not reach the next one."""
    lab.run("%%ddp -n 2 -s lab\nimport time")
    for _ in range(4):
        _stopped(
            lab,
            "%%ddp -s lab\nclass E(Exception):\n    def __str__(self):\n"
            "        time.sleep(1000)\nprint('up', flush=True)\nraise E()",
            "up",
            0.2,
        )
        _sums(lab)


def test_an_edited_module_of_the_users(kernel: Kernel, shared_kernel_directory: Path) -> None:
    """It is read again before the session's next cell, which says so; once."""
    module = shared_kernel_directory / "edited_helper.py"
    module.write_text("def f(): return 'old'")
    kernel.run("from edited_helper import f")
    cell = "%%ddp -s edits -n 2\nimport edited_helper\nprint(f(), edited_helper.f())"
    assert kernel.run(cell).text.count("] old old\n") == 2
    module.write_text("def f(): return 'newer'")
    result = kernel.run(cell.replace(" -n 2", ""))
    assert result.text.count("] newer newer\n") == 2, result
    assert result.text.count("edited_helper has changed: the session has reloaded it") == 1
    assert "changed" not in kernel.run(cell.replace(" -n 2", "")).text
    kernel.run("%ddp_stop edits")
