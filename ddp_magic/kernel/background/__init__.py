"""Runs that a host process serves: `--bg` and `--detach`."""
