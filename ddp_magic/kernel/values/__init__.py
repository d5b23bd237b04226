"""The notebook's values on their way to the ranks, and back."""
