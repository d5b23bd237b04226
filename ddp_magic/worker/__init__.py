"""One rank: a process that runs cells."""
