"""What a person reads where Python names the file of a cell."""

from __future__ import annotations

import pytest

from ddp_magic.display.places import with_cell_names

LABELS = {
    "/nb/cell_5.py": "Cell In[5]", "/nb/cell_5_2.py": "Cell In[5]", "/nb/1127-1.py": "Cell"
}  # fmt: skip


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ('  File "/nb/cell_5.py", line 4, in work', "  Cell In[5], line 4, in work"),
        ('  File "/nb/1127-1.py", line 4, in <module>', "  Cell, line 4, in <module>"),
        ("/nb/cell_5_2.py:3: UserWarning: hm", "Cell In[5], line 3: UserWarning: hm"),
        # logging.captureWarnings
        (
            "WARNING:py.warnings:/nb/cell_5.py:3: Hm: a",
            "WARNING:py.warnings:Cell In[5], line 3: Hm: a",
        ),
        ("28/11 (/nb/1127-1.py:3: Hm: a", "28/11 (Cell, line 3: Hm: a"),
        *[
            (text, text)
            for text in (
                '  File "/nb/cell_6.py", line 4, in work',
                "/nb/cell_6.py:3: UserWarning: hm",
                "/home/nb/cell_5.py:3: UserWarning: hm",
                "saved /nb/cell_5.py",
                "/nb/cell_5.py:3: 5",
                "loss 0.5",
                "",
            )
        ],
    ],
)
def test_lines(line: str, shown: str) -> None:
    """Only a place is renamed; what a cell prints stays as it is."""
    assert with_cell_names(line, LABELS) == shown
