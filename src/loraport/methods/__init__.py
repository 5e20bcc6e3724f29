"""Transfer methods, one file each: from the tensors of one layer to its new update. Pure functions."""

DEFAULT = "casa"
"""The method of a transfer that names none."""
