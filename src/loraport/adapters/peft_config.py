"""Rank and alpha of a LoRA as its header, or PEFT's configuration in the header or beside the file, states them."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loraport.adapters.header import HEADER_NUMBERS, LORA_CONFIG, MAX_JSON
from loraport.adapters.pattern import Patterns
from loraport.adapters.scale import FROM_CONFIG, FROM_HEADER, FROM_METADATA, STATE_IT, scale_of
from loraport.containers.access import kind_of
from loraport.errors import FileError, MismatchError, NumericalError, UnsupportedError
from loraport.files import read_text

PEFT_PREFIX = "base_model.model."  # of every key that PEFT saves itself
PEFT_FILE = "adapter_model"  # as PEFT calls the file, without its ending
CONFIG_FILE = "adapter_config.json"  # beside it
_NOT_ITS_OWN = (
    "if the configuration belongs to another LoRA, move it out of the folder; otherwise convert the LoRA with "
    "PEFT first"
)
# What PEFT calls alpha; the last kinds have none.
_ALPHA = {"LORA": "lora_alpha", "LOKR": "alpha", "LOHA": "alpha", "OFT": "", "BOFT": "", "IA3": "", "VERA": ""}
LONGEST_SERIES = 64  # terms of OFT's series; PEFT's own number is 5
# Switches of PEFT that make B @ A something else than the update.
_OTHER_KINDS = {"use_qalora": "QA-LoRA", "use_bdlora": "BD-LoRA", "kasa_config": "KaSA"}
# Initialisations that move a part of the base weight into the factors: B @ A is then not the update.
_REBASED = ("pissa", "olora", "corda", "loftq", "lora_ga")


@dataclass(frozen=True)
class AdapterConfig:
    """Rank and alpha as PEFT states them, for all layers and by pattern.

    Args:
        source: where it stands, for people.
        kind: "LORA", "LOKR", "LOHA", "OFT", "BOFT", "IA3" or "VERA".
        rank: of all layers that no pattern matches.
        alpha: the same.
        rslora: divide by the root of the rank.
        rank_pattern: pattern of module paths -> rank.
        alpha_pattern: the same for alpha.
        targets: patterns of the modules that were trained, as far as it names them.
        dora: the factors go with magnitudes.
        settings: of kinds that need more: OFT's "neumann" (terms of the series; 0 for the inverse itself) and "coft"
            (bound of the norm; 0 for none).
        biases: biases were trained, and are saved whole.
        saved: names of modules that are saved whole.
    """

    source: str
    kind: str = "LORA"
    rank: float | None = None
    alpha: float | None = None
    rslora: bool = False
    rank_pattern: Patterns = field(default_factory=lambda: Patterns({}, ""))
    alpha_pattern: Patterns = field(default_factory=lambda: Patterns({}, ""))
    targets: Patterns | None = None
    dora: bool = False
    settings: Mapping[str, float] = field(default_factory=dict)
    biases: bool = False
    saved: tuple[str, ...] = ()

    def scale(self, modules: Sequence[str], rank: int | None, where: str) -> float | None:
        """Scale of a module; None if this says nothing of it.

        Args:
            modules: its path inside the model that PEFT wrapped; several where the file leaves that open.
            rank: of its factors; None for a LoKr of two whole matrices, which PEFT scales by the rank it states.
            where: the file, for messages.

        Raises:
            MismatchError: the stated rank is not the rank of the factors, so the scale cannot be trusted.
            UnsupportedError: a pattern that cannot be evaluated.
        """
        alpha = _first(self.alpha_pattern.find(modules), self.alpha)
        stated = self.stated_rank(modules)
        if rank is None and self.kind == "LOKR" and stated is not None:
            return scale_of(alpha or 0.0, stated, where=f"{self.source} of {where}")
        if alpha is None or rank is None:
            return None
        if alpha == 0:  # with kohya this means the rank; PEFT multiplies by it
            raise NumericalError(
                "with an alpha of 0, PEFT applies nothing of the layer",
                where=f"{modules[0]}, by {self.source} of {where}",
                fix=STATE_IT,
            )
        if stated is not None and stated != rank:
            raise MismatchError(
                "the stated rank is not the rank of the factors, so the scale cannot be determined",
                where=f"{modules[0]} in {where}",
                values=f"rank {stated:g} in {self.place}, rank {rank} found",
                fix=STATE_IT
                + (", or use the file with its own adapter_config.json" if self.source == FROM_CONFIG else ""),
            )
        return scale_of(alpha, rank, rslora=self.rslora, where=f"{self.source} of {where}")

    @property
    def place(self) -> str:
        """Where its numbers stand."""
        return "the header" if self.source == FROM_HEADER else self.source

    def stated_rank(self, modules: Sequence[str]) -> float | None:
        """The rank that a module should have."""
        return _first(self.rank_pattern.find(modules), self.rank)


def read_config(path: Path, metadata: Mapping[str, str], prefix: str) -> AdapterConfig | None:
    """What says rank and alpha of a LoRA file: its header (PEFT's configuration, or two numbers), else PEFT's
    adapter_config.json beside it.

    Args:
        path: the file.
        metadata: its header.
        prefix: the dialect's prefix; diffusers writes it before the fields ("transformer.r").

    Raises:
        FileError: it is there and cannot be read.
        UnsupportedError: it describes an adapter that is no plain LoRA.
    """
    if LORA_CONFIG in metadata:
        fields = _parse(metadata[LORA_CONFIG], f"{LORA_CONFIG} of {path}")
        return _config(_unprefixed(fields, prefix), FROM_METADATA, path)
    if "loraport.version" in metadata:  # a file of our own has its scale inside the factors, whatever lies beside it
        return None
    alpha, rank = (_plain(metadata, *names) for names in HEADER_NUMBERS)
    if alpha is not None:
        return AdapterConfig(FROM_HEADER, rank=rank, alpha=alpha)
    beside = path.parent / CONFIG_FILE
    if kind_of(beside) != "file":
        return None
    return _config(_parse(read_text(beside, "configuration", most=MAX_JSON), str(beside)), FROM_CONFIG, beside)


def _plain(metadata: Mapping[str, str], *names: str) -> float | None:
    """A number that the header holds under one of these names; None where there is none, or text that is none."""
    for name in names:
        try:
            number = float(metadata.get(name, ""))
        except ValueError:
            continue
        if math.isfinite(number) and number > 0:
            return number
    return None


def _unprefixed(fields: dict[str, Any], prefix: str) -> dict[str, Any]:
    starts = {prefix, "transformer.", "unet.", "diffusion_model."} - {""}
    plain = {key: value for key, value in fields.items() if "." not in key}
    for start in sorted(starts):
        plain.update({key[len(start) :]: value for key, value in fields.items() if key.startswith(start)})
    return plain


def _config(fields: dict[str, Any], source: str, path: Path) -> AdapterConfig:
    kind = str(fields.get("peft_type") or "LORA").rpartition(".")[2]
    if kind.upper() not in _ALPHA:
        raise UnsupportedError(
            f"{kind} adapters are not supported yet", where=str(path), values=f"peft_type {kind}", fix=_NOT_ITS_OWN
        )
    other = next((switch for switch in _OTHER_KINDS if fields.get(switch)), None)
    if other is not None:
        raise UnsupportedError(
            f"{_OTHER_KINDS[other]} adapters are not supported yet", where=str(path), values=other, fix=_NOT_ITS_OWN
        )
    start = str(fields.get("init_lora_weights") or "").lower()
    if start.startswith(_REBASED):
        raise UnsupportedError(
            "the LoRA was trained on a base whose weights were changed by its initialisation",
            where=str(path),
            values=f"init_lora_weights = {start}",
            fix="convert it with PEFT's save_pretrained(path_initial_model_for_weight_conversion=...)",
        )
    targets = fields.get("target_modules")
    # A text is a regular expression, a list holds names.
    named = [targets] if isinstance(targets, str) else _names(targets)
    everything = not named or "all-linear" in (targets if isinstance(targets, list) else named)
    return AdapterConfig(
        source=source,
        kind=kind.upper(),
        rank=_rank(fields.get("r"), path) if _ALPHA[kind.upper()] else None,
        alpha=_number(fields.get(_ALPHA[kind.upper()]), path),
        rslora=bool(fields.get("use_rslora")),
        rank_pattern=_patterns(fields.get("rank_pattern"), path),
        alpha_pattern=_patterns(fields.get("alpha_pattern"), path),
        targets=None if everything else Patterns({str(name): 1.0 for name in named}, str(path)),
        dora=bool(fields.get("use_dora")),
        settings=_rotations(fields, path) if kind.upper() == "OFT" else {},
        biases=str(fields.get("bias") or "none") != "none",
        saved=tuple(str(name) for name in saved) if isinstance(saved := fields.get("modules_to_save"), list) else (),
    )


def _rotations(fields: Mapping[str, Any], path: Path) -> dict[str, float]:
    terms = _number(fields.get("num_cayley_neumann_terms", 5), path) or 0.0
    series = terms if fields.get("use_cayley_neumann") else 0.0
    bound = (_number(fields.get("eps", 6e-5), path) or 0.0) if fields.get("coft") else 0.0
    if series not in range(LONGEST_SERIES + 1) or not math.isfinite(bound) or bound < 0:
        raise FileError(
            "the configuration of OFT holds impossible numbers",
            where=str(path),
            values=f"num_cayley_neumann_terms {terms:g}, eps {bound:g}",
            fix="use the adapter_config.json that was saved with the file",
        )
    return {"neumann": series, "coft": bound}


def _names(targets: Any) -> list[str]:
    return [re.escape(str(name)) for name in targets] if isinstance(targets, list) else []


def _patterns(value: Any, path: Path) -> Patterns:
    if not isinstance(value, dict):
        return Patterns({}, str(path))
    found = {str(key): number for key, item in value.items() if (number := _number(item, path)) is not None}
    return Patterns(found, str(path))


def _rank(value: Any, path: Path) -> float | None:
    rank = _number(value, path)
    if rank is not None and not rank > 0:
        raise FileError(
            "the LoRA configuration states an impossible rank", where=str(path), values=f"r = {rank:g}", fix=STATE_IT
        )
    return rank


def _number(value: Any, path: Path) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise FileError(
            "the LoRA configuration holds something that is not a number",
            where=str(path),
            values=repr(value)[:80],
            fix=STATE_IT,
        )
    try:
        return float(value)
    except OverflowError:
        raise FileError(
            "the LoRA configuration holds a number that is far too large",
            where=str(path),
            values=f"{str(value)[:40]}...",
            fix=STATE_IT,
        ) from None


def _parse(text: str, where: str) -> dict[str, Any]:
    try:
        if len(text) > MAX_JSON:
            raise ValueError("too long")
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FileError(
            "the LoRA configuration is not valid JSON", where=where, values=str(error)[:200], fix=STATE_IT
        ) from None
    if not isinstance(value, dict):
        raise FileError("the LoRA configuration is not a table", where=where, values=type(value).__name__, fix=STATE_IT)
    return value


def _first(first: float | None, second: float | None) -> float | None:
    return second if first is None else first
