"""Lines about connections that make no sense."""

from __future__ import annotations

from ddp_magic.kernel.worker_group.complaints import MAX_COMPLAINTS, Complaints
from ddp_magic.wire.kernel_events import Note


def test_a_few_are_said() -> None:
    """The last one says that it is the last."""
    complaints = Complaints()
    notes = [note for number in range(100) for note in complaints.note(str(number))]
    assert len(notes) == MAX_COMPLAINTS
    assert notes[0] == Note(text="0")
    assert notes[-1] == Note(text="4 (further messages like this are not shown)")
