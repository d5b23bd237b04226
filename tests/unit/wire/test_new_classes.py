"""Classes that are made anew where they are read: their hooks do not run a second time.

Read in a process of their own, because cloudpickle knows the classes of this one.
"""

from __future__ import annotations

import io
import subprocess
import sys
from typing import Any

import pytest

from ddp_magic.wire.pickling import Pickler, load
from tests.limits import HANG_S

READ = """
import sys
from ddp_magic.wire.pickling import load
names = {}
for name, names[name] in load(sys.stdin.buffer.read(), [], names): pass
print(eval(sys.argv[1], names))
"""
BASE = """
registry = {}
class Base:
    def __init_subclass__(cls, key, **rest):
        super().__init_subclass__(**rest)
        registry[key] = cls
"""
META = """
registry = {}
class Meta(type):
    def __new__(meta, name, bases, namespace, key=None):
        kind = super().__new__(meta, name, bases, namespace)
        registry[key or name] = kind
        return kind
"""
CASES = {
    "a subclass": (BASE + "class A(Base, key='a'): pass", "(registry, A)"),
    "a subclass of a subclass": (
        BASE + "class A(Base, key='a'): pass\nclass B(A, key='b'): x = 1",
        "(registry, B, B.__mro__, B.x)",
    ),
    "two bases with a hook": (
        BASE + "class Other:\n    def __init_subclass__(cls, **rest): registry['other'] = cls\n"
        "class A(Base, Other, key='a'): pass",
        "(registry, A, Other)",
    ),
    "a later class, which runs the hook": (
        BASE + "class A(Base, key='a'): pass\n"
        "def more():\n    class B(A, key='b'): pass\n    return sorted(registry)",
        "more()",
    ),
    "a metaclass": (
        META + "class A(metaclass=Meta): pass\nclass B(A, key='b'): x = 1",
        "(registry, A, B, B.x, type(B))",
    ),
    "a metaclass with __init__ and __call__": (
        "made = []\nclass Meta(type):\n"
        "    def __init__(cls, name, *rest):\n        made.append(name)\n"
        "    def __call__(cls): return made\n"
        "class A(metaclass=Meta): pass",
        "(made, A(), type(A))",
    ),
    "a metaclass of abc's": (
        "import abc\nmade = []\nclass Meta(abc.ABCMeta):\n"
        "    def __init__(cls, name, *rest):\n"
        "        super().__init__(name, *rest)\n        made.append(name)\n"
        "class A(metaclass=Meta):\n    @abc.abstractmethod\n    def f(self): pass\n"
        "class B(A):\n    def f(self): return 5\n"
        "A.register(int)",
        "(made, B().f(), isinstance(1, A), A.__abstractmethods__)",
    ),
    "members with attributes": (
        "import enum\nclass A(enum.Enum):\n"
        "    def __new__(cls, value, words):\n        it = object.__new__(cls)\n"
        "        it._value_, it.words = value, words\n        return it\n"
        "    ONE = 1, 'one'\n    TWO = 2, 'two'\nx = A.TWO",
        "(A.ONE, A.ONE.words, A(1) is A.ONE, x is A.TWO, x.words, x.name)",
    ),
    "aliases, and flags of several bits": (
        "import enum\nclass A(enum.Enum):\n    ONE = 1\n    ALSO = 1\n"
        "class F(enum.Flag):\n    X = 1\n    Y = 2\n    XY = 3",
        "(A.ALSO is A.ONE, A['ALSO'], list(A), F['XY'], F.X | F.Y, ~F.X, list(F.__members__))",
    ),
    "members that are strings": (
        "import enum\nclass A(str, enum.Enum):\n"
        "    ONE = 'one'\n    def words(self): return self.value + '!'\n"
        "class B(enum.IntEnum):\n    TWO = enum.auto()",
        "(A.ONE, A('one').words(), A.ONE == 'one', B.TWO + 1, B.TWO)",
    ),
    "bases that are no classes": (
        "from typing import Generic, NamedTuple, Protocol, TypeVar\nT = TypeVar('T')\nmade = []\n"
        "class Box(Generic[T]):\n    def __init_subclass__(cls): made.append(cls.__name__)\n"
        "class Ints(Box[int]): pass\nclass Q(NamedTuple):\n    a: int = 1\n"
        "class P(Protocol[T]):\n    x: int",
        "(made, Box, Ints.__mro__, Q(), issubclass(Ints, Box), P)",
    ),
    "an enumeration": (
        "import enum\nz = 2\nclass A(enum.Enum):\n    def __init__(self, x): self.y = x + z\n"
        "    ONE = 1",
        "(A.ONE, A.ONE.y, A(1))",
    ),
    "members of a data class": (
        "import dataclasses, enum\n@dataclasses.dataclass\nclass Part:\n    x: int\n    y: int\n"
        "class A(Part, enum.Enum):\n    ONE = 1, 2\nx = A.ONE",
        "(x is A.ONE, x.y, A(x.value) is x, x.name)",
    ),
    "members of a library's class": (
        "import datetime, enum\nclass A(datetime.date, enum.Enum):\n    ONE = 2020, 1, 2\n"
        "class B(bytes, enum.Enum):\n    def __new__(cls, value, word):\n"
        "        it = bytes.__new__(cls, [value])\n        it._value_, it.word = value, word\n"
        "        return it\n    ONE = 1, 'one'\nx = B.ONE",
        "(A.ONE.year, A.ONE.value, x is B(1), x.word, bytes(x))",
    ),
    "members whose values are equal to no other": (
        "import enum\nclass Part: x = 7\nclass A(enum.Enum):\n    ONE = Part()\n"
        "x = [A.ONE, {A.ONE: 1}]",
        "(x[0].value.x, x[0] is A.ONE, x[1][A.ONE], A(x[0].value) is A.ONE)",
    ),
    "an enumeration with a metaclass": (
        "import enum\nmade = []\nclass Meta(enum.EnumMeta):\n"
        "    def __new__(meta, name, *rest):\n        made.append(name)\n"
        "        return super().__new__(meta, name, *rest)\n"
        "    def __getitem__(cls, name): return super().__getitem__(name.upper())\n"
        "class A(enum.Enum, metaclass=Meta):\n    ONE = 1",
        "(A['one'], made, type(A))",
    ),
    "an abstract enumeration": (
        "import abc, enum\nclass Meta(abc.ABCMeta, enum.EnumMeta): pass\n"
        "class Base(abc.ABC):\n    @abc.abstractmethod\n    def f(self): pass\n"
        "class A(Base, enum.Enum, metaclass=Meta):\n    ONE = 1\n    def f(self): return 2\n"
        "A.register(int)",
        "(A.ONE.f(), isinstance(A.ONE, Base), isinstance(1, A))",
    ),
    "an enumeration that continues its values": (
        "import enum\nclass A(enum.Enum):\n"
        "    def _generate_next_value_(name, *rest): return name.lower()\n"
        "class B(A):\n    TWO = enum.auto()",
        "(B.TWO, A._generate_next_value_('X', 1, 1, []))",
    ),
    "an enumeration in a class": (
        "import enum\nclass A:\n    class Mode(enum.Flag):\n        X = 1\n        Y = 2\n"
        "    def f(self, mode=Mode.X | Mode.Y): return mode\nA.Mode.both = A().f()",
        "(A().f() is A.Mode(3), A.Mode.__qualname__, A.Mode.both, ~A.Mode.X is A.Mode.Y)",
    ),
    "members that refer to each other": (
        "import enum\nclass A(enum.Enum):\n    ONE = []\n    TWO = 2\nA.ONE.other = A.TWO\n"
        "A.TWO.other = A.ONE",
        "(A.ONE.other is A.TWO, A.TWO.other is A.ONE, A([]))",
    ),
    "slots": (
        "class A:\n    __slots__ = ('x', '__y')\n    def set(self): self.x = self.__y = 1\n"
        "    def both(self): return self.x, self.__y\na = A()\na.set()",
        "(a.both(), hasattr(a, '__dict__'), A.__slots__)",
    ),
    "slots of a data class": (
        "import dataclasses, weakref\n@dataclasses.dataclass(slots=True, order=True)\nclass A:\n"
        "    x: int = 1\nclass B(A):\n    __slots__ = {'y': 'words', '__weakref__': ''}\n"
        "a = B(2)",
        "(a, a < B(3), hasattr(a, '__dict__'), weakref.ref(a)() is a, B.y.__doc__)",
    ),
    "a named tuple": (
        "from typing import Generic, NamedTuple, TypedDict, TypeVar\nT = TypeVar('T')\n"
        "class A(NamedTuple):\n    x: int\n    y: int = 2\n    def f(self): return self.x\n"
        "class D(TypedDict, total=False):\n    x: int\na, d = A(1), D(x=1)",
        "(a, a.f(), type(a) is A, A._field_defaults, d, D.__total__, hasattr(a, '__dict__'))",
    ),
    "generic bases": (
        "from typing import Dict, Generic, TypeVar\nT = TypeVar('T')\nclass A(Generic[T]): pass\n"
        "class B(A[T], Dict[str, T]): pass\nclass C(B[int]): pass",
        "(C(x=1), C.__orig_bases__, B.__parameters__, C.__mro__, A[int])",
    ),
    "objects with a hash in their class": (
        "class A:\n    kept = {}\n    def __init__(self, key):\n"
        "        self.key = key\n        A.kept[self] = key\n"
        "    def __hash__(self): return hash(self.key) + z\n"
        "    def __eq__(self, other): return self.key == other.key\n"
        "_, z = 0, 1\nx = [A(i) for i in range(9)]",
        "[A.kept.get(each) for each in x]",
    ),
    "exceptions with an __init__ of their own": (
        "class E(Exception):\n    def __init__(self, a, b):\n"
        "        super().__init__('words')\n        self.a, self.b = a, b\n"
        "e, f = E(1, 2), KeyError('x')",
        "(e.args, e.a, e.b, f)",
    ),
    "an object that delegates attributes": (
        "class A:\n    __slots__ = ('inner', '__dict__')\n"
        "    def __init__(self, inner): self.inner, self.x = inner, 1\n"
        "    def __getattr__(self, name): return getattr(self.inner, name)\na = A([3])",
        "(a.inner, a.x, a.count(3), vars(a))",
    ),
    "a metaclass that forbids to set attributes": (
        "class Meta(type):\n    def __setattr__(cls, *rest): raise TypeError('frozen')\n"
        "class A(metaclass=Meta):\n    x = 1",
        "(A.x, type(A))",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_hooks_do_not_run_again(case: str) -> None:
    """What they did is in the stream."""
    text, expression = CASES[case]
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(text, names)
    file = io.BytesIO()
    writer = Pickler(file, on_buffer=lambda _: None)
    # In the order in which a hook would find the names of its function missing.
    library = {"__name__", "__builtins__", "abc", "enum", "Generic", "NamedTuple", "Protocol"}
    for name in sorted(names.keys() - library):
        writer.dump((name, names[name]))
    assert _in_another_process(file, expression) == str(eval(expression, names))


def _in_another_process(file: io.BytesIO, expression: str) -> str:
    read = subprocess.run(
        [sys.executable, "-c", READ, expression],
        input=file.getvalue(),
        capture_output=True,
        timeout=HANG_S,
        check=False,
    )
    return (read.stdout or read.stderr).decode().strip()


ANSWER = """
import io, sys
from ddp_magic.wire.pickling import load
from ddp_magic.worker.values.sent_values import ResultPickler
names = {}
for name, names[name] in load(sys.stdin.buffer.read(), [], names): pass
exec("A.x, A.new = 7, 8", names)
answer = io.BytesIO()
ResultPickler(answer, on_buffer=None).dump(names["a"])
sys.stdout.buffer.write(answer.getvalue())
"""


@pytest.mark.parametrize("bases", ["", "enum.Enum"])
def test_a_class_is_unchanged_where_its_objects_come_back(bases: str) -> None:
    """Its methods read the notebook's names still, and not copies of the rank's."""
    names: dict[str, Any] = {"__name__": "__main__"}
    text = f"import enum\nclass A({bases}):\n    ONE = 1\n    def f(self): return k"
    exec(f"{text}\nk, A.x = 1, 0\na = A.ONE if {bases!r} else A()", names)
    file = io.BytesIO()
    writer = Pickler(file, on_buffer=lambda _: None)
    for name in ("A", "k", "a"):
        writer.dump((name, names[name]))
    before = dict(vars(names["A"]))
    rank = [sys.executable, "-c", ANSWER]
    answer = subprocess.run(
        rank, input=file.getvalue(), capture_output=True, timeout=HANG_S, check=True
    )
    (a,) = load(answer.stdout, [])
    assert type(a) is names["A"]
    assert vars(names["A"]) == before
    names["k"] = 2
    assert a.f() == 2


@pytest.mark.parametrize("others_only", [False, True])
def test_a_class_from_an_earlier_pickle_gets_its_new_attributes(others_only: bool) -> None:
    """In a session, as in the notebook if the class is the session's."""
    names: dict[str, Any] = {"__name__": "__main__"}
    exec("class A: x = 1", names)
    file = io.BytesIO()
    for x in (1, 2):
        names["A"].x = x
        writer = Pickler(file, on_buffer=lambda _: None)
        writer.other_classes_only = others_only
        writer.dump((f"A{x}", names["A"]))
    assert _in_another_process(file, "(A1 is A2, A1.x)") == "(True, 2)"
