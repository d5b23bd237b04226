"""What a rank writes, shows and reads: text, displays, bars, questions, the debugger."""
