"""Why a run failed, waits or hangs: from what is known of its ranks to sentences. Pure.

verdict                         how a run ended: its state, its error
first_failure, fates            which rank is to blame; what became of the others
name_hints, restarts            a missing name; why ranks were restarted
hangs, groups                   who waits for whom, by what torch has recorded of each group
unrecorded, creations           waits that it does not record: sends, receives, new groups
memberships, exchanges          groups of other members; sends that do not fit their receives
checks, differences             `--check`: the first collective on which ranks differ
exits                           ranks that have finished their cell, and do not end
operations, words               collectives and ranks in words
stack_dumps                     stacks as faulthandler has written them
"""
