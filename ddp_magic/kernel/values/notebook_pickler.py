"""The pickler for the notebook's values; `value_stream` uses it.

Beyond `wire.pickling`: a function of the notebook's finds the cell's own names in the rank, as its
globals; the names that it uses are noted, so that they are sent too; objects that were set up for a
single process are rejected.
"""

from __future__ import annotations

import ast
import copyreg
import functools
import inspect
import io
import pickle
import sys
import textwrap
import types
import typing
from collections.abc import Callable, Collection, Mapping
from typing import Any

from ddp_magic.kernel.values.names import names_in_text
from ddp_magic.wire import pickling
from ddp_magic.wire.pickling import Call, Pickler, Refused
from ddp_magic.wire.submodules import package_with, submodules

# Beside `__hash__`; the last four of subclasses of list, dict and set.
_CALLED_BY_PICKLE = {"__setstate__", "__reduce__", "__reduce_ex__", "__new__", "__setattr__"}
_CALLED_BY_PICKLE |= {"append", "extend", "__setitem__", "add"}
_IN_CELL = "create it in the cell"
_WORLD = "create it in the cell, where it reads the world size"
_ON_RANK_0 = "create it in the cell, on rank 0"
_OF_A_RUN = "in another cell, keep what you need of it: `results = run.results`"
# By the names of their classes: none of these is imported here.
_SINGLE_PROCESS = {
    "accelerate.accelerator.Accelerator": _WORLD,
    "accelerate.state.PartialState": _WORLD,
    "lightning.fabric.fabric.Fabric": _WORLD,
    "lightning.pytorch.trainer.trainer.Trainer": _IN_CELL,
    "lightning_fabric.fabric.Fabric": _WORLD,
    "pytorch_lightning.trainer.trainer.Trainer": _IN_CELL,
    "transformers.trainer.Trainer": _IN_CELL,
    "transformers.training_args.TrainingArguments": _WORLD,
    "torch.nn.parallel.distributed.DistributedDataParallel": "use its .module, and wrap that in "
    "the cell",
    "torch.distributed.distributed_c10d.ProcessGroup": _IN_CELL,
    "torch.utils.tensorboard.writer.SummaryWriter": _ON_RANK_0,
    "tensorboardX.writer.SummaryWriter": _ON_RANK_0,
    "wandb.sdk.wandb_run.Run": "call wandb.init in the cell, on rank 0",
    "mlflow.tracking.fluent.ActiveRun": "start the run in the cell, on rank 0",
    "neptune.metadata_containers.run.Run": "start the run in the cell, on rank 0",
    "comet_ml.experiment.BaseExperiment": "start the experiment in the cell, on rank 0",
}
_NOTEBOOKS_OWN = {
    "IPython.core.interactiveshell.InteractiveShell": "call get_ipython() in the cell",
    "ddp_magic.kernel.background.run.BackgroundRun": _OF_A_RUN,
    "ddp_magic.kernel.execution.run.Run": _OF_A_RUN,
}
_HOME = Call(pickling.reader_namespace)
_DEVICE = Call(pickling.reader_value, "device")


class NotebookPickler(Pickler):
    """Writes values of the notebook's.

    Args:
        file: What to write to.
        home: The notebook's namespace, which in the rank is the cell's.
        on_buffer: Is called with each buffer, in the order of the stream.

    Attributes:
        needs: Global names that the notebook's functions among the values read.
        carried: Names of the notebook's classes and functions among the values: pickle in the rank
            looks for them in `__main__`.
        annotated: Names that annotations of those mention.
        code_files: Files of the code of the functions among the values.
        runs_code: Classes and functions of the notebook's that reading the values calls.
        words: Global names and attributes that the cell uses: submodules of packages may be in it.
    """

    def __init__(
        self,
        file: io.BytesIO,
        *,
        home: Mapping[str, Any],
        on_buffer: Callable[[pickle.PickleBuffer], object],
    ) -> None:
        super().__init__(file, on_buffer=on_buffer)
        self.needs: dict[str, None] = {}
        self.carried: dict[str, None] = {}
        self.annotated: dict[str, None] = {}
        self.code_files: dict[str, None] = {}
        self.runs_code: list[object] = [*filter(_is_the_notebooks, copyreg.dispatch_table.values())]
        self.words: Collection[str] = ()
        self._home = home

    def reducer_override(self, obj: Any) -> Any:  # noqa: ANN401 -- any object at all
        """Return the parts of an object (pickle's own hook)."""
        refuse_single_process(obj)
        if isinstance(obj, types.ModuleType) and (found := submodules(obj, self.words)):
            return package_with, (obj.__name__, found)
        if isinstance(obj, type) and obj.__module__ == "__main__":
            self._note_definition(obj)
            if _has_code_for_pickle(obj):
                self.runs_code.append(obj)
        return super().reducer_override(obj)

    def function_globals(self, func: types.FunctionType, usual: object) -> object:
        """Let the notebook's functions find the cell's names."""
        return _HOME if func.__globals__ is self._home else usual

    def function_slots(self, func: types.FunctionType, slots: dict[str, Any]) -> dict[str, Any]:
        """Note what a function uses; its globals are in the rank already."""
        self.code_files[func.__code__.co_filename] = None
        if func.__globals__ is not self._home:
            return slots
        self.needs.update(dict.fromkeys(pickling.global_names(func.__code__)))
        self._note_definition(func)
        return {**slots, "__globals__": {}, **self._defaults(func)}

    def _note_definition(self, obj: type | types.FunctionType) -> None:
        """Note the notebook's name for this, and the names that its annotations mention."""
        name = obj.__qualname__.partition(".")[0]
        if _attribute(self._home, obj.__qualname__) is obj:
            self.carried[name] = None
        self.annotated.update(dict.fromkeys(sorted(annotated_names(obj))))

    def _defaults(self, func: types.FunctionType) -> dict[str, Any]:
        """Make `def f(device=device)` mean the rank's device.

        The notebook's is the same for all ranks: with several GPUs, the first one.
        """
        device = self._home.get("device")
        if device is None:
            return {}
        # The same string object may occur elsewhere: for a string, the source decides.
        named = _defaults_named(func, "device") if isinstance(device, str) else None

        def is_it(parameter: str, value: object) -> bool:
            return value is device and (named is None or parameter in named)

        code = func.__code__
        defaults = func.__defaults__ or ()
        names = code.co_varnames[code.co_argcount - len(defaults) : code.co_argcount]
        pairs = zip(names, defaults, strict=True)
        positional = tuple(_DEVICE if is_it(name, value) else value for name, value in pairs)
        keywords = {
            name: _DEVICE if is_it(name, value) else value
            for name, value in (func.__kwdefaults__ or {}).items()
        }
        return {"__defaults__": positional or None, "__kwdefaults__": keywords or None}


def refuse_single_process(obj: object) -> None:
    """Reject objects that were set up for the notebook's process alone.

    Raises:
        Refused: It is one.
    """
    kind: Any = type(obj)
    if found := _one_process(kind):
        what, remedy = found
        raise Refused(obj, f"{what} ({kind.__name__})", remedy)


@functools.cache
def _one_process(kind: type) -> tuple[str, str] | None:
    """Return what an object of a class is and what to do instead; None if it may be sent."""
    for base in kind.__mro__:
        name = f"{base.__module__}.{base.__qualname__}"
        if remedy := _SINGLE_PROCESS.get(name):
            return "an object that was set up for a single process", remedy
        if remedy := _NOTEBOOKS_OWN.get(name):
            return "a part of the notebook's process", remedy
    return None


def _has_code_for_pickle(kind: type) -> bool:
    """Return whether pickle calls methods of a class where it reads objects of it."""
    hashes = vars(kind).get("__hash__") is not None
    return hashes or not _CALLED_BY_PICKLE.isdisjoint(vars(kind))


def _is_the_notebooks(function: object) -> bool:
    return getattr(function, "__module__", None) == "__main__"


def _attribute(namespace: Mapping[str, Any], qualified_name: str) -> object:
    first, *rest = qualified_name.split(".")
    found = namespace.get(first)
    for name in rest:
        found = getattr(found, name, None)
    return found


def annotated_names(obj: type | types.FunctionType) -> set[str]:
    """Return the names that an object's annotations mention in strings.

    All annotations are strings after `from __future__ import annotations`; code that resolves one
    looks these names up.
    """
    if sys.version_info >= (3, 14):  # annotations are evaluated when they are asked for
        import annotationlib

        found = annotationlib.get_annotations(obj, format=annotationlib.Format.STRING)
    else:
        found = inspect.get_annotations(obj)
    return set().union(*map(_names_in, found.values()))


def _names_in(annotation: object, depth: int = 8) -> set[str]:
    if isinstance(annotation, typing.ForwardRef):
        annotation = annotation.__forward_arg__
    if isinstance(annotation, str):
        return names_in_text(annotation)
    if depth == 0:
        return set()
    parts = annotation if isinstance(annotation, list) else getattr(annotation, "__args__", ())
    return set().union(*(_names_in(part, depth - 1) for part in parts or ()))


def _defaults_named(func: types.FunctionType, name: str) -> set[str]:
    """Return the parameters whose default is written as this name."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(func)))
    except (OSError, TypeError, SyntaxError):  # no source; a lambda within a line
        return set()
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            arguments = [*node.args.posonlyargs, *node.args.args]
            pairs = list(zip(reversed(arguments), reversed(node.args.defaults), strict=False))
            pairs += [
                (argument, default)
                for argument, default in zip(
                    node.args.kwonlyargs, node.args.kw_defaults, strict=True
                )
                if default is not None
            ]
            found |= {a.arg for a, d in pairs if isinstance(d, ast.Name) and d.id == name}
    return found
