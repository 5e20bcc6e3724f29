"""From one dialect to another: names only. Factors stay bit for bit unless a scale must go into them."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from loraport.adapters.adapter import LoraAdapter, check_dropped
from loraport.adapters.carried import check_passthrough
from loraport.adapters.consumers import content_of
from loraport.adapters.dialect import SAME_AS_INPUT, Profile, profile_of
from loraport.adapters.header import converted_metadata
from loraport.adapters.join import Factors, factored, without_zeros
from loraport.adapters.loaders import loader_notes, ways_to_load
from loraport.adapters.loading.layers import stored_update
from loraport.adapters.parse import open_adapter
from loraport.adapters.render import render, write_adapter
from loraport.adapters.shared_names import check_one_meant
from loraport.adapters.update import LayerUpdate
from loraport.errors import NumericalError, UnsupportedError
from loraport.models.architecture import Architecture
from loraport.models.checkpoint import AUTO, Checkpoint
from loraport.wording import count
from loraport.writable import check_output, with_settings


@dataclass(frozen=True)
class Conversion:
    """What a conversion did.

    Args:
        output: the file written.
        before: the input's dialect, for people.
        after: the output's.
        layers: number of layers.
        passthrough: keys passed through.
        dropped: keys left out by request.
        folded: layers whose scale had to be written into a factor, and so are not bit for bit the same.
        multiplied: layers of kinds that are no plain factors and no whole matrix, and so were multiplied out.
        load: how to load the output, one program a line.
        warnings: sentences for the user.
    """

    output: Path
    before: str
    after: str
    layers: int
    passthrough: tuple[str, ...]
    dropped: tuple[str, ...]
    folded: tuple[str, ...]
    multiplied: tuple[str, ...]
    load: tuple[str, ...]
    warnings: tuple[str, ...]


def convert_adapter(
    path: str | Path,
    output: str | Path,
    *,
    to: str = "universal",
    model: Checkpoint | Architecture | None = None,
    expert: str | None = None,
    adapter: str | None = None,
    drop: str | None = None,
    allow_partial: bool = False,
    scale: float | None = None,
    overwrite: bool = False,
    architecture: str = AUTO,
) -> Conversion:
    """Write a LoRA in another dialect, without changing what it does.

    Args:
        path: the LoRA.
        output: the file to write.
        to: an output profile.
        model: a model it must fit; needed where updates are functions of the weights they were trained on (DoRA, ...),
            which are then those of this model, and where a layer has a bias alone and its size follows from nothing
            else, and where the LoRA may be of several families.
        expert: as for `open_adapter`.
        adapter: the same.
        drop: the same.
        allow_partial: the same.
        scale: the same.
        overwrite: whether `output` may exist.
        architecture: without a model, the family it is for; "auto" to recognise it.

    Raises:
        LoraportError: as `open_adapter`, `render_adapter` and `write_adapter` do.
    """
    output = Path(output)
    lora = open_adapter(
        path,
        model,
        expert=expert,
        adapter=adapter,
        drop=drop,
        allow_partial=allow_partial,
        scale=scale,
        architecture=architecture,
    )
    check_dropped(drop, [lora])
    without = next((layer for layer in lora.layers.values() if layer.needs_source), None)
    if without is not None:
        raise without.source_missing()
    if model is None:
        check_one_meant(lora, to)
    inputs = list(with_settings("input LoRA", lora.path))
    if isinstance(model, Checkpoint):
        inputs += [("model", file) for file in {ref.file for ref in model.tensors.values()}]
    check_output(output, inputs, overwrite=overwrite)
    profile = profile_of(to, lora.dialect).of(lora.architecture.family)
    check_passthrough(lora.passthrough, profile, lora.architecture.family)
    _check_memory(lora, profile)
    known = model.architecture if isinstance(model, Checkpoint) else model
    tensors, folded = render_exact(lora, profile, known)
    write_adapter(
        output,
        tensors,
        converted_metadata(
            lora.metadata,
            profile.name,
            alpha_stays=profile.dialect.has_alpha_tensors,
            header_stays=_keeps_header(lora, profile),
            rank=lora.max_rank,
        ),
        overwrite=overwrite,
    )
    ranks = {name: layer.rank for name, layer in lora.layers.items() if layer.factored or profile.factor_matrices}
    content = content_of(to, ranks, lora.passthrough, lora.architecture, lora.dialect)
    return Conversion(
        output,
        lora.dialect.title,
        profile.dialect.of(tensors).title,
        len(lora.layers),
        tuple(key for item in lora.passthrough for key in item.keys),
        lora.dropped,
        folded,
        tuple(name for name, layer in lora.layers.items() if not layer.as_stored),
        tuple(ways_to_load(output, content)),
        lora.warnings + loader_notes(content),
    )


def render_exact(
    lora: LoraAdapter, profile: Profile, model: Architecture | None = None
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The tensors of a LoRA in another profile, in their stored dtype; and the layers whose scale was folded in.

    Args:
        lora: the LoRA.
        profile: the output profile.
        model: the model it belongs to, for the sizes of layers of which the LoRA has only a bias.

    Raises:
        NumericalError: a NaN or infinity, or a scale that does not fit the dtype.
        UnsupportedError: the profile has no spelling for something that is carried.
    """
    keeps_header = _keeps_header(lora, profile)
    factors: dict[str, Factors] = {}
    matrices: dict[str, Tensor] = {}
    folded: list[str] = []
    for name, layer in lora.layers.items():
        found = stored_update(layer)
        if isinstance(found, Tensor):
            matrix = found if layer.scale == 1.0 else _fold(found, layer)
            folded += [name] if layer.scale != 1.0 else []
            if profile.factor_matrices:
                factors[name] = factored(matrix)
            else:
                matrices[name] = matrix
            continue
        up, down = found
        if profile.name != SAME_AS_INPUT:
            up, down = up.reshape(layer.shape[0], layer.rank), down.reshape(layer.rank, layer.shape[1])
            if name in lora.fused:
                up, down = without_zeros(up, down)
        if profile.dialect.has_alpha_tensors and layer.scale > 0:
            factors[name] = Factors(up, down, layer.scale * len(down))
        elif layer.scale == 1.0 or keeps_header:
            factors[name] = Factors(up, down)
        else:
            factors[name] = Factors(_fold(up, layer), down)
            folded.append(name)
    # The bias of a scaled LoRA is scaled by its reader, so there it must stay as it was.
    kept = profile.name == SAME_AS_INPUT and (profile.dialect.has_alpha_tensors or keeps_header)
    whole = model or lora.architecture
    return render(factors, matrices, lora.passthrough, profile, whole, scaled=not kept), tuple(folded)


def _check_memory(lora: LoraAdapter, profile: Profile) -> None:
    """Raise UnsupportedError where whole matrices would take more memory than there is."""
    import psutil

    whole = [layer.shape for layer in lora.layers.values() if not layer.factored]
    needed = sum(4 * m * n + (4 * min(m, n) ** 2 if profile.factor_matrices else 0) for m, n in whole)
    free = psutil.virtual_memory().available
    if needed > free:
        raise UnsupportedError(
            f"multiplied out, {count(len(whole), 'layer', 'takes/take')} more memory than there is",
            where=str(lora.path),
            values=f"{needed / 1e9:,.0f} GB, {free / 1e9:,.0f} GB free",
            fix="transfer the file with --source SOURCE --target SOURCE --method direct, which cuts it to a rank",
        )


def _keeps_header(lora: LoraAdapter, profile: Profile) -> bool:
    """Whether the scale stays in the header, where the input has it."""
    return profile.name == SAME_AS_INPUT and lora.dialect.alpha == "metadata"


def _fold(up: Tensor, layer: LayerUpdate) -> Tensor:
    # One factor only: one rounding instead of two, and none at all for the usual powers of two.
    scaled = (up.float() * layer.scale).to(up.dtype)
    lost = (scaled == 0) & (up != 0)
    if not torch.isfinite(scaled.float()).all() or (layer.scale and lost.float().mean() > 1e-3):
        raise NumericalError(
            f"the scale of {layer.name} does not fit into {up.dtype}",
            values=f"scale {layer.scale:g}, largest entry {float(up.float().abs().max()):.3g}",
            fix="convert to kohya, which keeps the scale beside the factors",
        )
    return scaled
