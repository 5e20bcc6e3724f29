"""From what a user names (file, folder, index, shard, hub id) to the tensors that are meant."""

import json
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from loraport.containers.names import named_path
from loraport.containers.tensors import TensorFile, TensorRef, nearest_path, open_tensors
from loraport.errors import FileError, UsageError

MAX_INDEX_BYTES = 32 * 2**20
STEMS = ("diffusion_pytorch_model", "model")  # as diffusers and transformers call their files
_SHARD = re.compile(r"-\d{5}-of-\d{5}(?=\.)")
_HUB_ID = re.compile(r"(hf:|hf://)?(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(/(?P<inside>[\w./-]+))?")


@dataclass(frozen=True)
class Located:
    """What was found: the path that was settled on, its tensors by nesting, and remarks for the user."""

    path: Path
    groups: dict[tuple[str, ...], dict[str, TensorRef]]
    metadata: dict[str, str]
    notes: tuple[str, ...] = ()


def locate(spec: str | Path, *, nested: str | None = None) -> Located:
    """Find the tensors that `spec` means.

    Args:
        spec: a file, a diffusers folder (pipeline root or its transformer), an index, a shard that belongs to
            an index, `zoo:NAME`, or a hub id ("owner/name", optionally "owner/name/path/inside").
        nested: for a pipeline folder with two experts, which subfolder.

    Raises:
        FileError: nothing there, or something incomplete or damaged.
        UsageError: a name that the zoo does not have, or one of two experts is to be named.
    """
    path = named_path(spec)
    if path.is_dir():
        return _folder(path, nested)
    if path.is_file():
        return _file(path)
    hub = _HUB_ID.fullmatch(str(spec)) if isinstance(spec, str) else None
    # What begins with a folder that is there is a path with a mistake in it, not the name of somebody on the hub.
    if hub and not path.suffix and not path.is_absolute() and not Path(path.parts[0]).is_dir():
        from loraport.containers.hub import download

        return locate(download(hub["repo"], hub["inside"] or "", nested), nested=nested)
    raise FileError("there is no such file or folder", where=str(spec), fix=nearest_path(path))


def _file(path: Path) -> Located:
    if path.name.endswith(".json"):
        return _index(path)
    if _SHARD.search(path.name):
        index = path.parent / (_SHARD.sub("", path.name) + ".index.json")
        if index.is_file():
            return _index(index, (f"{path.name} is one of several shards; all of {index.name} was taken",))
        raise FileError(
            "this is one shard of several, and the index that lists the others is not beside it",
            where=str(path),
            values=f"{index.name} is missing",
            fix="download the index too, and name the folder",
        )
    file: TensorFile = open_tensors(path)
    return Located(path, file.groups, file.metadata)


def _folder(folder: Path, nested: str | None) -> Located:
    folder, notes = _descend(folder, nested)
    indexes = sorted(path for path in folder.iterdir() if path.name.endswith(".safetensors.index.json"))
    preferred = [folder / f"{stem}.safetensors.index.json" for stem in STEMS]
    index = next((path for path in preferred if path in indexes), None)
    if index is None and len(indexes) == 1:
        index = indexes[0]
    if index is not None:
        found = _index(index)
        return Located(folder, found.groups, found.metadata, notes)
    files = sorted(path for path in folder.iterdir() if path.suffix == ".safetensors" and path.is_file())
    named = next((folder / f"{stem}.safetensors" for stem in STEMS if folder / f"{stem}.safetensors" in files), None)
    if named is None and len(files) == 1:
        named = files[0]
    if named is None:
        choices = [path.name for path in (*indexes, *files)]
        raise FileError(
            "cannot tell which file of the folder is the model" if choices else "the folder holds no model",
            where=str(folder),
            values=", ".join(choices[:8]) or "no safetensors file, no index, no transformer folder",
            fix="name the file itself",
        )
    found = _file(named)
    return Located(folder, found.groups, found.metadata, notes)


def _descend(folder: Path, nested: str | None) -> tuple[Path, tuple[str, ...]]:
    """Step from a pipeline's root into the model's own folder."""
    if nested and (folder / nested).is_dir():
        return folder / nested, ()
    if not (folder / "transformer").is_dir():
        experts = sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name.endswith("_noise_model"))
        if experts:
            raise UsageError(
                "the folder holds two experts; name the one that is meant",
                where=str(folder),
                values=", ".join(experts),
                fix=f"give {folder / experts[0]}",
            )
        return folder, ()
    if (folder / "transformer_2").is_dir():
        note = "the folder holds two experts; transformer (high noise) was taken, name transformer_2 for the other"
        return folder / "transformer", (note,)
    return folder / "transformer", ()


def _index(path: Path, notes: tuple[str, ...] = ()) -> Located:
    weight_map = _read_weight_map(path)
    shards: dict[str, TensorFile] = {}
    tensors: dict[str, TensorRef] = {}
    for key, name in weight_map.items():
        if name not in shards:
            shard = path.parent / name
            if not shard.is_file():
                raise FileError("a shard that the index lists is missing", where=str(shard), fix="download it too")
            shards[name] = open_tensors(shard)
        ref = shards[name].groups.get((), {}).get(key)
        if ref is None:
            raise FileError(f"{key} is not in the shard that the index gives", where=str(path), values=name)
        tensors[key] = ref
    metadata = next(iter(shards.values())).metadata if shards else {}
    return Located(path, {(): tensors}, metadata, notes)


def _read_weight_map(path: Path) -> dict[str, str]:
    if path.stat().st_size > MAX_INDEX_BYTES:
        raise FileError("the index is too large to be one", where=str(path), values=f"{path.stat().st_size:,} bytes")
    try:
        content: Any = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise FileError("the index is not valid JSON", where=str(path), values=str(error)[:200]) from None
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise FileError("the index has no weight_map", where=str(path), fix="give the model's file or folder")
    for name in set(map(str, weight_map.values())):
        inside = PurePosixPath(name.replace("\\", "/"))
        if inside.is_absolute() or ".." in inside.parts or ":" in name:
            raise FileError("the index points outside its folder", where=str(path), values=name)
    return {str(key): str(name) for key, name in weight_map.items()}
