"""From sorted pieces of a LoRA file to layer updates and carried tensors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

from loraport.adapters.adapter import Carried, LayerUpdate
from loraport.adapters.grammar import grammar
from loraport.adapters.scale import ASSUMED, UNSCALED, AdapterConfig, read_alpha, scale_of
from loraport.containers.tensors import TensorRef
from loraport.errors import MismatchError, UnsupportedError
from loraport.models.family import Family
from loraport.models.keymap import Resolved

FACTORS = ("down", "up")
NOTES = ("alpha", "lora_alpha", "lora_rank")  # they say something of the factors and are nothing without them


@dataclass(frozen=True)
class Piece:
    """One key of the file: which part of which module it is."""

    key: str
    ref: TensorRef
    part: str
    style: str | None
    adapter: str | None
    at: Resolved


@dataclass
class Assembled:
    """What has been put together so far, and what was left over (key -> what is wrong with it)."""

    layers: dict[str, LayerUpdate] = field(default_factory=dict)
    carried: list[Carried] = field(default_factory=list)
    leftover: dict[str, str] = field(default_factory=dict)


def assemble(pieces: Sequence[Piece], family: Family, config: AdapterConfig | None, path: Path) -> Assembled:
    """Put the pieces of all modules together.

    Raises:
        MismatchError: factors that do not fit each other, or one part of a module twice.
        UnsupportedError: a LoRA on something that is no linear layer.
        NumericalError: an alpha that is negative or not finite.
    """
    modules: dict[str, dict[str, Piece]] = {}
    for piece in pieces:
        parts = modules.setdefault(piece.at.module, {})
        if piece.part in parts:
            raise MismatchError(
                f"{piece.at.module} occurs twice under different names",
                where=str(path),
                values=f"{parts[piece.part].key} and {piece.key}",
                fix="the file was merged from several; keep one of them",
            )
        parts[piece.part] = piece
    done = Assembled()
    for module, parts in modules.items():
        _module(module, parts, family, config, path, done)
    return done


def _module(
    module: str, parts: Mapping[str, Piece], family: Family, config: AdapterConfig | None, path: Path, done: Assembled
) -> None:
    template = family.template_of(module)
    assert template is not None
    factors = [parts[part] for part in FACTORS if part in parts]
    notes = [parts[part] for part in NOTES if part in parts]
    scale = 1.0
    if len(factors) == 2:
        if template.role != "linear":
            raise UnsupportedError(
                f"a LoRA on {module}, which is no linear layer, is not supported yet",
                where=str(path),
                values=f"{factors[0].key} {list(factors[0].ref.shape)}",
            )
        if "diff" in parts:
            raise UnsupportedError(
                f"{module} has both factors and a whole matrix", where=str(path), values=parts["diff"].key
            )
        layer = _factored(module, parts, config, path)
        done.layers[module] = layer
        scale = layer.scale
    elif factors:
        missing = _partner(factors[0])
        done.leftover[factors[0].key] = f"its other half {missing} is missing"
    elif "diff" in parts and template.role == "linear":
        done.layers[module] = _whole(module, parts)
    if len(factors) != 2 and notes and module not in done.layers:
        done.leftover.update({piece.key: "the factors it belongs to are missing" for piece in notes})
    for part, piece in parts.items():
        if part in FACTORS or part in NOTES or (part == "diff" and module in done.layers):
            continue
        changed = grammar().changes[part]
        param = module if template.role == "param" or changed == "modulation" else f"{module}.{changed}"
        done.carried.append(Carried((piece.key,), param, part, piece.ref, scale if part == "lora_bias" else 1.0))


def _factored(module: str, parts: Mapping[str, Piece], config: AdapterConfig | None, path: Path) -> LayerUpdate:
    down, up = parts["down"], parts["up"]
    a, b = _matrix(down.ref.shape), _matrix(up.ref.shape)
    if a is None or b is None or a[0] != b[1] or a[0] == 0:
        raise MismatchError(
            f"the two factors of {module} do not fit each other",
            where=str(path),
            values=f"{down.key} {list(down.ref.shape)}, {up.key} {list(up.ref.shape)}",
            fix="the file is damaged or not a plain LoRA",
        )
    rank = a[0]
    scale, source = _scale(parts, rank, config)
    keys = tuple(parts[part].key for part in (*FACTORS, *NOTES) if part in parts)
    return LayerUpdate(module, "lora", up.ref, down.ref, None, scale, source, rank, keys, (b[0], a[1]))


def _scale(parts: Mapping[str, Piece], rank: int, config: AdapterConfig | None) -> tuple[float, str]:
    for part in ("alpha", "lora_alpha"):
        if part in parts:
            piece = parts[part]
            return scale_of(read_alpha(piece.ref), rank, where=piece.ref.name), f".{part} tensor"
    if config is not None:
        down = parts["down"]
        stated = config.scale(down.at.spelled, rank, str(down.ref.file))
        if stated is not None:
            return stated, config.source
    return 1.0, ASSUMED


def _whole(module: str, parts: Mapping[str, Piece]) -> LayerUpdate:
    piece = parts["diff"]
    shape = _matrix(piece.ref.shape)
    if shape is None:
        raise MismatchError(f"{piece.key} is no matrix", where=str(piece.ref.file), values=str(list(piece.ref.shape)))
    keys = (piece.key, *(parts[part].key for part in NOTES if part in parts))
    return LayerUpdate(module, "diff", None, None, piece.ref, 1.0, UNSCALED, min(shape), keys, shape)


def _matrix(shape: tuple[int, ...]) -> tuple[int, int] | None:
    """Rows and columns of a matrix, also of one stored as a convolution with a kernel of size 1."""
    if len(shape) < 2 or prod(shape[2:]) != 1:
        return None
    return shape[0], shape[1]


def _partner(piece: Piece) -> str:
    other = "up" if piece.part == "down" else "down"
    ending = grammar().styles[piece.style or "peft"]
    mine = ending[piece.part].replace("<adapter>", piece.adapter or "")
    return piece.key.removesuffix(mine) + ending[other].replace("<adapter>", piece.adapter or "")
