"""What a main thread is doing, from the functions on its stack."""

from __future__ import annotations

import pytest

from ddp_magic.wire.profile import Spent
from ddp_magic.worker.watch.stack_kinds import (
    kind_of_call,
    kind_of_function,
    kind_of_stack,
    may_wait_for_ranks,
)

SITE = "/env/lib/python3.11/site-packages"
LIB = "/env/lib/python3.11"
COLLECTIVE, LOADING, SAVING, PRINTING, IDLE, COMPUTE, DEVICE, READING = (
    Spent.COLLECTIVE, Spent.LOADING, Spent.SAVING, Spent.PRINTING, Spent.IDLE, Spent.COMPUTE,
    Spent.DEVICE, Spent.READING,
)  # fmt: skip


@pytest.mark.parametrize(
    ("file", "name", "kind"),
    [
        (f"{SITE}/torch/distributed/distributed_c10d.py", "all_reduce", COLLECTIVE),
        (f"{SITE}/torch/distributed/_functional_collectives.py", "wait_tensor", COLLECTIVE),
        (f"{SITE}/torch/utils/data/dataloader.py", "__next__", LOADING),
        (f"{SITE}/torch/utils/data/_utils/fetch.py", "fetch", LOADING),
        (f"{SITE}/datasets/arrow_dataset.py", "__getitem__", LOADING),
        (f"{SITE}/torch/serialization.py", "save", SAVING),
        (f"{SITE}/torch/serialization.py", "load", READING),
        (f"{SITE}/torch/hub.py", "load", None),
        (f"{LIB}/json/__init__.py", "load", READING),
        (f"{SITE}/numpy/lib/_npyio_impl.py", "load", READING),
        (f"{SITE}/pandas/io/parsers/readers.py", "read_csv", READING),
        (f"{SITE}/torch/distributed/checkpoint/state_dict_saver.py", "save", SAVING),
        (f"{SITE}/safetensors/torch.py", "save_file", SAVING),
        (f"{SITE}/numpy/lib/_npyio_impl.py", "savez", SAVING),
        (f"{SITE}/transformers/trainer.py", "_save_checkpoint", SAVING),
        (f"{SITE}/transformers/trainer.py", "training_step", None),
        (f"{LIB}/logging/__init__.py", "info", PRINTING),
        (f"{LIB}/logging/__init__.py", "_acquireLock", None),
        (f"{SITE}/tqdm/std.py", "refresh", PRINTING),
        (f"{SITE}/tqdm/std.py", "__iter__", None),
        (f"{SITE}/ddp_magic/worker/console/streams.py", "write", PRINTING),
        (f"{LIB}/threading.py", "wait", IDLE),
        (f"{LIB}/threading.py", "run", None),
        (f"{SITE}/torch/nn/modules/linear.py", "forward", None),
    ],
)
def test_a_function_belongs_to_a_kind(file: str, name: str, kind: Spent | None) -> None:
    assert kind_of_function(file, name) is kind


@pytest.mark.parametrize(
    ("call", "on_gpu", "kind"),
    [
        ("time.sleep", False, IDLE),
        ("os.waitpid", False, IDLE),
        ("print", False, PRINTING),
        ("pickle.dump", False, SAVING),
        ("os.fsync", False, SAVING),
        ("f.close", False, SAVING),
        ("connection.commit", False, SAVING),
        ("csv_writer.writerow", False, SAVING),
        ("np.fromfile", False, READING),
        ("file.read", False, READING),
        ("dist.irecv(t, 0).wait", False, COLLECTIVE),
        ("loss.item", True, DEVICE),
        ("loss.item", False, None),
        ("torch.cuda.synchronize", True, DEVICE),
        ("torch.mm", True, None),
        ("", False, None),
    ],
)
def test_a_function_in_c_is_known_by_its_name(call: str, on_gpu: bool, kind: Spent | None) -> None:
    assert kind_of_call(call, on_gpu=on_gpu) is kind


@pytest.mark.parametrize(
    ("file", "call", "may_wait"),
    [
        (f"{SITE}/torch/autograd/graph.py", None, True),  # DDP's backward
        (f"{SITE}/torch/_ops.py", None, True),
        ("/run/cell.py", COLLECTIVE, True),  # work.wait()
        # A collective may be pending meanwhile, as one that gloo notes late as completed.
        ("/run/cell.py", None, False),  # a call in several lines, of what is not known by its name
        ("/run/cell.py", SAVING, False),
        (f"{SITE}/h5py/_hl/files.py", None, False),
        (f"{SITE}/torch/cuda/__init__.py", IDLE, False),
    ],
)
def test_only_torch_waits_for_ranks(file: str, call: Spent | None, may_wait: bool) -> None:
    assert may_wait_for_ranks(file, call) is may_wait


@pytest.mark.parametrize(
    ("functions", "call", "state", "kind"),
    [
        # A sleep in a data set is loading, a barrier in a checkpoint a wait for others.
        ([LOADING], IDLE, {"sleeps": True}, LOADING),
        ([LOADING], READING, {"sleeps": True}, LOADING),
        ([SAVING, COLLECTIVE], None, {}, COLLECTIVE),
        ([LOADING, PRINTING], None, {}, LOADING),
        # DDP's backward: C++ waits for the gradients.
        ([], None, {"sleeps": True, "pending": True}, COLLECTIVE),
        ([], None, {"sleeps": False, "pending": True}, COMPUTE),
        # An asynchronous collective goes on while the program sleeps.
        ([], IDLE, {"sleeps": True, "pending": True, "busy": False}, IDLE),
        # `thread.join()` waits for nothing, or for a thread that computes.
        ([IDLE], IDLE, {"sleeps": True, "busy": False}, IDLE),
        ([IDLE], IDLE, {"sleeps": True, "busy": True}, COMPUTE),
        ([], IDLE, {"sleeps": False}, COMPUTE),
        # Other threads of an operation compute; or nothing in the process does.
        ([], None, {"sleeps": True, "busy": True}, COMPUTE),
        ([], None, {"sleeps": True, "busy": False}, IDLE),
        # On a GPU the main thread waits for the GPU, or for the threads of backward.
        ([], DEVICE, {"on_gpu": True}, DEVICE),
        ([], None, {"on_gpu": True, "sleeps": True, "pending": True}, COMPUTE),
        ([], None, {}, COMPUTE),
    ],
)
def test_a_stack_tells_what_the_thread_does(
    functions: list[Spent], call: Spent | None, state: dict[str, bool], kind: Spent
) -> None:
    assert kind_of_stack(functions, call, **state) is kind
