"""Classes that are made anew where they are read: their hooks do not run a second time.

Read in a process of their own, because cloudpickle knows the classes of this one.
"""

from __future__ import annotations

import io
import subprocess
import sys

import pytest

from ddp_magic.wire.pickling import Pickler
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
        "import enum\nclass A(enum.Enum):\n    def __init__(self, x): self.y = x + z\n"
        "    ONE = 1\nz = 2".replace("z = 2", "").replace("import enum", "import enum\nz = 2"),
        "(A.ONE, A.ONE.y, A(1))",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_hooks_do_not_run_again(case: str) -> None:
    """What they did is in the stream."""
    text, expression = CASES[case]
    names: dict[str, object] = {"__name__": "__main__"}
    exec(text, names)
    file = io.BytesIO()
    writer = Pickler(file, on_buffer=lambda _: None)
    # In the order in which a hook would find the names of its function missing.
    library = {"__name__", "__builtins__", "abc", "enum", "Generic", "NamedTuple", "Protocol"}
    for name in sorted(names.keys() - library):
        writer.dump((name, names[name]))
    read = subprocess.run(
        [sys.executable, "-c", READ, expression],
        input=file.getvalue(),
        capture_output=True,
        timeout=HANG_S,
        check=False,
    )
    assert read.stdout.decode().strip() == str(eval(expression, names)), read.stderr.decode()
