"""What a layer costs, by the kinds of work that a machine does at different speeds."""

from dataclasses import dataclass

_FLOAT32 = 4


@dataclass(frozen=True)
class Cost:
    """Work on one layer. Dividing by a machine's rates gives seconds; see `engine.estimate`.

    Args:
        products: floating-point operations of matrix products.
        decompositions: those of symmetric eigenproblems, 9 n^3 each (tridiagonal form, its solution, and back).
        passes: bytes that are read or written by operations element by element over matrices of the layer's size.
    """

    products: float = 0.0
    decompositions: float = 0.0
    passes: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            self.products + other.products, self.decompositions + other.decompositions, self.passes + other.passes
        )

    def times(self, count: int | float) -> "Cost":
        """The same work so many times."""
        return Cost(self.products * count, self.decompositions * count, self.passes * count)


def product(m: int, k: int, n: int, times: int | float = 1) -> Cost:
    """An m x k matrix times a k x n one, so many times."""
    return Cost(products=2.0 * m * k * n * times)


def elementwise(m: int, n: int, times: int | float) -> Cost:
    """So many matrices of this size, read or written once."""
    return Cost(passes=float(_FLOAT32 * m * n * times))


def factors(m: int, n: int, rank: int) -> Cost:
    """Singular value decomposition of a product of two factors: two QR decompositions in float64 and a small core.

    Thin QR in float64 runs at a tenth of the speed of large products, hence 90 and not 8 operations an entry.
    """
    return Cost(products=90.0 * (m + n) * rank**2)


def thin_basis(m: int, n: int) -> Cost:
    """`core.thin_svd`: the Gram matrix, its eigenvectors, the product with them, and the repair of the tail."""
    p, longer = min(m, n), max(m, n)
    return (
        product(p, longer, p, 5 / 8)
        + product(longer, p, p, 1.5)
        + Cost(decompositions=1.15 * 9.0 * p**3)
        + elementwise(m, n, 8)
    )


def truncation(m: int, n: int, rank: int, steps: int = 10) -> Cost:
    """`core.truncation` for a full matrix whose rank-`rank` part is sought in a block Krylov space.

    A step multiplies a block by the matrix and its transpose, takes out what the space has already (half of it on
    average, twice), and makes the block orthonormal (twice, at a tenth of the speed of products).
    """
    p, block = min(m, n), max(48, rank + 8)
    each = product(m, n, block, 2) + product(p, steps * block // 2, block, 4) + product(p, block, block, 20)
    return each.times(steps) + product(m, n, rank + 8)


def matrix_bytes(m: int, n: int, count: int | float = 1) -> int:
    """Bytes of so many float32 matrices of this size."""
    return int(_FLOAT32 * m * n * count)


def basis_bytes(m: int, n: int) -> int:
    """Bytes of U, S and Vh of a thin decomposition."""
    p = min(m, n)
    return _FLOAT32 * p * (m + n + 1)
