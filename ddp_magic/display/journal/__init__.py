"""What was shown, on disk, and shown again.

journal         writes it as it comes
past_run        a run that only its journal remembers
replay, follow  show a run again; show one that goes on in the background
kept_errors     the error of a background run
"""
