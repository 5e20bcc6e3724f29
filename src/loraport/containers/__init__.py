"""From bytes to tensors: what files hold tensors, where they lie, and reading them one at a time."""
