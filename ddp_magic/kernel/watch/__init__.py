"""What the kernel watches in a run: hangs, collectives that differ, stacks, profiles."""
