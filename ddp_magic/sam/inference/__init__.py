"""Masks of prompted objects, and of all objects of an image."""
