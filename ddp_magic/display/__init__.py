"""What a person sees: outputs, tables, verdicts. Imports no process."""
