"""The forkserver: what it preloads, whose state a rank starts in, its death, and the cold way."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import traitlets

from tests.integration.kernel import DEAF, DESCRIPTORS, Kernel, wait_gone
from tests.limits import HANG_S, LONG_S, within

SLOW_S = 2.0  # no start takes so long on an idle machine


def _status(kernel: Kernel) -> str:
    result = kernel.run("print(repr(get_ipython().run_line_magic('ddp_status', '')))")
    return result.text.split("\n\n")[0]


def _wait_status(kernel: Kernel, words: str, timeout_s: float = HANG_S) -> str:
    """Wait until the forkserver is ready and %ddp_status says `words`; return it."""
    deadline = time.monotonic() + timeout_s
    while words not in (text := _status(kernel)) or "· ready ·" not in text:
        assert time.monotonic() < deadline, text
        time.sleep(0.1)
    return text


def _wait_forkserver(kernel: Kernel) -> psutil.Process:
    """Wait until the kernel has one, which then imports for a while."""
    deadline = time.monotonic() + HANG_S
    while (forkserver := kernel.forkserver()) is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return forkserver


class Site:
    """A directory of installed packages of the test's own."""

    def __init__(self, base: Path) -> None:
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        self.directory = base / "lib" / version / "site-packages"
        self.directory.mkdir(parents=True)
        self.env = {"PYTHONUSERBASE": str(base), "PYTHONPATH": str(self.directory)}

    def install(self, name: str, source: str) -> None:
        """Write a package; installing it again replaces its file, as pip does."""
        package = self.directory / name
        package.mkdir(exist_ok=True)
        new = package / "new"
        new.write_text(textwrap.dedent(source))
        new.replace(package / "__init__.py")


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path / "site")


@pytest.fixture(scope="module")
def shared_site(shared_kernel_directory: Path) -> Site:
    """The module's kernel's. Each test has names of its own for what it installs there."""
    return Site(shared_kernel_directory / "site")


@pytest.fixture(scope="module")
def shared_kernel_env(shared_site: Site) -> dict[str, str]:
    """Whatever does not break a forkserver for good is tested in the module's kernel."""
    return shared_site.env


# --- what is preloaded ----------------------------------------------------------------------------


def test_it_follows_the_notebook(kernel: Kernel, shared_site: Site) -> None:
    """Installed libraries that the notebook, or an earlier cell's ranks, have imported."""
    shared_site.install("used_here", "import os\nPID = os.getpid()")
    shared_site.install("used_there", "import os\nPID = os.getpid()")
    kernel.run("import used_here")
    assert "used_here" in _wait_status(kernel, "used_here")
    kernel.run("%%ddp -n 2\nimport used_there")
    _wait_status(kernel, "used_there")
    result = kernel.run(
        "%%ddp -n 2\nimport os, used_here, used_there\n"
        "print(os.getpid() not in (used_here.PID, used_there.PID))"
    )
    assert result.text.count("True") == 2, result


def test_what_tab_imports_is_not_the_notebooks(kernel: Kernel, shared_site: Site) -> None:
    """Neither the completer's own libraries, nor what it imports to look for names there."""
    shared_site.install("looked_at", "some_name = 1")
    for text in ("import torc", "from looked_at import ", "x = ''.joi"):
        kernel.client.complete(text, len(text), reply=True, timeout=60)
    kernel.run("import mpmath")
    assert kernel.value("sorted({'jedi', 'looked_at'} & set(__import__('sys').modules))")
    text = _wait_status(kernel, "mpmath")
    assert "jedi" not in text
    assert "looked_at" not in text


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    """A directory with a copy of a package that the forkserver itself needs."""
    shutil.copytree(Path(traitlets.__file__).parent, tmp_path / "packages" / "traitlets")
    return tmp_path / "packages"


def test_what_lies_on_the_path_is_installed(
    new_kernel: Callable[..., Kernel], packages: Path
) -> None:
    """PYTHONPATH names what `pip install --target`, or a cluster's module, has filled.

    And a checkout of ddp_magic itself: in front of the installed libraries too it is no reason to
    start another forkserver.
    """
    (packages / "traitlets-5.0.0.dist-info").mkdir()
    root = Path(__file__).resolve().parents[2]
    kernel = new_kernel({"PYTHONPATH": f"{packages}:{root}"})
    cell = "%%ddp -n 2\nimport traitlets\nfrom ddp_magic.prelude import nuclei\n"
    pids = set()
    for _ in range(2):
        result = kernel.run(f"{cell}print(traitlets.__file__)")
        assert result.text.count(f"{packages}/traitlets/__init__.py\n") == 2, result
        assert "ddp_magic" in _wait_status(kernel, "traitlets")
        forkserver = kernel.forkserver()
        assert forkserver is not None
        pids.add(forkserver.pid)
    assert len(pids) == 1


def test_what_was_put_on_the_path_by_hand(
    new_kernel: Callable[..., Kernel], packages: Path
) -> None:
    """It may be edited at any time.

    Where the forkserver itself needs it there is none, and starts are slow, which is said.
    """
    kernel = new_kernel({"PYTHONPATH": str(packages)})
    result = kernel.run("%%ddp -n 1\nimport traitlets\nprint(traitlets.__file__)")
    assert result.text.count(f"{packages}/traitlets/__init__.py\n") == 1, result
    assert f"from {packages}/traitlets" in result.text, result
    assert "torchrun starts the ranks from now on" in result.text


def test_libraries_that_a_pth_file_brings(kernel: Kernel, tmp_path: Path) -> None:
    """`site.addsitedir` in a cell, and what the `.pth` files there name, are preloaded too."""
    for name in ("by_cell", "by_pth"):
        place = tmp_path / name
        (place / name).mkdir(parents=True)
        (place / name / "__init__.py").write_text("import os\nPID = os.getpid()")
        (place / f"{name}-1.0.dist-info").mkdir()
        (place / f"{name}-1.0.dist-info" / "METADATA").write_text(f"Name: {name}\nVersion: 1.0\n")
    (tmp_path / "by_cell" / "more.pth").write_text(f"{tmp_path / 'by_pth'}\n")
    _wait_status(kernel, "torch")
    before = kernel.forkserver()
    cell = f"import site; site.addsitedir({str(tmp_path / 'by_cell')!r})"
    assert kernel.run(f"{cell}; import by_cell, by_pth").status == "ok"
    assert "by_pth" in _wait_status(kernel, "by_cell")
    result = kernel.run(
        "%%ddp -n 1\nimport os, by_cell, by_pth\nprint(os.getpid() in (by_cell.PID, by_pth.PID))"
    )
    assert result.lines == ["[rank 0] False"]
    assert kernel.forkserver() == before


def test_never_the_users_own_modules(kernel: Kernel, shared_kernel_directory: Path) -> None:
    """An edited module is always read afresh."""
    module = shared_kernel_directory / "my_dataset.py"
    for value in (1, 22, 333):
        module.write_text(f"VALUE = {value}")
        kernel.run("import my_dataset")
        result = kernel.run("%%ddp -n 2\nimport my_dataset\nprint(my_dataset.VALUE)")
        assert result.text.count(f"] {value}\n") == 2, result
    assert "my_dataset" not in _status(kernel)


@pytest.mark.slow
def test_libraries_that_cannot_be_preloaded_are_left_to_the_ranks(
    new_kernel: Callable[..., Kernel], site: Site, tmp_path: Path
) -> None:
    """Each is named with its reason, and works in the ranks.

    All are found at once, in the background, at the price of one forkserver; and the next cells are
    quick.
    """
    thread = (
        "import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()"
    )
    reasons = {
        "imports_a": "it starts threads",
        "thread_a": "it starts threads",
        "users": "it imports my_module",
        "ends": "its import ended the process (exit code 3)",
        "signals": "it handles signals",
        "cuda_a": "",
    }
    site.install("thread_a", thread)
    site.install("imports_a", "import os, thread_a\nos.environ['IMPORTS_A'] = '1'")
    site.install("users", "import my_module\nVALUE = 7")
    site.install(
        "ends", "import os, sys\n'ipykernel' in sys.modules or 'RANK' in os.environ or os._exit(3)"
    )
    site.install("signals", "import signal\nsignal.signal(signal.SIGUSR2, print)")
    site.install(
        "cuda_a",
        "import sys, torch\n'ipykernel' in sys.modules or "
        "setattr(torch.cuda, '_is_in_bad_fork', lambda: True)",
    )
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "my_module.py").write_text("")
    kernel = new_kernel({**site.env, "PYTHONPATH": f"{site.directory}:{tmp_path}/mine"})
    _wait_status(kernel, "torch")
    pids = {kernel.forkserver()}
    kernel.run(f"import {', '.join(reasons)}, mpmath")
    deadline = time.monotonic() + HANG_S
    while "cuda_a" not in (text := _wait_status(kernel, "ready")):
        assert time.monotonic() < deadline, text
        time.sleep(0.1)
    for name, reason in reasons.items():
        assert f"left to the ranks: {name} ({reason}" in text
    assert "mpmath" in text.partition("left to")[0]
    pids.add(kernel.forkserver())
    assert len(pids) == 2
    for _ in range(2):
        result = kernel.run(
            "%%ddp -n 2\nimport imports_a, signals, ends, users\nprint('value', users.VALUE)"
        )
        assert result.text.count("value 7") == 2, result
        pids.add(kernel.forkserver())
    assert len(pids) == 2


@pytest.mark.slow
def test_a_prelude_that_cannot_be_preloaded(new_kernel: Callable[..., Kernel], site: Site) -> None:
    """It works in the ranks, costs one forkserver, and what it imports first is preloaded."""
    site.install(
        "monai",
        """
        import sys, threading, types, mpmath
        threading.Thread(target=threading.Event().wait, daemon=True).start()
        losses = sys.modules["monai.losses"] = types.ModuleType("monai.losses")
        losses.__getattr__ = lambda name: type(name, (), {})
        """,
    )
    kernel = new_kernel(site.env)
    _wait_status(kernel, "torch")
    pids = {kernel.forkserver()}
    for _ in range(2):
        result = kernel.run("%%ddp -n 2\nprint(DiceLoss.__name__)")
        assert result.text.count("] DiceLoss\n") == 2, result
        text = _wait_status(kernel, "left to the ranks: monai")
        pids.add(kernel.forkserver())
    assert len(pids) == 2
    assert "mpmath" in text.partition("left to")[0]


def test_a_library_that_raises_is_left_alone(kernel: Kernel, shared_site: Site) -> None:
    """An import that fails there is the ranks' to try, and to show."""
    shared_site.install("picky", "import sys\nassert 'ipykernel' in sys.modules, 'no kernel here'")
    kernel.run("import picky")
    assert "picky (AssertionError: no kernel here)" in _wait_status(kernel, "picky")
    result = kernel.run("%%ddp -n 2\nimport picky")
    assert "no kernel here" in result.error["evalue"], result


@pytest.mark.slow
def test_preload_by_configuration(kernel: Kernel, shared_site: Site) -> None:
    """`%config DDPMagics.preload` names more, or turns it off."""
    shared_site.install("asked_for", "")
    kernel.run("%config DDPMagics.preload = ['asked_for']")
    _wait_status(kernel, "asked_for")
    forkserver = kernel.forkserver()
    assert forkserver is not None
    kernel.run("%config DDPMagics.preload = False")
    assert wait_gone([forkserver.pid], 3.0) == []
    assert kernel.forkserver() is None
    assert "off" in _status(kernel)
    kernel.run("%config DDPMagics.preload = True")
    assert kernel.forkserver() is not None


# --- the state that ranks start in ----------------------------------------------------------------


@pytest.mark.slow
def test_a_variable_that_libraries_read_at_import(kernel: Kernel, shared_site: Site) -> None:
    """Changed in the notebook, or at the top of the cell: the libraries see it."""
    shared_site.install("reader", "import os\nHOME = os.environ.get('READER_HOME', 'none')")
    kernel.run("import os, reader")
    cell = "%%ddp -n 2\nimport reader\nprint('home', reader.HOME)"
    assert kernel.run(cell).text.count("home none") == 2
    _wait_status(kernel, "reader")
    result = kernel.run(cell.replace("import", "os.environ['READER_HOME'] = 'own'\nimport"))
    assert result.text.count("home own") == 2, result
    kernel.run("os.environ['READER_HOME'] = 'changed'")
    result = kernel.run(cell)
    kernel.run("del os.environ['READER_HOME']")
    assert result.text.count("home changed") == 2, result


def test_a_variable_that_a_library_sets(kernel: Kernel, shared_site: Site) -> None:
    """The notebook imports it, and so does the forkserver: no reason for another one.

    And the ranks have the variable, as if their own import had set it.
    """
    shared_site.install("setting", "import os\nos.environ['SET_BY_IMPORT'] = 'x'")
    kernel.run("%%ddp -n 1\npass")
    _wait_status(kernel, "torch")
    before = kernel.forkserver()
    kernel.run("import setting")
    _wait_status(kernel, "setting")
    result = kernel.run("%%ddp -n 1\nimport os; print(os.environ['SET_BY_IMPORT'])")
    assert result.lines == ["[rank 0] x"]
    assert kernel.forkserver() == before


def test_variables_that_are_read_late_cost_nothing(kernel: Kernel) -> None:
    """Devices, thread counts, NCCL's settings and the time zone: the forkserver stays."""
    kernel.run("%%ddp -n 1\npass")
    before = kernel.forkserver()
    assert before is not None
    result = kernel.run(
        "import os\nos.environ.update(CUDA_VISIBLE_DEVICES='5', NCCL_DEBUG='INFO', "
        "OMP_NUM_THREADS='3', TZ='Asia/Tokyo')"
    )
    result = kernel.run(
        "%%ddp -n 2\nimport time\n"
        "e = os.environ\n"
        "print(e['CUDA_VISIBLE_DEVICES'], e['NCCL_DEBUG'], torch.get_num_threads(), time.tzname[0],"
        " 'PYTORCH_NVML_BASED_CUDA_CHECK' in e)"
    )
    kernel.run(
        "for name in ('CUDA_VISIBLE_DEVICES', 'NCCL_DEBUG', 'OMP_NUM_THREADS', 'TZ'):\n"
        "    del os.environ[name]"
    )
    assert result.text.count("5 INFO 3 JST False") == 2, result
    assert kernel.forkserver() == before


def test_an_upgraded_package_is_noticed(kernel: Kernel, shared_site: Site) -> None:
    """As after `%pip install`: the ranks have the new one, whatever the notebook has."""
    shared_site.install("upgraded", "VERSION = 1")
    kernel.run("import upgraded")
    _wait_status(kernel, "upgraded")
    shared_site.install("upgraded", "VERSION = 22")
    result = kernel.run("%%ddp -n 2\nimport upgraded\nprint('version', upgraded.VERSION)")
    assert result.text.count("version 22") == 2, result


@pytest.mark.slow
def test_a_checkout_in_front_of_the_package(
    kernel: Kernel, shared_site: Site, tmp_path: Path
) -> None:
    """`sys.path.insert(0, ...)` after the library was preloaded."""
    shared_site.install("moving", "PLACE = 'installed'")
    checkout = tmp_path / "checkout"
    (checkout / "moving").mkdir(parents=True)
    (checkout / "moving" / "__init__.py").write_text("PLACE = 'checkout'")
    kernel.run("import moving")
    _wait_status(kernel, "moving")
    kernel.run(f"import sys; sys.path.insert(0, {str(checkout)!r})")
    result = kernel.run("%%ddp -n 2\nimport moving\nprint('place', moving.PLACE)")
    kernel.run("del sys.path[0]")
    assert result.text.count("place checkout") == 2, result


def test_random_state_is_fresh(kernel: Kernel) -> None:
    """Every rank of every run draws its own numbers, in torch, NumPy and Python."""
    cell = (
        "%%ddp -n 3\nimport random\nprint(torch.rand(1).item(), np.random.rand(), random.random())"
    )
    drawn = [
        number
        for _ in range(2)
        for line in kernel.run(cell).lines
        for number in line.split("] ")[1].split()
    ]
    assert len(drawn) == 18
    assert len(set(drawn)) == 18


def test_the_process_is_as_the_notebook_left_it(kernel: Kernel, tmp_path: Path) -> None:
    """umask and temporary directory; and neither the shell's nor the forkserver's leftovers."""
    kernel.run(f"import os\nold = os.umask(0o027); os.environ['TMPDIR'] = {str(tmp_path)!r}")
    result = kernel.run(
        "%%ddp -n 2\nimport gc, signal, sys, tempfile, threading\n"
        "print(oct(os.umask(0)), tempfile.gettempdir(), gc.isenabled(), len(sys.argv), "
        "signal.getsignal(signal.SIGTERM) == signal.SIG_DFL, "
        "signal.getitimer(signal.ITIMER_REAL)[0], os.getpgrp() == os.getpid())"
    )
    kernel.run("os.umask(old); del os.environ['TMPDIR']")
    assert result.text.count(f"0o27 {tmp_path} True 1 True 0.0 True") == 2, result


def test_nothing_is_inherited_open(kernel: Kernel) -> None:
    """A rank holds no descriptor of the forkserver or of another rank."""
    cell = (
        f"%%ddp -n 3\n{DESCRIPTORS}"
        "print('fds', sorted(name.split(':')[0] for name in descriptors()))"
    )
    kernel.run(cell)
    result = kernel.run(cell)
    assert result.text.count("fds [") == 3, result
    for line in result.lines:
        assert "pidfd" not in line, result
        assert line.count("socket") <= 12, result  # the kernel's, the store's, two a peer


# --- OpenMP, DataLoader, deadlocks ----------------------------------------------------------------


def test_openmp_after_the_fork(kernel: Kernel) -> None:
    """Pools held at one in the forkserver have their proper size, and work, in the ranks."""
    cell = (
        "x = torch.rand(800, 800)\ny = (x @ x).sum()\n"
        "z = np.random.rand(800, 800)\nw = (z @ z).sum()\n"
        "import threadpoolctl\n"
        "sizes = {p['num_threads'] for p in threadpoolctl.threadpool_info()}\n"
        "print('threads', torch.get_num_threads(), sizes)"
    )
    kernel.run("import os, numpy\nos.environ['OMP_NUM_THREADS'] = '2'")
    both = kernel.run("%%ddp -n 2\n" + cell)
    kernel.run("del os.environ['OMP_NUM_THREADS']")
    assert both.text.count("threads 2 {2}") == 2, both
    assert kernel.run("%%ddp -n 2\n" + cell).text.count("threads 1 {1}") == 2
    fresh = subprocess.run(
        [sys.executable, "-c", "import torch; print(torch.get_num_threads())"],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    alone = kernel.run("%%ddp -n 1\n" + cell)
    assert f"threads {fresh.stdout.strip()} " in alone.text, alone


def test_dataloader_workers_in_forked_ranks(kernel: Kernel) -> None:
    """DDP, two threads a rank, and workers that are forked from it."""
    kernel.run("import os\nos.environ['OMP_NUM_THREADS'] = '2'")
    result = kernel.run(
        "%%ddp -n 2\n"
        "class Squares(Dataset):\n"
        "    def __len__(self): return 64\n"
        "    def __getitem__(self, i): return torch.tensor([float(i)]) @ torch.ones(1, 1), i * i\n"
        "model = DDP(nn.Linear(1, 1))\n"
        "optimizer = optim.SGD(model.parameters(), lr=1e-5)\n"
        "loader = DataLoader(Squares(), batch_size=8, num_workers=2, sampler=\n"
        "    DistributedSampler(Squares()), multiprocessing_context='fork')\n"
        "for epoch in range(2):\n"
        "    for x, y in loader:\n"
        "        optimizer.zero_grad()\n"
        "        F.mse_loss(model(x), y.float().unsqueeze(1)).backward()\n"
        "        optimizer.step()\n"
        "print('trained', sum(p.sum().item() for p in model.parameters()))",
    )
    kernel.run("del os.environ['OMP_NUM_THREADS']")
    sums = {line.split("trained ")[1] for line in result.lines if "trained" in line}
    assert len(sums) == 1, result
    assert result.status == "ok"


def test_the_exit_deadlock_cannot_happen(kernel: Kernel) -> None:
    """A DDP object that outlives its process group: 20 runs, none hangs."""
    for _ in range(20):
        result = kernel.run(
            "%%ddp -n 2\nmodel = DDP(nn.Linear(4, 4))\n"
            "t = torch.ones(3)\ndist.all_reduce(t)\ndel t\n"
            "dist.destroy_process_group()\nprint('end')",
        )
        assert result.text.count("end") == 2, result


# --- its death ------------------------------------------------------------------------------------


def test_its_death_costs_one_slow_start_and_one_line(kernel: Kernel) -> None:
    """SIGKILLed between two runs: the next says so and works; the one after says nothing."""
    assert kernel.run("%%ddp -n 2\nprint('first')").status == "ok"
    forkserver = kernel.forkserver()
    assert forkserver is not None
    forkserver.kill()
    wait_gone([forkserver.pid], 3.0)
    second = kernel.run("%%ddp -n 2\nprint('second')")
    assert second.text.count("] second\n") == 2, second
    assert second.text.count("the forkserver died (killed by SIGKILL)") == 1, second
    third = kernel.run("%%ddp -n 2\nprint('third')")
    assert "forkserver" not in third.text, third


def test_a_run_survives_it(kernel: Kernel) -> None:
    """SIGKILLed while a run goes on: the run goes on to its end."""
    message = kernel.start(
        "%%ddp -n 2\nimport time\nprint('up')\ntime.sleep(1.5)\ndist.barrier()\nprint('end')"
    )
    kernel.finish(message, until="up\n")
    forkserver = kernel.forkserver()
    assert forkserver is not None
    forkserver.kill()
    result = kernel.finish(message)
    assert result.status == "ok", result
    assert result.text.count("] end\n") == 2, result
    assert kernel.processes() == []


def test_killed_while_it_imports(kernel: Kernel) -> None:
    """A run that waits for it gets another one."""
    kernel.run("%reload_ext ddp_magic")
    message = kernel.start("%%ddp -n 2\nprint('in the end')")
    forkserver = _wait_forkserver(kernel)
    forkserver.kill()
    result = kernel.finish(message)
    assert result.text.count("] in the end\n") == 2, result
    assert result.text.count("the forkserver died") == 1, result


def test_it_dies_with_its_kernel_while_it_imports(new_kernel: Callable[..., Kernel]) -> None:
    """Also in the middle of torch's import, when it hears nothing else."""
    kernel = new_kernel()
    forkserver = _wait_forkserver(kernel)
    kernel.kill()
    assert wait_gone([forkserver.pid], 3.0) == []


@pytest.mark.slow
def test_it_sweeps_while_it_imports(new_kernel: Callable[..., Kernel], site: Site) -> None:
    """Kernel and agent killed during an import: what a rank had started is gone 3 s later."""
    site.install("slow", "import time\ntime.sleep(1000)")
    kernel = new_kernel(site.env)
    kernel.run("%config DDPMagics.preload = ['slow']")
    # The agent is forked before the import begins, since both were asked for while torch was
    # imported.
    message = kernel.start(
        "%%ddp -n 1\nimport subprocess, time\nsubprocess.Popen(['sleep', '100'])\n"
        "print('up')\ntime.sleep(1000)"
    )
    kernel.finish(message, until="up")
    forkserver = kernel.forkserver()
    assert forkserver is not None
    pids = [forkserver.pid, *(process.pid for process in kernel.processes())]
    assert len(pids) == 4
    time.sleep(1)  # it imports by now
    forkserver.children()[0].kill()
    kernel.kill()
    assert wait_gone(pids, 3.0) == []


def test_an_idle_forkserver_costs_no_cpu(kernel: Kernel) -> None:
    """It sleeps until it is asked, and it has one thread."""
    kernel.run("%%ddp -n 1\npass")
    _wait_status(kernel, "ready")
    forkserver = kernel.forkserver()
    assert forkserver is not None
    before = forkserver.cpu_times()
    time.sleep(2)
    after = forkserver.cpu_times()
    assert within(after.user + after.system - before.user - before.system, 0.03)
    assert forkserver.num_threads() == 1


# --- the cold way ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_cold(kernel: Kernel) -> None:
    """Plain torch.distributed.run with the same worker: sums, errors, every way to end."""
    number = kernel.value("len(In)")
    raised = kernel.run(
        "%%ddp -n 2 --cold\nt = torch.ones(1)\ndist.all_reduce(t)\nprint('sum', t.item(), "
        "open(f'/proc/{os.getppid()}/cmdline').read().count('torchrun'))\n"
        "if rank == 1:\n    1 / 0\ndist.barrier()"
    )
    assert raised.text.count("sum 2.0 1") == 2, raised
    assert raised.error["ename"] == "WorkerError", raised
    assert f"Cell In[{number}], line 6" in raised.traceback, raised.traceback
    fates = ("rank 0: was stopped", "rank 0: lost its connection to rank 1")
    assert any(fate in raised.traceback for fate in fates), raised.traceback
    died = kernel.run(
        "%%ddp -n 2 --cold\nimport time\nif rank == 0:\n    print('early')\n    os._exit(0)\n"
        "time.sleep(1)\nos._exit(7)"
    )
    assert died.text.count("rank 0 left early") == 1, died
    assert "rank 1 exited with code 7" in died.error["evalue"], died


@pytest.mark.slow
def test_cold_and_stopped(kernel: Kernel) -> None:
    """A rank that answers may save although another one has ended; then all is gone."""
    message = kernel.start(
        "%%ddp -n 2 --cold\nimport time\ntry:\n    print('up')\n    time.sleep(1000)\nfinally:\n"
        "    time.sleep(2 * rank)\n    print('saved', rank)"
    )
    text = kernel.finish(message, until="up\n").text
    if text.count("up\n") < 2:
        kernel.finish(message, until="up\n")
    kernel.interrupt()
    result = kernel.finish(message)
    assert "saved 1" in result.text, result
    assert result.error["ename"] == "RunInterrupted", result
    assert kernel.processes() == []


@pytest.mark.slow
def test_cold_and_the_kernels_end(new_kernel: Callable[..., Kernel]) -> None:
    """SIGKILL the kernel: torchrun, keepers and ranks are gone in 3 s."""
    kernel = new_kernel()
    message = kernel.start(
        f"%%ddp -n 2 --cold\nprint('pid=%d.' % os.getpid())\nif rank:\n    {DEAF}\n"
        "import time; time.sleep(1000)"
    )
    kernel.finish(message, until=".\n")
    pids = [process.pid for process in kernel.processes()]
    assert len(pids) >= 5  # torchrun, two keepers, two ranks
    kernel.kill()
    assert wait_gone(pids, 3.0) == []


def test_the_preludes_libraries_are_imported_once(kernel: Kernel) -> None:
    """Before the first cell that uses them starts, and in the forkserver: its ranks share them.

    The last test in the module's kernel: every forkserver that replaced this one would take seconds
    to import them again.
    """
    result = kernel.run(
        "%%ddp -n 2\nimport sys\nshared = 'monai.losses' in sys.modules\n"
        "from monai.losses import DiceLoss as D\n"
        "print(DiceLoss is D, shared)"
    )
    assert result.text.count("True True") == 2, result
    assert "monai" in _wait_status(kernel, "monai")


# --- at length ------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(
    os.geteuid() != 0 or subprocess.run(["unshare", "-m", "true"], check=False).returncode != 0,
    reason="needs a mount namespace",
)
def test_a_name_server_that_does_not_answer(
    new_kernel: Callable[..., Kernel], tmp_path: Path
) -> None:
    """Nor does the machine's own name resolve, which gloo would ask for.

    torch's libuv store asks it for the name of each client, its agent for the machine's own.
    """
    (tmp_path / "resolv.conf").write_text(
        "nameserver 192.0.2.1\noptions timeout:30 attempts:5\n"  # longer than any bound of ours
    )
    (tmp_path / "hosts").write_text("127.0.0.1 localhost\n")  # and not the machine's name
    mounts = [f"mount --bind {tmp_path}/{name} /etc/{name}" for name in ("resolv.conf", "hosts")]
    script = " && ".join([*mounts, 'exec "$@"'])
    kernel = new_kernel(prefix=("unshare", "-m", "sh", "-c", script, "sh"))
    kernel.run("%%ddp -n 4\npass")
    _wait_status(kernel, "torch")  # else the run waits for an import, which is not the name server
    result = kernel.run("%%ddp -n 4\ndist.barrier()\nprint('through')")
    assert result.text.count("through") == 4, result


@pytest.mark.alone
@pytest.mark.timeout(3 * LONG_S)
def test_100_runs(new_kernel: Callable[..., Kernel], tmp_path: Path) -> None:
    """No failure, no stall, and no process, descriptor, shared memory or stray file left."""
    for name in ("tmp", "cache"):
        (tmp_path / name).mkdir()
    kernel = new_kernel(
        {"TMPDIR": str(tmp_path / "tmp"), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    )
    kernel.run(
        f"{DESCRIPTORS}import time\n"
        "def held():\n"
        "    fds = sorted(name.split(':')[0] for name in descriptors())\n"
        "    return [fds, sorted(n.split('-')[0] for n in os.listdir(os.environ['TMPDIR']))]\n"
        "CELL = 't = torch.ones(1); dist.all_reduce(t); assert t.item() == 4'\n"
        "def runs(n):\n"
        "    slowest = 0.0\n"
        "    for _ in range(n):\n"
        "        began = time.monotonic()\n"
        "        get_ipython().run_cell_magic('ddp', '-n 4', CELL)\n"
        "        slowest = max(slowest, time.monotonic() - began)\n"
        "    return slowest"
    )
    kernel.run("runs(5)")
    _wait_status(kernel, "ready")
    forkserver = kernel.forkserver()
    assert forkserver is not None
    before, fds = kernel.value("held()"), forkserver.num_fds()
    folder = Path("/dev/shm")
    shared = set(folder.iterdir())
    result = kernel.run("slowest = runs(100)", timeout_s=2 * LONG_S)
    assert result.status == "ok", result.traceback
    assert within(kernel.value("slowest"), SLOW_S)
    deadline = time.monotonic() + HANG_S  # a thread of the kernel's may just read a directory
    while len((now := kernel.value("held()"))[0]) > len(before[0]) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert len(now[0]) <= len(before[0]), (before[0], now[0])
    assert now[1:] == before[1:]
    left = set(folder.iterdir()) - shared  # another program's go, what is left behind stays
    while left and time.monotonic() < deadline:
        time.sleep(0.5)
        left &= set(folder.iterdir())
    assert left == set()
    assert kernel.forkserver() == forkserver  # the same one all along
    assert forkserver.num_fds() == fds
    assert psutil.Process(kernel.pid).children(recursive=True) == [forkserver]
    runs = list((tmp_path / "cache").glob("ddp_magic/[0-9]*"))
    assert len(runs) == 105
    # What is kept is what the ranks wrote, nothing here, and what `%ddp_show` shows.
    assert {path.name for run in runs for path in run.iterdir()} == {"cell.py", "journal.jsonl"}
