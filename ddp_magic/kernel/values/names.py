"""Static analysis of a cell: which global names it reads before it assigns them. Pure."""

from __future__ import annotations

import ast
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Names:
    """The global names of a piece of code.

    Attributes:
        reads: Names that it may read before it has certainly assigned them.
        assigns: Names that its top level binds, possibly under a condition.
        perhaps: Names that it assigns, but that a function may read earlier.
        before: For each name, the names that are certainly assigned wherever it is read.
        annotated: Names that annotations mention in a string: they may be looked up.
        words: Global names and attributes that its code uses; empty if they are not known.
    """

    reads: frozenset[str]
    assigns: frozenset[str]
    perhaps: frozenset[str] = frozenset()
    before: Mapping[str, frozenset[str]] = field(default_factory=dict)
    annotated: frozenset[str] = frozenset()
    words: frozenset[str] = frozenset()


def names_of(tree: ast.Module) -> Names:
    """Return the names that a module reads from outside, and those that it binds.

    Statements are followed in order; an assignment under a condition or in a loop is not certain. A
    function's body runs later, at the earliest where its name is read: a name that it reads is in
    `reads` if the module never assigns it, and in `perhaps` if the module may assign it only later.
    """
    reader = _Reader()
    at_the_end = frozenset(reader.block(tree.body, set()))
    assigned = reader.assigned_somewhere
    before = _before(reader, at_the_end)
    later = {name for names in reader.reads_of.values() for name in names}
    late = {n for f, names in reader.reads_of.items() for n in names - before[f]}
    reads = reader.reads | (later - assigned)
    annotated = frozenset(_annotated(tree) - reads - assigned)
    return Names(frozenset(reads), frozenset(assigned), frozenset(late - reads), before, annotated)


def names_in_text(annotation: str) -> set[str]:
    """Return the names that an annotation in a string reads."""
    try:
        tree = ast.parse(annotation.strip(), mode="eval")
    except (SyntaxError, ValueError):
        return set()
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    return names | _names_in_strings(tree)


def _names_in_strings(tree: ast.AST) -> set[str]:
    texts = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    return set().union(*(names_in_text(text) for text in texts if isinstance(text, str)))


def _annotated(tree: ast.Module) -> set[str]:
    """Return the names in strings of annotations, which are in statements only."""
    found: set[str] = set()
    todo: list[ast.AST] = [*tree.body]
    while todo:
        node = todo.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            arguments = [a.annotation for a in ast.walk(node.args) if isinstance(a, ast.arg)]
            for annotation in filter(None, [*arguments, node.returns]):
                found |= _names_in_strings(annotation)
        elif isinstance(node, ast.AnnAssign):
            found |= _names_in_strings(node.annotation)
        for block in ("body", "orelse", "finalbody", "handlers", "cases"):
            todo += getattr(node, block, ())
    return found


def _before(reader: _Reader, at_the_end: frozenset[str]) -> dict[str, frozenset[str]]:
    """Return what is certain wherever a name is read, directly or by a function that is read there.

    A function that the module does not read may be read by a later cell.
    """
    before = dict.fromkeys(reader.reads_of, at_the_end) | reader.before
    todo = [name for name in before if name in reader.reads_of]
    while todo:
        function = todo.pop()
        for name in reader.reads_of[function]:
            certain = before.get(name, before[function]) & before[function]
            if before.get(name) != certain:
                before[name] = certain
                if name in reader.reads_of:
                    todo.append(name)
    return before


class _Reader:
    """Walks a module; `certain` holds the names assigned on every path to the current statement.

    Attributes:
        reads: Names that may be read before they are certain.
        reads_of: What the bodies of functions and classes read, by their names; lambdas are under
            the empty name.
        before: What is certain wherever a name is read at the top level.
        assigned_somewhere: Names that are bound on any path.
    """

    def __init__(self) -> None:
        self.reads: set[str] = set()
        self.reads_of: dict[str, set[str]] = {}
        self.before: dict[str, frozenset[str]] = {}
        self.assigned_somewhere: set[str] = set()

    def block(self, statements: Collection[ast.stmt], certain: set[str]) -> set[str]:
        """Follow statements; return what is certain after them."""
        for statement in statements:
            self._statement(statement, certain)
        return certain

    def _statement(self, node: ast.stmt, certain: set[str]) -> None:
        kind = type(node).__name__.lower()
        getattr(self, f"_{kind}", self._simple)(node, certain)

    def _simple(self, node: ast.stmt, certain: set[str]) -> None:
        """Follow a statement that reads first and binds then."""
        self._expressions([node], certain)
        self._bind(_targets(node), certain)

    def _if(self, node: ast.If, certain: set[str]) -> None:
        self._expressions([node.test], certain)
        certain |= self.block(node.body, set(certain)) & self.block(node.orelse, set(certain))

    def _while(self, node: ast.While, certain: set[str]) -> None:
        self._expressions([node.test], certain)
        self.block(node.body, set(certain))
        self.block(node.orelse, set(certain))

    def _for(self, node: ast.For | ast.AsyncFor, certain: set[str]) -> None:
        self._expressions([node.iter], certain)
        inside = set(certain)
        self._bind(_targets(node.target), inside)
        self.block(node.body, inside)
        self.block(node.orelse, set(certain))

    _asyncfor = _for

    def _with(self, node: ast.With | ast.AsyncWith, certain: set[str]) -> None:
        for item in node.items:
            self._expressions([item.context_expr], certain)
            if item.optional_vars is not None:
                self._bind(_targets(item.optional_vars), certain)
        self.block(node.body, certain)

    _asyncwith = _with

    def _match(self, node: ast.Match, certain: set[str]) -> None:
        self._expressions([node.subject], certain)
        for case in node.cases:
            inside = set(certain)
            self._bind(_targets(case.pattern), inside)
            self._expressions([case.guard] if case.guard else [], inside)
            self.block(case.body, inside)

    def _augassign(self, node: ast.AugAssign, certain: set[str]) -> None:
        """Follow `history += [x]`, which reads `history` first."""
        target = node.target
        read = ast.Name(target.id, ast.Load()) if isinstance(target, ast.Name) else target
        self._expressions([node.value, read], certain)
        self._bind(_targets(target), certain)

    def _import(self, node: ast.Import | ast.ImportFrom, certain: set[str]) -> None:
        self._bind({(a.asname or a.name).partition(".")[0] for a in node.names}, certain)

    _importfrom = _import

    def _delete(self, node: ast.Delete, certain: set[str]) -> None:
        certain -= set().union(*map(_targets, node.targets))

    def _try(self, node: ast.Try, certain: set[str]) -> None:
        after = self.block(node.body, set(certain))
        after = self.block(node.orelse, after)
        for handler in node.handlers:
            if handler.type is not None:
                self._expressions([handler.type], certain)
            inside = certain | ({handler.name} if handler.name else set())
            after &= self.block(handler.body, inside)
        certain |= after
        self.block(node.finalbody, certain)

    _trystar = _try  # except*, since Python 3.11: the same fields

    def _classdef(self, node: ast.ClassDef, certain: set[str]) -> None:
        now = [*node.decorator_list, *node.bases, *(k.value for k in node.keywords)]
        self._expressions(now, certain)
        outside = self.assigned_somewhere, self.reads_of
        self.assigned_somewhere, self.reads_of = set(), {}  # what a class binds is its own
        self.block(node.body, set(certain))  # a class body runs at once
        inside, (self.assigned_somewhere, self.reads_of) = self.reads_of, outside
        self._later(node.name, set().union(*inside.values()))
        self._bind({node.name}, certain)

    def _functiondef(self, node: ast.FunctionDef | ast.AsyncFunctionDef, certain: set[str]) -> None:
        now = [*node.decorator_list, node.args, *([node.returns] if node.returns else [])]
        self._expressions(now, certain)  # defaults, annotations
        a = node.args
        own = (*a.posonlyargs, *a.args, *a.kwonlyargs, *filter(None, (a.vararg, a.kwarg)))
        body = _free_names(ast.Module(node.body, []))  # without what is read now: `@x.setter`
        self._later(node.name, body - {argument.arg for argument in own})
        self._bind({node.name}, certain)

    _asyncfunctiondef = _functiondef

    def _expressions(self, nodes: Collection[ast.AST], certain: set[str]) -> None:
        for node in nodes:
            for name, later in _loads(node):
                self._seen("" if later else name, certain)
                if later:
                    self._later("", {name})
                elif name not in certain:
                    self.reads.add(name)

    def _later(self, function: str, names: Collection[str]) -> None:
        self.reads_of.setdefault(function, set()).update(names)

    def _seen(self, name: str, certain: set[str]) -> None:
        self.before[name] = self.before.get(name, frozenset(certain)) & certain

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
