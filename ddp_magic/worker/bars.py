"""`tqdm.notebook` in a rank: text bars, which the kernel shows in its table.

The bars of `tqdm.notebook` are widgets. A widget is updated by messages to its front end, which a
rank cannot send: such a bar would stay at 0 %.
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
    """Finds `tqdm.notebook`, and loads it with our loader."""

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
    """Give later imports of `tqdm.notebook` text bars."""
    sys.meta_path.insert(0, Finder())
