"""The options of the magics: declared once, read, checked, explained."""
