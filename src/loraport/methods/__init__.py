"""Transfer methods, one file each: from the tensors of one layer to its new update. Pure functions."""

DEFAULT = "matched-gain"
"""The method of a transfer that names none; which one it is follows docs/evidence.md."""
