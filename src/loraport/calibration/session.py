"""A model's turn: loaded when it is first asked, let go of at the end; what it said before is in the cache."""

import hashlib
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from loraport.containers.names import named_path
from loraport.containers.tensors import digest_tensor, file_identity
from loraport.sampling.attach import Update
from loraport.sampling.denoiser import Runnable
from loraport.sampling.runner import ModelRunner
from loraport.store.index import entry_key
from loraport.store.store import Store

KIND = "measurement"
VERSION = 2
"""Raised whenever the same question would get another answer than before."""


class Session:
    """One of the two models, of which only one is ever in memory. Use it as a context manager.

    Args:
        model: what is asked.
        batch: clips a pass.
        store: where answers are kept and looked up.

    Attributes:
        passes: forward passes of one clip behind the answers, whoever made them.
        seconds: spent now, loading included.
        found: questions that were answered by the cache.
    """

    def __init__(self, model: Runnable, batch: int, store: Store):
        self.model = model
        self.passes, self.seconds = 0, 0.0
        self.found: list[str] = []
        self._batch, self._store = batch, store
        self._runner: ModelRunner | None = None
        self._said: dict[str, Tensor] = {}
        self._identity = {
            "version": VERSION,
            "torch": torch.__version__,
            "model": [weights_of(model), list(model.latents), repr(model.schedule)],
            "batch": batch,
        }

    def __enter__(self) -> "Session":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._runner = None

    def ask(self, what: str, facts: Mapping[str, Any], make: Callable[[ModelRunner], Tensor]) -> Tensor:
        """The answer of an earlier run to the same question, or the model's now.

        Args:
            what: the question.
            facts: everything besides the model that decides the answer, as plain values.
            make: asks the model.
        """
        key = entry_key({"what": what, **self._identity, **facts})
        if key in self._said:
            return self._said[key]
        kept = self._store.get(KIND, key)
        if kept is not None and "value" in kept:
            self.found.append(what)
            self.passes += int(kept.meta.get("passes", "0"))
            self._said[key] = kept["value"]
            return kept["value"]
        began = time.perf_counter()
        if self._runner is None:
            self._runner = ModelRunner.open(self.model, self._batch)
        before = self._runner.passes
        with self._runner.threads():
            value = make(self._runner)
        passes = self._runner.passes - before
        self._store.put(KIND, key, {"value": value}, {"passes": str(passes)})
        self._said[key] = value
        self.passes += passes
        self.seconds += time.perf_counter() - began
        return value


def weights_of(model: Runnable) -> str:
    """What changes when the weights of a model change: its own word, or name, size and time of its files."""
    if model.identity is not None:
        return model.identity()
    places = [named_path(place) for place in (model.checkpoint, *(each.file for each in model.added)) if place]
    files = [file for place in places for file in (sorted(place.rglob("*")) if place.is_dir() else [place])]
    lines = [file_identity(file) for file in files if file.suffix in (".safetensors", ".bin", ".pt", ".pth", ".json")]
    return "\n".join([model.name, *lines, *(repr(each) for each in model.added)])


def digest_of(update: Update) -> str:
    """What an update is, by its numbers."""
    made = hashlib.sha256()
    for name, term in sorted(update.items()):
        made.update(f"{name} {digest_tensor(term.B.contiguous())} {digest_tensor(term.A.contiguous())}\n".encode())
    return made.hexdigest()
