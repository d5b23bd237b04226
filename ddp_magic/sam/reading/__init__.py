"""From files, and arrays that are not in memory, to images and masks."""
