"""What a weight in a file adds up to: its digest, by which it is known, and a quick checksum."""

import hashlib
from dataclasses import dataclass

import xxhash

from loraport.containers.stored import TensorRef


@dataclass(frozen=True)
class Sums:
    """What a tensor adds up to, made of dtype, shape and bytes, companions included.

    Args:
        digest: SHA-256 as hex, by which the tensor is known; None where it was not asked for.
        checksum: XXH3 with 128 bits as hex, seven times as fast: enough to see whether what is read is what was
            digested before. It is no name of the tensor, and whoever means to can make another one of the same sum.
    """

    digest: str | None
    checksum: str


class RunningSums:
    """Running sums of what is read.

    Args:
        digest: whether the digest is wanted beside the checksum.
    """

    def __init__(self, digest: bool) -> None:
        self._digest = hashlib.sha256() if digest else None
        self._checksum = xxhash.xxh3_128()

    def update(self, data: bytes | memoryview) -> None:
        """More of the tensor."""
        self._checksum.update(data)
        if self._digest is not None:
            self._digest.update(data)

    def sums(self, ref: TensorRef, companions: dict[str, Sums]) -> Sums:
        """Of all that was read, and of the companions by their role."""
        if self._digest is None:
            digest = None
        else:
            digest = joined(
                ref, self._digest.hexdigest(), {role: str(sums.digest) for role, sums in companions.items()}
            )
        checksums = {role: sums.checksum for role, sums in companions.items()}
        return Sums(digest, joined(ref, self._checksum.hexdigest(), checksums))


def joined(ref: TensorRef, own: str, companions: dict[str, str]) -> str:
    """The sum of a weight: that of its stored numbers where they are all there is, else one over all parts.

    Args:
        ref: the weight.
        own: sum of its stored numbers.
        companions: of its companions, by role.
    """
    if ref.codec == "raw":
        return own
    lines = [ref.codec, own, *(f"{role} {text}" for role, text in companions.items())]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
