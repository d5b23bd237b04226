"""From the text of a notebook cell to a Python file with the notebook's own line numbers. Pure.

The file is the cell after IPython's own transformation (`!ls` becomes a call), line for line: line
3 of the file is line 3 of the notebook cell. The lines above the cell's body (the `%%ddp` line,
blank lines, other cell magics) become comments.

Undocumented names of IPython, known to hold for IPython 8.18 to 9.18: `do_one_token_transform` and
the lists of transforms of `TransformerManager`. tests/unit/kernel/test_cell.py fails where they
change.
"""

from __future__ import annotations

import ast
import threading
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from IPython.core.inputtransformer2 import TransformerManager

from ddp_magic.kernel.values.magic_names import with_magics
from ddp_magic.kernel.values.names import Names, names_of
from ddp_magic.wire.submodules import words_of

_WARNINGS = threading.Lock()  # several threads may prepare a cell; the filters are the process's


@dataclass(frozen=True)
class Cell:
    """A cell, ready to be written to its file.

    Attributes:
        source: Python with the notebook's line numbers.
        names: The names that it reads from outside, and those that it binds.
        environment: Environment variables that its top level sets to literal strings.
        number: In the notebook's `In[n]`; None if it has none.
        settings: What the notebook's shell is set to; see `commands.RunCell`.
    """

    source: str
    names: Names
    environment: dict[str, str] = field(default_factory=dict)
    number: int | None = None
    settings: dict[str, str] = field(default_factory=dict)


class LineKeepingTransformer(TransformerManager):
    r"""IPython's transformation, except that every line keeps its number.

    IPython joins a `!command` that continues after a backslash into one line, which moves the lines
    below it up; blank lines replace the lines that are gone.
    """

    def do_one_token_transform(self, lines: list[str]) -> tuple[bool, list[str]]:
        """Apply one transformation, and replace the lines that it removed."""
        changed, new = super().do_one_token_transform(lines)
        missing = len(lines) - len(new)
        if changed and missing > 0:
            pairs = enumerate(zip(lines, new, strict=False))
            first = next((i for i, (a, b) in pairs if a != b), len(new) - 1)
            new = [*new[: first + 1], *["\n"] * missing, *new[first + 1 :]]
        return changed, new


def transformer_like(notebook: TransformerManager) -> LineKeepingTransformer:
    """Return a transformer with the rules of the notebook's, including those a user has added."""
    ours = LineKeepingTransformer()
    ours.cleanup_transforms = list(notebook.cleanup_transforms)
    ours.line_transforms = list(notebook.line_transforms)
    ours.token_transformers = list(notebook.token_transformers)
    return ours


def lines_above(raw_cell: str, body: str) -> list[str]:
    """Return the lines of the notebook's cell above its body.

    Args:
        raw_cell: The whole cell, as typed.
        body: The cell's body, as IPython passed it to the magic.
    """
    raw, own = raw_cell.rstrip().splitlines(), body.rstrip().splitlines()
    if own and raw[-len(own) :] == own:
        return raw[: -len(own)]
    return ["%%ddp"]


def prepare(
    body: str,
    *,
    above: Sequence[str] = ("%%ddp",),
    filename: Callable[[], str],
    transformer: TransformerManager,
) -> Cell:
    """Turn a cell's body into Python that can be written to a file.

    Args:
        body: The text below the `%%ddp` line.
        above: Lines of the notebook's cell above the body; they become comments.
        filename: Returns the file name to show in a SyntaxError: IPython takes a hash of the text.
        transformer: Turns IPython's syntax into Python.

    Raises:
        SyntaxError: With the notebook's line number.
    """
    head = "".join(f"{_indentation(body)}{_comment(line)}\n" for line in above)
    # IPython strips blank lines at the top and unindents by the first line: comments with the
    # indentation of the body keep every line in its place.
    magic = body.lstrip().startswith("%%")  # a cell magic in the cell, which must come first
    whole = head + "\n" * (len(body) - len(body.lstrip("\n"))) if magic else ""
    text = body if magic else head + body
    flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    try:
        source = text = whole + transformer.transform_cell(text)
        with _WARNINGS, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the ranks compile it too, and show them
            # Compiling also finds what parsing alone does not ('return' outside function).
            code = compile(source, "<cell>", "exec", flags=flags, dont_inherit=True)
            flags |= ast.PyCF_ONLY_AST
            tree = compile(source, "<cell>", "exec", flags=flags, dont_inherit=True)
            environment, words = environment_set(tree), words_of(code)
            if "get_ipython()" in source:  # to look at each node takes longer than all else
                tree = with_magics(tree, transformer.transform_cell)
                words |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    except SyntaxError as error:
        # The compiler leaves out the line if it has only text, and IPython the file name.
        error.filename = filename()
        lines = text.split("\n")
        if error.text is None and error.lineno and error.lineno <= len(lines):
            error.text = lines[error.lineno - 1]
        raise
    names = replace(names_of(tree), words=frozenset(words))
    return Cell(source, names, environment)


def environment_set(tree: ast.Module) -> dict[str, str]:
    """Return the environment variables that a cell's top level sets to literal strings.

    A script sets `os.environ["HF_HOME"] = "/data"` above its imports for libraries that read it
    when they are imported. `%env HF_HOME=/data` does the same.
    """
    found = {}
    for statement in tree.body:
        match statement:
            case ast.Assign(
                targets=[
                    ast.Subscript(
                        value=ast.Attribute(attr="environ"), slice=ast.Constant(value=str(name))
                    )
                ],
                value=ast.Constant(value=str(value)),
            ):
                found[name] = value
            case ast.Expr(
                value=ast.Call(
                    func=ast.Attribute(attr="run_line_magic"),
                    args=[ast.Constant(value="env"), ast.Constant(value=str(text))],
                )
            ) if "=" in text and not set("{$") & set(text):
                name, _, value = text.partition("=")
                found[name.strip()] = value.strip()
    return found


def _comment(line: str) -> str:
    stripped = line.lstrip()
    return stripped if stripped.startswith("#") else f"# {line}".rstrip()


def _indentation(body: str) -> str:
    for line in body.splitlines():
        if stripped := line.lstrip():
            return line[: len(line) - len(stripped)]
    return ""
