"""From what a user names (file, folder, index, shard, zoo name, hub id) to the tensors that are meant."""

import json
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from loraport.containers.access import kind_of, list_folder, nearest_path
from loraport.containers.codecs.registry import logical_group
from loraport.containers.codecs.settings import joined
from loraport.containers.names import EXPERTS, Expert, expert_named, named_path
from loraport.containers.stored import Group, TensorFile, TensorRef, list_stored
from loraport.errors import FileError, UnsupportedError, UsageError
from loraport.files import read_text

MAX_INDEX_BYTES = 32 * 2**20
STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")  # as diffusers and transformers call their files
ENDINGS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf")  # the order of preference
_SHARD = re.compile(r"-(?P<number>\d{5})-of-(?P<count>\d{5})(?=\.)")
MAX_SHARDS = 1000
# What trainers write beside a model, in files with the same endings.
_NO_MODEL = re.compile(r"optimizer|optim_states|scheduler|scaler|rng_state|random_states|training_args|trainer_state")
_DISTRIBUTED = ".distcp"
# A model's file or index; a variant ("fp16") stands before the ending in the one and after `.index` in the other.
_MODEL = re.compile(
    r"(?P<stem>.+?)(\.(?P<variant>fp16|bf16|fp32|fp8|ema|non_ema))?(?P<ending>\.(safetensors|bin|pt|pth|ckpt|gguf))"
    r"(?P<index>\.index(\.(?P<kind>\w+))?\.json)?"
)
_HUB_ID = re.compile(r"(hf:|hf://)?(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(/(?P<inside>[\w./-]+))?")


@dataclass(frozen=True)
class Located:
    """What was found: the path that was settled on, its weights by nesting, and remarks for the user."""

    path: Path
    groups: dict[tuple[str, ...], Group]
    metadata: dict[str, str]
    notes: tuple[str, ...] = ()


def locate(spec: str | Path, *, nested: str | None = None, expert: Expert | None = None) -> Located:
    """Find the weights that `spec` means.

    Args:
        spec: a file, a diffusers folder (pipeline root or its transformer), an index, a shard that belongs to
            an index, `zoo:NAME`, or a hub id ("owner/name", optionally "owner/name/path/inside").
        nested: for a pipeline folder with two experts, which subfolder.
        expert: the same in the words of Wan2.2, "high" or "low", in either layout. It also chooses among files in one
            folder that name their expert. Of what holds no experts it says nothing.

    Raises:
        FileError: nothing there, or something incomplete or damaged.
        UsageError: a name that the zoo does not have, or one of two experts is to be named.
    """
    path = named_path(spec)
    kind = kind_of(path)
    if kind == "folder":
        return _folder(path, nested, expert)
    if kind == "file":
        return _file(path)
    hub = _HUB_ID.fullmatch(str(spec)) if isinstance(spec, str) else None
    # What begins with a folder that is there is a path with a mistake in it, not the name of somebody on the hub.
    if hub and not path.suffix and not path.is_absolute() and kind_of(Path(path.parts[0])) != "folder":
        from loraport.containers.hub import download

        folders = [*([nested] if nested else []), *(EXPERTS[expert] if expert else ())]
        return locate(download(hub["repo"], hub["inside"] or "", folders), nested=nested)
    raise FileError("there is no such file or folder", where=str(spec), fix=nearest_path(path))


def _file(path: Path) -> Located:
    if path.name.endswith(".json"):
        return _index(path)
    if path.suffix == _DISTRIBUTED:
        raise _distributed(path.parent, path.name)
    if _SHARD.search(path.name):
        index = _index_of(path)
        if index is not None:
            return _index(index, (f"{path.name} is one of several shards; all of {index.name} was taken",))
        return _shards(path)
    return _located(path, list_stored(path))


def _index_of(shard: Path) -> Path | None:
    """The index that lists a shard, if it lies beside it."""
    whole = _SHARD.sub("", shard.name)
    names = [f"{whole}.index.json"]
    plain = _MODEL.fullmatch(whole)
    if plain and plain["variant"]:
        names.append(f"{plain['stem']}{plain['ending']}.index.{plain['variant']}.json")
    return next((shard.parent / name for name in names if kind_of(shard.parent / name) == "file"), None)


def _shards(path: Path) -> Located:
    """All shards of a model that has no index; their names say how many there are."""
    found = _SHARD.search(path.name)
    assert found is not None
    count = int(found["count"])
    names = [_SHARD.sub(f"-{number:05}-of-{count:05}", path.name) for number in range(1, min(count, MAX_SHARDS) + 1)]
    missing = [name for name in names if kind_of(path.parent / name) != "file"]
    if missing or path.name not in names:
        raise FileError(
            f"this is one shard of {count}, and neither an index nor all the others are beside it",
            where=str(path),
            values=f"missing: {', '.join(missing[:4])}{' and more' if len(missing) > 4 else ''}" if missing else None,
            fix="download the others too, and name any of them or the folder",
        )
    files = [list_stored(path.parent / name) for name in names]
    tensors: dict[str, TensorRef] = {}
    for file in files:
        _check_split(file, count)
        for key, ref in file.groups.get((), {}).items():
            if key in tensors:
                raise FileError(
                    f"{key} is in two shards",
                    where=str(path),
                    values=f"{tensors[key].file.name}, {ref.file.name}",
                    fix="these are shards of different models; download them again",
                )
            tensors[key] = ref
    said = files[0].metadata.get("split.tensors.count", str(len(tensors)))
    if said != str(len(tensors)):
        raise FileError(
            "the parts of the GGUF file do not hold as many tensors as the first says",
            where=str(path),
            values=f"{len(tensors):,}, {said[:20]} said",
            fix="these are parts of different models; download them again",
        )
    return _joined(path, files, tensors, (f"{path.name} is one of {count} shards, all of which were taken",))


def _check_split(file: TensorFile, count: int = 1) -> None:
    """Refuse a part of a GGUF file that was split into another number of parts than are there."""
    parts = file.metadata.get("split.count", "0") if file.container == "gguf" else "0"
    if parts not in {"0", str(count)}:
        raise FileError(
            f"this is one part of a GGUF file that was split into {parts[:9]}",
            where=str(file.path),
            fix="give the parts the names they had, such as model-00001-of-00002.gguf, in one folder",
        )


def _refuse_empty(file: TensorFile) -> None:
    """Refuse a torch file of names without numbers."""
    for nest, group in file.groups.items():
        empty = [key for key, ref in group.items() if 0 in ref.shape] if file.container == "torch" else []
        if len(empty) > len(group) / 2:
            raise FileError(
                "the file holds names of weights without their numbers, as DeepSpeed leaves it at ZeRO stage 3",
                where=str(file.path),
                values=f"{len(empty)} of {len(group)} tensors are empty, e.g. {'/'.join((*nest, empty[0]))}",
                fix="join its pieces with the zero_to_fp32.py that lies beside them, and name the result",
            )


def _distributed(folder: Path, name: str) -> UnsupportedError:
    return UnsupportedError(
        "the model is saved in pieces by torch.distributed.checkpoint (FSDP), which is not read",
        where=str(folder),
        values=name,
        fix=f"join them: python -m torch.distributed.checkpoint.format_utils dcp_to_torch {folder} model.pt",
    )


def _joined(path: Path, shards: list[TensorFile], tensors: Group, notes: tuple[str, ...]) -> Located:
    metadata = joined([shard.metadata for shard in shards])
    return _located(path, TensorFile(path, "index", {(): tensors}, metadata), notes)


def _located(path: Path, file: TensorFile, notes: tuple[str, ...] = ()) -> Located:
    _check_split(file)
    _refuse_empty(file)
    groups = {nest: logical_group(group, file.metadata) for nest, group in file.groups.items()}
    return Located(path, groups, file.metadata, notes)


def expert_folders(spec: str | Path) -> dict[Expert, Path]:
    """The folders of both experts in a pipeline of Wan2.2; empty for anything else, and for what is on the hub."""
    folder = named_path(spec)
    if kind_of(folder) != "folder":
        return {}
    for high, low in zip(*EXPERTS.values(), strict=True):
        if _is_folder(folder / high) and _is_folder(folder / low):
            return {"high": folder / high, "low": folder / low}
    return {}


def _folder(folder: Path, nested: str | None, expert: Expert | None) -> Located:
    folder, notes = _descend(folder, nested, expert)
    models: dict[Path, re.Match[str]] = {}
    whole: set[str] = set()
    items = list_folder(folder)
    for path in items:
        name = _SHARD.sub("", path.name)
        match = None if _NO_MODEL.search(path.name) else _MODEL.fullmatch(name)
        if name != path.name and (name in whole or _index_of(path) or folder / name in items):
            continue  # shards without an index, and without all of it in one file, stand for the model by the first
        if match and kind_of(path) == "file":
            models[path] = match
            whole.add(name)
    chosen = _choose(models)
    if chosen is None and expert is not None:
        chosen = _choose({path: it for path, it in models.items() if expert_named(path.name, bare=True) == expert})
    if chosen is None:
        if models:
            raise FileError(
                "cannot tell which file of the folder is the model",
                where=str(folder),
                values=", ".join(path.name for path in list(models)[:8]),
                fix=f"name the file itself, such as {next(iter(models))}",
            )
        inside = [path for path in items if _is_folder(path)]
        for place in (folder, *inside):  # Accelerate puts them into a folder of their own
            pieces = [path.name for path in list_folder(place) if path.suffix == _DISTRIBUTED]
            if pieces:
                raise _distributed(place, ", ".join(pieces[:4]))
        raise FileError(
            "the folder holds no model",
            where=str(folder),
            values=f"no file that ends in {', '.join(ENDINGS)}, and no transformer folder",
            fix="name the file or the folder of the model itself",
        )
    found = _file(chosen)
    return Located(folder, found.groups, found.metadata, notes)


def _choose(models: dict[Path, re.Match[str]]) -> Path | None:
    """The file or index that is the model, or None where that cannot be told.

    By ending first, then by the usual names; the plain one before a variant, an index before a file.
    """

    def usual(path: Path) -> tuple[int, bool, bool]:
        found = models[path]
        return STEMS.index(found["stem"]), bool(found["variant"] or found["kind"]), not found["index"]

    for ending in ENDINGS:
        having = [path for path, found in models.items() if found["ending"] == ending]
        named = sorted((path for path in having if models[path]["stem"] in STEMS), key=usual)
        if named:
            return named[0]
        indexes = [path for path in having if models[path]["index"]]
        alone = indexes if len(indexes) == 1 else having
        if having:
            return alone[0] if len(alone) == 1 else None
    return None


def _descend(folder: Path, nested: str | None, expert: Expert | None) -> tuple[Path, tuple[str, ...]]:
    """Step from a pipeline's root into the model's own folder."""
    if nested and _is_folder(folder / nested):
        return folder / nested, ()
    if expert is not None and (found := expert_folders(folder)):
        return found[expert], ()
    if not _is_folder(folder / "transformer"):
        experts = [path.name for path in list_folder(folder) if path.name.endswith("_noise_model") and _is_folder(path)]
        if experts:
            raise UsageError(
                "the folder holds two experts; name the one that is meant",
                where=str(folder),
                values=", ".join(experts),
                fix=f"give {folder / experts[0]}, or --expert where the command has it",
            )
        return folder, ()
    if _is_folder(folder / "transformer_2"):
        note = "the folder holds two experts; transformer (high noise) was taken, name transformer_2 for the other"
        return folder / "transformer", (note,)
    return folder / "transformer", ()


def _is_folder(path: Path) -> bool:
    return kind_of(path) == "folder"


def _index(path: Path, notes: tuple[str, ...] = ()) -> Located:
    weight_map = _read_weight_map(path)
    shards: dict[str, TensorFile] = {}
    tensors: dict[str, TensorRef] = {}
    for key, name in weight_map.items():
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
                fix="index and shards are of different models; download them again",
            )
        tensors[key] = ref
    return _joined(path, list(shards.values()), tensors, notes)


def _read_weight_map(path: Path) -> dict[str, str]:
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
    return {str(key): str(name) for key, name in weight_map.items()}
