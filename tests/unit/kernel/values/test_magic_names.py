"""Which names the magics and shell commands of a cell need."""

from __future__ import annotations

import ast

import pytest
from IPython.core.inputtransformer2 import TransformerManager

from ddp_magic.kernel.values.magic_names import with_magics
from ddp_magic.kernel.values.names import Names, names_of


def names(cell: str) -> Names:
    """Analyze a cell as typed."""
    transform = TransformerManager().transform_cell
    return names_of(with_magics(ast.parse(transform(cell)), transform))


@pytest.mark.parametrize(
    ("cell", "wanted"),
    [
        ("!ls {path}", "path"),
        ("!ls ${path} $other", "path other"),
        ("files = !ls {root / 'a'}", "root"),
        ("!echo {xs[1:2]}", "xs"),
        ("!echo {x} {y:.2f}", ""),  # IPython takes no formats, and leaves the text as it is
        ("!awk '{print $1}' log", ""),
        ("!echo {{x}} $$y {", ""),
        ("%cd {path}", "path"),
        ("%env A={path}", "path"),
        ("%time f(x)", "f x"),
        ("y = %time f(x)", "f x"),
        ("%timeit -n 1 -r 1 f(x)", "f x"),
        ("%timeit -n1 -r1 f(x)", "f x"),
        ("%prun -s cumulative f(x)", "f x"),
        ("%time !ls {path}", "path"),
        ("%time )(", ""),
        ("x?", "x"),
        ("a.b??", "a"),
        ("%%time\ny = f(x)\n!ls {path}", "f x path"),
        ("%%timeit y = g(1)\nf(y)", "g f"),
        ("%%capture out\n%time f(x)", "f x"),
        ("%%capture\n%%time\nf(x)", "f x"),
        ("%%time\nawait f(x)", "f x"),
        ("%%bash\necho $HOME {x}", ""),
        ("%%writefile {path}\nf(x)", "path"),
        ("for i in range(3):\n    !echo {i} {x}", "range x"),
        ("def f():\n    !echo {x}\nf()", "x"),
        ("%time x = 1\nx", ""),
        ("%%time\nx = 1\nx", ""),
        ("path = 'a'\n!ls {path}", ""),
    ],
)
def test_reads(cell: str, wanted: str) -> None:
    """Read in a text that IPython runs or expands."""
    assert names(cell).reads - {"get_ipython"} == set(wanted.split())


def test_binds() -> None:
    """What a timed statement assigns is the cell's, as without the magic."""
    assert names("%time model = f(1)").assigns == {"model"}
    assert names("%%time\nmodel = f(1)").assigns == {"model"}
