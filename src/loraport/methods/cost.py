"""What a layer costs, by the kinds of work that a machine does at different speeds; as formulas in docs/cost.md."""

from collections.abc import Iterable
from dataclasses import dataclass

_FLOAT32 = 4
SLOWER = 5.0
"""So many times as long as an operation of a large product takes one of a thin factorisation; measured on a CPU."""
_DENSE, _SPACE = 1 / 4, 2 / 3  # as in core.truncation: shares of the shorter side beyond which it decomposes exactly,
_BY_GRAM, _SQUARE, _RECTANGULAR, _EXACT = 512, 1 / 8, 1 / 16, 1 / 2  # or goes by the Gram matrix
_SMALL = 256  # as in core.lowrank


@dataclass(frozen=True)
class Cost:
    """Work on one layer. Dividing by a machine's rates gives seconds; see `engine.layer_work`.

    Args:
        products: floating-point operations of float32 matrix products.
        decompositions: those of symmetric eigenproblems, 9 n^3 each (tridiagonal form, its solution, and back); in
            float64 they count twice.
        columns: of these matrices, if they are of a layer's size: an accelerator takes some time for each, however long
            it is.
        passes: bytes that are read or written by operations element by element over matrices of the layer's size, and
            of matrices that are multiplied with a few columns, which takes as long as reading them.
        factorisations: operations of thin QR decompositions and their like; in float64 they count twice.
    """

    products: float = 0.0
    decompositions: float = 0.0
    passes: float = 0.0
    factorisations: float = 0.0
    columns: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            self.products + other.products,
            self.decompositions + other.decompositions,
            self.passes + other.passes,
            self.factorisations + other.factorisations,
            self.columns + other.columns,
        )

    def times(self, count: int | float) -> "Cost":
        """The same work so many times."""
        return Cost(
            self.products * count,
            self.decompositions * count,
            self.passes * count,
            self.factorisations * count,
            self.columns * count,
        )

    @property
    def weight(self) -> float:
        """One number for a progress bar: about how long it takes, in no unit."""
        return self.products + self.decompositions + self.passes + SLOWER * self.factorisations


def total(costs: Iterable[Cost]) -> Cost:
    """All of them together."""
    return sum(costs, Cost())


def product(m: int, k: int, n: int, times: int | float = 1) -> Cost:
    """An m x k matrix times a k x n one, so many times."""
    return Cost(products=2.0 * m * k * n * times)


def thin_product(m: int, n: int, columns: int, times: int | float = 1) -> Cost:
    """An m x n matrix times a few columns, so many times."""
    return product(m, n, columns, times) + elementwise(m, n, times)


def elementwise(m: int, n: int, times: int | float) -> Cost:
    """So many matrices of this size, read or written once."""
    return Cost(passes=float(_FLOAT32 * m * n * times))


def thin_qr(m: int, n: int, times: int | float = 1) -> Cost:
    """Q and R of an m x n matrix, n columns, so many times: 2 m n^2 for each of the two."""
    return Cost(factorisations=4.0 * m * n**2 * times)


def eigenproblem(n: int, times: int | float = 1) -> Cost:
    """Eigenvectors of a symmetric n x n matrix, so many times."""
    return Cost(decompositions=9.0 * n**3 * times, columns=float(n * times))


def factors(m: int, n: int, rank: int) -> Cost:
    """Singular value decomposition of a product of two factors: two QR decompositions in float64 and a small core; or
    of the product itself, where the rank is high."""
    if rank > _SMALL and 2 * rank * (m + n) > m * n:
        return product(m, rank, n) + thin_basis(m, n)
    return thin_qr(m + n, rank, 2) + product(m + n, rank, rank, 2)


def thin_basis_steps(m: int, n: int) -> dict[str, Cost]:
    """`core.thin_svd`, step by step. The tail is a quarter of the columns or less in weights that were trained."""
    p, longer = min(m, n), max(m, n)
    return {
        "Gram product": product(p, longer, p, 5 / 8),
        "eigenproblem": eigenproblem(p, 1.02),
        "back product": product(longer, p, p),
        "repair of the tail": product(longer, p, p, 0.5)
        + elementwise(m, n, 13)
        + Cost(factorisations=0.25 * longer * p**2),
    }


def thin_basis(m: int, n: int) -> Cost:
    """`core.thin_svd`: the Gram matrix, its eigenvectors, the product with them, and the repair of the tail."""
    return total(thin_basis_steps(m, n).values())


def truncation(m: int, n: int, rank: int, steps: int = 10, products: int = 2) -> Cost:
    """`core.truncation` for a full matrix whose rank-`rank` part is sought in a block Krylov space.

    A step multiplies a block by the matrix and its transpose, takes out what the space has already (half of it on
    average, twice), makes the block orthonormal (twice), and looks at the energies in the space, which is a small
    eigenproblem. Where the space would soon grow too large, eigenvectors of the Gram matrix take its place, or an exact
    decomposition.

    Args:
        m: rows of the matrix.
        n: its columns.
        rank: that is sought.
        steps: as the spectrum of the matrix asks for; 8 where an update leans on the head, 20 and more on a flat one.
        products: of the matrix's size in a step.
    """
    p, block = min(m, n), rank + 8
    by_gram = p >= _BY_GRAM and rank <= _EXACT * p
    most = _DENSE if not by_gram else _SQUARE if m == n and products == 2 else _RECTANGULAR
    fitting = 0 if rank > most * p else int(_SPACE * p) // block
    if fitting < steps / 2 and by_gram:
        inside = product(m + n, block, block) + Cost(decompositions=2 * 9.0 * block**3)
        return product(p, max(m, n), p, 5 / 8) + eigenproblem(p) + thin_product(m, n, block) + inside
    if fitting < steps / 2:
        return thin_basis(m, n)
    steps = min(steps, fitting)
    each = thin_product(m, n, block, products) + thin_product(p, steps * block // 2, block, 4) + thin_qr(p, block, 2)
    looks = Cost(decompositions=9.0 * block**3 * (steps**2 * (steps + 1) ** 2 / 4 + steps**3))
    return each.times(steps) + looks + thin_product(m, n, block)


def matrix_bytes(m: int, n: int, count: int | float = 1) -> int:
    """Bytes of so many float32 matrices of this size."""
    return int(_FLOAT32 * m * n * count)


def basis_bytes(m: int, n: int) -> int:
    """Bytes of U, S and Vh of a thin decomposition."""
    p = min(m, n)
    return _FLOAT32 * p * (m + n + 1)
