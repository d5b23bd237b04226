"""One rank: a process that runs cells.

worker, listener, reports       the order of its life; what it receives; what it reports
shell, cell_compiler            runs a cell; the names of cells in tracebacks
child_main, inheritance, definitions   the main module of its `multiprocessing` children
process_group, device           what a cell finds ready
fresh_state, user_modules       seeds and thread pools after the fork; modules that were edited
interrupts, error_report, exit  Stop, errors, the end
console                         what it writes, shows and reads
values                          the notebook's values in it, and those that are sent back
watch                           what it tells of itself while a cell runs
"""
