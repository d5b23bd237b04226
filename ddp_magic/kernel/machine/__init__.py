"""What this machine has: GPUs, idle or busy, and its limits."""
