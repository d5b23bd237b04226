"""What a user sees: outputs, tables, verdicts. No module here starts or ends a process."""
