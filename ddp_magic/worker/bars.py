"""`tqdm.notebook` in a rank: bars of text, which the kernel shows in its table.

Its own bars are widgets. What moves a widget is a message to the notebook's kernel, and a rank has
no way to send one: such a bar stays at 0 %.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

MODULE = "tqdm.notebook"


class Finder(importlib.abc.MetaPathFinder):
    """Finds `tqdm.notebook` where it is, and has it loaded by ours."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Return the module's own spec with our loader; None for all other modules."""
        if name != MODULE:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and spec.origin is not None:
            spec.loader = _Loader(name, spec.origin)
        return spec


class _Loader(importlib.machinery.SourceFileLoader):
    def exec_module(self, module: ModuleType) -> None:
        """Give the module the names of `tqdm.notebook`, all for text."""
        from tqdm import std

        class tqdm_notebook(std.tqdm):  # type: ignore[type-arg]  # noqa: N801 -- tqdm's own name
            """A bar of text with the arguments of tqdm.notebook's."""

            def __init__(self, *args: Any, display: bool = True, **kwargs: Any) -> None:  # noqa: ANN401
                del display  # whether the widget is shown at once
                kwargs["disable"] = bool(kwargs.get("disable"))  # None: no terminal, no bar
                kwargs.pop("colour", None)
                if isinstance(kwargs.get("ncols"), str):  # a widget's width: "100%"
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
    """Let what imports `tqdm.notebook` from now on have bars of text."""
    sys.meta_path.insert(0, Finder())
