"""The text of the ranks: lines, progress bars, one order for all. Mostly pure.

text_output                     from events to the outputs of a cell: what is written, when
written_lines                   the lines on the screen, the last of which may be unfinished
rank_text, rank_lines           what has come from one rank
lines, rows, controls           as a terminal shows it: finished lines, and bars that still change
bar_text                        a bar in the table (`display.table` shows it)
fold                            equal lines of all ranks as one
throttle, page, log_text        how much is shown live; a page that is replaced; from the log
"""
