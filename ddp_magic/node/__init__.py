"""What runs on each node beside the ranks: the forkserver and the agents.

forkserver, preloader, imports, trial   imports libraries, and forks
become_agent, agent, elastic, ranks     from its fork to an agent; torch's agent; its ranks
torchrun                                in place of these, with `--cold`
far_relay                               one of several nodes: stands there for the kernel
node_connections, kernel_stream         what it carries, from agent and ranks to the kernel and back
node_directory, file_sender             the run's files there
agent_child, node_agent, rendezvous     its agent, held and running; where nodes meet (`address`)

When the kernel dies, even by SIGKILL, each process ends by itself: `agent` kills its ranks, each
rank kills its process group (`worker.listener`), `forkserver` ends; with `--cold`, `torchrun` ends
too; on a cluster `srun` and the driver of Ray (`engines.slurm_options`, `engines.ray_driver`).
"""
