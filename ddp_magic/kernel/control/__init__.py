"""What is asked of the runs of a kernel: status, stacks, stop.

asked    what the line magics ask: also of runs that hosts serve
server   the socket on which a terminal, or another notebook, asks this kernel or host
answers  its answers
"""
