"""Which process owns a thing, how it hears signals, and that it ends with its parent."""
