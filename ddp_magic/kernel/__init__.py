"""The notebook's process: magics, runs, sessions, worker groups. Imports no torch.

The rooms (first what starts a run, last what it stands on):

    notebook, api, cli              what a user types: in a cell, in Python, in a terminal
    controller                      what outlives a cell: runs, sessions, the forkserver
    resolve                         from what is asked for to what a run is given
    execution                       one run of a cell: its event loop, its end, its explanation
    session                         ranks that are kept for further cells
    background                      runs that a host process serves
    runs, past_runs                 the runs of this kernel, and of others
    control                         what is asked of them: by magics, terminals, other notebooks
    script                          a cell as a script for plain torchrun, instead of a run
    several_nodes                   options of a run on a cluster
    interrupts                      Stop, as this process receives it
    cell                            from the text of a cell to a file with the notebook's lines
    watch                           hangs, collectives that differ, stacks, profiles
    worker_group                    the agent and its ranks: connections, commands, events
    values                          the notebook's values, to the ranks and back
    options                         the options of the magics
    machine                         GPUs, and what this machine can hold
"""
