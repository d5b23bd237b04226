"""What travels between processes: messages, values, and the connections that carry them."""
