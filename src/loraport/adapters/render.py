"""LoRA files out: canonical layers to the keys of a dialect, written atomically and looked at again."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from loraport.adapters.carried import changed, passthrough_key
from loraport.adapters.dialect import Dialect, Profile, profile_of
from loraport.adapters.header import CONTENT, content_digest
from loraport.adapters.join import Factors, join_layers, join_rows
from loraport.adapters.loading.passed_on import load_change, stored_change
from loraport.adapters.passthrough import Passthrough
from loraport.containers.safetensors import HASHES, read_header, write_safetensors
from loraport.containers.tensors import digest, digest_tensor, open_tensors
from loraport.core.lowrank import LowRank
from loraport.errors import FileError, MismatchError, NumericalError, UnsupportedError
from loraport.files import atomic_path
from loraport.models.architecture import Architecture, LayerName
from loraport.models.family import Family
from loraport.threads import one_thread_each


def render_adapter(
    layers: Mapping[LayerName, LowRank],
    passthrough: Sequence[Passthrough],
    profile: str,
    architecture: Architecture,
    input_dialect: Dialect | None = None,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Shaped[Tensor, "..."]]:
    """The tensors of an output file.

    Args:
        layers: canonical layer -> update, scale inside. Give them one rank (LowRank.padded): some loaders
            mis-scale mixed ranks.
        passthrough: passed on, in the spelling that the profile's loaders accept.
        profile: "universal", "diffusers", "kohya", "original", "fastvideo", "same-as-input".
        architecture: the model, for its names and shapes.
        input_dialect: needed for "same-as-input".
        dtype: of the factors. Tensors that are passed through keep theirs.

    Raises:
        UnsupportedError: the profile has no spelling for something that is carried.
        NumericalError: a factor that is not finite in `dtype`.
    """
    with one_thread_each():
        factors = {name: Factors(_cast(u.B, dtype, name), _cast(u.A, dtype, name)) for name, u in layers.items()}
    return render(factors, {}, passthrough, profile_of(profile, input_dialect).of(architecture.family), architecture)


def render(
    factors: Mapping[LayerName, Factors],
    matrices: Mapping[LayerName, Float[Tensor, "_ _"]],
    passthrough: Sequence[Passthrough],
    profile: Profile,
    architecture: Architecture,
    *,
    scaled: bool = True,
) -> dict[str, Shaped[Tensor, "..."]]:
    """Keys and tensors of factors, whole matrices and tensors passed through in a profile.

    Args:
        factors: canonical layer -> factors.
        matrices: canonical layer -> whole matrix.
        passthrough: passed on.
        profile: as it is for the family of the architecture (`Profile.of`).
        architecture: the model, for its names and shapes.
        scaled: whether what is carried gets its scale; False where the reader of the file applies it.

    Raises:
        UnsupportedError: the profile has no spelling for something that is carried, or a layer has a bias alone and
            nobody says how large it is.
        MismatchError: such a bias does not fit its layer.
    """
    family, dialect = architecture.family, profile.dialect
    tensors: dict[str, Tensor] = {}
    biases = {item.module: item for item in passthrough if changed(item, family) == "bias"}
    if profile.complete_biases and biases:
        factors, blanks = _completed(factors, biases, architecture)
    else:
        blanks = {}
    whole_factors, whole_matrices = join_layers(factors, matrices, dialect.names, architecture)
    for name, pair in whole_factors.items():
        tensors[dialect.factor(name, "down", family)] = pair.down
        tensors[dialect.factor(name, "up", family)] = pair.up
        tensors.update(_alpha(name, pair, dialect, family))
    for name, matrix in whole_matrices.items():
        tensors[dialect.extra(name, "diff", family)] = matrix
    vectors: dict[str, list[tuple[str, Tensor]]] = {}
    for item in passthrough:
        tensor = load_change(item) if scaled else stored_change(item)
        vectors.setdefault(passthrough_key(item, profile, family), []).append((item.module, tensor))
    for name, blank in blanks.items():
        key = dialect.extra(name, profile.carries["bias"], family)
        vectors.setdefault(key, []).append((name, blank))
    for key, pieces in vectors.items():
        tensors[key] = join_rows(pieces, dialect.names, architecture)
    return tensors


def write_adapter(
    path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], *, overwrite: bool = True
) -> None:
    """Write a LoRA file atomically; it gets its name only after it was reopened and found as meant.

    A header of ours (one with `loraport.version`) gets a digest of the content as well, for `verify`, and the hashes by
    which programs that manage LoRAs know a file.

    Args:
        path: the file.
        tensors: key -> tensor.
        metadata: the header's text.
        overwrite: whether a file of this name may be replaced.

    Raises:
        NumericalError: a tensor holds NaN or infinity.
        FileError: it cannot be written, or what was written is not what was meant; nothing is left behind.
    """
    path = Path(path)
    with atomic_path(path, overwrite=overwrite) as temporary:
        fill_adapter(temporary, path, tensors, metadata)


def fill_adapter(temporary: Path, path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write what is to become a LoRA file, and look at it again: `write_adapter` without the final name.

    Args:
        temporary: where to write.
        path: the final name, for messages.
        tensors: key -> tensor.
        metadata: the header's text.

    Raises:
        NumericalError: as `write_adapter`.
        FileError: the same.
    """
    with one_thread_each():
        check_finite(path, tensors)
    digests = {key: digest_tensor(tensor) for key, tensor in tensors.items()}
    ours = "loraport.version" in metadata
    if ours:
        metadata = {**metadata, CONTENT: content_digest(digests)}
    write_safetensors(temporary, tensors, metadata, hashes=ours)
    written = {key: digest(ref) for key, ref in open_tensors(temporary).groups[()].items()}
    said = read_header(temporary).metadata
    if written != digests or _not_hashes(said) != _not_hashes(metadata):
        raise FileError("the written file is not what was intended", where=str(path), fix="check the disk")


def _not_hashes(metadata: Mapping[str, str]) -> dict[str, str]:
    """The texts of a header that do not depend on the bytes of its file."""
    return {name: text for name, text in metadata.items() if name not in HASHES}


def check_finite(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Raise NumericalError for the first tensor with an entry that is no number in its dtype."""
    for key, tensor in tensors.items():
        # float8 has no isfinite of its own; float64 must not be narrowed first.
        wide = tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()
        if tensor.is_floating_point() and not torch.isfinite(wide).all():
            raise NumericalError(
                f"{key} would hold NaN or infinity",
                where=str(path),
                values=f"{int((~torch.isfinite(wide)).sum())} of {tensor.numel()} entries in {tensor.dtype}",
                fix="use a wider --dtype, or leave it out with --drop",
            )


def _completed(
    factors: Mapping[LayerName, Factors], biases: Mapping[str, Passthrough], architecture: Architecture
) -> tuple[dict[LayerName, Factors], dict[LayerName, Tensor]]:
    """Zero factors for layers that have only a bias, zero biases for layers that have only factors."""
    example = next(iter(factors.values()), None)
    rank, dtype = (example.rank, example.down.dtype) if example else (1, torch.float32)
    whole = dict(factors)
    alone = [item for name, item in biases.items() if name not in whole and architecture.role(name) == "linear"]
    if alone:
        known = _with_sizes_of_biases(architecture, biases.values())
        for item in alone:
            rows, columns = _shape_of(item, known)
            whole[item.module] = Factors(torch.zeros(rows, rank, dtype=dtype), torch.zeros(rank, columns, dtype=dtype))
    blanks = {
        name: torch.zeros(pair.up.shape[0], dtype=pair.up.dtype) for name, pair in whole.items() if name not in biases
    }
    on_layers = any(name in whole for name in biases)
    return (whole, blanks) if on_layers else (dict(factors), {})


def _with_sizes_of_biases(architecture: Architecture, biases: Iterable[Passthrough]) -> Architecture:
    """The architecture with the dimensions that the lengths of biases give, and those of the model of that name."""
    found = dict(architecture.dimensions)
    for item in biases:
        template = architecture.family.template_of(item.module)
        rows = template.shape[0] if template is not None and template.role == "linear" else ""
        if rows.isidentifier() and rows != "_":
            found.setdefault(rows, item.ref.shape[0])
    for size in architecture.family.sizes:
        numbers = {symbol: number for symbol, number in size.items() if isinstance(number, int)}
        known = numbers.keys() & found.keys() - {"blocks"}  # a LoRA may leave blocks out
        if known and all(numbers[symbol] == found[symbol] for symbol in known):
            return replace(architecture, dimensions=numbers | found)
    return replace(architecture, dimensions=found)


def _shape_of(bias: Passthrough, architecture: Architecture) -> tuple[int, int]:
    """Rows and columns of the layer of a bias that stands alone."""
    shape = architecture.shape_of(bias.module)
    if shape is None or len(shape) != 2:
        raise UnsupportedError(
            f"{bias.module} has a bias and no factors, and nothing in the LoRA says how large the layer is, so "
            "diffusers could not load the file",
            where=str(bias.ref.file),
            values=bias.keys[0],
            fix=f"name the model with --model, or leave the bias out with --drop {bias.module}",
        )
    if shape[0] != bias.ref.shape[0]:
        raise MismatchError(
            f"the bias of {bias.module} does not fit the layer",
            where=str(bias.ref.file),
            values=f"{bias.keys[0]} {list(bias.ref.shape)}, the layer is {shape[0]} x {shape[1]}",
            fix=f"leave it out with --drop {bias.module}",
        )
    return shape[0], shape[1]


def _alpha(name: str, pair: Factors, dialect: Dialect, family: Family) -> dict[str, Tensor]:
    alpha = float(pair.rank if pair.alpha is None else pair.alpha)
    if dialect.alpha == "alpha":
        return {dialect.extra(name, "alpha", family): torch.tensor(alpha, dtype=torch.float32)}
    if dialect.alpha == "lora_alpha":
        return {
            dialect.extra(name, "lora_alpha", family): torch.tensor([alpha], dtype=torch.float32),
            dialect.extra(name, "lora_rank", family): torch.tensor([pair.rank], dtype=torch.int32),
        }
    return {}


def _cast(tensor: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    cast = tensor.detach().cpu().to(dtype).contiguous()
    if not torch.isfinite(cast).all():
        raise NumericalError(
            f"the update of {name} is not finite in {dtype}",
            values=f"largest entry {float(tensor.abs().max()):.3g}",
            fix="write a wider dtype: --dtype bfloat16 or --dtype float32",
        )
    return cast
