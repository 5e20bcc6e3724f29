"""A model in several files: by an index, or by names that count; and what trainers save in pieces that are no model."""

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from loraport.containers.access import kind_of
from loraport.containers.codecs.settings import joined
from loraport.containers.stored import TensorFile, TensorRef, list_stored
from loraport.errors import FileError, UnsupportedError
from loraport.files import read_text

MAX_INDEX_BYTES = 32 * 2**20
MAX_SHARDS = 1000
SHARD = re.compile(r"-(?P<number>\d{5})-of-(?P<count>\d{5})(?=\.)")


def by_names(path: Path) -> TensorFile:
    """All shards of a model that has no index, from one of them: their names say how many there are.

    Raises:
        FileError: some are missing, or they do not belong together.
    """
    found = SHARD.search(path.name)
    assert found is not None
    count = int(found["count"])
    names = [SHARD.sub(f"-{number:05}-of-{count:05}", path.name) for number in range(1, min(count, MAX_SHARDS) + 1)]
    missing = [name for name in names if kind_of(path.parent / name) != "file"]
    if missing or path.name not in names:
        raise FileError(
            f"this is one shard of {count}, but neither an index nor all the others are beside it",
            where=str(path),
            values=f"missing: {', '.join(missing[:4])}{' and more' if len(missing) > 4 else ''}" if missing else None,
            fix="download the others too, then name any of them or the folder",
        )
    files = [list_stored(path.parent / name) for name in names]
    tensors: dict[str, TensorRef] = {}
    for file in files:
        check_split(file, count)
        for key, ref in file.groups.get((), {}).items():
            if key in tensors:
                raise FileError(
                    f"{key} is in two shards",
                    where=str(path),
                    values=f"{tensors[key].file.name}, {ref.file.name}",
                    fix="these shards belong to different models; download them again",
                )
            tensors[key] = ref
    said = files[0].metadata.get("split.tensors.count", str(len(tensors)))
    if said != str(len(tensors)):
        raise FileError(
            "the parts of the GGUF file do not hold as many tensors as the first part says",
            where=str(path),
            values=f"{len(tensors):,}, expected {said[:20]}",
            fix="these parts belong to different models; download them again",
        )
    return _joined(path, files, tensors)


def by_index(path: Path) -> TensorFile:
    """All that an index lists.

    Raises:
        FileError: the index is none, or a shard is missing or has not what it should have.
    """
    shards: dict[str, TensorFile] = {}
    tensors: dict[str, TensorRef] = {}
    for key, name in _read_index(path)["weight_map"].items():
        if name not in shards:
            shard = path.parent / name
            if not kind_of(shard):
                raise FileError("a shard that the index lists is missing", where=str(shard), fix="download it too")
            shards[name] = list_stored(shard)
        ref = shards[name].groups.get((), {}).get(key)
        if ref is None:
            raise FileError(
                f"{key} is not in the shard that the index gives",
                where=str(path),
                values=name,
                fix="index and shards belong to different models; download them again",
            )
        tensors[key] = ref
    return _joined(path, list(shards.values()), tensors)


def shards_of_index(path: Path) -> set[str]:
    """The names of the files that an index lists, relative to its folder. Raises FileError."""
    return set(_read_index(path)["weight_map"].values())


def index_with(path: Path, names: Mapping[str, str | None], grown: int) -> str:
    """The text of an index of files in which some tensors have other names.

    Args:
        path: of the index.
        names: of these tensors; None of those that are left out.
        grown: by how many bytes all tensors together are larger.

    Raises:
        FileError: it is no index.
    """
    content = _read_index(path)
    content["weight_map"] = {
        name: file for key, file in content["weight_map"].items() if (name := names.get(key, key)) is not None
    }
    size = content["metadata"].get("total_size") if isinstance(content.get("metadata"), dict) else None
    if isinstance(size, int):
        content["metadata"]["total_size"] = size + grown
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def _joined(path: Path, shards: list[TensorFile], tensors: dict[str, TensorRef]) -> TensorFile:
    return TensorFile(path, "index", {(): tensors}, joined([shard.metadata for shard in shards]))


def check_split(file: TensorFile, count: int = 1) -> None:
    """Refuse a part of a GGUF file that was split into another number of parts than are there. Raises FileError."""
    parts = file.metadata.get("split.count", "0") if file.container == "gguf" else "0"
    if parts not in {"0", str(count)}:
        raise FileError(
            f"this is one part of a GGUF file split into {parts[:9]}",
            where=str(file.path),
            fix="restore the original names of the parts, such as model-00001-of-00002.gguf, in one folder",
        )


def with_scales(file: TensorFile) -> TensorFile:
    """Tencent's fp8 checkpoints of HunyuanVideo with the scales that lie beside them: `x_fp8.pt` and `x_fp8_map.pt`.

    Raises:
        FileError: the map is missing, or is none.
    """
    if file.container != "torch" or not file.path.stem.endswith("_states_fp8"):
        return file
    place = file.path.with_name(f"{file.path.stem}_map{file.path.suffix}")
    if kind_of(place) != "file":
        raise FileError(
            "the scales of this fp8 checkpoint are in a separate file, which is not beside it",
            where=str(file.path),
            values=f"{place.name} is missing",
            fix="download it too",
        )
    scales = list_stored(place).groups.get((), {})
    groups = {}
    for nest, group in file.groups.items():
        beside = {f"{module}.weight_scale": ref for module, ref in scales.items() if f"{module}.weight" in group}
        groups[nest] = group | beside
    return replace(file, groups=groups)


def refuse_empty(file: TensorFile) -> None:
    """Refuse a torch file of names without numbers. Raises FileError."""
    if file.container != "torch":
        return
    shapes = {"/".join((*nest, key)): ref.shape for nest, group in file.groups.items() for key, ref in group.items()}
    empty = [name for name, shape in shapes.items() if 0 in shape]
    if len(empty) > len(shapes) / 2:
        raise FileError(
            "the file holds names of weights without their numbers, as DeepSpeed leaves them at ZeRO stage 3",
            where=str(file.path),
            values=f"{len(empty)} of {len(shapes)} tensors are empty, e.g. {empty[0]}",
            fix="join its pieces with the zero_to_fp32.py beside them, and name the result",
        )


def distributed(folder: Path, name: str) -> UnsupportedError:
    """The error for a folder with pieces of torch.distributed.checkpoint."""
    return UnsupportedError(
        "the model was saved in pieces by torch.distributed.checkpoint (FSDP), which is not supported",
        where=str(folder),
        values=name,
        fix=f"join them: python -m torch.distributed.checkpoint.format_utils dcp_to_torch {folder} model.pt",
    )


def _read_index(path: Path) -> dict[str, Any]:
    """What an index says. Its `weight_map` leads from keys to names of files inside the folder."""
    try:
        content: Any = json.loads(read_text(path, "index", most=MAX_INDEX_BYTES))
    except (ValueError, RecursionError) as error:
        raise FileError("the index is not valid JSON", where=str(path), values=str(error)[:200]) from None
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise FileError("the index has no weight_map", where=str(path), fix="give the model's file or folder")
    for name in set(map(str, weight_map.values())):
        inside = PurePosixPath(name.replace("\\", "/"))
        if inside.is_absolute() or ".." in inside.parts or ":" in name:
            raise FileError("the index points outside its folder", where=str(path), values=name[:200])
    return content | {"weight_map": {str(key): str(name) for key, name in weight_map.items()}}
