"""From one dialect to another: names only. Factors stay bit for bit unless a scale must go into them."""

from dataclasses import dataclass
from pathlib import Path

from loraport.adapters.adapter import LoraAdapter, check_dropped
from loraport.adapters.carried import check_passthrough
from loraport.adapters.consumers import content_of
from loraport.adapters.dialect import Profile, profile_of
from loraport.adapters.header import converted_metadata
from loraport.adapters.loaders import loader_notes, ways_to_load
from loraport.adapters.parse import open_adapter
from loraport.adapters.shared_names import check_one_meant
from loraport.errors import UnsupportedError
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
    lora.check_weights()
    if model is None:
        check_one_meant(lora, to)
    inputs = list(with_settings("input LoRA", lora.path))
    if isinstance(model, Checkpoint):
        inputs += [("model", file) for file in {ref.file for ref in model.tensors.values()}]
    check_output(output, inputs, overwrite=overwrite)
    profile = profile_of(to, lora.dialect).of(lora.architecture.family)
    check_passthrough(lora.passthrough, profile, lora.architecture.family)
    _check_memory(lora, profile)
    from loraport.adapters.exact import render_exact, scale_stays_in_header  # and torch, when there is work for it
    from loraport.adapters.render import write_adapter

    known = model.architecture if isinstance(model, Checkpoint) else model
    tensors, folded = render_exact(lora, profile, known)
    write_adapter(
        output,
        tensors,
        converted_metadata(
            lora.metadata,
            profile.name,
            alpha_stays=profile.dialect.has_alpha_tensors,
            header_stays=scale_stays_in_header(lora, profile),
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
