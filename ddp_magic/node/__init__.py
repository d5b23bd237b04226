"""What runs on each node beside the ranks: the forkserver and the agents.

When the kernel dies, each process ends by itself: `agent` kills its ranks, each rank kills itself
(`worker.listener`), `forkserver` ends; with `--cold`, `torchrun` ends too.
"""
