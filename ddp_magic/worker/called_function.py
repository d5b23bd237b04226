"""The file of the function that `launch` calls, and what a person calls it."""

from __future__ import annotations

import functools
import inspect
from pathlib import Path

from ddp_magic.worker.watch.user_files import is_users_file


def file_of(function: object) -> dict[str, str]:
    """Return what a person calls the file of a function's code, by its path; empty for a library's.

    Args:
        function: What is called: a function, perhaps decorated, a method, a partial, an object.
    """
    while True:
        if isinstance(function, functools.partial):
            function = function.func
        elif (wrapped := getattr(function, "__wrapped__", None)) is not None:
            function = wrapped
        else:
            break
    if not (inspect.isroutine(function) or inspect.isclass(function)):
        function = type(function).__call__
    code = getattr(function, "__code__", None)  # a method's is that of its function
    if code is None or not is_users_file(code.co_filename):
        return {}
    return {code.co_filename: Path(code.co_filename).name}
