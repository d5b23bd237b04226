"""The training loop, and what only it needs."""
