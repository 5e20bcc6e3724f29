"""LoRA files out: canonical layers to the keys of a dialect, written atomically and looked at again."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from loraport.adapters.adapter import Carried
from loraport.adapters.dialect import SAME_AS_INPUT, Dialect, Profile, profile_of
from loraport.adapters.header import CONTENT, content_digest
from loraport.adapters.join import Factors, join_layers, join_rows
from loraport.containers.safetensors import read_header
from loraport.containers.tensors import digest, digest_tensor, open_tensors, read_tensor
from loraport.core.lowrank import LowRank
from loraport.errors import FileError, NumericalError, UnsupportedError
from loraport.files import atomic_path, write_safetensors
from loraport.models.architecture import Architecture, LayerName
from loraport.models.family import Family


def render_adapter(
    layers: Mapping[LayerName, LowRank],
    carried: Sequence[Carried],
    profile: str,
    architecture: Architecture,
    input_dialect: Dialect | None = None,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Shaped[Tensor, "..."]]:
    """The tensors of an output file.

    Args:
        layers: canonical layer -> update, scale inside. Give them one rank (LowRank.padded): some loaders
            mis-scale mixed ranks.
        carried: passed on, in the spelling that the profile's loaders accept.
        profile: "universal", "diffusers", "kohya", "original", "same-as-input".
        architecture: the model, for its names and shapes.
        input_dialect: needed for "same-as-input".
        dtype: of the factors. Carried tensors keep theirs.

    Raises:
        UnsupportedError: the profile has no spelling for something that is carried.
        NumericalError: a factor that is not finite in `dtype`.
    """
    factors = {name: Factors(_cast(u.B, dtype, name), _cast(u.A, dtype, name)) for name, u in layers.items()}
    return render(factors, {}, carried, profile_of(profile, input_dialect).of(architecture.family), architecture)


def render(
    factors: Mapping[LayerName, Factors],
    matrices: Mapping[LayerName, Float[Tensor, "m n"]],
    carried: Sequence[Carried],
    profile: Profile,
    architecture: Architecture,
    *,
    scaled: bool = True,
) -> dict[str, Shaped[Tensor, "..."]]:
    """Keys and tensors of factors, whole matrices and carried tensors in a profile.

    Args:
        factors: canonical layer -> factors.
        matrices: canonical layer -> whole matrix.
        carried: passed on.
        profile: as it is for the family of the architecture (`Profile.of`).
        architecture: the model, for its names and shapes.
        scaled: whether what is carried gets its scale; False where the reader of the file applies it.

    Raises:
        UnsupportedError: the profile has no spelling for something that is carried.
    """
    family, dialect = architecture.family, profile.dialect
    tensors: dict[str, Tensor] = {}
    biases = {item.module: item for item in carried if _changed(item, family) == "bias"}
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
    for item in carried:
        tensor = item.load() if scaled else read_tensor(item.ref)
        vectors.setdefault(carried_key(item, profile, family), []).append((item.module, tensor))
    for name, blank in blanks.items():
        key = dialect.extra(name, profile.carries["bias"], family)
        vectors.setdefault(key, []).append((name, blank))
    for key, pieces in vectors.items():
        tensors[key] = join_rows(pieces, dialect.names, architecture)
    return tensors


def check_carried(carried: Sequence[Carried], profile: Profile, family: Family) -> None:
    """Raise UnsupportedError where the profile has no spelling for something that is carried, before any work."""
    for item in carried:
        carried_key(item, profile, family)


def carried_key(item: Carried, profile: Profile, family: Family) -> str:
    """The key under which a carried tensor is written. Raises UnsupportedError where the profile has none."""
    if item.kind == "text_encoder" or profile.name == SAME_AS_INPUT:
        return item.keys[0]
    part = profile.carries.get(_changed(item, family))
    template = family.template_of(item.module)
    if part == "lora_bias" and (template is None or template.role != "linear"):
        part = None
    if part == "diff_m" and not item.module.endswith("modulation"):
        part = "diff"
    if part is None:
        raise UnsupportedError(
            f"the loaders of the {profile.name} profile do not take a change of {item.param}",
            where=str(item.ref.file),
            values=item.keys[0],
            fix="write another profile (universal takes it), or leave it out with --drop",
        )
    return profile.dialect.extra(item.module, part, family)


def write_adapter(
    path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], *, overwrite: bool = True
) -> None:
    """Write a LoRA file atomically; it gets its name only after it was reopened and found as meant.

    A header of ours (one with `loraport.version`) gets a digest of the content as well, for `verify`.

    Args:
        overwrite: whether a file of this name may be replaced.

    Raises:
        FileError: it cannot be written, or what was written is not what was meant; nothing is left behind.
    """
    path = Path(path)
    digests = {key: digest_tensor(tensor) for key, tensor in tensors.items()}
    if "loraport.version" in metadata:
        metadata = {**metadata, CONTENT: content_digest(digests)}
    with atomic_path(path, overwrite=overwrite) as temporary:
        write_safetensors(temporary, tensors, metadata)
        written = {key: digest(ref) for key, ref in open_tensors(temporary).groups[()].items()}
        if written != digests or read_header(temporary).metadata != dict(metadata):
            raise FileError("the file that was written is not what was meant", where=str(path), fix="check the disk")


def _changed(item: Carried, family: Family) -> str:
    """What a carried tensor changes: "bias", "weight", "param", or "" for another model's part."""
    template = family.template_of(item.module)
    if template is None:
        return ""
    return "param" if template.role == "param" else item.param.rpartition(".")[2]


def _completed(
    factors: Mapping[LayerName, Factors], biases: Mapping[str, Carried], architecture: Architecture
) -> tuple[dict[LayerName, Factors], dict[LayerName, Tensor]]:
    """Zero factors for layers that have only a bias, zero biases for layers that have only factors."""
    example = next(iter(factors.values()), None)
    rank, dtype = (example.rank, example.down.dtype) if example else (1, torch.float32)
    whole = dict(factors)
    for name in biases:
        shape = architecture.shape_of(name)
        if name not in whole and architecture.role(name) == "linear" and shape is not None:
            whole[name] = Factors(torch.zeros(shape[0], rank, dtype=dtype), torch.zeros(rank, shape[1], dtype=dtype))
    blanks = {
        name: torch.zeros(pair.up.shape[0], dtype=pair.up.dtype) for name, pair in whole.items() if name not in biases
    }
    on_layers = any(name in whole for name in biases)
    return (whole, blanks) if on_layers else (dict(factors), {})


def _alpha(name: str, pair: Factors, dialect: Dialect, family: Family) -> dict[str, Tensor]:
    alpha = float(pair.rank if pair.alpha is None else pair.alpha)
    if dialect.alpha == "alpha":
        return {dialect.extra(name, "alpha", family): torch.tensor(alpha)}
    if dialect.alpha == "lora_alpha":
        return {
            dialect.extra(name, "lora_alpha", family): torch.tensor([alpha]),
            dialect.extra(name, "lora_rank", family): torch.tensor([pair.rank], dtype=torch.int32),
        }
    return {}


def _cast(tensor: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    cast = tensor.detach().cpu().to(dtype).contiguous()
    if not torch.isfinite(cast).all():
        raise NumericalError(
            f"the update of {name} is not finite in {dtype}", values=f"largest entry {float(tensor.abs().max()):.3g}"
        )
    return cast
