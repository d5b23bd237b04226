"""An agent and its ranks, as the kernel sees them: connections; commands in, events out."""
