"""A Ray cluster as the executor `ray` sees it: its machines, a layer as a task there, and what is sent to it."""
