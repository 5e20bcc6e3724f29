"""The bases of one layer, held while recipes of several methods, settings and targets are worked on there.

The cache would give them back from the disk, if there is one and if they were worth keeping; decomposing a weight
anew for each recipe of a sweep would cost more than all the rest.
"""

from collections.abc import Mapping

from torch import Tensor

from loraport.store.entry import Entry
from loraport.store.store import Store, StoreProblem

_BASIS, _RESULT = "basis", "result"


class HeldBases(Store):
    """A store with a memory for bases, on the host.

    Args:
        store: asked for what is not held.
        keeps: whether bases and what methods prepare are given to it; finished layers are in any case.
    """

    def __init__(self, store: Store, *, keeps: bool):
        super().__init__(store.root, store.max_bytes)
        self._store, self._keeps = store, keeps
        self._held: dict[str, Entry] = {}

    def get(self, kind: str, key: str, expect: Mapping[str, tuple[int, ...]] | None = None) -> Entry | None:
        """As `Store.get`."""
        if kind == _BASIS and key in self._held:
            return self._held[key]
        found = self._store.get(kind, key, expect)
        if kind == _BASIS and found is not None:
            self._held[key] = found
        return found

    def put(self, kind: str, key: str, tensors: Mapping[str, Tensor], meta: Mapping[str, str] | None = None) -> bool:
        """As `Store.put`; a basis is held whether or not it was kept."""
        if kind == _BASIS:
            self._held[key] = Entry(tensors, meta or {})
        if kind != _RESULT and not self._keeps:
            return False
        return self._store.put(kind, key, tensors, meta)

    def take_problems(self) -> list[StoreProblem]:
        """Those of the store."""
        return self._store.take_problems()
