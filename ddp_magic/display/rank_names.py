"""What a person calls ranks: `rank 2`, `ranks 0-3, 5`, `rank 3 on n2`."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping


def rank_names(ranks: Iterable[int], span: int = 2) -> str:
    """Return what a person calls these ranks: `rank 2`, `ranks 0-3, 5`.

    Args:
        ranks: Which ranks.
        span: So many neighbors or more are written with a dash.
    """
    numbers = sorted(ranks)
    # Neighbors have the same distance from their positions.
    runs = itertools.groupby(enumerate(numbers), lambda item: item[1] - item[0])
    groups = [[number for _, number in run] for _, run in runs]
    texts = [
        f"{run[0]}-{run[-1]}" if len(run) >= span else ", ".join(map(str, run)) for run in groups
    ]
    return f"rank{'s' if len(numbers) > 1 else ''} {', '.join(texts)}"


def on_nodes(text: str, nodes: Mapping[int, str]) -> str:
    """Return a text in which a single rank is `rank 3 on n2` where it is named first.

    Args:
        text: Sentences.
        nodes: Names of the ranks' nodes; empty for the kernel's own machine.
    """
    told: set[int] = set()

    def each(found: re.Match[str]) -> str:
        rank = int(found[1])
        node = nodes.get(rank, "")
        if not node or rank in told:
            return found[0]
        told.add(rank)
        return f"{found[0]} on {node}"

    return re.sub(r"\brank (\d+)\b(?!'| on )", each, text)
