"""What of the notebook is sent to the ranks, and what is rejected."""

from __future__ import annotations

import ast
import copyreg
import itertools
import linecache
import sys
import textwrap
import threading
import types
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from ddp_magic.errors import CaptureError
from ddp_magic.kernel.values.capture import Capture, Notebook
from ddp_magic.kernel.values.names import names_of
from ddp_magic.kernel.values.needed_values import Held
from ddp_magic.kernel.values.value_stream import Extra
from ddp_magic.worker.values.received_values import receive

_numbers = itertools.count()
RANK = {"rank": 1, "local_rank": 1, "world_size": 2, "device": "the rank's"}


@pytest.fixture(autouse=True)
def sources() -> Iterator[None]:
    """Cells leave their text with `linecache`, as IPython's do."""
    yield
    for name in [name for name in linecache.cache if name.startswith("/notebook/")]:
        del linecache.cache[name]


def _run(code: str, names: dict[str, Any]) -> Any:
    """Run code as IPython does; return the value of its last expression."""
    code = textwrap.dedent(code)
    file = f"/notebook/{next(_numbers)}.py"
    linecache.cache[file] = (len(code), None, code.splitlines(keepends=True), file)
    tree = ast.parse(code)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, file, "exec", dont_inherit=True), names)
    if last is None:
        return None
    return eval(compile(ast.Expression(last.value), file, "eval", dont_inherit=True), names)


def _notebook(code: str = "pass", **options: Any) -> Notebook:
    names: dict[str, Any] = {"__name__": "__main__"}
    _run(code, names)
    return Notebook(names, **options)


def _capture(notebook: Notebook, cell: str, **options: Any) -> Capture:
    return notebook.capture(names_of(ast.parse(textwrap.dedent(cell))), **options)


def _received(capture: Capture) -> dict[str, Any]:
    """Return the namespace of a rank that has received these values."""
    names: dict[str, Any] = {"__name__": "__main__", **RANK}
    if capture.command is not None:
        receive(capture.command, capture.segments, names)
    return names


def _sent(capture: Capture) -> set[str]:
    return {value.name for value in capture.values}


# --- which names ----------------------------------------------------------------------------------

CASES = {
    "a nested function": (
        "def outer(x):\n    def inner(y): return y + base\n    return inner(x)\nbase = 10",
        "outer(1)",
        11,
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
        2,
    ),
    "a cached function": (
        "import functools\n@functools.lru_cache(maxsize=2)\ndef f(x): return x + k\nk = 5",
        "(f(1), f.cache_parameters()['maxsize'])",
        (6, 2),
    ),
    "a closure": (
        "def adder(n):\n    return lambda x: x + n\nadd3 = adder(3)",
        "add3(4)",
        7,
    ),
    "a lambda and a comprehension": (
        "shift = 2\nf = lambda xs: [x + shift for x in xs if x in allowed]\nallowed = {1, 2}",
        "f([1, 2, 3])",
        [3, 4],
    ),
    "global in a function": (
        "count = 5\ndef bump():\n    global count\n    count += 1\n    return count",
        "(bump(), bump(), count)",
        (6, 7, 7),
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
        (3, [1, 2], "old"),
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
        (("old", ["a", "b"]), ["a", "b"], "new"),
    ),
    "read by a function that only defines": (
        "base = 1\ndef deep(): return base\ndef shallow(): return deep()",
        "def never(): return shallow()\nlambda: shallow()\nglobals()['never']()",
        1,
    ),
    "read by a function only after the cell assigns it": (
        "log = open('/dev/null')\ndef say(): return log\nlater = open('/dev/null')",
        """
        def shown(): return later
        on_end = lambda: later
        log, later = 'mine', 'too'
        (say(), shown(), on_end())
        """,
        ("mine", "too", "too"),
    ),
    "a default that holds the notebook's device": (
        "device = object()\ndef where(d=device, *, e=device): return d, e",
        "where() == (device, device)",
        True,
    ),
    "a default that holds a string of the same text": (
        "device = 'meta'\ndef where(d=device, e='meta', *, f=device): return d, e, f",
        "where()",
        ("the rank's", "meta", "the rank's"),
    ),
    "a LoRA rank in a function's arguments": (
        "def lora(rank=16): return rank",
        "(lora(), rank)",
        (16, 1),
    ),
    "an exec-ed name": ("exec('made = 3')", "made", 3),
    "a star import": ("from math import *", "sqrt(tau) > 2", True),
    "an alias of a module": ("import collections.abc as words", "words.Sized.__name__", "Sized"),
    "the notebook's own train": ("def train(): return 'mine'", "train()", "mine"),
    "a function that calls itself and another": (
        "def even(n): return n == 0 or odd(n - 1)\ndef odd(n): return n != 0 and even(n - 1)",
        "even(10)",
        True,
    ),
    "an object of a class of the notebook's": (
        "class A:\n    def go(self): return helper()\ndef helper(): return 'went'\nitems = [A()]",
        "items[0].go()",
        "went",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_cell_runs_on_what_was_sent(case: str) -> None:
    """What the cell reads, and what the functions among it read, is there."""
    notebook, cell, value = CASES[case]
    assert _run(cell, _received(_capture(_notebook(notebook), cell))) == value


# Values whose own code runs while they are read, and the names that it reads.
READING = {
    "__setstate__": """
        class A:
            def __getstate__(self): return {}
            def __setstate__(self, state): self.opened = zopen(ZPATH)
        def zopen(path): return zformat.format(path)
        ZPATH, zformat, a = "z.h5", "<{}>", A()
        a.opened = "<z.h5>"
        """,
    "__reduce__": """
        class A:
            def __init__(self, opened): self.opened = opened
            def __reduce__(self): return zmake, ("z.h5",)
        def zmake(path): return A(zformat.format(path))
        zformat, a = "<{}>", A("<z.h5>")
        """,
    "the hash of a key": """
        class A:
            def __hash__(self): return zsalt
        zsalt, key = 3, A()
        a = {key: "<z.h5>"}
        class B: pass
        a, a.opened = B(), a[key]
        a.keys = {key}
        """,
    "methods of a list": """
        class A(list):
            opened = "<z.h5>"
            def append(self, x): super().append(min(x, zmax))
            def extend(self, xs): super().extend(min(x, zmax) for x in xs)
        zmax, a = 10, A()
        a.append(30)
        """,
    "__setattr__ with slots": """
        class A:
            __slots__ = ("opened",)
            def __setattr__(self, name, value): object.__setattr__(self, name, zformat(value))
        zformat = str
        a = A()
        a.opened = "<z.h5>"
        """,
    "a function of copyreg": """
        import copyreg
        class A: pass
        def zmake(): return zmade(A(), "<z.h5>")
        def zmade(a, opened):
            a.opened = opened
            return a
        copyreg.pickle(A, lambda a: (zmake, ()))
        a = zmake()
        """,
    "a function of copyreg for a class of a library": """
        import copyreg
        from types import SimpleNamespace
        def zmake(opened): return SimpleNamespace(opened=zformat(opened))
        copyreg.pickle(SimpleNamespace, lambda a: (zmake, (a.opened,)))
        zformat = str
        a = zmake("<z.h5>")
        """,
}


@pytest.mark.parametrize("case", READING)
def test_a_value_finds_the_names_that_it_reads_while_it_is_read(case: str) -> None:
    """Their values are there first, though the cell does not mention them."""
    before = copyreg.dispatch_table.copy()
    try:
        notebook = _notebook(READING[case])
        received = _received(_capture(notebook, "a.opened"))
        assert _run("a.opened", received) == "<z.h5>"
    finally:
        copyreg.dispatch_table.clear()
        copyreg.dispatch_table.update(before)


@pytest.mark.parametrize(
    ("code", "times"),
    [
        ("def f(self): return z", 1),
        ("def __hash__(self): return 1", 1),
        ("def __hash__(self): return z", 2),
    ],
)
def test_values_are_written_again_only_where_such_code_reads_names(code: str, times: int) -> None:
    """Large data should not be pickled more often than needed."""
    notebook = _notebook(f"class A:\n    {code}\nz, a, data = 1, A(), [A()]")
    written: list[int] = []
    notebook.names["A"].__getstate__ = lambda it: written.append(id(it)) or {}
    _capture(notebook, "a, data")
    assert written.count(id(notebook.names["data"][0])) == times


@pytest.mark.parametrize(
    ("cell", "sent"),
    [
        ("a", {"a"}),
        ("a = 1\nb", {"b"}),
        ("unknown, len", set()),
        ("f()", {"f", "b"}),
        ("b = 1\nf()", {"f"}),
    ],
)
def test_nothing_else_is_sent(cell: str, sent: set[str]) -> None:
    notebook = _notebook("a, b, c = 1, 2, 3\ndef f(): return b")
    assert _sent(_capture(notebook, cell)) == sent


def test_what_the_user_has_not_defined_is_not_sent() -> None:
    """IPython's own names are, once the user has bound them."""
    notebook = _notebook("Out = {}\n_ = 1", hidden={"Out": 5, "_": 1})
    assert _sent(_capture(notebook, "Out, _")) == {"Out"}
    assert notebook.visible().keys() == {"__name__", "__builtins__", "Out"}


def test_the_notebook_is_never_written() -> None:
    notebook = _notebook("data = [1]\ndef f(): data.append(2)")
    _run("f()", _received(_capture(notebook, "f()")))
    assert notebook.names["data"] == [1]


def test_extra_names_are_the_cells_alone() -> None:
    """Beside the notebook's, even with `--capture none`; they are forgotten afterwards."""
    notebook = _notebook("a = 1")
    extra = {"b": Extra(value=2, name="size", label="argument 1 (`size`)")}
    assert _received(_capture(notebook, "a + b", only=(), extra=extra))["b"] == 2
    assert _sent(_capture(notebook, "a + b")) == {"a"}


def test_names_of_the_prelude() -> None:
    """Those that the cell reads, or a function that is sent; the notebook's own come first."""
    notebook = _notebook("def f(): return dist.get_world_size()\nDDP = 1")
    assert _capture(notebook, "f()\nF.relu\nDDP").prelude == {"dist", "F"}


def test_types_that_annotations_mention() -> None:
    """Types that can be sent; no values, and nothing that cannot be sent."""
    notebook = _notebook(
        """
        class Part: pass
        class Cannot:
            def go(self): return log
        n, log = 3, open('/dev/null')
        def f(x: 'Part', y: 'n'): ...
        """
    )
    assert _sent(_capture(notebook, "f")) == {"f", "Part"}
    assert _sent(_capture(notebook, "def g(x: 'list[Part]'): ...")) == {"Part"}


def test_the_text_of_functions_is_sent() -> None:
    """For tracebacks and `inspect`, with the number of the notebook's cell."""
    text = "def f():\n    return 1  # the text"
    notebook = _notebook(text)
    file = notebook.names["f"].__code__.co_filename
    notebook = Notebook(notebook.names, cells=lambda: {file: 7})
    capture = _capture(notebook, "f")
    assert capture.command is not None
    assert capture.command.sources == {file: [text, 7]}
    assert _received(capture)["f"].__code__.co_filename == file


# --- --capture ------------------------------------------------------------------------------------


def test_capture_only_these() -> None:
    notebook = _notebook("a, b = 1, 2\ndef f(): return a + b")
    assert _sent(_capture(notebook, "a + b", only=("a",))) == {"a"}
    assert _sent(_capture(notebook, "a + b", only=())) == set()
    assert _sent(_capture(notebook, "f()", only=("f", "b"))) == {"f", "b"}


def test_capture_of_a_value_brings_its_class() -> None:
    """Pickle in the rank looks for it in `__main__`; no other name is sent."""
    notebook = _notebook("class A: pass\na, other = A(), 1")
    assert _sent(_capture(notebook, "a, other", only=("a",))) == {"a", "A"}


def test_an_unknown_name_is_an_error() -> None:
    with pytest.raises(CaptureError, match=r"--capture: `c` is not defined in .*: define it, or"):
        _capture(_notebook("a = 1"), "a", only=("a", "c"))
    for name in ("rank", "train"):
        with pytest.raises(CaptureError, match="omit it, since it is in every cell"):
            _capture(_notebook("a = 1"), "a", only=(name,))


# --- the rank's own names -------------------------------------------------------------------------


def test_a_hidden_name_is_reported_once() -> None:
    notebook = _notebook("rank = 16.5")
    capture = _capture(notebook, "rank < 2")
    assert capture.values == []
    assert capture.notes == [
        "`rank` in the cell is the rank's own; the notebook's (16.5) is hidden: rename it to use "
        "it in the cell"
    ]
    assert _capture(notebook, "rank < 2").notes == []
    notebook.names["rank"] = 17
    assert len(_capture(notebook, "rank < 2").notes) == 1


@pytest.mark.parametrize("value", ["'cuda'", "type('device', (), {})()"])
def test_the_notebooks_device_is_not_reported(value: str) -> None:
    """It means the same, even if it is another device."""
    capture = _capture(_notebook(f"device = {value}"), "device")
    assert (capture.values, capture.notes) == ([], [])


# --- what is rejected -----------------------------------------------------------------------------

_SINGLE = "an object that was set up for a single process"


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("x = open('/dev/null')", "(TextIOWrapper) to the ranks: it is an open file; create it in"),
        ("x = [open('/dev/null', 'rb')]", "(list) to the ranks: it holds an open file; create it"),
        ("import threading; x = threading.Lock()", "it is a lock; create it in the cell"),
        ("import threading; x = [threading.RLock()]", "it holds a lock (RLock); create it in the"),
        ("import threading; x = threading.Condition()", "it is a lock (Condition); create it in"),
        ("import threading; x = [threading.Event()]", "it holds a lock (Event); create it in the"),
        ("x = (i for i in ())", "it is a generator; convert it to a lis"),
        (
            "async def a(): yield\nx = a()",
            "it is an asynchronous object (async_generator); collect",
        ),
        ("import socket; x = socket.socket(); x.close()", "it is a socket; create it in the cell"),
        ("import threading; x = threading.Thread()", "it is a thread (Thread); create it in the"),
        (
            "import subprocess; x = subprocess.Popen(['true']); x.wait()",
            "it is a subprocess (Popen); create it in the cell",
        ),
        ("class C:\n    def __reduce__(self): 1 / 0\nx = C()", "ZeroDivisionError: division by z"),
        (
            "class C:\n    def __reduce__(self): raise ValueError('no\\n  way')\nx = C()",
            "to the ranks: ValueError: no way; create it in the cell",
        ),
        (
            "class E(Exception):\n    def __str__(self): 1 / 0\n"
            "class C:\n    def __reduce__(self): raise E\nx = C()",
            "to the ranks: E; create it in the cell",
        ),
    ],
)
def test_what_cannot_be_sent_is_rejected(code: str, reason: str) -> None:
    """By name, with its type, the reason and the remedy."""
    with pytest.raises(CaptureError) as caught:
        _capture(_notebook(code), "x")
    message = str(caught.value)
    assert message.startswith("cannot send `x` (")
    assert reason in message


@pytest.mark.parametrize(
    ("kind", "remedy"),
    [
        ("accelerate.accelerator.Accelerator", "create it in the cell, where it reads the world"),
        ("transformers.trainer.Trainer", "create it in the cell"),
        ("torch.nn.parallel.distributed.DistributedDataParallel", "use its .module, and wrap that"),
        ("torch.utils.tensorboard.writer.SummaryWriter", "create it in the cell, on rank 0"),
        ("wandb.sdk.wandb_run.Run", "call wandb.init in the cell, on rank 0"),
    ],
)
def test_what_was_set_up_for_a_single_process_is_rejected(kind: str, remedy: str) -> None:
    """Subclasses too, and objects inside others."""
    module, _, name = kind.rpartition(".")
    made = type("Mine", (type(name, (), {"__module__": module}),), {})
    with pytest.raises(CaptureError) as caught:
        _capture(Notebook({"x": [made()]}), "x")
    assert f"it holds {_SINGLE} (Mine); {remedy}" in str(caught.value)


def test_the_rejection_says_who_reads_the_name() -> None:
    notebook = _notebook("log = open('/dev/null', 'w')\ndef helper(): log.write('x')")
    with pytest.raises(CaptureError) as caught:
        _capture(notebook, "helper()")
    assert str(caught.value) == (
        "cannot send `log` (TextIOWrapper), which `helper` reads, to the ranks: it is an open file;"
        " create it in the cell"
    )


def test_what_the_notebook_has_imported_is_to_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    """The remedy is the line to write."""
    library: Any = types.ModuleType("some_library")
    library.logger = types.SimpleNamespace(lock=threading.Lock())
    monkeypatch.setitem(sys.modules, "some_library", library)
    notebook = Notebook({"logger": library.logger, "log": library.logger})
    with pytest.raises(CaptureError, match=r"from some_library import logger$"):
        _capture(notebook, "logger")
    with pytest.raises(CaptureError, match=r"from some_library import logger as log$"):
        _capture(notebook, "log")


def test_what_the_notebook_has_made_is_not_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    """To multiprocessing, which torch imports, the notebook is a module of a second name."""
    main: Any = types.ModuleType("__mp_main__")
    main.mine = threading.Lock()
    monkeypatch.setitem(sys.modules, "__mp_main__", main)
    with pytest.raises(CaptureError, match=r"; create it in the cell$"):
        _capture(Notebook({"mine": main.mine}), "mine")


# --- memory ---------------------------------------------------------------------------------------


def test_what_does_not_fit_is_rejected() -> None:
    """Before anything is copied; names that need no copy do not count."""
    notebook = Notebook({"real": np.ones(10**6), "small": 1}, free_bytes=lambda: 10**6)
    with pytest.raises(CaptureError) as caught:
        _capture(notebook, "real, small")
    assert str(caught.value) == (
        "cannot send `real` (ndarray, 8 MB) to the ranks: it must be copied once, and only 1 MB of "
        "memory is free; load it in the cell, or use numpy.memmap, of which only the file name is "
        "sent"
    )
    assert _sent(_capture(notebook, "small")) == {"small"}


def test_copies_of_other_names_make_room() -> None:
    """Those kept from earlier cells are given back before a value is rejected."""
    free = [10**9, 10**6, 10**9]
    notebook = Notebook({"a": np.ones(10**6), "b": np.ones(10**6)}, free_bytes=lambda: free.pop(0))
    _capture(notebook, "a")
    _capture(notebook, "b")
    assert notebook._shared.kept_names() == {"b"}


def _own_memory(capture: Capture) -> Mapping[int, Any]:
    """Return the shared memory that names have of their own."""
    assert capture.command is not None
    return {n: s for n, s in capture.segments.items() if n != capture.command.stream}


def test_an_unchanged_array_is_not_copied_again() -> None:
    """One that is changed in place is; when the name is gone, so is its memory."""
    notebook = Notebook({"array": np.zeros(10**6)})
    first = _own_memory(_capture(notebook, "array"))
    assert _own_memory(_capture(notebook, "array")).keys() == first.keys()
    notebook.names["array"][5] = 3
    capture = _capture(notebook, "array")
    again = _own_memory(capture)
    assert not again.keys() & first.keys()
    assert _received(capture)["array"][5] == 3
    del notebook.names["array"]
    notebook.forget_unbound()
    assert notebook._shared.kept_names() == set()


def test_a_capture_owns_its_memory() -> None:
    """It can be sent after the notebook has given its own back; closing it leaves nothing open."""
    notebook = Notebook({"array": np.ones(10**6)})
    capture = _capture(notebook, "array")
    del notebook.names["array"]
    notebook.forget_unbound()
    segments = list(capture.segments.values())
    assert _received(capture)["array"].sum() == 10**6
    capture.close()
    assert [segment.fd for segment in segments] == [-1, -1]


def test_threads_capture_at_once() -> None:
    """Each gets the value of the moment, although the array changes and memory is given back."""
    notebook = Notebook({"array": np.zeros(10**6)})

    def one_cell(number: int) -> bool:
        notebook.names["array"] = np.full(10**6, float(number))
        capture = _capture(notebook, "array")
        notebook.forget_unbound()
        array = _received(capture)["array"]
        capture.close()
        return bool((array == array[0]).all())

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(one_cell, range(20)))


def test_a_rank_writes_to_its_own_copy() -> None:
    notebook = Notebook({"array": np.zeros(10**6)})
    capture = _capture(notebook, "array")
    _received(capture)["array"][0] = 7
    assert _received(capture)["array"][0] == 0
    assert notebook.names["array"][0] == 0


def test_one_object_under_two_names_stays_one() -> None:
    notebook = Notebook({"model": (model := {"w": np.ones(3)}), "optimizer": [model]})
    names = _received(_capture(notebook, "model, optimizer"))
    assert names["optimizer"][0] is names["model"]


def test_much_is_reported() -> None:
    """More than 100 MB, with the largest values."""
    notes = _capture(Notebook({"big": np.zeros(13_000_001), "n": 1}), "big, n").notes
    assert len(notes) == 1
    assert notes[0].startswith("captured 104 MB in ")
    assert "s: big (ndarray, 104 MB), n (int)" in notes[0]


# --- sessions -------------------------------------------------------------------------------------


def test_a_session_gets_what_has_changed() -> None:
    notebook = _notebook("a, b = [1], 2\ndef f(): return a")
    held = Held()
    assert _sent(_capture(notebook, "f, b", held=held)) == {"f", "a", "b"}
    assert _capture(notebook, "f, b", held=held).command is None
    notebook.names["a"].append(2)
    assert _sent(_capture(notebook, "f, b", held=held)) == {"a"}


def test_a_large_value_of_a_session_is_sent_when_it_has_changed() -> None:
    notebook, held = Notebook({"array": np.zeros(10**6)}), Held()
    assert _sent(_capture(notebook, "array", held=held)) == {"array"}
    assert _capture(notebook, "array", held=held).command is None
    notebook.names["array"][0] = 1
    assert _sent(_capture(notebook, "array", held=held)) == {"array"}


def test_what_a_session_has_bound_is_never_replaced() -> None:
    notebook = _notebook("a, b = 1, 2")
    assert _sent(_capture(notebook, "a, b", held=Held(bound={"a"}))) == {"b"}


def test_a_plain_run_remembers_nothing() -> None:
    notebook = _notebook("a = 1")
    assert _sent(_capture(notebook, "a")) == _sent(_capture(notebook, "a")) == {"a"}
