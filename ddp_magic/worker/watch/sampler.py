"""Samples the main thread and torch's records about 50 times a second, for `--profile`.

A look at the frames takes some 50 us. That the operating system has the thread waiting tells a wait
inside C++ code from computation, and `FlightRecorder.numbers` (20 us) whether a collective is
pending; it is read only while the main thread waits. The whole record of a process group (1 ms) is
read so seldom that it costs a quarter of a percent, at moments that all ranks share: each
collective is needed from all of them, and the record keeps 64. On a busy machine all of this takes
several times as long; `Looks` keeps it within its share of the time.
"""

from __future__ import annotations

from time import process_time, thread_time
from time import time as now  # bound here: a cell may replace the module's
from types import CodeType, FrameType

from ddp_magic.wire.profile import (
    LOADER,
    LOADER_WORKERS,
    PEER,
    UNKNOWN,
    Call,
    Place,
    ProfileWriter,
    Sample,
    Spent,
)
from ddp_magic.worker.watch.flight_recorder import FlightRecorder
from ddp_magic.worker.watch.frame_calls import called_expression, is_wrapper, peer_of
from ddp_magic.worker.watch.looks import Looks, next_look
from ddp_magic.worker.watch.main_thread import frames_of_main_thread
from ddp_magic.worker.watch.other_threads import running_thread
from ddp_magic.worker.watch.stack_kinds import (
    kind_of_call,
    kind_of_function,
    kind_of_stack,
    may_wait_for_ranks,
)
from ddp_magic.worker.watch.thread_state import ThreadState
from ddp_magic.worker.watch.user_files import is_users_file

_RECORD_S = 0.1  # between two readings of the records, at least; always 0.1, 0.2, 0.4, ...
_RECORD_COST = 0.0025  # share of the time that may be spent in reading them
_BUSY = 0.2  # share of a processor above which a process computes
_STALLED = 0.2  # share of the time for which a thread that computes has not run
_GAP_S = 0.25  # a look that comes so late: the interpreter lock was held, or the process stopped

# Functions of a DataLoader that waits for its worker processes.
_OF_WORKERS = frozenset(["_try_get_data", "_get_data"])


class Sampler:
    """Looks, and writes what it has seen.

    Args:
        writer: Takes the samples.
        on_gpu: Whether the rank has a GPU.
    """

    def __init__(self, writer: ProfileWriter, *, on_gpu: bool) -> None:
        self._writer = writer
        self._on_gpu = on_gpu
        self._recorder = FlightRecorder()
        self._recorder.new_calls()  # those before the cell
        self._thread = ThreadState()
        self._groups: dict[str, int] = {}
        # By the identity of the code: to hash it, Python reads the whole of it.
        self._codes: dict[int, tuple[CodeType, Spent | None, bool, str]] = {}
        self._expressions: dict[tuple[int, int], str] = {}
        self._began = self._last = now()
        self._cpu_s, self._process_s, self._asked = self._thread.cpu_s(), process_time(), now()
        self._beside: dict[int, float] = {}  # by index of the place
        self._looks = Looks()
        self._record_s = _RECORD_S
        self._record_due = 0.0
        self.lost = 0

    def pause_s(self) -> float:
        """Return the seconds until the next look is due."""
        time = now()
        due = next_look(max(time, self._last), self._looks.every)
        return max(0.0, min(due, self._record_due) - time)

    def look(self) -> None:
        """Look once."""
        began_s = thread_time()
        self._look()
        self._looks.add(thread_time() - began_s, now() - self._began)
        if now() >= self._record_due:
            self.read_records()

    def _look(self) -> None:
        # The thread's state first: while this thread waits for the file, the main thread goes on.
        sleeps = self._thread.sleeps()
        frames = frames_of_main_thread()
        time = now()
        seconds, self._last = time - self._last, time
        cpu_s, last_cpu_s = self._thread.cpu_s(), self._cpu_s
        self._cpu_s = cpu_s
        kinds, place, call = self._read(frames, sleeps=sleeps)
        call_kind = kind_of_call(call, on_gpu=self._on_gpu)
        group, number = UNKNOWN, 0
        if Spent.COLLECTIVE in kinds and (peer := peer_of(frames)) is not None:
            group = self._group(f"{PEER}{peer}")
        elif Spent.COLLECTIVE in kinds or (
            sleeps
            and not kinds
            and frames
            and may_wait_for_ranks(frames[0].f_code.co_filename, call_kind)
        ):
            group, number = self._pending()
        spent = kind_of_stack(
            kinds,
            call_kind,
            sleeps=sleeps,
            pending=group != UNKNOWN,
            busy=not sleeps or group != UNKNOWN or self._is_busy(time),
            on_gpu=self._on_gpu,
        )
        main_busy = cpu_s - last_cpu_s >= _BUSY * seconds
        if spent is Spent.COMPUTE and seconds > _GAP_S and not main_busy and not self._on_gpu:
            spent = Spent.IDLE  # such as a process that was stopped
        stalled_s = seconds - (cpu_s - last_cpu_s)
        if spent is Spent.COMPUTE and stalled_s > _STALLED * seconds and not self._on_gpu:
            self._look_beside(stalled_s)
        index = self._writer.place(place)
        self._writer.sample(Sample(time, seconds, spent, index, group, number))

    def _look_beside(self, stalled_s: float) -> None:
        """Note which thread runs while the main thread would compute, and does not run."""
        if (place := running_thread()) is not None:
            index = self._writer.place(place)
            self._beside[index] = self._beside.get(index, 0.0) + stalled_s

    def beside(self) -> dict[int, float]:
        """Return for how long the main thread has not run, by the place of a thread that did."""
        return self._beside

    def _is_busy(self, time: float) -> bool:
        """Whether the process has used a processor since this was asked last."""
        used_s, since_s = process_time() - self._process_s, time - self._asked
        self._process_s, self._asked = process_time(), time
        return used_s >= _BUSY * since_s

    def read_records(self) -> None:
        """Write the collectives that have been called since the last time."""
        began_s = thread_time()
        calls, lost = self._recorder.new_calls()
        self.lost += lost
        for call in calls:
            self._writer.call(Call(self._group(call.key), *call[1:]))
        cost_s = thread_time() - began_s  # on a busy machine, the clock measures other things
        while self._record_s * _RECORD_COST < cost_s and self._record_s < 60.0:
            self._record_s *= 2
        # A multiple of the interval on the clock that all ranks share.
        self._record_due = (now() // self._record_s + 1) * self._record_s

    def last_numbers(self) -> dict[int, int]:
        """Return the number of the last collective that was called, by index of the group."""
        return {self._group(key): number for key, number in self._recorder.enqueued().items()}

    def queued_s(self) -> float | None:
        """Return for how long the main thread has been ready to run without a processor."""
        return self._thread.queued_s()

    def close(self) -> None:
        """Close what it has opened."""
        self._thread.close()

    def _group(self, key: str) -> int:
        if (index := self._groups.get(key)) is None:
            title, ranks = self._recorder.describe(key)
            index = self._groups[key] = self._writer.group(key, title, ranks)
        return index

    def _pending(self) -> tuple[int, int]:
        for key, completed in self._recorder.pending(self._recorder.numbers()).items():
            return self._group(key), completed + 1
        return UNKNOWN, 0

    def _read(self, frames: list[FrameType], *, sleeps: bool) -> tuple[list[Spent], Place, str]:
        """Return the kinds of the functions, the place, and what the innermost one has called."""
        kinds: list[Spent] = []
        place: Place | None = None
        below = ""
        for frame in frames:
            code = frame.f_code
            _, kind, is_users, name = self._codes.get(id(code)) or self._learn(code)
            if kind is not None:
                kinds.append(kind)
            if is_users and place is None:
                place = Place(code.co_filename, frame.f_lineno, below)
            if kind is not Spent.LOADING:
                below = name or below
            elif code.co_name in _OF_WORKERS:
                below = LOADER_WORKERS
            elif below != LOADER_WORKERS:
                below = LOADER
        # Its source is read: of libraries only where nothing else tells what the thread waits for.
        call = ""
        if frames and (sleeps or self._on_gpu or (place is not None and not place.call)):
            call = self._expression(frames[0])
        if place is not None and not place.call:
            place = place._replace(call=call)
        return kinds, place or Place(), call

    def _learn(self, code: CodeType) -> tuple[CodeType, Spent | None, bool, str]:
        is_users = is_users_file(code.co_filename)
        kind = None if is_users else kind_of_function(code.co_filename, code.co_name)
        # Python 3.11 and later; of a wrapper, what it wraps tells more.
        name = "" if is_wrapper(code) else str(getattr(code, "co_qualname", code.co_name))
        self._codes[id(code)] = known = code, kind, is_users, name
        return known

    def _expression(self, frame: FrameType) -> str:
        key = id(frame.f_code), frame.f_lasti  # `_codes` keeps the code alive
        if (known := self._expressions.get(key)) is None:
            known = self._expressions[key] = called_expression(frame)
        return known
