"""The cell's own text."""

from __future__ import annotations

import ast
import builtins
import textwrap

import pytest
from IPython.core.inputtransformer2 import TransformerManager

from ddp_magic.kernel.script import body

KNOWN = {*dir(builtins), "__name__", "Dataset", "rank"}


def _guarded(text: str, before: str = "", after: str = "") -> str:
    return body.guarded(textwrap.dedent(text).strip("\n"), KNOWN, before, after)


STRINGS = [
    "x = '''a\n  b\n'''",
    "x = f'''{1\n}\n  {2:>\n}'''" if hasattr(ast, "TypeAlias") else "x = f'''{1}\n  {2}'''",
    "x = 'a\\\nb'",
    "x = ('a'\n'b')",
    "x = 1 + \\\n  2",
    "if 1:\n\tx = '''\n\ta'''\n\tif x:\n\t\ty = 2",
    "def f():\n    '''Doc.\n\n    more\n'''\n    return rf'''\\{f}\n'''",
    "x = [\n# a comment\n1,\n\n2]\n# the end",
    "x = b'''\n'''; y = '''\n'''\nz = '''\n\n'''",
]


@pytest.mark.parametrize("text", STRINGS)
def test_indentation_changes_no_string(text: str) -> None:
    inner = ast.parse(f"if 1:\n{body.indented(text)}").body[0]
    assert isinstance(inner, ast.If)
    assert [ast.dump(node) for node in inner.body] == [ast.dump(n) for n in ast.parse(text).body]


def test_what_only_defines_is_not_below_the_guard() -> None:
    """A spawned worker of a DataLoader finds the class, and does not train."""
    text = _guarded(
        """
        SIZE = 4  # of a batch
        # The data.
        class Numbers(Dataset):
            '''Of
            two lines.'''
            def __len__(self): return SIZE
        data = Numbers()

        # What comes below may need what runs here.
        def later(x=data): return x
        print(later())
        """,
        before="setup()",
        after="end()",
    )
    assert text == textwrap.dedent(
        """\
        SIZE = 4  # of a batch
        # The data.
        class Numbers(Dataset):
            '''Of
            two lines.'''
            def __len__(self): return SIZE

        if __name__ == "__main__":
            setup()

            data = Numbers()

            # What comes below may need what runs here.
            def later(x=data): return x
            print(later())
            end()"""
    )


def test_definitions_that_run_code_come_after_the_setup() -> None:
    """A class may draw random numbers, which `--seed` is for."""
    text = _guarded("class A:\n    w = rank.draw()\n\nprint(A)", before="seed()")
    assert text.index("seed()") < text.index("class A") < text.index("print(A)")


def test_decorators_do_not_count_as_code() -> None:
    text = _guarded("@property\ndef f(x): return g(x)\nprint(f)", before="setup()")
    assert text.index("def f") < text.index("setup()")


def test_statements_of_one_line_stay_together() -> None:
    assert _guarded("a = 1; print(a)\nb = 2; c = 3") == (
        'if __name__ == "__main__":\n    a = 1; print(a)\n\nb = 2; c = 3'
    )


def test_a_name_that_only_the_cell_sets_needs_the_guard() -> None:
    text = _guarded("n = input()\ndef f(x=n): return x\ndef g(): return n")
    assert text.endswith("\n\ndef g(): return n")
    assert "    def f(x=n)" in text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("x = 1\nx + 1", "x = 1\nshow(x + 1)"),
        ("(1 +\n 2)  # three", "show((1 +\n 2))  # three"),
        ("'ü'; 'é'.upper()", "'ü'; show('é'.upper())"),
        ("x", "show(x)"),
    ],
)
def test_the_last_expression_is_shown(text: str, shown: str) -> None:
    assert body.shows_value(ast.parse(text), text)
    assert body.edited(text, "show") == shown


@pytest.mark.parametrize(
    "text",
    [
        "x = 1",
        "1;",
        "1 ;  # quiet",
        "print(1)",
        "display(1)",
        "import os",
        "if 1:\n    2",
        "def main():\n    print(1)\nmain()",
        "dist.destroy_process_group()",
        "sys.exit(0)",
    ],
)
def test_what_shows_nothing(text: str) -> None:
    assert not body.shows_value(ast.parse(text), text)


def test_the_imports_with_which_it_begins_go_to_the_top() -> None:
    text = "from __future__ import annotations\nimport os; x = 1\n# a comment\nimport sys\n"
    assert body.edited(text, "") == "x = 1\n# a comment\nimport sys"
    assert body.futures(ast.parse(text)) == {"annotations"}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "x = 1\n!ls -l\n",
            "line 2 is a shell command (!ls -l): use subprocess.run('ls -l',",
        ),
        ("files = !ls", "line 1 is a shell command (!ls): use subprocess.check_output('ls',"),
        ("%time f()", "line 1 is the magic %time, which only IPython has: use time.perf_counter()"),
        ("%cd data", "line 1 is the magic %cd, which only IPython has: use os.chdir('data')"),
        ("%env A=1", "line 1 is the magic %env, which only IPython has: use os.environ"),
        (
            "%matplotlib inline",
            "line 1 is the magic %matplotlib, which only IPython has: remove it",
        ),
        ("for i in x:\n    %who\n", "line 2 is the magic %who"),
        ("x?", "line 1 asks for help (x?), which only IPython shows: remove it"),
        ("%%time\nf()", "line 1 is the magic %%time"),
        ("\nget_ipython()", "line 2 calls get_ipython()"),
        ("x = 1\nawait f()", "line 2 awaits outside a function"),
        ("async with a: pass", "line 1 awaits outside a function"),
        ("async def f():\n    await g()\nprint('!ls')", ""),
    ],
)
def test_what_only_ipython_can_is_named(text: str, problem: str) -> None:
    blank = text[: len(text) - len(text.lstrip("\n"))]  # IPython removes them
    source = blank + TransformerManager().transform_cell(text)
    found = body.problem_of(ast.parse(source), source)
    assert found.startswith(problem) if problem else not found


def test_comments_above_the_magic_stay() -> None:
    assert (
        body.without_head("# mine\n# %%ddp -n 2\n\n# first\nx = 1\n") == "# mine\n\n# first\nx = 1"
    )
    assert body.without_head("x = '''\n# %%ddp\n'''\n") == "x = '''\n# %%ddp\n'''"
