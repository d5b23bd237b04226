"""From the text of a notebook cell to a Python file with the notebook's own line numbers. Pure.

The file is the cell after IPython's own transformation (`!ls` becomes a call), line for line: line
3 of the file is line 3 of the notebook cell. Whatever stands above the cell's body there (the
`%%ddp` line, blank lines, other cell magics) becomes comments.
"""

from __future__ import annotations

import ast
from collections.abc import Collection
from dataclasses import dataclass

from IPython.core.inputtransformer2 import TransformerManager


@dataclass(frozen=True)
class Cell:
    """A cell, ready to be written to its file.

    Attributes:
        source: Python with the notebook's line numbers.
        reads: Names that the cell may read before it is certain to have assigned them.
    """

    source: str
    reads: frozenset[str]


class LineKeepingTransformer(TransformerManager):
    r"""IPython's transformation, except that every line keeps its number.

    IPython joins a `!command` that goes on after a backslash into one line, which moves all lines
    below it up; here blank lines take the place of those that went.
    """

    def do_one_token_transform(self, lines: list[str]) -> tuple[bool, list[str]]:
        """Apply one transformation, and fill up what it shortened."""
        changed, new = super().do_one_token_transform(lines)
        missing = len(lines) - len(new)
        if changed and missing > 0:
            first = next((i for i, (a, b) in enumerate(zip(lines, new)) if a != b), len(new) - 1)
            new = [*new[: first + 1], *["\n"] * missing, *new[first + 1 :]]
        return changed, new


def transformer_like(notebook: TransformerManager) -> LineKeepingTransformer:
    """Return a transformer with the notebook's own rules, those a user has added included."""
    ours = LineKeepingTransformer()
    ours.cleanup_transforms = list(notebook.cleanup_transforms)
    ours.line_transforms = list(notebook.line_transforms)
    ours.token_transformers = list(notebook.token_transformers)
    return ours


def lines_above(raw_cell: str, body: str) -> int:
    """Return how many lines of the notebook's cell stand above its body.

    Args:
        raw_cell: The whole cell as typed.
        body: What IPython gave the magic as the cell's body.
    """
    raw, own = raw_cell.rstrip().splitlines(), body.rstrip().splitlines()
    if own and raw[-len(own) :] == own:
        return len(raw) - len(own)
    return 1


def prepare(
    body: str, *, above: int = 1, filename: str, transformer: TransformerManager
) -> Cell:
    """Turn a cell's body into Python that can be written to a file.

    Args:
        body: The text below the `%%ddp` line.
        above: Lines of the notebook's cell above the body.
        filename: The name that a SyntaxError is to show.
        transformer: What turns IPython's syntax into Python.

    Raises:
        SyntaxError: With the notebook's line number.
    """
    indent = _indentation(body)
    # IPython strips blank lines at the top and unindents by the first line: comments, as far in
    # as the body, keep every line in its place.
    if body.lstrip().startswith("%%"):  # a cell magic in the cell, which must stand on top
        blank = len(body) - len(body.lstrip("\n"))
        source = "#\n" * (above + blank) + transformer.transform_cell(body)
    else:
        source = transformer.transform_cell(f"{indent}#\n" * above + body)
    flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    # Compiling also finds what parsing alone does not ('return' outside function).
    compile(source, filename, "exec", flags=flags, dont_inherit=True)
    tree = compile(source, filename, "exec", flags=flags | ast.PyCF_ONLY_AST, dont_inherit=True)
    return Cell(source, frozenset(names_read(tree)))


def _indentation(body: str) -> str:
    for line in body.splitlines():
        if stripped := line.lstrip():
            return line[: len(line) - len(stripped)]
    return ""


def names_read(tree: ast.Module) -> set[str]:
    """Return the names that a module may read before it has certainly assigned them.

    Statements are followed in their order; what is assigned only under a condition or in a loop is
    not certain. What a function's or class's body reads counts where nothing in the module
    assigns that name at its top level, since the body runs later.
    """
    reader = _Reader()
    reader.block(tree.body, set())
    return reader.reads | (reader.reads_later - reader.assigned_somewhere)


class _Reader(ast.NodeVisitor):
    """Walks a module; `certain` holds what is assigned on every way to the current statement."""

    def __init__(self) -> None:
        self.reads: set[str] = set()
        self.reads_later: set[str] = set()
        self.assigned_somewhere: set[str] = set()

    def block(self, statements: Collection[ast.stmt], certain: set[str]) -> set[str]:
        """Follow statements; return what is certain after them."""
        for statement in statements:
            self._statement(statement, certain)
        return certain

    def _statement(self, node: ast.stmt, certain: set[str]) -> None:
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                self._definition(node, certain)
            case ast.If(test=test, body=body, orelse=orelse):
                self._expressions([test], certain)
                certain |= self.block(body, set(certain)) & self.block(orelse, set(certain))
            case ast.For() | ast.AsyncFor():
                self._expressions([node.iter], certain)
                inside = set(certain)
                self._bind(_targets(node.target), inside)
                self.block(node.body, inside)
                self.block(node.orelse, set(certain))
            case ast.While(test=test, body=body, orelse=orelse):
                self._expressions([test], certain)
                self.block(body, set(certain))
                self.block(orelse, set(certain))
            case ast.With() | ast.AsyncWith():
                for item in node.items:
                    self._expressions([item.context_expr], certain)
                    if item.optional_vars is not None:
                        self._bind(_targets(item.optional_vars), certain)
                self.block(node.body, certain)
            case ast.Try() | ast.TryStar():
                self._try(node, certain)
            case ast.Match(subject=subject, cases=cases):
                self._expressions([subject], certain)
                for case in cases:
                    inside = set(certain)
                    self._bind(_targets(case.pattern), inside)
                    self._expressions([case.guard] if case.guard else [], inside)
                    self.block(case.body, inside)
            case ast.AugAssign(target=target, value=value):
                # `history += [x]` reads history first
                self._expressions([value, _as_loads(target)], certain)
                self._bind(_targets(target), certain)
            case ast.Import(names=names) | ast.ImportFrom(names=names):
                self._bind({(a.asname or a.name).partition(".")[0] for a in names}, certain)
            case ast.Delete(targets=targets):
                certain -= set().union(*map(_targets, targets))
            case _:
                self._expressions([node], certain)
                self._bind(_targets(node), certain)

    def _try(self, node: ast.Try | ast.TryStar, certain: set[str]) -> None:
        after = self.block(node.body, set(certain))
        after = self.block(node.orelse, after)
        for handler in node.handlers:
            if handler.type is not None:
                self._expressions([handler.type], certain)
            inside = certain | ({handler.name} if handler.name else set())
            after &= self.block(handler.body, inside)
        certain |= after
        self.block(node.finalbody, certain)

    def _definition(
        self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef, certain: set[str]
    ) -> None:
        now: list[ast.AST] = list(node.decorator_list)
        if isinstance(node, ast.ClassDef):
            now += [*node.bases, *(k.value for k in node.keywords)]
            self._expressions(now, certain)
            self.block(node.body, set(certain))  # a class body runs at once
        else:
            now += [node.args]  # defaults and annotations
            self._expressions(now, certain)
            self.reads_later |= _free_names(node)
        self._bind({node.name}, certain)

    def _expressions(self, nodes: Collection[ast.AST], certain: set[str]) -> None:
        for node in nodes:
            for name, later in _loads(node):
                if later:
                    self.reads_later.add(name)
                elif name not in certain:
                    self.reads.add(name)

    def _bind(self, names: set[str], certain: set[str]) -> None:
        certain |= names
        self.assigned_somewhere |= names


def _targets(node: ast.AST) -> set[str]:
    """Return the names that a statement, target or pattern binds, nested scopes aside."""
    names: set[str] = set()
    todo = [node]
    while todo:
        match current := todo.pop():
            case ast.Lambda() | ast.ListComp() | ast.SetComp() | ast.DictComp():
                # Their own variables stay inside; a walrus in them binds outside.
                names |= {n.target.id for n in ast.walk(current) if isinstance(n, ast.NamedExpr)}
                continue
            case ast.Name(id=name, ctx=ast.Store()):
                names.add(name)
            case ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
                names.add(name)
            case ast.MatchMapping(rest=str(name)):
                names.add(name)
        todo.extend(ast.iter_child_nodes(current))
    return names


def _as_loads(target: ast.expr) -> ast.AST:
    return ast.Name(target.id, ast.Load()) if isinstance(target, ast.Name) else target


def _loads(node: ast.AST) -> list[tuple[str, bool]]:
    """Return the names that an expression reads, and whether only later (a lambda's body)."""
    found: list[tuple[str, bool]] = []
    match node:
        case ast.Name(id=name, ctx=ast.Load()):
            found.append((name, False))
        case ast.Lambda(args=args):
            found += _loads(args)
            found += [(name, True) for name in _free_names(node)]
        case ast.ListComp() | ast.SetComp() | ast.DictComp() | ast.GeneratorExp():
            own: set[str] = set()
            for generator in node.generators:
                own |= {n.id for n in ast.walk(generator.target) if isinstance(n, ast.Name)}
            inner = [load for child in ast.iter_child_nodes(node) for load in _loads(child)]
            found += [(name, later) for name, later in inner if name not in own]
        case _:
            for child in ast.iter_child_nodes(node):
                found += _loads(child)
    return found


def _free_names(function: ast.AST) -> set[str]:
    """Return the global names that a function's body reads."""
    own: set[str] = set()
    declared: set[str] = set()
    reads: set[str] = set()
    todo = list(ast.iter_child_nodes(function))
    while todo:
        node = todo.pop()
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                own.add(node.name)
                reads |= _free_names(node)
                continue
            case ast.Lambda():
                reads |= _free_names(node)
                continue
            case ast.Global(names=names):
                declared |= set(names)
            case ast.Import(names=names) | ast.ImportFrom(names=names):
                own |= {(a.asname or a.name).partition(".")[0] for a in names}
            case ast.arg(arg=name) | ast.Name(id=name, ctx=ast.Store()):
                own.add(name)
            case ast.ExceptHandler(name=str(name)):
                own.add(name)
            case ast.Name(id=name, ctx=ast.Load()):
                reads.add(name)
        todo.extend(ast.iter_child_nodes(node))
    return reads - (own - declared)
