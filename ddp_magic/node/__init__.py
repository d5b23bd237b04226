"""What runs on each node beside the ranks: the forkserver and the agents."""
