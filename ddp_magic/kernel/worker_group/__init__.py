"""An agent and its ranks, as the kernel sees them: commands in, events out.

group                           the whole: what a run or a session holds
agents, outbox                  commands: to the agents, to the ranks
supervisor, placement           what it does by itself; nodes that are given and lost
between_cells                   what a session's ranks say while no cell runs
connections                     events: who has connected, and what that may say (`admission`)
open_ends                       what is read, and in which order
strangers, complaints           who has not said who it is; what is said of nonsense
agent_connections, members      who has: agents; ranks, each a `member` with its text and log
attempts, patience              which attempt of the ranks this is; how long to wait for an end
"""
