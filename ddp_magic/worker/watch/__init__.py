"""What a rank reports of itself while a cell runs: where it is, its collectives, its profile."""
