"""Which layer is what: families as data, spellings of their names, and checkpoints opened by header."""
