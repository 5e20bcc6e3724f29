"""Ways to use a card that a version could take, side by side: layers in flight, and a stream for each of them."""

import contextlib
import hashlib
from collections.abc import Iterator
from typing import Any

from gpu_session import Session
from gpu_speed import run_timed
from loraport.engine import on_device

WORKERS = (1, 2, 4, 6)


def variants(session: Session) -> None:
    """A first and a further LoRA of 14B shapes by each way; all of them must give the same bytes."""
    cache, rank = session.work / "cache", 32
    for streams in (False, True):
        for count in WORKERS:
            name = f"{count} in flight" + (", a stream each" if streams else "")
            session.step(f"first, {name}", lambda: _first(session, name, count, streams), 25)  # noqa: B023
            rank -= 1  # so that nothing is finished yet, while the bases are there
            if cache.is_dir():
                session.step(
                    f"further, {name}",
                    lambda: _run(session, f"further, {name}", count, streams, cache=str(cache), rank=str(rank)),  # noqa: B023
                    15,
                )


def _first(session: Session, name: str, count: int, streams: bool) -> dict[str, Any]:
    found = _run(session, f"first, {name}", count, streams)
    made = hashlib.sha256((session.work / "out.safetensors").read_bytes().partition(b"}}")[2]).hexdigest()
    seen = session.figures.setdefault("bytes of variants", made)
    session.check(f"the bytes of {name} are those of the first variant", seen == made)
    return found


def _run(session: Session, name: str, count: int, streams: bool, **settings: object) -> dict[str, Any]:
    with contextlib.nullcontext() if streams else _one_stream():
        return run_timed(session, name, workers=count, **settings)


@contextlib.contextmanager
def _one_stream() -> Iterator[None]:
    """All layers share the usual stream meanwhile."""
    real = on_device.own_stream
    on_device.own_stream = contextlib.nullcontext
    try:
        yield
    finally:
        on_device.own_stream = real
