"""`--write`: a cell as a script for plain `torchrun`.

    write          the script and the file beside it, from the cell and what it reads
    text           the script, from top to bottom
    travel         how each name of the notebook gets there: import, literal, source or pickle
    imports        where a value is imported from; names that do not collide
    literals       plain values as text
    sources        functions and classes of the notebook as text
    unchanged      whether that text still says what they are
    values_file    all else, in one pickle
    provided       the lines that do what `%%ddp` does: rank, device, process group, seed
    body           the cell's own text
    command        what runs the script

Nothing of this is imported before an option asks for it.
"""
