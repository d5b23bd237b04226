"""The names of cells in the records of `logging`."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator

import pytest
from rich.console import Console
from rich.logging import RichHandler

from ddp_magic.worker.console.log_records import name_cells

LABELS = {"/nb/cell_5.py": "Cell In[5]"}


@pytest.fixture(autouse=True)
def factory() -> Iterator[None]:
    """Restore the factory of records."""
    before = logging.getLogRecordFactory()
    yield
    logging.setLogRecordFactory(before)


def _logged(handler: logging.Handler, file: str) -> None:
    """Log a line from line 3 of a file."""
    logger = logging.Logger("own")
    logger.addHandler(handler)
    exec(compile("\n\nlogger.info('hi')", file, "exec"), {"logger": logger})


@pytest.mark.parametrize(
    ("file", "shown"),
    [
        ("/nb/cell_5.py", "Cell In[5]:3 Cell In[5] Cell In[5]"),
        ("/nb/own.py", "own.py:3 /nb/own.py own"),
    ],
)
def test_a_record_names_the_cell(file: str, shown: str) -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("%(filename)s:%(lineno)d %(pathname)s %(module)s"))
    name_cells(LABELS)
    _logged(handler, file)
    assert stream.getvalue() == shown + "\n"


def test_the_handler_of_rich() -> None:
    """It reads the path."""
    stream = io.StringIO()
    name_cells(LABELS)
    _logged(RichHandler(console=Console(file=stream, width=80)), "/nb/cell_5.py")
    assert stream.getvalue().rstrip().endswith("Cell In[5]:3")


def test_a_factory_of_the_users_own_goes_on() -> None:
    """One that was set before is called; one that is set later takes the place."""

    class Record(logging.LogRecord):
        pass

    logging.setLogRecordFactory(Record)
    name_cells(LABELS)
    made = logging.getLogRecordFactory()("a", 20, "/nb/cell_5.py", 3, "hi", (), None)
    assert type(made) is Record
    assert made.filename == "Cell In[5]"
