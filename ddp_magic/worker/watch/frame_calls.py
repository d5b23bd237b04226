"""What the line of a frame has called, as a person would name it, and with which rank or group.

From the frames alone: a function's name and its local variables, the source of a line.
"""

from __future__ import annotations

import ast
import linecache
import re
from types import CodeType, FrameType

from torch.distributed import distributed_c10d

from ddp_magic.system.tracebacks import is_ours
from ddp_magic.wire.collectives import UNNAMED

DISTRIBUTED = "/torch/distributed/distributed_c10d.py"
_AUTOGRAD = "/torch/autograd/"


# Frames whose name says less than that of the class that a user knows, by the end of the file.
_KNOWN = {
    "/torch/utils/data/dataloader.py": "DataLoader",
    "/torch/optim/optimizer.py": "optimizer",
}


# And those with "wrap" in their names; the last is what IPython puts in place of `open`.
_WRAPPERS = frozenset(["_call_impl", "decorate_context", "inner", "_modified_open"])
_WITH = re.compile(r"\s*(?:async )?with ([\w.]+)(?: as \w+)?:")
_MAX_CHARS = 60
_MAX_LINES = 20  # of a call
_MAX_MEMBERS = 8  # of a group


# What runs a line as `!sleep 3`.
_SHELL_COMMANDS = frozenset(["system_piped", "system_raw", "getoutput"])
_SHELL = "/IPython/core/interactiveshell.py"


# The argument that names the root, by function of torch.distributed.
_SOURCES = frozenset(["broadcast", "scatter", "broadcast_object_list", "scatter_object_list"])
_DESTINATIONS = frozenset(["reduce", "gather", "gather_object"])


# The argument that names the partner, by function of torch.distributed.
_PEER = {"recv": "src", "send": "dst", "recv_object_list": "src", "send_object_list": "dst"}


def call_of(cell: FrameType, inner: list[FrameType]) -> str:
    """Return what a line of the user's has called.

    Args:
        cell: Its frame.
        inner: The frames below it, innermost first.
    """
    outward = [frame for frame in reversed(inner) if not is_ours(frame.f_code.co_filename)]
    for frame in outward:
        code = frame.f_code
        if code.co_filename.endswith(DISTRIBUTED) and not is_wrapper(code):
            return code.co_name + _of(frame)
        if code.co_filename.endswith(_SHELL) and code.co_name in _SHELL_COMMANDS:
            return f"!{frame.f_locals.get('cmd', '')}"[:_MAX_CHARS]
        if name := next((n for end, n in _KNOWN.items() if code.co_filename.endswith(end)), ""):
            return name
    named = [frame.f_code for frame in outward if not is_wrapper(frame.f_code)]
    written = called_expression(cell)
    if named:
        name = str(getattr(named[0], "co_qualname", named[0].co_name))  # Python 3.11 and later
        # `subprocess.run` tells more than `run`.
        return written if written.endswith(f".{name}") else name
    return written


def _of(frame: FrameType) -> str:
    """Return what must be the same on all ranks that create a group, as far as they say it.

    ` #1 of ranks 0, 1` for the first `new_group`, ` of world size 2` for an `init_process_group`.
    """
    if frame.f_code.co_name == "init_process_group":
        size = frame.f_locals.get("world_size")
        return f" of world size {size}" if isinstance(size, int) and size > 0 else ""
    ranks = frame.f_locals.get("ranks") if frame.f_code.co_name == "new_group" else None
    if not isinstance(ranks, (list, tuple, range)) or not ranks:
        return ""
    count = 0 if frame.f_locals.get("use_local_synchronization") else _groups_named()
    number = f" #{count}" if count > 0 else ""
    return f"{number} of ranks {', '.join(map(str, ranks[:_MAX_MEMBERS]))}" + (
        ", ..." if len(ranks) > _MAX_MEMBERS else ""
    )


def _groups_named() -> int:
    """Return how many groups the rank has created, or begun to, beside its default one."""
    return int(getattr(distributed_c10d._world, "group_count", 0)) - 1


def is_wrapper(code: CodeType) -> bool:
    """Return whether a function only calls another one, whose name tells more."""
    return code.co_name in _WRAPPERS or "wrap" in code.co_name


def called_expression(frame: FrameType, at: int | None = None) -> str:
    """Return the source of the call that a frame is in, if C code has been called: `time.sleep`.

    Args:
        frame: Which one.
        at: Its instruction; None for the one that it has come to.
    """
    if not hasattr(frame.f_code, "co_positions"):  # Python 3.10
        return ""
    positions = list(frame.f_code.co_positions())
    line, end_line, start, end = positions[(frame.f_lasti if at is None else at) // 2]
    if line is None or end_line is None or start is None or end is None:
        return ""
    lines = range(line, min(end_line, line + _MAX_LINES - 1) + 1)
    sources = [linecache.getline(frame.f_code.co_filename, n).encode() for n in lines]
    source, last = sources[0], sources[-1]
    # Columns count bytes.
    whole = b"".join([*sources[:-1], last[:end]])[start:]
    expression = whole.decode(errors="replace")
    # Of a `with` they are those of the whole statement, or of what is entered.
    entered = _WITH.match(source.decode(errors="replace"))
    if entered and (expression == entered[1] or source[start:].startswith((b"with", b"async"))):
        return f"{entered[1]}.__enter__"
    return callee(expression)


def callee(expression: str) -> str:
    """Return what an expression calls last, arguments left out: `dist.irecv(...).wait`."""
    try:
        call = ast.parse(expression, mode="eval").body
        if isinstance(call, ast.Await):
            call = call.value
        if not isinstance(call, ast.Call):
            return ""
        for node in ast.walk(call.func):
            if isinstance(node, ast.Call) and (node.args or node.keywords):
                node.args, node.keywords = [ast.Constant(...)], []
        return ast.unparse(call.func)[:_MAX_CHARS]
    except (SyntaxError, ValueError, RecursionError):
        return ""


def peer_of(frames: list[FrameType]) -> int | None:
    """Return the rank with which a send or a receive is; None if there is none on the stack."""
    for frame in frames:
        if not frame.f_code.co_filename.endswith(DISTRIBUTED):
            continue
        value = frame.f_locals.get(_PEER.get(frame.f_code.co_name, ""))
        if isinstance(value, int) and value >= 0:
            return value
    return None


def group_of(frames: list[FrameType]) -> str:
    """Return the name of the group whose collective is on the stack; empty if there is none.

    In backward, DDP calls some from C++: as a rule of the default group.
    """
    for frame in reversed(frames):
        if not frame.f_code.co_filename.endswith(DISTRIBUTED):
            continue
        if frame.f_code.co_name in _PEER:  # the other end of a message is told of its own
            return ""
        if "group" in frame.f_locals:
            return _name_of(frame.f_locals["group"])
    in_backward = frames and _AUTOGRAD in frames[0].f_code.co_filename
    return _name_of(None) if in_backward else ""


def collective_of(frames: list[FrameType]) -> str:
    """Return the collective that a thread is in, of the group that `group_of` returns."""
    for frame in frames:
        code = frame.f_code
        if (
            code.co_filename.endswith(DISTRIBUTED)
            and "group" in frame.f_locals
            and not is_wrapper(code)
            and not code.co_name.startswith("_")
        ):
            return code.co_name
    return UNNAMED


def _name_of(group: object) -> str:
    return str(getattr(group or distributed_c10d.GroupMember.WORLD, "group_name", ""))


def root_of(frames: list[FrameType]) -> str:
    """Return the source or the destination of a collective on the stack, as `from rank 1`."""
    for frame in reversed(frames):
        name = frame.f_code.co_name
        word = "from" if name in _SOURCES else "to" if name in _DESTINATIONS else ""
        if not word or not frame.f_code.co_filename.endswith(DISTRIBUTED):
            continue
        argument = "src" if word == "from" else "dst"
        for known, of in ((argument, ""), (f"group_{argument}", " of the group")):
            value = frame.f_locals.get(known)
            if isinstance(value, int):
                return f"{word} rank {value}{of}"
    return ""
