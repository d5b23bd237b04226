"""The text of a script: what stands above the cell, and the cell."""

from __future__ import annotations

import ast
import builtins
import sys
from collections.abc import Iterator, Sequence
from types import SimpleNamespace

from ddp_magic.kernel.cell import Cell
from ddp_magic.kernel.script import body
from ddp_magic.kernel.script.imports import Home, Imports
from ddp_magic.kernel.script.literals import literal
from ddp_magic.kernel.script.provided import Provided
from ddp_magic.kernel.script.travel import Travel
from ddp_magic.kernel.script.values_file import UNPICKLER
from ddp_magic.kernel.values.names import names_of
from ddp_magic.kernel.values.needed_values import NeededValues
from ddp_magic.prelude import HOMES, OWN_NAMES, RANK_NAMES


class Script:
    """The text of a script.

    Args:
        cell: The cell.
        asked: The options' values.
        needed: The names that it reads.
        way: How those of the notebook get into the script.
        plain_imports: Those of the notebook's other cells, without a name of their own.
    """

    def __init__(
        self,
        cell: Cell,
        asked: SimpleNamespace,
        needed: NeededValues,
        way: Travel,
        plain_imports: Sequence[ast.alias],
    ) -> None:
        self.travel = way
        self._plain_imports = plain_imports
        self._cell = cell
        self._asked = asked
        self._prelude = {name: _home(name) for name in sorted(needed.prelude)}
        self._tree = ast.parse(cell.source)
        self._rank_names = frozenset(needed.rank_names)
        if {"eval", "exec", "globals"} & {*cell.names.reads, *needed.stream.pickler.needs}:
            self._rank_names = RANK_NAMES  # which of them, is in a string
        self._reads = {*cell.names.reads, *needed.stream.pickler.needs}
        self._reads |= {name for source in way.sources.values() for name in source.now}
        self.imports = Imports(self._meanings())

    def _meanings(self) -> dict[str, Home | None]:
        """Return where each name is imported from, None for what is something else."""
        found: dict[str, Home | None] = dict.fromkeys([*self._rank_names, *self.travel.names])
        found |= self.travel.imports | self._prelude
        for name, home in imported(self._tree):
            found[name] = home if found.get(name, home) == home else None
        imports = (ast.Import, ast.ImportFrom)
        others = [node for node in self._tree.body if not isinstance(node, imports)]
        return found | dict.fromkeys(names_of(ast.Module(others, [])).assigns)

    def text(self, line: str) -> str:
        """Return it; `line` is the command that runs it."""
        imports, way = self.imports, self.travel
        self._add_imports()
        if "display" in self._reads - self._cell.names.assigns - way.names:
            imports.add(("IPython.display", "display"), "display")
        provided = Provided(self._asked, self._rank_names, imports)
        ranks = provided.ranks()
        plain = "\n".join(f"{n} = {literal(value, imports)}" for n, value in way.literals.items())
        sources = "\n\n\n".join(source.text for source in way.sources.values())
        loads = self._loads() if way.pickled else ""
        cell = self._cell_text(provided)
        if sources:  # two blank lines around functions and classes
            sources = f"\n{sources}\n"
        elif way.refers:
            loads = f"\n{loads}"
        head = [self._docstring(line), self._futures(), imports.text(self._environment())]
        return "\n\n".join(filter(None, [*head, ranks, plain, sources, loads, cell])) + "\n"

    def _add_imports(self) -> None:
        for name, home in {**self._prelude, **self.travel.imports}.items():
            self.imports.add(home, name)
        text = "\n".join([self._cell.source, *(s.text for s in self.travel.sources.values())])
        for alias in self._plain_imports:  # `import xml.etree` in another cell
            name = alias.name.partition(".")[0]
            if alias.name in text and name in self.travel.imports:
                self.imports.add((alias.name, None), name)
        for node in body.leading_imports(self._tree):
            for alias in node.names:
                if isinstance(node, ast.Import):
                    name = alias.asname or alias.name.partition(".")[0]
                    self.imports.add((alias.name, None), name)
                elif node.module != "__future__":
                    self.imports.add((node.module or "", alias.name), alias.asname or alias.name)

    def _docstring(self, line: str) -> str:
        number = self._cell.number
        what = "A cell" if number is None else f"Cell In[{number}]"
        safe = line.replace("\\", "\\\\").replace('"""', '\\"\\"\\"')
        return f'"""{what}, written by %%ddp --write.\n\n{safe}\n"""'

    def _environment(self) -> str:
        """Return the lines that set what libraries read when they are imported.

        The cell sets it too, but below the imports.
        """
        found = self._cell.environment.items()
        os = self.imports.use(("os", None), "os") if found else ""
        return "\n".join(f"{os}.environ[{name!r}] = {value!r}" for name, value in found)

    def _futures(self) -> str:
        found = body.futures(self._tree)
        if any(source.future for source in self.travel.sources.values()):
            found.add("annotations")
        return f"from __future__ import {', '.join(sorted(found))}" if found else ""

    def _loads(self) -> str:
        """Return the lines that read the pickles."""
        use = self.imports.use
        path = f'{use(("pathlib", "Path"), "Path")}(__file__).with_suffix(".pkl")'
        pickle = use(("pickle", None), "pickle")
        file, values, reader = map(self.imports.free, ("_file", "_values", "_Unpickler"))
        refers = self.travel.refers
        lines = [
            f'with {path}.open("rb") as {file}:',
            f"    {values} = {reader if refers else f'{pickle}.Unpickler'}({file})",
            *(f"    {name} = {values}.load()" for name in self.travel.pickled),
        ]
        builtin = self.imports.builtin
        head = UNPICKLER.format(name=reader, pickle=pickle, eval=builtin("eval")) if refers else ""
        return f"{head}\n\n\n".lstrip("\n") + "\n".join(lines)

    def _cell_text(self, provided: Provided) -> str:
        show = self._cell.settings.get("ast_node_interactivity") != "none"
        displayhook = ""
        if show and body.shows_value(self._tree, self._cell.source):
            displayhook = f"{self.imports.use(('sys', None), 'sys')}.displayhook"
        source = body.edited(body.without_head(self._cell.source), displayhook)
        before, after = self._around(provided)
        known = {*dir(builtins), "__name__", "__file__", *self._rank_names, *self._prelude}
        known |= names_of(ast.Module(list(body.leading_imports(self._tree)), [])).assigns
        return body.guarded(source, known | self.travel.names, before, after)

    def _around(self, provided: Provided) -> tuple[str, str]:
        """Return what runs before and after the cell; nothing if the cell cannot reach torch."""
        trees = [self._tree, *(ast.parse(s.text) for s in self.travel.sources.values())]
        homes = [*self._prelude.values(), *self.travel.imports.values()]
        homes += [home for tree in trees for _, home in imported(tree)]
        others = {module.partition(".")[0] for module, _ in homes} - sys.stdlib_module_names
        if not (others or self.travel.pickled):
            return provided.seeds(alone=True), ""
        mentioned = {name for tree in trees for name in _mentioned(tree)}
        own = "init_process_group" in mentioned
        init = not (own or self._asked.no_init)
        setup = provided.setup(init=init, own=own)
        if not (own or init):
            return setup, ""
        ends = "destroy_process_group" in mentioned or "cleanup" in self._prelude
        return setup, provided.end(sure=init and not ends)


def _home(name: str) -> Home:
    """Return where a script imports a name of the prelude from."""
    return ("ddp_magic.sam", name) if name in OWN_NAMES else HOMES[name]


def imported(tree: ast.AST) -> Iterator[tuple[str, Home]]:
    """Yield the names that a cell imports, and from where."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                first = alias.name.partition(".")[0]
                yield (alias.asname, (alias.name, None)) if alias.asname else (first, (first, None))
        elif isinstance(node, ast.ImportFrom) and node.module != "__future__":
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                home = (inner, None) if inner in sys.modules else (node.module or "", alias.name)
                yield alias.asname or alias.name, home


def imported_modules(tree: ast.AST) -> set[str]:
    """Return the modules that a cell imports, or imports from."""
    return {module for _, (module, _) in imported(tree)}


def _mentioned(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.alias(name=name):
                yield name
