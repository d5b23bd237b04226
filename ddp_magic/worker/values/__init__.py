"""Values in a rank: the notebook's, the cell's, and those that are sent back."""
