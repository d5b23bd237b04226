"""A rank is a script: what libraries look at, and what a cell starts in its turn."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from tests.integration.kernel import DEAF, Kernel, frames_of_ours, plain


def test_a_rank_is_not_interactive(kernel: Kernel) -> None:
    """By what Lightning, tqdm, transformers and rich go, nobody types into a rank."""
    result = kernel.run(
        "%%ddp -n 2\n"
        "import sys\n"
        "from IPython import get_ipython as shell\n"
        "print(hasattr(sys, 'ps1') or bool(sys.flags.interactive),\n"
        "      'ipykernel.zmqshell' in sys.modules, 'IPKernelApp' in shell().config,\n"
        "      hasattr(shell(), 'kernel'), 'JPY_PARENT_PID' in os.environ)"
    )
    assert result.text.count(" False False False False False\n") == 2, result


CHILD = """
import socket
import torch.multiprocessing as mp

def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]

def guides_setup(rank, world_size, port):
    os.environ["MASTER_ADDR"] = "localhost"
    os.environ["MASTER_PORT"] = str(port)
    dist.init_process_group("gloo", rank=rank, world_size=world_size)

def child(number, join, port):
    join(number, 2, port)
    t = torch.ones(1)
    dist.all_reduce(t)
    os.write(1, f"child {number} of rank {os.environ['RANK']}: {t.item()}\\n".encode())
    dist.destroy_process_group()
"""


@pytest.mark.parametrize(
    ("launcher", "how", "joins"),
    [
        ("torch", "fork", ("setup", "guides_setup")),
        ("torch", "spawn", ("setup",)),
        ("multiprocessing", "fork", ("setup", "guides_setup")),
        ("multiprocessing", "forkserver", ("guides_setup",)),
    ],
)
def test_children_of_a_rank_make_groups_of_their_own(
    kernel: Kernel, launcher: str, how: str, joins: tuple[str, ...]
) -> None:
    """The prelude's setup, and a script's own, whatever the rank's own group is.

    Children that import torch anew are rank 1's alone, since this takes them a second or two.
    """
    start = {
        "torch": f"mp.start_processes(child, (join, free_port()), 2, start_method={how!r})",
        "multiprocessing": (
            f"context, port = mp.get_context({how!r}), free_port()\n"
            "    children = [context.Process(target=child, args=(i, join, port)) for i in (0, 1)]\n"
            "    [c.start() for c in children]; [c.join() for c in children]"
        ),
    }[launcher]
    ranks = (0, 1) if how == "fork" else (1,)
    result = kernel.run(
        f"%%ddp -n 2\n{CHILD}\n"
        f"for join in ({', '.join(joins)},) if rank in {ranks} else ():\n    {start}\n"
        "t = torch.ones(1)\ndist.all_reduce(t)\nprint('rank', t.item())"
    )
    assert result.status == "ok", result
    for rank in (0, 1):
        for number in (0, 1):
            line = f"[rank {rank}] child {number} of rank {rank}: 2.0"
            assert result.lines.count(line) == (len(joins) if rank in ranks else 0), result
        assert f"[rank {rank}] rank 2.0" in result.lines


def test_what_ranks_agree_on_outlives_them(kernel: Kernel) -> None:
    """The store by which they meet is not rank 0's own, which is the first to end."""
    result = kernel.run(
        "%%ddp -n 2 --time-limit 60\n"
        "import time\n"
        "store, *_ = next(dist.rendezvous('env://'))\n"
        "if rank == 0:\n"
        "    store.set('key', 'value')\n"
        "else:\n"
        "    time.sleep(1)\n"
        "    print(store.get('key'))"
    )
    assert result.lines == ["[rank 1] b'value'"], result


@pytest.mark.filterwarnings("ignore")
def test_remote_calls(kernel: Kernel) -> None:
    """A rank may end before the others have shut down."""
    cell = (
        "%%ddp -n 2 --time-limit 60\n"
        "import torch.distributed.rpc as rpc, warnings\n"
        "warnings.simplefilter('ignore')\n"
        "rpc.init_rpc(f'worker{rank}', rank=rank, world_size=world_size)\n"
        "if rank == 0:\n"
        "    print(rpc.rpc_sync('worker1', torch.add, args=(torch.ones(2), 1)))\n"
        "rpc.shutdown()"
    )
    for _ in range(3):
        result = kernel.run(cell)
        assert result.status == "ok", result
        assert result.lines == ["[rank 0] tensor([2., 2.])"]


@pytest.fixture
def program(shared_kernel_directory: Path) -> str:
    """A script that makes a process group, in the kernel's directory."""
    (shared_kernel_directory / "program.py").write_text(
        "import os, sys, torch, torch.distributed as dist\n"
        "if len(sys.argv) > 1: os.environ['MASTER_PORT'] = sys.argv[1]\n"
        "dist.init_process_group('gloo')\n"
        "t = torch.ones(1); dist.all_reduce(t)\n"
        "os.write(1, f'{sys.argv[1:]} {t.item()}\\n'.encode())\n"
        "dist.destroy_process_group()\n"
    )
    return "program.py"


@pytest.mark.slow
def test_programs_that_a_rank_starts(kernel: Kernel, program: str) -> None:
    """With a port of its own, or all ranks' programs as one world, twice; or under torchrun."""
    result = kernel.run(
        f"%%ddp -n 2\n{CHILD}\n"
        "port = [free_port()]\n"
        "dist.broadcast_object_list(port)\n"
        "import sys\n"
        f"!{{sys.executable}} {program} {{port[0]}}\n"
        f"!{{sys.executable}} {program}\n"
        f"!{{sys.executable}} {program}\n"
        "if rank == 0:\n"
        "    torchrun = f'{sys.executable} -m torch.distributed.run --standalone'\n"
        f"    !{{torchrun}} --nproc-per-node 2 {program}\n"
        "dist.barrier()"
    )
    assert result.status == "ok", result
    assert result.text.count("'] 2.0\n") == 2, result
    assert result.text.count("[] 2.0\n") == 6, result


@pytest.mark.slow
def test_programs_that_a_rank_of_torchruns_starts(kernel: Kernel, program: str) -> None:
    """They find an address of their own there too."""
    result = kernel.run(
        f"%%ddp -n 2 --cold\nimport sys\n!{{sys.executable}} {program}\n"
        "t = torch.ones(1); dist.all_reduce(t)"
    )
    assert result.status == "ok", result
    assert result.text.count("[] 2.0\n") == 2, result


def test_a_world_of_the_cells_own(kernel: Kernel) -> None:
    """At an address of its own (tcp://), and of some ranks only (env://)."""
    result = kernel.run(
        f"%%ddp -n 4\n{CHILD}\n"
        "ports = [free_port() for _ in range(3)]\n"
        "dist.broadcast_object_list(ports)\n"
        "dist.destroy_process_group()\n"
        "dist.init_process_group('gloo', f'tcp://127.0.0.1:{ports[2]}', rank=rank, world_size=4)\n"
        "t = torch.ones(1); dist.all_reduce(t); print('all', t.item())\n"
        "dist.destroy_process_group()\n"
        "os.environ['MASTER_PORT'] = str(ports[rank // 2])\n"
        "dist.init_process_group('gloo', rank=rank % 2, world_size=2)\n"
        "t = torch.tensor(float(rank)); dist.all_reduce(t); print('half', t.item())"
    )
    assert result.text.count("all 4.0\n") == 4, result
    assert [result.text.count(f"half {total}\n") for total in (1.0, 5.0)] == [2, 2], result


def test_a_dataloaders_worker_knows_its_rank(kernel: Kernel) -> None:
    """A forked one sees its rank's process group, as in a script."""
    result = kernel.run(
        "%%ddp -n 2\n"
        "class Ranks(torch.utils.data.IterableDataset):\n"
        "    def __iter__(self): yield dist.get_rank()\n"
        "print(list(DataLoader(Ranks(), num_workers=1, multiprocessing_context='fork')))"
    )
    assert sorted(result.lines) == ["[rank 0] [tensor([0])]", "[rank 1] [tensor([1])]"], result


@pytest.mark.parametrize("how", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_torchs_own_launcher_in_a_rank(kernel: Kernel, how: str) -> None:
    """A rank has torch as it is; what it launches is not taken for ranks."""
    result = kernel.run(
        "%%ddp -n 2\n"
        "from torch.distributed.launcher.api import LaunchConfig, elastic_launch\n"
        "def main(x):\n"
        "    assert not dist.is_initialized()\n"
        "    dist.init_process_group('gloo')\n"
        "    t = torch.ones(1)\n"
        "    dist.all_reduce(t)\n"
        "    return dist.get_rank(), t.item(), x\n"
        f"config = LaunchConfig(1, 1, 2, start_method={how!r}, run_id=f'mine{{rank}}',\n"
        "    rdzv_backend='c10d', rdzv_endpoint='127.0.0.1:0', monitor_interval=0.1)\n"
        "print(elastic_launch(config, main)(rank))\n"
        "t = torch.ones(1); dist.all_reduce(t); print('rank', t.item())"
    )
    assert result.status == "ok", result
    for rank in (0, 1):
        values = {r: (r, 2.0, rank) for r in range(2)}
        assert f"[rank {rank}] {values}" in result.lines, result
        assert f"[rank {rank}] rank 2.0" in result.lines


def test_accelerates_launcher_in_a_rank(kernel: Kernel) -> None:
    """`notebook_launcher` forks; its processes find no process group, and make theirs."""
    result = kernel.run(
        "%%ddp -n 2\n"
        "from accelerate import notebook_launcher\n"
        "def main():\n"
        "    from accelerate import Accelerator\n"
        "    accelerator = Accelerator(cpu=True)\n"
        "    os.write(1, f'{accelerator.num_processes}: {accelerator.process_index}\\n'.encode())\n"
        "if rank == 1:\n"
        "    notebook_launcher(main, num_processes=2)\n"
        "dist.barrier()"
    )
    assert result.status == "ok", result
    assert {"[rank 1] 2: 0", "[rank 1] 2: 1"} <= set(result.lines), result


def test_the_cells_file_is_in_the_notebooks_directory(
    kernel: Kernel, shared_kernel_directory: Path
) -> None:
    """What a script saves beside itself stays with the notebook; no file is put there for it."""
    result = kernel.run(
        "%%ddp -n 1\n"
        "import inspect, sys, warnings\n"
        "from pathlib import Path\n"
        "def f(): pass\n"
        "names = {__file__, sys.argv[0], inspect.getfile(f), f.__code__.co_filename}\n"
        "here = os.path.dirname(os.path.abspath(__file__))\n"
        "print(len(names), here == os.getcwd() == str(Path(__file__).parent))\n"
        "torch.save({}, here + '/beside.pt')\n"
        "warnings.warn('careful')"
    )
    assert result.lines[0] == "[rank 0] 1 True", result
    assert "], line 9: UserWarning: careful" in result.text
    assert (shared_kernel_directory / "beside.pt").exists()
    assert not list(shared_kernel_directory.glob("cell_*"))


def test_source_is_found_without_a_file(kernel: Kernel) -> None:
    """By inspect, torch.jit, linecache, pdb; in children of all kinds; in a session's next cell."""
    cell = (
        "import inspect, io, linecache, pdb, sys\n"
        "def f(x):\n"
        "    return x + 1\n"
        "class Sources(Dataset):\n"
        "    def __len__(self): return 1\n"
        "    def __getitem__(self, i): return inspect.getsource(Sources)[:13], __file__\n"
    )
    first = kernel.run(
        f"%%ddp -n 1 -s sources\n{cell}"
        "print(torch.jit.script(f)(torch.ones(1)).item())\n"
        "for how in ('fork', 'spawn', 'forkserver'):\n"
        "    loader = DataLoader(Sources(), num_workers=1, multiprocessing_context=how)\n"
        "    print(how, list(loader) == [[('class Sources',), (__file__,)]])\n"
        "p = pdb.Pdb(stdin=io.StringIO('l\\nc\\n'), stdout=sys.stdout, readrc=False)\n"
        "p.use_rawinput = False\n"
        "p.runcall(f, 1)"
    )
    kernel.run("%%ddp -s sources\nlinecache.checkcache(); print(inspect.getsource(f))")
    second = kernel.run("%%ddp -s sources\nprint(repr(inspect.getsource(f)), __file__)")
    kernel.run("%ddp_stop sources")
    assert first.lines[:4] == [
        "[rank 0] 2.0",
        "[rank 0] fork True",
        "[rank 0] spawn True",
        "[rank 0] forkserver True",
    ], first
    assert "->" in first.text
    assert "return x + 1" in first.text
    assert "'def f(x):\\n    return x + 1\\n'" in second.text, second


def test_a_function_that_comes_back_has_its_source(kernel: Kernel) -> None:
    """In the notebook, and in the ranks that it is sent to afterwards."""
    kernel.run("%%ddp -n 1 --pull twice\ndef twice(x): return 2 * x")
    assert kernel.value("__import__('inspect').getsource(twice)") == "def twice(x): return 2 * x\n"
    result = kernel.run("%%ddp -n 1\nimport inspect\nprint(inspect.getsource(twice))")
    assert "[rank 0] def twice(x): return 2 * x" in result.lines, result


def test_a_stack_is_found_wherever_the_notebook_is(kernel: Kernel) -> None:
    """In a directory whose name is not ASCII, or that nobody may write to, or that is gone."""
    kernel.run("import os\nhome = os.getcwd()\nos.mkdir('josé ☃'); os.chdir('josé ☃')")
    kernel.run("os.chmod('.', 0o555)")
    for _ in range(2):
        message = kernel.start(f"%%ddp -n 1\nprint('in', __file__)\n\n{DEAF}")
        kernel.finish(message, until="in ")
        kernel.interrupt()
        result = kernel.finish(message)
        assert re.search(r"Cell In\[\d+\], line 4, in <module>", result.text), result
        kernel.run("os.mkdir('../gone'); os.chdir('../gone'); os.rmdir('../gone')")
    kernel.run("os.chdir(home)")


def test_a_process_that_a_rank_forks_ends_as_in_a_script(kernel: Kernel) -> None:
    """In a session too, whose rank would wait for its next cell: error shown, ended, code 1."""
    for options in ("-n 1", "-n 1 -s forks"):
        result = kernel.run(
            f"""
%%ddp {options}
import os
pid = os.fork()
if pid == 0:
    raise ValueError("in the child")
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
if os.fork():
    print(os.waitstatus_to_exitcode(os.wait()[1]), "of one that ran on")
""".strip()
        )
        assert result.status == "ok", result.traceback
        assert re.search(r"Cell In\[\d+\], line 5\n", plain(result.text)), result.text
        assert "[rank 0] ValueError: in the child" in plain(result.text)
        assert result.lines[-2:] == ["[rank 0] 1", "[rank 0] 0 of one that ran on"]
        assert frames_of_ours(result.text) == []
    kernel.run("%ddp_stop forks")


def test_a_warning_at_the_end_of_a_rank_has_no_frame_of_ours(kernel: Kernel) -> None:
    """As Python's own of a coroutine that was never awaited."""
    result = kernel.run("%%ddp -n 1\nasync def f(): ...\nx = f()")
    assert "[rank 0] sys:1: RuntimeWarning: coroutine 'f' was never awaited" in result.lines
    assert frames_of_ours(result.text) == []


def test_functions_called_by_launch_begin_their_traceback(kernel: Kernel) -> None:
    """No line of ours stands before the user's, under the number of some cell."""
    kernel.run("import ddp_magic\ndef bad(x):\n    return 1 / x")
    number = kernel.value("len(In)") - 2
    raised = kernel.run("ddp_magic.launch(bad, 0, nproc_per_node=1)").traceback
    assert re.findall(r"Cell In\[(\d+)\], line (\d+)", raised) == [(str(number), "3")] * 2, raised
    assert "_function" not in raised
    missing = kernel.run("ddp_magic.launch(bad, nproc_per_node=1)").traceback
    assert "missing 1 required positional argument" in missing
    assert "_function" not in missing
    text = kernel.run("ddp_magic.run('a = 1\\n1 / 0', nproc_per_node=1)").traceback
    assert "Cell In[" not in text
    assert "----> 2 1 / 0" in text


@pytest.mark.skipif(sys.version_info < (3, 11), reason="exception groups are new in 3.11")
def test_the_exceptions_of_a_group_are_shown(kernel: Kernel) -> None:
    """Those of an asyncio.TaskGroup, nested ones, their notes, and a group that is a cause."""
    number = kernel.value("len(In)")
    tasks = kernel.run(
        "%%ddp -n 1\n"
        "import asyncio\n"
        "async def bad(i):\n"
        "    raise ValueError(f'task {i}')\n"
        "async with asyncio.TaskGroup() as group:\n"
        "    group.create_task(bad(1)); group.create_task(bad(2))"
    )
    shown = tasks.traceback
    assert "ValueError: task 1" in shown
    assert "ValueError: task 2" in shown
    assert shown.count(f"Cell In[{number}], line 4, in bad") == 2, shown
    nested = kernel.run(
        "%%ddp -n 1\n"
        "noted = KeyError('k'); noted.add_note('a note')\n"
        "try:\n"
        "    raise BaseExceptionGroup('outer', [KeyboardInterrupt(),\n"
        "        ExceptionGroup('inner', [noted])])\n"
        "except BaseException as e:\n"
        "    raise RuntimeError('last') from e"
    ).traceback
    for words in ("| KeyboardInterrupt", "| KeyError: 'k'", "| a note", "RuntimeError: last"):
        assert words in nested, nested


@pytest.mark.parametrize(
    ("cell", "shown"),
    [
        ("def f(:\n    pass", "Cell In[{n}], line 2\n    def f(:"),
        ("x = 1\nreturn x", "Cell In[{n}], line 3\n    return x"),
        ("x = 1\nyield x", "Cell In[{n}], line 3\n    yield x"),
        ("def f():\n    await x", "Cell In[{n}], line 3\n    await x"),
        ("if True:\n    x = 1\n  y = 2", "Cell In[{n}], line 4\n    y = 2"),
        ("if True:\n\tx = 1\n        y = 2", "Cell In[{n}], line 4\n    y = 2"),
        ("for x in y:\n    pass\nbreak", "Cell In[{n}], line 4\n    break"),
        ("exec('1 +')", "File <string>:1\n    1 +"),
        ("open('bad_module.py', 'w').write('def f(:')\nimport bad_module", "bad_module.py:1"),
    ],
)
def test_a_syntax_error_is_shown_alone(kernel: Kernel, cell: str, shown: str) -> None:
    """With its line, and no frame of ours or of IPython's before it; also one of the ranks'."""
    number = kernel.value("len(In)")
    result = kernel.run(f"%%ddp -n 1\n{cell}")
    assert result.status == "error"
    assert shown.format(n=number) in result.traceback, result.traceback
    for frame in ("interactiveshell.py", "ddp_magic/", "run_cell_magic"):
        assert frame not in result.traceback
    assert re.search(r"(Syntax|Indentation|Tab)Error: .", result.traceback)


def test_the_end_of_a_rank_is_a_scripts(kernel: Kernel) -> None:
    """Handlers before names; what was open is written; and torch.compile's objects end in peace."""
    result = kernel.run(
        "%%ddp -n 1\n"
        "import atexit\n"
        "@torch.compile(backend='eager')\n"
        "def f(x): return x.sin()\n"
        "f(torch.ones(1))\n"
        "class Ends:\n"
        "    def __del__(self): print('ended')\n"
        "first, second = Ends(), Ends()\n"
        "second.itself = second\n"
        "atexit.register(lambda: print('handler', first is not None))\n"
        "file = open('left_open.txt', 'w')\n"
        "print('written', file=file)"
    )
    assert result.status == "ok", result
    assert result.lines == ["[rank 0] handler True", "[rank 0] ended", "[rank 0] ended"], result
    assert kernel.value("open('left_open.txt').read()") == "written\n"


def test_a_destructor_at_the_end_of_a_rank_finds_its_names(kernel: Kernel) -> None:
    """Modules, functions, numbers, and what was made before the object itself."""
    result = kernel.run(
        "%%ddp -n 1\n"
        "import math\n"
        "digits, before = 3, [5]\n"
        "def helper(x): return round(x, digits)\n"
        "class Ends:\n"
        "    def __del__(self): print(helper(math.pi), before, torch.ones(1).item(), rank)\n"
        "ends = Ends()"
    )
    assert result.lines == ["[rank 0] 3.142 [5] 1.0 0"], result


def test_a_notebooks_bar_moves(kernel: Kernel) -> None:
    """`tqdm.notebook` in a rank is a bar of text, in a cell's own import and in a notebook's."""
    loop = (
        "for _ in tqdm(range(3), desc='here', ncols='80%', display=True, colour='red'): pass\n"
        "for _ in trange(2, disable=None): pass"
    )
    own = kernel.run(f"%%ddp -n 1\nfrom tqdm.notebook import tqdm, trange\n{loop}")
    assert own.status == "ok", own
    assert re.search(r"\[rank 0\] here: 100%\|.*\| 3/3 ", own.text), own
    assert re.search(r"100%\|.*\| 2/2 ", own.text)
    kernel.run("from tqdm.notebook import tqdm, trange")
    taken = kernel.run(f"%%ddp -n 1\n{loop}")
    assert re.search(r"\[rank 0\] here: 100%\|.*\| 3/3 ", taken.text), taken


def test_the_notebooks_results_stay_there_with_a_word(kernel: Kernel) -> None:
    """`_` and `Out` are the rank's own, unless the user has given them a value."""
    kernel.run("1234")
    for name in ("_", "Out"):
        result = kernel.run(f"%%ddp -n 1\nprint({name})")
        assert f"`{name}` in the cell is the rank's own" in result.text, result
    assert "rank's own" not in kernel.run("%%ddp -n 1\nfor _ in range(2): print(_)").text
    kernel.run("_ = 'mine'")
    assert kernel.run("%%ddp -n 1\nprint(_)").text == "[rank 0] mine\n"
    kernel.run("del _")


def test_debug_says_where_the_failure_was(kernel: Kernel) -> None:
    """There is nothing to debug in the notebook; its own errors are debugged as ever."""
    kernel.run("%%ddp -n 2\nif rank: 1 / 0\ndist.barrier()")
    told = kernel.run("%debug")
    assert "the failure was in rank 1" in told.error["evalue"], told
    kernel.run("1 / 0")
    assert "rank" not in str(kernel.run("%debug", timeout_s=60).error.get("evalue", ""))


def test_without_torch(kernel: Kernel) -> None:
    """One line, before anything starts."""
    kernel.run(
        "import sys\npath = list(sys.path)\n"
        "sys.path[:] = [p for p in path if 'site-packages' not in p]"
    )
    result = kernel.run("%%ddp -n 2\nprint(1)")
    kernel.run("sys.path[:] = path")
    assert result.error["ename"] == "LaunchError", result
    assert "torch is not installed" in result.error["evalue"]
    assert "%pip install torch" in result.error["evalue"]
    assert len(result.traceback.splitlines()) == 1
    assert result.text == ""


def test_clear_output_removes_what_was_printed(kernel: Kernel) -> None:
    """A rank's text after `clear_output` is one output, in which only its last state is kept."""
    result = kernel.run(
        "%%ddp -n 2\n"
        "from IPython.display import clear_output\n"
        "print('before')\n"
        "for i in range(50):\n"
        "    clear_output(wait=True)\n"
        "    print('epoch', i)\n"
        "    print('loss', rank, end='')\n"
    )
    assert sorted(result.lines) == ["[rank 0] before", "[rank 1] before"], result
    last = {d["metadata"]["ddp"]["rank"]: plain(d["data"]["text/plain"]) for d in result.displays}
    assert last == {r: f"[rank {r}] epoch 49\n[rank {r}] loss {r}" for r in (0, 1)}
    pages = [d for d in result.displays if "ddp" in d["metadata"]]
    assert len({d["transient"]["display_id"] for d in pages}) == 2


def test_a_long_page_keeps_its_end(kernel: Kernel) -> None:
    """And says where the rest is."""
    result = kernel.run(
        "%%ddp -n 1\nfrom IPython.display import clear_output\nclear_output()\n"
        "for i in range(500): print(i)"
    )
    shown = plain(result.displays[-1]["data"]["text/plain"]).splitlines()
    assert shown[-1] == "[rank 0] 499"
    assert shown[0].startswith("[rank 0] ... 400 lines left out here; all are in "), shown[0]
