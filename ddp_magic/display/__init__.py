"""What a user sees: outputs, tables, verdicts. No module here starts or ends a process.

record, rank                    what is known of a run and of its ranks, updated by events
screen                          from events to the outputs of a cell
outputs, shown, terminal        the outputs themselves: a notebook's, a terminal's
table, table_place, status      the table of a run, where it stands, `%ddp_status`
run_words, rank_names, grid     a run and its ranks in a few words; text in columns
rank_displays, display_places   figures and other rich output of the ranks
labels, places                  `[rank 2]`; `Cell In[3], line 6`
question_box                    where a person answers a rank
journal                         what was shown, on disk, and shown again
text                            lines, progress bars, one order for all ranks
diagnosis                       how a run ended, why ranks wait
profiles                        where the time went
"""
