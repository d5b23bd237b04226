"""Cells above, a `%%ddp` cell, and what it prints."""

from __future__ import annotations

PROGRAMS: dict[str, tuple[list[str], str, str]] = {
    "names of the rank": ([], "print(rank, local_rank, world_size)", "1 1 2"),
    "a function and what it reads": (
        ["def outer(x):\n    def inner(y): return y + base\n    return inner(x)\nbase = 10"],
        "print(outer(1))",
        "11",
    ),
    "a function reads the cell's names": (
        ["def f(): return lr, rank\nlr = 1"],
        "lr = 2\nprint(f())",
        "(2, 1)",
    ),
    "mutual recursion": (
        ["def even(n): return n == 0 or odd(n - 1)\ndef odd(n): return n != 0 and even(n - 1)"],
        "print(even(10))",
        "True",
    ),
    "a closure": (
        [
            "def make(k):\n    def inner(x): return x * k + bias + rank\n    return inner",
            "bias = 10\ntriple = make(3)",
        ],
        "print(triple(2), make(1)(1))",
        "17 12",
    ),
    "a decorator": (
        [
            "import functools\nlog = []\n"
            "def noted(f):\n"
            "    @functools.wraps(f)\n"
            "    def inner(*args):\n"
            "        log.append(f.__name__)\n"
            "        return f(*args)\n"
            "    return inner",
            "@noted\ndef add(a, b=2): return a + b",
        ],
        "print(add(1), log)",
        "3 ['add']",
    ),
    "a decorator that registers": (
        [
            "REG = {}\ndef register(f):\n    REG[f.__name__] = f\n    return f",
            "@register\ndef one(): return 1\n@register\ndef two(): return one() + 1",
        ],
        "print({k: v() for k, v in REG.items()}, REG['one'] is one)",
        "{'one': 1, 'two': 2} True",
    ),
    "a decorator that counts in a list": (
        [
            "order = []\ndef noted(f):\n    order.append(f.__name__)\n    return f",
            "def named(where):\n    def noted(f):\n        where.append('x')\n        return f\n"
            "    return noted",
            "@noted\ndef one(): return 1\n@named(order)\ndef two(): return 2",
        ],
        "print(order, one() + two())",
        "['one', 'x'] 3",
    ),
    "functions of singledispatch": (
        [
            "from functools import singledispatch\n@singledispatch\ndef f(x): return 'any'",
            "@f.register\ndef of_int(x: int): return 'int'",
        ],
        "print(f(1), f('x'))",
        "int any",
    ),
    "a function wrapped by hand": (
        [
            "import functools\ndef twice(f):\n    return functools.wraps(f)(lambda x: f(f(x)))",
            "def inc(x): return x + 1\ninc = twice(inc)",
        ],
        "print(inc(1))",
        "3",
    ),
    "base classes": (
        ["class Base:\n    def f(self): return K\nK = 4", "class Child(Base): pass\nc = Child()"],
        "print(c.f(), isinstance(c, Base), type(c) is Child)",
        "4 True True",
    ),
    "a dataclass": (
        [
            "from dataclasses import dataclass, field\n@dataclass\nclass C:\n    lr: float = 0.1\n",
            "c = C(0.5)",
        ],
        "print(c, C(), c == C(0.5))",
        "C(lr=0.5) C(lr=0.1) True",
    ),
    "an enum, a named tuple": (
        [
            "from enum import Enum\nfrom typing import NamedTuple",
            "from collections import namedtuple",
            "class Color(Enum):\n    RED = 1\nred = Color.RED\n"
            "class Q(NamedTuple):\n    a: int\n    b: int = 2\nq = Q(1)\n"
            "P = namedtuple('P', 'x')\np = P(3)",
        ],
        "print(red is Color.RED, q, Q(5), p, p == P(3))",
        "True Q(a=1, b=2) Q(a=5, b=2) P(x=3) True",
    ),
    "nested classes": (
        ["class Outer:\n    class Inner: pass\ninner = Outer.Inner()\nI = Outer.Inner"],
        "print(isinstance(inner, Outer.Inner), I is Outer.Inner)",
        "True True",
    ),
    "an object of a class that was redefined": (
        ["class A:\n    def f(self): return 'old'\na = A()", "class A:\n    def f(self): return 2"],
        "print(a.f(), A().f(), isinstance(a, A))",
        "old 2 False",
    ),
    "a class that was changed": (
        [
            "class A:\n    lr = 0.1\n    def f(self): return 1\n    def g(self): return 1",
            "A.lr = 0.5\nA.extra = 7\ndef g(self): return 2\nA.g = g",
        ],
        "print(A.lr, A.extra, A().f(), A().g())",
        "0.5 7 1 2",
    ),
    "names that mean something else by now": (
        [
            "lr = 0.1\ndef f(x=lr, *, y=lr + 1): return x, y\nclass A:\n    lr = lr\n"
            "class Base:\n    def f(self): return 'old'\nclass B(Base): pass\nb = B()\n"
            "def deco(f): return lambda: 'old'\n@deco\ndef g(): pass\n"
            "import functools\ndef keep(f):\n    @functools.wraps(f)\n    def inner(): return 1\n"
            "    return inner\n@keep\ndef h(): return 0",
            "lr = 0.5\nclass Base:\n    def f(self): return 'new'\ndef deco(f): return f\n"
            "def keep(f): return f",
        ],
        "print(f(), A.lr, b.f(), isinstance(b, B), Base().f(), g(), h(), lr)",
        "(0.1, 1.1) 0.1 old True new old 1 0.5",
    ),
    "values that are made once": (
        [
            "import itertools\nimport random\nrandom.seed(1)\ncount = itertools.count()",
            "def f(x=next(count), y=random.random()): return x, round(y, 3)\n"
            "class A:\n    r = round(random.random(), 3)\n    n = next(count)\n"
            "def base(n): return type(f'Base{n}', (), {})\nclass B(base(next(count))): pass",
        ],
        "print(f(), A.r, A.n, B.__base__.__name__)",
        "(0, 0.134) 0.847 1 Base2",
    ),
    "a default value that was changed": (
        ["def f(x, seen=[]):\n    seen.append(x)\n    return seen", "f(1)"],
        "print(f(2))",
        "[1, 2]",
    ),
    "attributes of a function": (["def f(): pass\nf.calls = 3"], "print(f.calls)", "3"),
    "lambdas": (
        ["scale = 3\nf = lambda x: x * scale; g = lambda y: f(y) + 1\nh = g"],
        "print(g(2), h is g)",
        "7 True",
    ),
    "an alias": (["def f(): return 1\ng = f"], "print(g(), g is f)", "1 True"),
    "partial": (
        [
            "import functools\ndef power(x, n): return x ** n",
            "square = functools.partial(power, n=2)",
        ],
        "print(square(3), square.func is power)",
        "9 True",
    ),
    "one list of two names": (
        ["history = [1]\nalias = history\nother = {'h': [1]}"],
        "history.append(2)\nprint(alias, other)",
        "[1, 2] {'h': [1]}",
    ),
    "a list that an object holds": (
        [
            "class A:\n    def __init__(self, x): self.x = x",
            "config = {'lr': [1]}\na = A(config['lr'])",
        ],
        "config['lr'].append(2)\nprint(a.x)",
        "[1, 2]",
    ),
    "a default value that has no text": (
        ["W = object()\ndef f(x=W): return x is W\nclass B:\n    w = W\nclass C(B): pass"],
        "print(f(), C.w is W)",
        "True True",
    ),
    "names of builtins": (
        [
            "def sum(xs): return 'mine'\nmax = 3\nfloat = int = 'x'\ninf = 1e400\neval = 1",
            "open = 2\no = object()\nclass A: pass\na = A()",
        ],
        "print(sum([1]), max, inf, float, rank, eval, type(a) is A)",
        "mine 3 inf x 1 1 True",
    ),
    "names of our own lines": (
        ["dist = 0.5\nos = 'linux'\npickle = Path = 1\no = object()"],
        "sys = 3\nprint(dist, os, rank, Path, pickle, type(o).__name__)\nsys",
        "0.5 linux 1 1 1 object\n3",
    ),
    "names that our own lines use instead": (
        ["os = _os = _file = __values = _values = _Unpickler = 5\nclass A: pass\na = A()"],
        "print(os, _os, rank, _file, _values, __values, _Unpickler, type(a) is A)",
        "5 5 1 5 5 5 5 True",
    ),
    "strings": (
        ["a = 'it\\'s \"q\"'\nb = '''two\n  lines \"\"\" '''"],
        "s = '''x\n  y\n'''\nif rank:\n    t = f'''{rank}\n {a}'''\nprint(repr([a, b, s, t]))",
        repr(['it\'s "q"', 'two\n  lines """ ', "x\n  y\n", '1\n it\'s "q"']),
    ),
    "an annotation that nothing defines": (
        ["from __future__ import annotations\ndef f(x: Missing) -> Other: return x"],
        "print(f(1))",
        "1",
    ),
    "future annotations of the cell": (
        [],
        "from __future__ import annotations\nx: Missing = 1\nx",
        "1",
    ),
    "a submodule": (
        ["import xml.etree.ElementTree\nimport os.path as osp"],
        "print(xml.etree.ElementTree.fromstring('<a/>').tag, osp.join('a', 'b'))",
        "a a/b",
    ),
    "a value whose own code reads others": (
        [
            "big = object()\nclass A:\n    def __setstate__(self, state): self.big = big, HALF()\n"
            "    def __getstate__(self): return 1\na = A()\nimport functools\n"
            "HALF = functools.partial(int, '5')",
        ],
        "print(a.big[0] is big, a.big[1], HALF())",
        "True 5 5",
    ),
    "a class that its base registers": (
        [
            "names = []\nclass Base:\n    def __init_subclass__(cls):\n"
            "        names.append(cls.__name__)\nclass X(Base): pass",
        ],
        "class Y(Base): pass\nprint(names, X.__name__)",
        "['X', 'Y'] X",
    ),
    "a decorator that counts in a global name": (
        [
            "count = 0\ndef noted(f):\n    global count\n    count += 1\n    return f\n"
            "@noted\ndef one(): 1"
        ],
        "one()\nprint(count)",
        "1",
    ),
    "what pickle alone cannot write": (
        [
            "import functools, weakref\nfrom os import environ\nfrom sys import stdout\n"
            "from typing import Generic, NamedTuple, TypeVar\nT = TypeVar('T')\nk = 2",
            "@functools.singledispatch\ndef kind(a): return 'any'\n"
            "@kind.register\ndef _(a: int): return 'int'\n"
            "@kind.register\ndef _(a: str): return 'str'",
            "class Box(Generic[T]):\n    def __init__(self, x: T): self.x = x\n"
            "    @functools.lru_cache\n    def get(self, times=k): return self.x * times\n"
            "    @property\n    def p(self): return self.x\n    @p.setter\n"
            "    def p(self, x): self.x = x\nclass Q(NamedTuple):\n    a: int = k\n"
            "box = Box[int](3)\nref = weakref.ref(box)\nk = 5",
        ],
        "box.p = 4\nprint(kind(1), kind('a'), kind([]), box.get(), Q(), ref() is box)\n"
        "print(environ['RANK'], Box[int](1).x, file=stdout)",
        "int str any 8 Q(a=2) True\n1 1",
    ),
    "members of a class that were changed": (
        [
            "def f(self): return 2\nclass A:\n    def f(self): return self._k\n    __p = 3\n"
            "    def p(self): return self.__p\nclass B:\n    def f(self, seen=[]):\n"
            "        seen.append(1)\n        return seen\nclass C(str):\n"
            "    def upper(self): return 1\nclass D: pass",
            "A._k = 5\nB().f()\nC.upper = str.lower\nD.__name__ = 'E'",
        ],
        "print(A().f(), A().p(), B().f(), C('X').upper(), D.__name__)",
        "5 3 [1, 1] x E",
    ),
    "classes of names that mean something else by now": (
        [
            "n, word, items = 3, 'a', [1]\nfrom enum import Enum\nimport functools\n"
            "class A:\n    if n > 2:\n        x = 1\n    else:\n        x = 2\n"
            "class B:\n    x, y = n, n + 1\nclass C:\n    p = q = n\n"
            "class D:\n    class Inner:\n        x = n\nclass E:\n    def f(self, k=n): return k\n"
            "class F(Enum):\n    ONE = n\nclass Base:\n"
            "    def __init_subclass__(cls, key=''): cls.key = key\nclass G(Base, key=word): pass\n"
            "class H:\n    items = items\nclass J:\n    items = [n]\n"
            "def times(n):\n    def wrap(f):\n        @functools.wraps(f)\n"
            "        def inner(*a): return f(*a) * n\n        return inner\n    return wrap\n"
            "@times(n)\ndef f(): return 1\nclass K:\n    @times(n)\n    def f(self): return 1",
            "n, word, items = 100, 'b', [1]",
        ],
        "items.append(2)\nprint(A.x, B.x, B.y, C.q, D.Inner.x, E().f(), F.ONE.value, G.key,"
        " H.items, J.items, f(), K().f())",
        "1 3 4 3 3 3 3 a [1] [3] 3 3",
    ),
    "objects that pickle alone could not make again": (
        [
            "from enum import Enum\nclass Part: x = 7\nclass A(Enum):\n    ONE = Part()\n"
            "one = {A.ONE: 1}\nclass E(Exception):\n    def __init__(self, a, b):\n"
            "        super().__init__('words')\n        self.a, self.b = a, b\ne = E(1, 2)\n"
            "class G:\n    def __init__(self, inner): self.inner = inner\n"
            "    def __getattr__(self, name): return getattr(self.inner, name)\ng = G([3])",
        ],
        "print(one[A.ONE], A.ONE.value.x, e.args, e.a, e.b, g.count(3))",
        "1 7 ('words',) 1 2 1",
    ),
    "decorators that keep state": (
        [
            "import functools\ndef counted(f):\n    @functools.wraps(f)\n    def inner(*a):\n"
            "        inner.calls += 1\n        return f(*a)\n    inner.calls = 0\n"
            "    return inner\ndef kept(f):\n    seen = []\n    @functools.wraps(f)\n"
            "    def inner(*a):\n        seen.append(a)\n        return len(seen)\n"
            "    return inner\ndef numbered(f):\n    n = 0\n    @functools.wraps(f)\n"
            "    def inner(*a):\n        nonlocal n\n        n += 1\n        return n\n"
            "    return inner\nclass Times:\n    n = 0\n    def __call__(self, f):\n"
            "        @functools.wraps(f)\n        def inner(*a):\n            self.n += 1\n"
            "            return self.n\n        return inner\n",
            "@counted\ndef a(): return a.calls\n@kept\ndef b(): pass\n@numbered\ndef c(): pass\n"
            "@Times()\ndef d(): pass\nclass E:\n    @kept\n    def f(self): pass\ne = E()",
            "for f in (a, b, c, d, e.f): f()",
        ],
        "print([f() for f in (a, b, c, d, e.f)])",
        "[2, 2, 2, 2, 2]",
    ),
    "members that have any attribute": (
        [
            "class Any:\n    def __getattr__(self, name): return Any()\n"
            "    def __call__(self, *_): return Any()\n    def __reduce__(self): return Any, ()\n"
            "class A:\n    any = Any()\n    @any\n    def f(self): pass\n"
            "    def g(self): return 2\n    g.__wrapped__ = g",
        ],
        "print(A().g(), type(A.f).__name__)",
        "2 Any",
    ),
    "names of the rank in strings": ([], "print(eval('rank + world_size'))", "3"),
    "a number that is equal, and not the same": (
        ["n = 1\ndef f(x=[n]): return x\nn = True"],
        "print(f(), n)",
        "[1] True",
    ),
    "a docstring above the imports": (
        [],
        "# A title.\n'Doc.'\nfrom __future__ import annotations\nimport math\nx: Missing = 1\n"
        "print(math.floor(1.5), __doc__)",
        "1 Doc.",
    ),
    "a subset of the names": (["W = 3\ndef f(x=W): return x"], "print(f())", "3"),
    "arguments": ([], "import argparse\nprint(argparse.__name__)", "argparse"),
    "display": ([], "def f(): display(rank)\nf()", "1"),
    "the value of the last expression": ([], "f'rank {rank}'", "'rank 1'"),
    "no value": ([], "[].append(1)", ""),
    "comments and blank lines": ([], "# one\n\n\nprint(1)  # two\n# three\n", "1"),
    "tabs": ([], "for i in range(2):\n\tif i:\n\t\tprint(i, '''a\n\tb''')", "1 a\n\tb"),
}
