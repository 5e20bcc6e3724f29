"""Decompositions that machines without the files offer, fetched home while they go on computing.

On processors what is kept of a layer takes some 80 seconds a GB to make, and a network brings it in one to ten. So it
is worth fetching unless so many processors work that it comes faster than the network and the disk here take it; then
some is let go, and nobody waits.
"""

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from loraport.engine.cluster.task import Offer
from loraport.store.store import Store

_SECONDS = 60.0  # until when an entry is there


class Fetching:
    """Fetches entries, one after the other, and puts them into the store.

    Args:
        ray: the module.
        store: where they are kept.
        room: bytes that may wait elsewhere to be fetched; one may be larger.
    """

    def __init__(self, ray: Any, store: Store, room: int):
        self._ray, self._store, self._room = ray, store, room
        self._waiting = 0
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(1, "loraport-fetching")

    def take(self, offers: Sequence[Offer]) -> None:
        """Have entries fetched, or let them go where too many wait."""
        for offer in offers:
            with self._lock:
                if self._waiting and self._waiting + offer.bytes > self._room:
                    continue
                self._waiting += offer.bytes
            self._pool.submit(self._fetch, offer)

    def finish(self) -> None:
        """Return when all that waits is there."""
        self._pool.shutdown()

    def stop(self, *, wait: bool) -> None:
        """Let go of what waits.

        Args:
            wait: for the one that is on its way.
        """
        self._pool.shutdown(wait=wait, cancel_futures=True)

    def _fetch(self, offer: Offer) -> None:
        try:
            kept = self._ray.get(offer.kept, timeout=_SECONDS)
            self._store.put(kept.kind, kept.key, kept.tensors, kept.meta)
        except self._ray.exceptions.RayError:
            pass  # it is gone with its machine, and made again when it is needed
        finally:
            with self._lock:
                self._waiting -= offer.bytes
