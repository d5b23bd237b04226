"""Tools of the operating system: processes, environment, files, installed libraries."""
