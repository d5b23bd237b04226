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
    "a nested function": (
        "def outer(x):\n    def inner(y): return y + base\n    return inner(x)\nbase = 10",
        "outer(1)",
        "11",
    ),
    "a decorator": (
        """
        import functools
        def twice(f):
            @functools.wraps(f)
            def call(*args): return 2 * f(*args)
            return call
        @twice
        def one(): return unit
        unit = 1
        """,
        "one()",
        "2",
    ),
    "a cached function": (
        "import functools\n@functools.lru_cache(maxsize=2)\ndef f(x): return x + k\nk = 5",
        "(f(1), f.cache_parameters()['maxsize'])",
        "(6, 2)",
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
    "a closure": (
        "def adder(n):\n    return lambda x: x + n\nadd3 = adder(3)",
        "add3(4)",
        "7",
    ),
    "a lambda and a comprehension": (
        "shift = 2\nf = lambda xs: [x + shift for x in xs if x in allowed]\nallowed = {1, 2}",
        "f([1, 2, 3])",
        "[3, 4]",
    ),
    "global in a function": (
        "count = 5\ndef bump():\n    global count\n    count += 1\n    return count",
        "(bump(), bump(), count)",
        "(6, 7, 7)",
    ),
    "read before it is assigned": (
        "best = 5\nhistory = [1]\nresume = False\nstate = 'old'",
        """
        best = min(best, 3)
        history += [2]
        if resume:
            state = 'new'
        (best, history, state)
        """,
        "(3, [1, 2], 'old')",
    ),
    "read by a function before the cell assigns it": (
        "model = 'old'\ndef name(): return model\nwords = 'a b'\nresume = False",
        """
        def own(): return words.split()
        first = (name(), own())
        if resume:
            words = 'c'
        model = 'new'
        (first, own(), name())
        """,
        "(('old', ['a', 'b']), ['a', 'b'], 'new')",
    ),
    "read by a function that only defines": (
        "base = 1\ndef deep(): return base\ndef shallow(): return deep()",
        "def never(): return shallow()\nlambda: shallow()\nglobals()['never']()",
        "1",
    ),
    "read by a function only after the cell assigns it": (
        "log = open('/dev/null')\ndef say(): return log\nlater = open('/dev/null')",
        """
        def shown(): return later
        on_end = lambda: later
        log, later = 'mine', 'too'
        (say(), shown(), on_end())
        """,
        "('mine', 'too', 'too')",
    ),
    "a default that holds the notebook's device": (
        "import torch\ndevice = torch.device('meta')\ndef where(d=device): return d",
        "where() == device and device.type != 'meta'",
        "True",
    ),
    "a default that holds a string of the same text": (
        "device = 'meta'\ndef where(d=device, e='meta', *, f=device): return d, e, f",
        "[str(x) for x in where()] == [str(device), 'meta', str(device)]",
        "True",
    ),
    "a LoRA rank in a function's arguments": (
        "def lora(rank=16): return rank",
        "(lora(), rank < 2)",
        "(16, True)",
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
    "an exec-ed name": ("exec('made = 3')", "made", "3"),
    "a star import": ("from math import *", "sqrt(tau) > 2", "True"),
    "an alias of a module": ("import collections.abc as words", "words.Sized.__name__", "'Sized'"),
    "the notebook's own train": ("def train(): return 'mine'", "train()", "'mine'"),
    "a prelude name in a function": ("def f(): return dist.get_world_size()", "f()", "2"),
    "a function that calls itself and another": (
        "def even(n): return n == 0 or odd(n - 1)\ndef odd(n): return n != 0 and even(n - 1)",
        "even(10)",
        "True",
    ),
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
    "an object of a class of the notebook's": (
        "class A:\n    def go(self): return helper()\ndef helper(): return 'went'\nitems = [A()]",
        "items[0].go()",
        "'went'",
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
        class Squares(torch.utils.data.Dataset):
            def __len__(self): return 4
            def __getitem__(self, i): return i * i
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


def test_the_hidden_rank(new_names: Kernel) -> None:
    """One line says that the notebook's `rank` is not the cell's; once."""
    result = _cells(new_names, "rank = 16.5", "%%ddp -n 2\nrank < 2")
    assert result.lines[0].startswith("`rank` in the cell is the rank's own; the notebook's (16.5)")
    assert sorted(result.lines[1:]) == ["[rank 0] True", "[rank 1] True"]
    assert "16.5" not in new_names.run("%%ddp -n 2\nrank < 2").text


def test_the_notebooks_variables_are_never_written(new_names: Kernel) -> None:
    _cells(new_names, "data = [1]\nx = 1", "%%ddp -n 2\ndata.append(2)\nx = 2")
    assert new_names.value("(data, x)") == ([1], 1)


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


def test_nothing_is_sent_twice_and_changes_are_noticed(new_names: Kernel) -> None:
    """An unchanged array is not copied again; one that is changed in place arrives so."""
    cell = "%%ddp -n 2\nprint(array[5], array.sum())"
    kept = "(lambda n: {k: v[0] for k, v in n._kept.items()})"
    kept += "(get_ipython().magics_manager.registry['DDPMagics'].controller.notebook)"
    _cells(new_names, "import numpy as np\narray = np.zeros(1_000_000)", cell)
    first = new_names.value(kept)
    assert _cells(new_names, cell).lines[0].endswith("0.0 0.0")
    assert new_names.value(kept) == first
    assert _cells(new_names, "array[5] = 3", cell).lines[0].endswith("3.0 3.0")
    assert new_names.value(kept) != first
    new_names.run("del array")
    assert new_names.value(kept) == {}


def test_views_of_files(new_names: Kernel, tmp_path: Path) -> None:
    """A memory-mapped array travels as the place in its file, and is mapped in the rank."""
    result = _cells(
        new_names,
        f"""
        import numpy as np
        big = np.memmap({str(tmp_path / "big")!r}, np.float32, 'w+', shape=(100, 1000))
        big[:] = np.arange(100)[:, None]
        big.flush()
        part = big[10:20:3, ::2]
        """,
        "%%ddp -n 1\nprint(type(part).__name__, part.shape, part[:, 0], part.filename == "
        "big.filename)",
    )
    assert result.lines == ["[rank 0] memmap (4, 500) [10. 13. 16. 19.] True"]


def test_all_kinds_of_arrays(new_names: Kernel) -> None:
    """In any order, of any type, empty, of objects; and tensors that share their memory."""
    result = _cells(
        new_names,
        """
        import numpy as np, torch
        a = np.arange(12).reshape(3, 4)
        kinds = {'strided': a[::2, ::3], 'fortran': np.asfortranarray(a), 'empty': np.ones((0, 3)),
                 'objects': np.array([{}, None]), 'names': np.array(['x', 'yy']),
                 'record': np.zeros(2, [('x', 'i4'), ('y', 'f8')]), 'scalar': np.float32(3)}
        base = torch.arange(6)
        views = [base[1:3], base, base.view(2, 3).T]
        more = [torch.ones(2, dtype=torch.bfloat16), torch.ones(0, 3), torch.tensor(2.5),
                torch.ones(2, dtype=torch.cfloat).conj(), torch.eye(2).to_sparse(),
                torch.nn.Parameter(torch.ones(1), requires_grad=False)]
        """,
        """\
        %%ddp -n 1
        views[1][1] = 100
        print([v.tolist() if hasattr(v, 'tolist') else v for v in kinds.values()])
        print(views[0].tolist(), views[2][1].tolist(), kinds['fortran'].flags.f_contiguous)
        print([(t.dtype, tuple(t.shape), t.is_sparse) for t in more], more[3].is_conj())
        """,
    )
    assert result.status == "ok", result.traceback
    lines = [line.removeprefix("[rank 0] ") for line in result.lines]
    assert lines[0].startswith("[[[0, 3], [8, 11]], [[0, 1, 2, 3], [4")
    assert lines[1] == "[100, 2] [100, 4] True"
    assert lines[2].count("torch.bfloat16") == 1
    assert lines[2].endswith("True")


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


def test_spawned_children_find_the_captured_names(new_names: Kernel) -> None:
    """A DataLoader whose workers are spawned has the notebook's classes and data."""
    result = _cells(
        new_names,
        """
        import numpy as np
        from torch.utils.data import Dataset, DataLoader
        table = np.arange(5) * 10
        class Rows(Dataset):
            def __len__(self): return len(table)
            def __getitem__(self, i): return fetch(i)
        def fetch(i): return int(table[i])
        """,
        """\
        %%ddp -n 1
        loader = DataLoader(Rows(), num_workers=1, multiprocessing_context='spawn', batch_size=5)
        print(next(iter(loader)).tolist())
        """,
    )
    assert result.lines == ["[rank 0] [0, 10, 20, 30, 40]"], result.traceback


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("notebook", "words"),
    [
        ("x = open('/dev/null')", "cannot send `x` (TextIOWrapper) to the ranks: it is an open"),
        ("x = {'a': [open('/dev/null', 'rb')]}", "cannot send `x` (dict) to the ranks: it holds"),
        ("import threading; x = threading.Lock()", "it is a lock (lock)"),
        ("import threading; x = [threading.Condition()]", "it holds a lock (Condition)"),
        ("x = (i for i in range(3))", "it is a generator; create it in the cell, or convert"),
        ("import socket; x = socket.socket()", "it is a socket"),
        (
            "from transformers import TrainingArguments\nx = TrainingArguments('/tmp/nowhere')",
            "it is an object that was set up for a single process (TrainingArguments); create",
        ),
        (
            "from accelerate import Accelerator\nx = [Accelerator()]",
            "it holds an object that was set up for a single process (Accelerator)",
        ),
    ],
)
def test_refused_before_a_rank_starts(notebook: str, words: str, new_names: Kernel) -> None:
    """In one line that names the variable, its type and the remedy."""
    if "accelerate" in notebook or "TrainingArguments" in notebook:
        pytest.importorskip("accelerate")
    result = _cells(new_names, notebook, "%%ddp -n 2\nprint('started', x)")
    assert result.status == "error"
    assert "started" not in result.text
    assert words in result.traceback
    assert len(result.traceback.splitlines()) == 1


def test_the_refusal_says_who_reads_the_name(new_names: Kernel) -> None:
    result = _cells(
        new_names,
        "log = open('/dev/null', 'w')\ndef helper(): log.write('x')",
        "%%ddp\nhelper()",
    )
    assert "cannot send `log` (TextIOWrapper), which `helper` reads, to" in result.traceback


def test_larger_than_the_free_memory(new_names: Kernel) -> None:
    """Refused before anything is copied."""
    result = _cells(
        new_names,
        "import numpy as np\nhuge = np.broadcast_to(np.zeros(1), 2**20)  # a view of one number\n"
        "from ddp_magic.kernel import capture\nkeep = capture.available_bytes\n"
        "capture.available_bytes = lambda: 10**6\nreal = np.ones(10**6)",
        "%%ddp\nreal.sum()",
    )
    new_names.run("capture.available_bytes = keep")
    assert "`real` (ndarray, 8 MB) needs a copy that all ranks share, and 1 MB" in result.traceback


def test_capture_only_these(new_names: Kernel) -> None:
    """--capture names what is taken; `none` takes nothing; an unknown name is an error."""
    new_names.run("a, b = 1, 2")
    assert _cells(new_names, "%%ddp -n 1 --capture a\nprint(a)").lines == ["[rank 0] 1"]
    result = _cells(new_names, "%%ddp -n 1 --capture a\nprint(a + b)")
    assert "NameError: name 'b' is not defined" in result.traceback
    assert "--capture leaves it out" in result.traceback
    assert "NameError" in _cells(new_names, "%%ddp -n 1 --capture none\na").traceback
    result = _cells(new_names, "%%ddp -n 1 --capture c\na")
    assert "--capture: the notebook defines no `c`" in result.traceback


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


def test_100_runs_leave_no_memory_behind(new_kernel: Callable[..., Kernel]) -> None:
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
    result = kernel.run("go(100, 'got = big + small.sum()')", timeout_s=LONG_S)
    assert result.status == "ok", result.traceback
    assert kernel.value("float(got[0])") == 102.0
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
    """With a session's ranks that had mapped it."""
    kernel = new_kernel()
    kernel.run("import numpy as np\nbig = np.ones(1_000_000)")
    kernel.run("%%ddp -n 2 -s lab\nbig.sum()")
    pids = [process.pid for process in kernel.processes()]
    own = set().union(*map(_shared_memory, [kernel.pid, *pids]))
    assert own
    kernel.kill()
    assert wait_gone(pids, 3) == []
    assert not own & _shared_memory()


def test_what_the_notebook_has_imported_is_imported(new_names: Kernel) -> None:
    """A library's object that cannot travel: the error has the line to write."""
    result = _cells(
        new_names,
        """
        import sys, threading, types
        library = sys.modules["some_library"] = types.ModuleType("some_library")
        library.logger = types.SimpleNamespace(lock=threading.Lock())
        from some_library import logger
        log = library.logger
        """,
        "%%ddp -n 1\nlogger",
    )
    assert result.error["evalue"].endswith("import it in the cell: from some_library import logger")
    result = new_names.run("%%ddp -n 1\nlog")
    assert result.error["evalue"].endswith("from some_library import logger as log")


def test_what_the_notebook_has_made_is_not_imported(new_names: Kernel) -> None:
    """To multiprocessing, which torch imports, the notebook is a module of a second name."""
    result = _cells(
        new_names,
        "import multiprocessing, threading\nmine = threading.Lock()",
        "%%ddp -n 1\nmine",
    )
    assert result.error["evalue"].endswith("; create it in the cell"), result


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
    assert "the notebook defines `Net`, but it was not sent to the ranks" in result.traceback
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
