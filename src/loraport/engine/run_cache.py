"""The cache of a run: opened with a reader of its files, and which layers' decompositions go into it."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from loraport.engine import accelerators
from loraport.engine.executor import Executor
from loraport.engine.job import LayerJob
from loraport.engine.job_cost import cached_bytes
from loraport.engine.keeping import layers_to_keep, worth_keeping
from loraport.engine.options import RunOptions
from loraport.engine.overlap import room_behind
from loraport.engine.rates import rates_of
from loraport.engine.reading import InputReader
from loraport.errors import FileError
from loraport.store import index
from loraport.store.digests import DigestMemo
from loraport.store.index import cache_root
from loraport.store.store import NullStore, Store
from loraport.wording import count, size


def open_cache(
    identities: Mapping[Path, str],
    options: RunOptions,
    warn: Callable[[str], None],
    executor: Executor | None = None,
) -> tuple[Store, InputReader]:
    """The store that the options ask for, and a reader of a plan's files with the digests remembered there.

    A cache folder that cannot be used is said and done without.

    Args:
        identities: file -> its `file_identity` when the plan was made.
        options: which folder.
        warn: told what is wrong with the folder.
        executor: that does the work; entries may be written while it goes on, and `overlapped` waits for them.
    """
    slots = [] if executor is None else executor.slots()
    pinned = any(slot.device.startswith("cuda") for slot in slots)
    root = None
    if options.cache != "off":
        try:
            root = cache_root(options.cache_folder)
        except FileError as error:
            warn(f"nothing is kept for later runs: {error.what} ({error.where}: {error.values})")
    memory = accelerators.pinned if pinned else None
    store = NullStore() if root is None else Store(root, behind=room_behind(slots), memory=memory)
    store.sweep()
    return store, InputReader(DigestMemo(root, trust=not options.verify_inputs), identities, pinned=pinned)


def layers_worth_keeping(
    jobs: Sequence[LayerJob],
    options: RunOptions,
    store: Store,
    reader: InputReader,
    executor: Executor,
    warn: Callable[[str], None],
    *,
    several: bool = False,
) -> frozenset[str]:
    """The layers whose decompositions are kept: those of `worth_keeping` that the cache has room for."""
    if isinstance(store, NullStore):
        return frozenset()
    device = executor.slots()[0].device
    rates = partial(rates_of, device, store.root)
    worth = worth_keeping(jobs, options, reader, rates, device=device, several=several)
    return kept_layers(worth, store, warn)


def kept_layers(jobs: Sequence[LayerJob], store: Store, warn: Callable[[str], None]) -> frozenset[str]:
    """The layers whose decompositions the cache has room for; that it has none for the others is said."""
    room = index.room(store.root, store.max_bytes, store.reserve_bytes)
    keep = layers_to_keep(jobs, room)
    kept = sum(job.name in keep for job in jobs)  # two sources, such as the experts of Wan2.2, have layers of one name
    if kept < len(jobs) and room > 0 and not isinstance(store, NullStore):  # a finished layer says if there is none
        warn(
            f"the decompositions of all layers take {size(sum(map(cached_bytes, jobs)))} and the cache has room for "
            f"{size(room)}, so decompositions of {kept} of {count(len(jobs), 'layer')} are kept"
        )
    return keep
