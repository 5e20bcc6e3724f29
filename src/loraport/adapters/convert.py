"""From one dialect to another: names only. Factors stay bit for bit unless a scale must go into them."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from loraport.adapters.adapter import LoraAdapter, check_dropped
from loraport.adapters.carried import check_passthrough
from loraport.adapters.consumers import content_of
from loraport.adapters.dialect import Profile, profile_of
from loraport.adapters.header import converted_metadata
from loraport.adapters.loaders import loader_notes, ways_to_load
from loraport.adapters.parse import open_adapter
from loraport.adapters.shared_names import check_one_meant
from loraport.arguments import check_arguments
from loraport.errors import UnsupportedError
from loraport.machine import free_memory
from loraport.models.checkpoint import open_checkpoint
from loraport.wording import count
from loraport.writable import check_output, with_settings

PathLike = str | Path


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

    def to_json(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        lists = {name: list(value) for name, value in asdict(self).items() if isinstance(value, tuple)}
        return asdict(self) | lists | {"output": str(self.output)}


def convert(
    lora: PathLike,
    output: PathLike,
    *,
    to: str = "universal",
    model: PathLike | None = None,
    expert: Literal["high", "low"] | None = None,
    adapter: str | None = None,
    drop: str | None = None,
    allow_partial: bool = False,
    scale: float | None = None,
    overwrite: bool = False,
    architecture: str = "auto",
) -> Conversion:
    """Write a LoRA in another dialect without changing what it does.

    Args:
        lora: file to read.
        output: file to write.
        to: key names in the output: `universal`, `diffusers`, `kohya`, `original`, `fastvideo` or `same-as-input`.
        model: model it was trained on, to check the names and sizes against; needed for DoRA and other kinds that are
            functions of the weights they were trained on, and where the LoRA may be of several families.
        expert: `high` or `low`, for a file that holds the LoRAs of both Wan2.2 experts.
        adapter: name of the LoRA to use, for a file that holds several.
        drop: regular expression; layers and keys that match are left out.
        allow_partial: leave out what cannot be matched.
        scale: the LoRA's own scale (alpha / rank), if its file does not state it or states it wrongly.
        overwrite: replace an existing file.
        architecture: family of the LoRA, if it should not be detected. any: an unknown family, whose layers are those
            of `model`.

    Raises:
        LoraportError: see `loraport.errors`; the output is then left as it was.
    """
    check_arguments(convert, locals())
    output = Path(output)
    known = None if model is None else open_checkpoint(model, expert=expert, architecture=architecture)
    found = open_adapter(
        lora,
        known,
        role="model",
        expert=expert,
        adapter=adapter,
        drop=drop,
        allow_partial=allow_partial,
        scale=scale,
        architecture=architecture,
    )
    check_dropped(drop, [found])
    found.check_weights()
    check_one_meant(found, to)
    inputs = list(with_settings("input LoRA", found.path))
    if known is not None:
        inputs += [("model", file) for file in {ref.file for ref in known.tensors.values()}]
    check_output(output, inputs, overwrite=overwrite)
    profile = profile_of(to, found.dialect).of(found.architecture.family)
    check_passthrough(found.passthrough, profile, found.architecture.family)
    _check_memory(found, profile)
    from loraport.adapters.exact import render_exact, scale_stays_in_header  # and torch, when there is work for it
    from loraport.adapters.render import write_adapter

    tensors, folded = render_exact(found, profile, None if known is None else known.architecture)
    write_adapter(
        output,
        tensors,
        converted_metadata(
            found.metadata,
            profile.name,
            alpha_stays=profile.dialect.has_alpha_tensors,
            header_stays=scale_stays_in_header(found, profile),
            rank=found.max_rank,
        ),
        overwrite=overwrite,
    )
    ranks = {name: layer.rank for name, layer in found.layers.items() if layer.factored or profile.factor_matrices}
    content = content_of(to, ranks, found.passthrough, found.architecture, found.dialect)
    return Conversion(
        output,
        found.dialect.title,
        profile.dialect.of(tensors).title,
        len(found.layers),
        tuple(key for item in found.passthrough for key in item.keys),
        found.dropped,
        folded,
        tuple(name for name, layer in found.layers.items() if not layer.as_stored),
        tuple(ways_to_load(output, content)),
        found.warnings + loader_notes(content),
    )


def _check_memory(lora: LoraAdapter, profile: Profile) -> None:
    """Raise UnsupportedError where whole matrices would take more memory than there is."""
    whole = [layer.shape for layer in lora.layers.values() if not layer.factored]
    needed = sum(4 * m * n + (4 * min(m, n) ** 2 if profile.factor_matrices else 0) for m, n in whole)
    free = free_memory()
    if needed > free:
        raise UnsupportedError(
            f"multiplied out, {count(len(whole), 'layer', 'takes/take')} more memory than is available",
            where=str(lora.path),
            values=f"{needed / 1e9:,.0f} GB, {free / 1e9:,.0f} GB free",
            fix="transfer the file with --source SOURCE --target SOURCE --method direct, which cuts it to a rank",
        )
