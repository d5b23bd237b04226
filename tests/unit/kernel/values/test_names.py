"""Which names a cell needs."""

from __future__ import annotations

import ast
import sys

import pytest

from ddp_magic.kernel.values.names import names_of


@pytest.mark.parametrize(
    ("code", "wanted"),
    [
        ("x = y", "y"),
        ("x = 1; print(x)", "print"),
        ("best = min(best, 1)", "best min"),
        ("history += [1]", "history"),
        ("if a: b = 1\nb", "a b"),
        ("if a: b = 1\nelse: b = 2\nb", "a"),
        ("for i in xs: t = i\nt", "xs t"),
        ("while c: t = 1\nt", "c t"),
        ("with a as f: g = f\ng", "a"),
        ("try: v = f()\nexcept E as e: v = e\nv", "f E"),
        ("try: v = f()\nexcept E: pass\nv", "f E v"),
        ("import a.b as c, d.e\nc, d, a", "a"),
        ("from m import n\nn", ""),
        ("def f(x, y=z): return x + w\nf", "z w"),
        ("def f(): return later\nlater = 1", ""),
        ("def f():\n    global g\n    g = 1\n    return g", "g"),
        ("def f():\n    def inner(): return deep\n    return inner", "deep"),
        ("class A(Base):\n    x = size\n    def m(self): return other", "Base size other"),
        (
            "class A:\n    @property\n    def x(self): pass\n    @x.setter\n"
            "    def x(self, y=x, *a, z: x = 2, **k): return a, k, y, z, w",
            "property w",
        ),
        ("@decorate\ndef f(): pass", "decorate"),
        ("f = lambda x: x + y", "y"),
        ("[x for x in xs if x > lo]", "xs lo"),
        ("{k: v for k, v in items}", "items"),
        ("(n := 5); n", ""),
        ("[m := x for x in xs]; m", "xs"),
        ("del x\nx", "x"),
        ("a.b = c", "a c"),
        ("a[i] = c", "a i c"),
        ("a.b += c", "a c"),
        ("a, (b, *c) = d; a, b, c", "d"),
        ("match v:\n    case [a, *b]: a, b\n    case {'k': q, **r}: q, r", "v"),
        ("async def f(): await g()", "g"),
        ("f'{x:{w}}'", "x w"),
        ("print(DDP(model))", "print DDP model"),
        ("train = train(1)", "train"),
        ("def train(): pass\ntrain()", ""),
        ("device = torch.device('cpu')\nx.to(device)", "torch x"),
    ],
)
def test_names(code: str, wanted: str) -> None:
    """Read before it is certainly assigned: flow by flow, scope by scope."""
    assert names_of(ast.parse(code)).reads == set(wanted.split())


@pytest.mark.parametrize(
    ("code", "wanted"),
    [
        ("def f(): return x\nx = 1\nf()", ""),
        ("def f(): return x\nf()\nx = 1", "x"),
        ("def f(): return x\nif a: x = 1\nf()", "x"),
        ("def f(): return x\ndef g(): return f()\ng()\nx = 1", "x"),
        ("def f(): return x\ndef g(): return f()\nx = 1\ng()", ""),
        ("class A:\n    def m(self): return x\nA().m()\nx = 1", "x"),
        ("f = lambda: x\nx = 1", "x"),
        ("def f(): return x\nx = f", "x"),
        ("def f(): return x\nif a: x = 1", "x"),
    ],
)
def test_names_that_a_function_may_read_too_early(code: str, wanted: str) -> None:
    """A function may run where its name is read, and no sooner."""
    names = names_of(ast.parse(code))
    assert names.perhaps == set(wanted.split())
    assert not names.perhaps & names.reads


def test_what_a_class_binds_is_its_own() -> None:
    """`size` in a class's body says nothing of the module's `size`."""
    names = names_of(
        ast.parse("class A:\n    size = 1\n    def f(self): 1\ndef g(): return size, f")
    )
    assert names.reads == {"size", "f"}
    assert names.assigns == {"A", "g"}


@pytest.mark.skipif(sys.version_info < (3, 11), reason="except* is Python 3.11's")
def test_exception_groups() -> None:
    """except* is a try like another."""
    assert names_of(ast.parse("try: v = f()\nexcept* E: v = 1\nv")).reads == {"f", "E"}


def test_annotations() -> None:
    """What a function returns is read at once; what a string mentions may be looked up."""
    names = names_of(
        ast.parse(
            "def f(x: A, y: 'Optional[B]' = C) -> D: pass\n"
            "class K:\n    f: List['K2']\n    g: \"'Deep'\"\n    h: 'not valid('\n"
            "class Own: pass\nv: 'Own' = 1\n"
            "try: pass\nexcept E:\n    async def g(*a: 'Late', b='default') -> 'Back': pass\n"
        )
    )
    assert names.reads == {"A", "C", "D", "E", "List"}
    assert names.annotated == {"Optional", "B", "K2", "Deep", "Late", "Back"}
