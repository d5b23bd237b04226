"""The names of cells in the records of `logging`: `%(filename)s:%(lineno)d` is `Cell In[5]:3`."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any


def name_cells(labels: Mapping[str, str]) -> None:
    """Let records of a cell's code name the cell, also those of handlers such as rich's.

    Args:
        labels: The cells' names, by the files of their code; later ones appear in it.
    """
    factory = logging.getLogRecordFactory()

    def named(*args: Any, **kwargs: Any) -> logging.LogRecord:  # noqa: ANN401 -- logging's
        record = factory(*args, **kwargs)
        if label := labels.get(record.pathname):
            record.pathname = record.filename = record.module = label
        return record

    logging.setLogRecordFactory(named)
