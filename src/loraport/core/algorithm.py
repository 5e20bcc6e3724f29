"""Which numbers the decompositions return."""

ALGORITHM = "thin-svd-3"
"""Part of the cache key of a basis: raised whenever `thin_svd` would return other numbers than before."""
