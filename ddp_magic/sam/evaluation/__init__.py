"""Scores of held-out objects, and figures of them."""
