"""Where the time of a run went, and what limits it. Pure, except for the figure."""
