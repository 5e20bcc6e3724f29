"""Decompositions that machines without the files offer, fetched home while they go on computing.

On processors what is kept of a layer takes some 80 seconds a GB to make, and a network brings it in one to ten. So it
is worth fetching unless so many processors work that it comes faster than the network and the disk here take it; then
some is let go, and nobody waits.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

from loraport.engine.cluster.task import Offer
from loraport.store.store import Store
from loraport.store.writing import Behind

_SECONDS = 60.0  # until when an entry is there


def fetch_home(ray: Any, offers: Sequence[Offer], store: Store, behind: Behind) -> None:
    """Have entries fetched into a store, or let them go where too many wait.

    Args:
        ray: the module.
        offers: the entries.
        store: where they are kept.
        behind: fetches them; its room is for what waits elsewhere.
    """
    for offer in offers:
        behind.put(offer, offer.bytes, partial(_fetch, ray, offer, store), patient=False)


def _fetch(ray: Any, offer: Offer, store: Store) -> None:
    try:
        kept = ray.get(offer.kept, timeout=_SECONDS)
        store.put(kept.kind, kept.key, kept.tensors, kept.meta)
    except ray.exceptions.RayError:
        pass  # it is gone with its machine, and made again when it is needed
