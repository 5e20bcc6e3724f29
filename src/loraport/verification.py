"""Is a written LoRA what its header says, and will it load? Reads every number once."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loraport.errors import LoraportError
from loraport.formats.adapter import LoraAdapter, open_adapter
from loraport.formats.header import read_json


@dataclass(frozen=True)
class Check:
    """One thing that was looked at. `ok` is None when it could not be looked at here, which is no failure."""

    name: str
    ok: bool | None
    detail: str


@dataclass(frozen=True)
class Verification:
    """What was looked at in a file, in order."""

    path: Path
    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing failed."""
        return all(check.ok is not False for check in self.checks)

    def to_json(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        checks = [{"name": check.name, "ok": check.ok, "detail": check.detail} for check in self.checks]
        return {"path": str(self.path), "ok": self.ok, "checks": checks}


def verify(path: Path | str, *, load: bool = True) -> Verification:
    """Check a LoRA file: readable, every key known, every number finite, header true, loads in diffusers.

    Args:
        load: also hand the file to the LoRA loader of diffusers, if that is installed.

    Returns:
        All checks; what fails is in there, and is not raised.

    Raises:
        FileError: missing or damaged, so that there is nothing to check.
        MismatchError, UnsupportedError: no LoRA of a known kind, or keys that no loader knows.
    """
    adapter = open_adapter(path)
    checks = [
        Check(
            "every key is known",
            True,
            f"{len(adapter.keys)} keys, {len(adapter.layers)} layers, {adapter.dialect.title}",
        ),
        _guarded("every number is finite", lambda: _finite(adapter)),
        _guarded("one rank, as the header says", lambda: _rank(adapter)),
        _guarded("the header is true", lambda: _header(adapter)),
    ]
    if load:
        checks.append(_guarded("diffusers loads it", lambda: _loads(adapter)))
    return Verification(adapter.path, tuple(checks))


def _guarded(name: str, look: Callable[[], tuple[bool | None, str]]) -> Check:
    try:
        return Check(name, *look())
    except LoraportError as error:
        return Check(name, False, f"{error.what} ({error.values})" if error.values else error.what)


def _finite(adapter: LoraAdapter) -> tuple[bool | None, str]:
    empty = []
    for name, layer in adapter.layers.items():
        update = layer.load()  # raises NumericalError by name
        if update.norm() == 0.0:
            empty.append(name)
    for item in adapter.carried:
        item.load()
    zero = f", {len(empty)} of them zero ({empty[0]} for one)" if empty else ""
    return True, f"{len(adapter.layers)} updates{zero}"


def _rank(adapter: LoraAdapter) -> tuple[bool | None, str]:
    ranks = sorted({layer.rank for layer in adapter.layers.values() if layer.kind == "lora"})
    if not ranks:
        return None, "no factors in the file"
    stated = adapter.metadata.get("ss_network_dim")
    if len(ranks) > 1:
        return None, f"ranks from {ranks[0]} to {ranks[-1]}; some loaders take one rank for all layers"
    if stated not in (None, str(ranks[0])):
        return False, f"the header says {stated}, the factors have {ranks[0]}"
    return True, f"rank {ranks[0]}"


def _header(adapter: LoraAdapter) -> tuple[bool | None, str]:
    summary = read_json(adapter.metadata, "loraport.summary")
    if "loraport.version" not in adapter.metadata:
        return None, "not written by loraport, so there is nothing to compare with"
    if not isinstance(summary, dict) or not isinstance(read_json(adapter.metadata, "loraport.recipe"), dict):
        return False, "the header names loraport, but its recipe or summary cannot be read"
    layers = summary.get("layers")
    if layers is not None and layers != len(adapter.layers):
        return False, f"the header says {layers} layers, the file has {len(adapter.layers)}"
    return True, f"{adapter.metadata.get('loraport.method', '?')}, loraport {adapter.metadata['loraport.version']}"


def _loads(adapter: LoraAdapter) -> tuple[bool | None, str]:
    """Whether the loader of diffusers finds a pair of factors for every layer, and nothing it does not know."""
    try:
        from diffusers.loaders import WanLoraLoaderMixin
    except ImportError:
        return None, "diffusers is not installed"
    if adapter.architecture.family.name != "wan":
        return None, f"diffusers has no loader for {adapter.architecture.title}"
    try:
        found = WanLoraLoaderMixin.lora_state_dict(str(adapter.path))
    except (ValueError, KeyError, RuntimeError) as error:
        return False, f"{type(error).__name__}: {error}"
    pairs = sum(key.endswith(".lora_A.weight") for key in found)
    wanted = sum(layer.kind == "lora" for layer in adapter.layers.values())
    if pairs != wanted:
        return False, f"diffusers finds {pairs} layers, the file has {wanted}"
    return True, f"{pairs} layers"
