"""The figure of a profile: one bar for each rank, if matplotlib is installed."""

from __future__ import annotations

import importlib.util
import io

from ddp_magic.display.profiles.profile import COLUMNS, Profile, part_s

_COLORS = {
    "compute": "#4c78a8",
    "waiting for the GPU": "#9ecae9",
    "waiting for ranks": "#e45756",
    "moving data": "#f58518",
    "collectives": "#f58518",
    "data loader": "#eeca3b",
    "reading files": "#9d755d",
    "saving, printing": "#b279a2",
    "idle": "#d8d8d8",
}
_MAX_BARS = 64
_LEGEND_COLUMNS = 5  # more are wider than the figure


def figure_png(profile: Profile) -> bytes | None:
    """Return the figure as a PNG; None without matplotlib.

    matplotlib's state is left alone: no backend is chosen, and no figure of pyplot is made.
    """
    if importlib.util.find_spec("matplotlib") is None:
        return None
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:  # an installation that is broken
        return None
    ranks = profile.ranks[:_MAX_BARS]
    figure = Figure(figsize=(8, 1.3 + 0.34 * len(ranks)), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    left = [0.0] * len(ranks)
    names = [f"rank {t.rank}" for t in ranks]
    for head, parts in COLUMNS:
        seconds = [part_s(t, parts) for t in ranks]
        if not any(seconds):
            continue
        axes.barh(names, seconds, left=left, color=_COLORS[head], label=head, height=0.7)
        for y, (begin, span, t) in enumerate(zip(left, seconds, ranks, strict=True)):
            if t.share(span) >= 0.08:
                text = f"{100 * t.share(span):.0f} %"
                axes.text(begin + span / 2, y, text, ha="center", va="center", fontsize=8)
        left = [begin + span for begin, span in zip(left, seconds, strict=True)]
    axes.invert_yaxis()
    axes.set_xlabel("seconds")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper left", ncols=_LEGEND_COLUMNS, frameon=False, fontsize=8)
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()
