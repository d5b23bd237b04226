"""The data set, and the way from its items to batches."""
