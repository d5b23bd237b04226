"""The text of the ranks: lines, progress bars, one order for all. Mostly pure."""
