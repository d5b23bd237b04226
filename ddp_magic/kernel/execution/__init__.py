"""One run of a cell on a worker group.

run                         what it is made of, and what became of it
event_loop                  what the ranks say and are told, from their start to their end
run_options                 what the run was asked for
cell_sender                 what the ranks are sent: environment, values, the cell
run_code, call              the files of its code; a call of a function as a cell
questions                   `input()` and the debugger of a rank
stop                        from a press of Stop to the end of the ranks
case                        what is known at the end, for the verdict
run_values                  what it brings back
renewal                     the process group of a session, for its next cell
"""
