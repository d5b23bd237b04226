"""What a main thread is doing, from the functions on its stack. Pure.

A function of a library belongs to a kind by its file and name. Of the kinds on a stack the first
of `_ORDER` counts: a collective inside a checkpoint is a wait for other ranks, a print inside a
data set is part of loading. C++ code has no frames: that a thread waits inside it for a collective,
as in DDP's backward, is told from the state of the thread and from torch's records.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Collection

from ddp_magic.wire.profile import Spent

_ORDER = (
    Spent.COLLECTIVE, Spent.LOADING, Spent.SAVING, Spent.PRINTING, Spent.READING, Spent.IDLE,
)  # fmt: skip

# (end or part of the file, functions, kind); no functions: all but those of `_PASSING`.
_FUNCTIONS: tuple[tuple[str, str, Spent], ...] = (
    (r"/torch/distributed/distributed_c10d\.py$", "", Spent.COLLECTIVE),
    (r"/torch/distributed/_functional_collectives\.py$", "", Spent.COLLECTIVE),
    (r"/torch/distributed/rendezvous\.py$", "", Spent.COLLECTIVE),
    (r"/torch/utils/data/", "", Spent.LOADING),
    (r"-packages/(torchdata|webdataset|litdata|ffcv|streaming|datasets)/", "", Spent.LOADING),
    (r"/(monai/data|nvidia/dali)/", "", Spent.LOADING),
    (r"/(torch/serialization|json/__init__|pickle|joblib/numpy_pickle)\.py$", r"_?(legacy_)?load",
     Spent.READING),
    (r"/numpy/", r"load(txt)?|genfromtxt|_?read\w*", Spent.READING),
    (r"/(pandas|pyarrow)/", r"read_\w+", Spent.READING),
    (r"/safetensors/", r"load\w*", Spent.READING),
    (r"/PIL/Image\.py$", r"open|load", Spent.READING),
    (r"/torch/serialization\.py$", r"_?(legacy_)?save|__exit__", Spent.SAVING),
    (r"/torch/distributed/checkpoint/", r"\w*(save|write|plan)\w*", Spent.SAVING),
    (r"/safetensors/", r"save\w*", Spent.SAVING),
    (r"/numpy/", r"_?save(z|txt)?\w*", Spent.SAVING),
    (r"/(PIL|torchvision|imageio|cv2)/", r"save\w*|imwrite|imsave", Spent.SAVING),
    (r"/(json|pickle\.py|dill|joblib|cloudpickle)", r"dump", Spent.SAVING),
    (r"/(pandas|pyarrow)/", r"to_(csv|parquet|json|pickle|hdf)|write_table", Spent.SAVING),
    (r"/(transformers|peft|accelerate|lightning|pytorch_lightning)/",
     r"save_pretrained|_?save_(model|checkpoint|state)|_save", Spent.SAVING),
    (r"/matplotlib/", r"savefig", Spent.SAVING),
    (r"/shutil\.py$", r"copy\w*|move", Spent.SAVING),
    (r"/logging/", r"(?!_(acquire|release|prepare|after)).*", Spent.PRINTING),  # locks, in a fork
    (r"/(tqdm|rich)/", "", Spent.PRINTING),
    (r"/(torch/utils/tensorboard|tensorboardX?|wandb|mlflow)/", "", Spent.PRINTING),
    (r"/matplotlib_inline/", "", Spent.PRINTING),
    (r"/IPython/core/display(_functions|pub|hook)?\.py$", "", Spent.PRINTING),
    (r"/ddp_magic/worker/console/(streams|displays|bars)\.py$", "", Spent.PRINTING),
    (r"/(threading|queue|subprocess|selectors|socket)\.py$", "", Spent.IDLE),
)  # fmt: skip
_PATTERNS = tuple(
    (re.compile(file), re.compile(names or r".*"), kind) for file, names, kind in _FUNCTIONS
)
# Frames of these stand below the user's own: a generator that asks for its next item, a thread.
_PASSING = frozenset(
    ["__iter__", "__next__", "track", "__enter__", "run", "_bootstrap", "_bootstrap_inner"]
)

# Functions in C, by the name that they are called by.
_CALLS = {
    **dict.fromkeys(["sleep", "acquire", "select", "poll", "join", "accept", "recv"], Spent.IDLE),
    **dict.fromkeys(["waitpid", "wait3", "wait4", "waitid"], Spent.IDLE),  # for a child
    **dict.fromkeys(["dump", "savez", "tofile", "write", "writelines", "pwrite"], Spent.SAVING),
    **dict.fromkeys(["fsync", "fdatasync", "sync", "flush", "close", "commit"], Spent.SAVING),
    **dict.fromkeys(["writerow", "writerows", "sendfile", "copy_file_range"], Spent.SAVING),
    **dict.fromkeys(["read", "readinto", "readline", "readlines", "pread"], Spent.READING),
    **dict.fromkeys(["load", "fromfile"], Spent.READING),
    "print": Spent.PRINTING,
    # Of torch.distributed's Work: what else waits under this name has a Python function for it.
    "wait": Spent.COLLECTIVE,
}
_GPU_CALLS = frozenset(["item", "cpu", "tolist", "numpy", "synchronize", "_cuda_synchronize"])


def kind_of_function(file: str, name: str) -> Spent | None:
    """Return the kind of a function; None if it does not tell.

    Args:
        file: File name of its code.
        name: Its name.
    """
    for names, kind in _patterns_of(file):
        if names.fullmatch(name):
            if name in _PASSING and kind is not Spent.LOADING:
                return None
            return kind
    return None


@functools.cache
def _patterns_of(file: str) -> tuple[tuple[re.Pattern[str], Spent], ...]:
    """Return the patterns of names for the functions of a file: for most files there are none."""
    return tuple((names, kind) for files, names, kind in _PATTERNS if files.search(file))


def kind_of_call(call: str, *, on_gpu: bool = False) -> Spent | None:
    """Return the kind of a function in C; None if it does not tell.

    Args:
        call: What is called, as in the source: `time.sleep`.
        on_gpu: Whether the rank has a GPU.
    """
    name = call.rpartition(".")[2]
    if on_gpu and name in _GPU_CALLS:
        return Spent.DEVICE
    return _CALLS.get(name)


def may_wait_for_ranks(file: str, call: Spent | None) -> bool:
    """Return whether C++ code that a function has called may wait in a collective, as backward's.

    Args:
        file: File name of the function's code.
        call: The kind of what it has called, from `kind_of_call`.
    """
    # A collective of another thread may be pending, and gloo may be late to note a completion.
    return call is Spent.COLLECTIVE or (call is None and "/torch/" in file)


def kind_of_stack(
    functions: Collection[Spent],
    call: Spent | None = None,
    *,
    sleeps: bool = False,
    pending: bool = False,
    busy: bool = True,
    on_gpu: bool = False,
) -> Spent:
    """Return what the main thread is doing.

    Args:
        functions: The kinds of the functions on its stack.
        call: The kind of the function in C that the innermost one has called.
        sleeps: Whether the operating system has the thread waiting.
        pending: Whether a collective has not completed.
        busy: Whether the process uses a processor.
        on_gpu: Whether the rank has a GPU.
    """
    found = next((kind for kind in _ORDER if kind is call or kind in functions), None)
    # A thread that waits for another one, which computes, is not idle.
    if found is not None and (found is not Spent.IDLE or (sleeps and not busy)):
        return found
    if call is Spent.DEVICE:
        return Spent.DEVICE
    if sleeps and pending and not on_gpu:
        return Spent.COLLECTIVE
    # On a GPU, other threads carry out backward. On a CPU, they share an operation.
    return Spent.IDLE if sleeps and not busy and not on_gpu else Spent.COMPUTE
