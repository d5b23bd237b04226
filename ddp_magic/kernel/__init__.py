"""The notebook's process: magics, runs, sessions, worker groups. Imports no torch."""
