"""The notebook's names in the ranks: which ones, how they travel, and what is refused."""

from __future__ import annotations

import re
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.kernel import DESCRIPTORS, Kernel, Result, wait_gone
from tests.limits import HANG_S, LONG_S


def _cells(kernel: Kernel, *cells: str) -> Result:
    """Run cells; return the last one's result. All but the last must succeed."""
    for cell in cells[:-1]:
        result = kernel.run(textwrap.dedent(cell))
        assert result.status == "ok", result.traceback
    return kernel.run(textwrap.dedent(cells[-1]))


HARD_CASES = {
    "what each process has of its own": (
        "import sys\nfrom sys import stdout as out, stderr as err",
        "print(err is sys.stderr, out is sys.stdout, file=err)",
        "True True",
    ),
    "the environment by its own name": (
        "import os\nfrom os import environ as env",
        "print(env['WORLD_SIZE'], env is os.environ)",
        "2 True",
    ),
    "a dataclass": (
        """
        from dataclasses import dataclass, field
        @dataclass
        class Config:
            lr: float = 0.5
            layers: list = field(default_factory=list)
        config = Config(layers=[3])
        """,
        "(config, Config() == Config(), isinstance(config, Config))",
        "(Config(lr=0.5, layers=[3]), True, True)",
    ),
    "an enum and a named tuple": (
        """
        import enum, typing
        class Color(enum.Enum): RED = 1
        class Point(typing.NamedTuple):
            x: int
        p = Point(3)
        """,
        "(Color(1) is Color.RED, p.x, isinstance(p, Point))",
        "(True, 3, True)",
    ),
    "a package with the submodules that were imported": (
        """
        import xml.etree.ElementTree, wsgiref.simple_server
        def server():
            def inner():
                return wsgiref.simple_server.WSGIServer
            return inner()
        """,
        "(xml.etree.ElementTree.Element('a').tag, server().__name__)",
        "('a', 'WSGIServer')",
    ),
    "a submodule in a command": (
        "import email.mime.text",
        "!echo {email.mime.text.MIMEText('x').get_payload()}",
        "x",
    ),
    "a module": (
        """
        import torch
        from torch import nn
        class Net(nn.Module):
            def __init__(self, width):
                super().__init__()
                self.layer = nn.Linear(width, 1)
            def forward(self, x): return scale(self.layer(x))
        def scale(x): return factor * x
        factor = 0.0
        """,
        "Net(4).to(device)(torch.ones(1, 4)).item() == 0",
        "True",
    ),
    "a dataset": (
        """
        from torch.utils.data import Dataset, DataLoader
        class Squares(Dataset):
            def __len__(self): return size
            def __getitem__(self, i): return i ** power
        size, power = 4, 2
        """,
        "[int(x) for x in DataLoader(Squares(), batch_size=None, num_workers=1)]",
        "[0, 1, 4, 9]",
    ),
    "an optimizer and its model": (
        """
        import torch
        model = torch.nn.Linear(2, 2)
        tied = model.weight
        opt = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        model(torch.ones(1, 2)).sum().backward()
        opt.step()
        """,
        "(opt.param_groups[0]['params'][0] is model.weight is tied, tied in opt.state)",
        "(True, True)",
    ),
    "a prelude name in a function": ("def f(): return dist.get_world_size()", "f()", "2"),
    "a loader, a model, a data frame": (
        """
        import torch, pandas
        from torch.utils.data import DataLoader, TensorDataset, WeightedRandomSampler
        from ddp_magic.prelude import tiny_sam
        def pad(batch): return torch.stack([row[0] for row in batch]) + more
        more = 1
        g = torch.Generator().manual_seed(3)
        data = TensorDataset(torch.arange(4.))
        sampler = WeightedRandomSampler([1, 0, 0, 0], 4, generator=g)
        loader = DataLoader(data, batch_size=4, collate_fn=pad, sampler=sampler)
        sam = tiny_sam()
        frame = pandas.DataFrame({'x': range(3), 'name': list('abc')})
        """,
        "(next(iter(loader)).tolist(), type(sam).__name__, frame[frame.x > 1].name.tolist())",
        "([1.0, 1.0, 1.0, 1.0], 'SamModel', ['c'])",
    ),
    "objects that the cell pickles": (
        """
        import dataclasses, enum, functools, torch, typing
        class Net(torch.nn.Module):
            class Part(torch.nn.Linear): pass
            def __init__(self):
                super().__init__()
                self.part = Net.Part(2, 2)
        class Meta(type): pass
        class Made(metaclass=Meta): pass
        class Color(enum.Enum): RED = 1
        class Point(typing.NamedTuple): x: int
        @dataclasses.dataclass(slots=True)
        class Slots: x: int = 1
        T = typing.TypeVar("T")
        class Box(typing.Generic[T]): pass
        class Small(Box[int]): pass
        Width = typing.NewType("Width", int)
        def helper(x): return Width(x)
        def closure(value): return lambda: value
        net = Net()
        box = [Color.RED, {"p": Point(1)}, Slots(), Small(), Made(), functools.partial(helper, 3)]
        hidden = closure(Slots(7))
        """,
        """
        import io, pickle
        torch.save(net, file := io.BytesIO())
        gathered = [None] * world_size
        dist.all_gather_object(gathered, net)
        again = pickle.loads(pickle.dumps([box, hidden()]))
        out = (type(torch.load(io.BytesIO(file.getvalue()), weights_only=False).part).__qualname__,
         type(gathered[1]) is type(net), again[0][:3], again[0][5](), again[1])
        print(out)
        """,
        "('Net.Part', True, [<Color.RED: 1>, {'p': Point(x=1)}, Slots(x=1)], 3, Slots(x=7))",
    ),
    "a class in a spawned DataLoader's workers": (
        """
        import torch
        table = torch.arange(4)
        class Squares(torch.utils.data.Dataset):
            def __len__(self): return len(table)
            def __getitem__(self, i): return fetch(i)
        def fetch(i): return int(table[i]) ** 2
        def total(rows): return sum(rows)
        loader = torch.utils.data.DataLoader(
            Squares(), 2, collate_fn=total, num_workers=1, multiprocessing_context="spawn"
        )
        """,
        "list(loader)",
        "[1, 13]",
    ),
    "annotations": (
        """
        from __future__ import annotations
        from dataclasses import dataclass
        from typing import List, NamedTuple, Optional, TypedDict
        @dataclass
        class Part: sizes: List[int] = None
        @dataclass
        class Config:
            lr: Optional[float] = None
            part: Part = None
        class Row(NamedTuple): part: Optional[Part]
        class Table(TypedDict): rows: List[Row]
        class Outer:
            class Inner: table: Table
            def method(self, x: 'Row') -> Table: ...
        n, log = 3, open('/dev/null')
        class Cannot:
            def method(self): return log
        def f(x: Cannot, y: n): return 'called'
        """,
        """
        from typing import get_type_hints as hints
        out = (hints(Config)['lr'], hints(Row)['part'], hints(Outer.Inner)['table'].__name__,
         sorted(hints(Outer.method)), f(1, 2), 'n' in globals())
        print(out)
        """,
        "(typing.Optional[float], typing.Optional[__main__.Part], 'Table', ['return', 'x'], "
        "'called', False)",
    ),
    "annotations of the cell's own": (
        "from typing import Optional\nclass Part: pass\nclass Other: pass",
        """
        import typing
        def f(x: 'Optional[Part]') -> Other: ...
        class C: y: 'Part'
        (typing.get_type_hints(f)['x'], typing.get_type_hints(C)['y'].__name__)
        """,
        "(typing.Optional[__main__.Part], 'Part')",
    ),
    "what functools makes with a lock or a weak reference in it": (
        """
        import functools
        class A:
            count = 0
            @functools.cached_property
            def once(self):
                "text"
                A.count += 1
                return helper(1)
            @functools.singledispatchmethod
            def kind(self, x): return 'any'
            @kind.register
            def _(self, x: str): return 'str'
            @functools.cache
            def add(self, x): return x + 1
            def pair(self, a, b): return a, b
            one = functools.partialmethod(pair, 1)
        class Mine(functools.cached_property): pass
        class B:
            @Mine
            def twice(self): return 2
        @functools.singledispatch
        def area(x): return 'any'
        @area.register
        def _(x: int): return helper(x)
        @area.register(A)
        def _(x): return area(3)
        area.note = 'mine'
        def helper(x): return f'int{x}'
        a, b = A(), B()
        def make():
            @functools.singledispatch
            def inner(x): return [inner(i) for i in x]
            @inner.register
            def _(x: int): return 2 * x
            return inner
        nested = make()
        """,
        "print((a.once, a.once, A.count, a.kind(1), a.kind('x'), a.add(1), a.one(2), b.twice, "
        "area(''), area(2), area(a), area.note, nested([1, [2]])))",
        "('int1', 'int1', 1, 'any', 'str', 2, (1, 2), 2, 'any', 'int2', 'int3', 'mine', [2, [4]])",
    ),
    "weak references": (
        """
        import weakref
        class Node:
            def __init__(self, parent=None):
                self.children = []
                self.parent = parent and weakref.ref(parent)
        root = Node()
        child = Node(root)
        root.children.append(child)
        class Cache:
            def __init__(self):
                self.keys = weakref.WeakKeyDictionary({child: 1, Node(): 2})
                self.values = weakref.WeakValueDictionary(k=child)
                self.set = weakref.WeakSet([child])
        cache, dead = Cache(), weakref.ref(Node())
        """,
        "(child.parent().children == [child], dict(cache.keys) == {child: 1}, "
        "cache.values['k'] is child, list(cache.set) == [child], dead())",
        "(True, True, True, True, None)",
    ),
}


@pytest.mark.parametrize("case", HARD_CASES)
def test_hard_cases(case: str, new_names: Kernel) -> None:
    """What the notebook has defined is simply there."""
    notebook, cell, shown = HARD_CASES[case]
    result = _cells(new_names, notebook, "%%ddp -n 2\n" + textwrap.dedent(cell))
    assert result.status == "ok", result.traceback
    assert sorted(result.lines) == [f"[rank 0] {shown}", f"[rank 1] {shown}"]


@pytest.fixture
def new_names(kernel: Kernel) -> Kernel:
    """The module's kernel without the names of earlier tests."""
    kernel.run("%reset -f")
    return kernel


def test_inspect_finds_the_source(new_names: Kernel) -> None:
    """Of a captured function, as in the notebook."""
    result = _cells(
        new_names,
        "def f():\n    return 1  # the text",
        "%%ddp -n 1\nimport inspect\nprint(inspect.getsource(f).rstrip())",
    )
    assert result.lines == ["[rank 0] def f():", "[rank 0]     return 1  # the text"]


def test_a_traceback_goes_on_in_the_notebooks_cell(new_names: Kernel) -> None:
    """With that cell's number, line and text."""
    result = _cells(
        new_names, "def f(x):\n    y = x\n    return 1 / y", "%%ddp -n 2\nif rank == 1:\n    f(0)"
    )
    assert re.search(r"Cell In\[\d+\], line 3, in f\(x\)", result.traceback)
    assert "----> 3     return 1 / y" in result.traceback


# --- arrays ---------------------------------------------------------------------------------------


def test_arrays_are_shared_and_copied_on_write(new_names: Kernel) -> None:
    """Four ranks hold one array once, and a rank that writes changes nobody else's."""
    result = _cells(
        new_names,
        "import numpy as np, torch\narray = np.ones(50_000_000)\ntensor = torch.ones(10_000_000)",
        """\
        %%ddp -n 4
        def pss():
            with open('/proc/self/smaps_rollup') as file:
                return next(int(line.split()[1]) for line in file if line.startswith('Pss:')) / 1024
        before = pss()
        assert array.sum() == 5e7 and tensor.sum() == 1e7
        dist.barrier()
        read = pss()
        dist.barrier()
        if rank == 1:
            array[0], tensor[0] = 7, 7
        dist.barrier()
        print(f'{read - before:.0f};', array[0] == (7 if rank == 1 else 1))
        dist.barrier()
        """,
    )
    assert result.status == "ok", result.traceback
    shares = [int(share) for share in re.findall(r"(-?\d+);", result.text)]
    assert len(shares) == 4
    assert max(shares) < (400 + 40) / 4 * 1.2  # MiB: a quarter of each, and some of the rank's own
    assert result.text.count("True") == 4
    assert new_names.value("(float(array[0]), float(tensor[0]))") == (1.0, 1.0)


def test_a_small_shared_memory_file_system(tmp_path: Path) -> None:
    """A container's /dev/shm of 64 MB is not in the way of an array of 200."""
    kernel = Kernel(tmp_path, {}, ("unshare", "--mount", "--propagation", "private"))
    try:
        result = _cells(
            kernel,
            "!mount -t tmpfs -o size=64m tmpfs /dev/shm && df --output=size -BM /dev/shm",
            "%load_ext ddp_magic",
            "import numpy as np\narray = np.ones(25_000_000)",
            "%%ddp -n 2\nprint(array.sum())",
        )
        assert sorted(result.lines)[:2] == ["[rank 0] 25000000.0", "[rank 1] 25000000.0"]
    finally:
        kernel.stop()


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("notebook", "words"),
    [
        ("x = open('/dev/null')", "cannot send `x` (TextIOWrapper) to the ranks: it is an open"),
        (
            "from accelerate import Accelerator\nx = [Accelerator()]",
            "it holds an object that was set up for a single process (Accelerator); create",
        ),
    ],
)
def test_refused_before_a_rank_starts(notebook: str, words: str, new_names: Kernel) -> None:
    """In one line that names the variable, its type and the remedy."""
    if "accelerate" in notebook:
        pytest.importorskip("accelerate")
    result = _cells(new_names, notebook, "%%ddp -n 2\nprint('started', x)")
    assert result.status == "error"
    assert "started" not in result.text
    assert words in result.traceback
    assert len(result.traceback.splitlines()) == 1


def test_capture_only_these(new_names: Kernel) -> None:
    """--capture names what is taken; `none` takes nothing; an unknown name is an error."""
    new_names.run("a, b = 1, 2")
    assert _cells(new_names, "%%ddp -n 1 --capture a\nprint(a)").lines == ["[rank 0] 1"]
    result = _cells(new_names, "%%ddp -n 1 --capture a\nprint(a + b)")
    assert "NameError: name 'b' is not defined" in result.traceback
    assert "--capture leaves it out" in result.traceback
    assert "NameError" in _cells(new_names, "%%ddp -n 1 --capture none\na").traceback
    result = _cells(new_names, "%%ddp -n 1 --capture c\na")
    assert "--capture: `c` is not defined in the notebook" in result.traceback


def test_a_name_of_another_cells_ranks(new_names: Kernel) -> None:
    """The NameError says where the name was last defined, and what to write."""
    _cells(new_names, "%%ddp -n 2\nmodel = [1]")
    result = _cells(new_names, "%%ddp -n 2\nx = 1\nprint(model)")
    assert "name 'model' is not defined" in result.traceback
    assert re.search(
        r"`model` was last defined in Cell In\[\d+\], whose ranks have ended: .*--pull model",
        result.traceback,
    )


def test_what_was_captured(new_names: Kernel) -> None:
    """`Run.captured` lists name, type and size; a line tells of more than 100 MB."""
    result = _cells(
        new_names,
        "import numpy as np\nbig = np.ones(13_000_001)\ndef f(): return big.size",
        "%%ddp -n 1 -o run\nf()",
    )
    assert re.match(r"captured 104 MB in \d\.\d s: big \(ndarray, 104 MB\)", result.lines[0])
    captured = new_names.value("[(v.name, v.type, v.nbytes) for v in run.captured]")
    assert ("big", "ndarray", 104_000_008) in captured
    assert ("f", "function", 0) in captured


@pytest.mark.slow
def test_many_runs_leave_no_memory_behind(new_kernel: Callable[..., Kernel]) -> None:
    """Neither descriptors nor shared memory, also after a rank was killed."""
    kernel = new_kernel()
    kernel.run(
        f"{DESCRIPTORS}import numpy as np\nbig = np.ones(300_000)\nsmall = np.ones(3)\n"
        "def memfds():\n"
        "    return sum('memfd:ddp_magic' in name for name in descriptors())\n"
        "def go(n, cell):\n"
        "    for i in range(n):\n"
        "        big[0] = i\n"
        "        get_ipython().run_cell_magic('ddp', '-n 2 --pull got --no-raise-error', cell)\n"
    )
    kernel.run("go(3, 'got = big + small.sum()')")
    assert kernel.value("memfds()") == 2  # what is kept of `big`, and `got`
    folder = Path("/dev/shm")
    before = set(folder.iterdir())
    result = kernel.run("go(30, 'got = big + small.sum()')", timeout_s=LONG_S)
    assert result.status == "ok", result.traceback
    assert kernel.value("float(got[0])") == 32.0
    kernel.run("go(3, 'import os; os.kill(os.getpid(), 9)')")
    assert kernel.value("memfds()") == 2
    # Tests beside this one have files there too; theirs go, what is left behind stays.
    left, deadline = set(folder.iterdir()) - before, time.monotonic() + HANG_S
    while left and time.monotonic() < deadline:
        time.sleep(0.5)
        left &= set(folder.iterdir())
    assert left == set()


def _shared_memory(pid: int | str = "[0-9]*") -> set[int]:
    """Return the inodes of shared memory of ours that processes hold: all, or those of one."""
    found = set()
    for link in Path("/proc").glob(f"{pid}/fd/*"):
        try:
            if "memfd:ddp_magic" in str(link.readlink()):
                found.add(link.stat().st_ino)
        except OSError:  # that process has ended
            continue
    return found


def test_a_killed_kernel_leaves_no_memory(new_kernel: Callable[..., Kernel]) -> None:
    """With a session's ranks that had mapped it: they are gone 3 s later."""
    kernel = new_kernel()
    kernel.run("import numpy as np\nbig = np.ones(1_000_000)")
    kernel.run("%%ddp -n 2 -s lab\nbig.sum()")
    pids = [process.pid for process in kernel.processes()]
    assert len(pids) == 3
    own = set().union(*map(_shared_memory, [kernel.pid, *pids]))
    assert own
    kernel.kill()
    assert wait_gone(pids, 3) == []
    assert not own & _shared_memory()


def test_a_whole_model_without_its_class(new_names: Kernel, tmp_path: Path) -> None:
    """torch.load finds no class in `__main__`: the error says how it comes there."""
    path = str(tmp_path / "model.pt")
    result = _cells(
        new_names,
        f"""
        import torch
        class Net(torch.nn.Linear): pass
        torch.save(Net(1, 1), {path!r})
        """,
        f"%%ddp -n 1\ntorch.load({path!r}, weights_only=False)",
    )
    assert "Can't get attribute 'Net'" in result.traceback
    assert "your notebook defines `Net`, but it was not sent to the ranks" in result.traceback
    found = new_names.run(f"%%ddp -n 1\nNet\nprint(torch.load({path!r}, weights_only=False))")
    assert found.text.count("Net(in_features=1") == 1, found


def test_capture_of_a_value_brings_its_class(new_names: Kernel) -> None:
    """`--capture` names the value: pickle finds its class, and still no other name."""
    result = _cells(
        new_names,
        "class A: pass\na, other = A(), 1",
        "%%ddp -n 1 --capture a\nimport pickle\n"
        "print(type(pickle.loads(pickle.dumps(a))).__name__, 'other' in globals())",
    )
    assert result.lines == ["[rank 0] A False"]
