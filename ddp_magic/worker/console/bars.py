"""tqdm in a rank: text bars, which the kernel shows in its table.

The bars of `tqdm.notebook` are widgets. A widget is updated by messages to its front end, which a
rank cannot send: such a bar would stay at 0 %. And with `disable=None`, as the downloads of
huggingface_hub have it, tqdm shows bars in terminals only, and in notebooks: so in ranks, too.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

NOTEBOOK, UTILS = "tqdm.notebook", "tqdm.utils"


class Finder(importlib.abc.MetaPathFinder):
    """Finds `tqdm.notebook` and `tqdm.utils`, and loads them with our loaders."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Return the module's own spec with our loader; None for all other modules."""
        if name not in (NOTEBOOK, UTILS):
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and spec.origin is not None:
            loader = _NotebookLoader if name == NOTEBOOK else _UtilsLoader
            spec.loader = loader(name, spec.origin)
        return spec


class _UtilsLoader(importlib.machinery.SourceFileLoader):
    def exec_module(self, module: ModuleType) -> None:
        """Run the module, and change it."""
        super().exec_module(module)
        _show_for_terminals(module)


def _show_for_terminals(utils: ModuleType) -> None:
    """Let `disable=None` show bars on the streams of a rank.

    tqdm asks the class that wraps each file that it writes to whether that is a terminal.
    """

    def isatty(self: Any) -> bool:  # noqa: ANN401 -- tqdm's own
        """Return whether bars are to be shown."""
        file = self._wrapped
        return file is sys.stdout or file is sys.stderr or bool(file.isatty())

    utils.DisableOnWriteError.isatty = isatty


class _NotebookLoader(importlib.machinery.SourceFileLoader):
    def exec_module(self, module: ModuleType) -> None:
        """Define the names of `tqdm.notebook`, with text bars."""
        from tqdm import std

        class tqdm_notebook(std.tqdm):  # type: ignore[type-arg]  # noqa: N801 -- tqdm's own name
            """A text bar that takes the arguments of `tqdm.notebook.tqdm`."""

            def __init__(self, *args: Any, display: bool = True, **kwargs: Any) -> None:  # noqa: ANN401
                del display  # a widget's: whether it is shown at once
                kwargs["disable"] = bool(kwargs.get("disable"))  # None: no terminal, no bar
                kwargs.pop("colour", None)
                if isinstance(kwargs.get("ncols"), str):  # a widget's: its width, such as "100%"
                    del kwargs["ncols"]
                super().__init__(*args, **kwargs)

        def tnrange(*args: int, **kwargs: Any) -> tqdm_notebook:  # noqa: ANN401 -- tqdm's own
            """Return a bar over a range."""
            return tqdm_notebook(range(*args), **kwargs)

        tqdm_notebook.__module__ = module.__name__
        tqdm_notebook.__qualname__ = "tqdm_notebook"
        names = {"tqdm_notebook": tqdm_notebook, "tqdm": tqdm_notebook}
        ranges = {"tnrange": tnrange, "trange": tnrange}
        vars(module).update(**names, **ranges, IProgress=None, WARN_NOIPYW="")


def use_text() -> None:
    """Give later imports of `tqdm.notebook` text bars, and let tqdm show those for terminals."""
    sys.meta_path.insert(0, Finder())
    if (utils := sys.modules.get(UTILS)) is not None:  # torch has imported it
        _show_for_terminals(utils)
