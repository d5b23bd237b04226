"""What a user types in a notebook: the magics, TAB, `%pdb`."""
