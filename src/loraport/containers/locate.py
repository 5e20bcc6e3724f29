"""From what a user names (file, folder, index, shard, zoo name, hub id) to the tensors that are meant."""

import re
from dataclasses import replace
from pathlib import Path

from loraport.containers.access import kind_of, list_folder, nearest_path
from loraport.containers.codecs.registry import logical_group
from loraport.containers.names import DISTRIBUTED, ENDINGS, EXPERTS, Expert, expert_named, hub_id, named_path
from loraport.containers.shards import (
    SHARD,
    by_index,
    by_names,
    check_split,
    distributed,
    refuse_empty,
    with_scales,
)
from loraport.containers.stored import TensorFile, list_stored
from loraport.errors import FileError, UsageError

STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")  # as diffusers and transformers call their files
# What trainers write beside a model, in files with the same endings.
_NO_MODEL = re.compile(
    r"optimizer|optim_states|scheduler|scaler|rng_state|random_states|training_args|trainer_state|_fp8_map"
)
# A model's file or index; a variant ("fp16") stands before the ending in the one and after `.index` in the other.
_MODEL = re.compile(
    r"(?P<stem>.+?)(\.(?P<variant>fp16|bf16|fp32|fp8|ema|non_ema))?(?P<ending>\.(safetensors|bin|pt|pth|ckpt|gguf))"
    r"(?P<index>\.index(\.(?P<kind>\w+))?\.json)?"
)


def locate(spec: str | Path, *, nested: str | None = None, expert: Expert | None = None) -> TensorFile:
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
    hub = hub_id(spec) if isinstance(spec, str) else None
    # What begins with a folder that is there is a path with a mistake in it, not the name of somebody on the hub.
    if hub is not None and kind_of(Path(path.parts[0])) != "folder":
        from loraport.containers.hub import download

        folders = [*([nested] if nested else []), *(EXPERTS[expert] if expert else ())]
        found = download(*hub, folders, strict=expert is not None)
        return locate(found, nested=nested)
    raise FileError("no such file or folder", where=str(spec), fix=nearest_path(path))


def _file(path: Path) -> TensorFile:
    if path.name.endswith(".json"):
        return _located(path, by_index(path))
    if path.suffix == DISTRIBUTED:
        raise distributed(path.parent, path.name)
    shard = SHARD.search(path.name)
    if shard is not None:
        index = _index_of(path)
        if index is None:
            note = f"{path.name} is one of {int(shard['count'])} shards; all of them are used"
            return _located(path, by_names(path), (note,))
        note = f"{path.name} is one of several shards; all of {index.name} is used"
        return _located(index, by_index(index), (note,))
    return _located(path, with_scales(list_stored(path)))


def _index_of(shard: Path) -> Path | None:
    """The index that lists a shard, if it lies beside it."""
    whole = SHARD.sub("", shard.name)
    names = [f"{whole}.index.json"]
    plain = _MODEL.fullmatch(whole)
    if plain and plain["variant"]:
        names.append(f"{plain['stem']}{plain['ending']}.index.{plain['variant']}.json")
    return next((shard.parent / name for name in names if kind_of(shard.parent / name) == "file"), None)


def _located(path: Path, file: TensorFile, notes: tuple[str, ...] = ()) -> TensorFile:
    check_split(file)
    refuse_empty(file)
    groups = {nest: logical_group(group, file.metadata) for nest, group in file.groups.items()}
    return replace(file, path=path, groups=groups, notes=notes)


def expert_folders(spec: str | Path) -> dict[Expert, Path]:
    """The folders of both experts in a pipeline of Wan2.2; empty for anything else, and for what is on the hub."""
    folder = named_path(spec)
    if kind_of(folder) != "folder":
        return {}
    for high, low in zip(*EXPERTS.values(), strict=True):
        if _is_folder(folder / high) and _is_folder(folder / low):
            return {"high": folder / high, "low": folder / low}
    return {}


def _folder(folder: Path, nested: str | None, expert: Expert | None) -> TensorFile:
    folder, notes = _descend(folder, nested, expert)
    models: dict[Path, re.Match[str]] = {}
    whole: set[str] = set()
    items = list_folder(folder)
    for path in items:
        name = SHARD.sub("", path.name)
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
            pieces = [path.name for path in list_folder(place) if path.suffix == DISTRIBUTED]
            if pieces:
                raise distributed(place, ", ".join(pieces[:4]))
        raise FileError(
            "the folder holds no model",
            where=str(folder),
            values=f"no file that ends in {', '.join(ENDINGS)}, and no transformer folder",
            fix="name the file or the folder of the model itself",
        )
    return replace(_file(chosen), path=folder, notes=notes)


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
                "the folder holds two experts; choose one",
                where=str(folder),
                values=", ".join(experts),
                fix=f"give {folder / experts[0]}, or use --expert if the command has it",
            )
        return folder, ()
    if _is_folder(folder / "transformer_2"):
        note = "the folder holds two experts; using transformer (high noise); name transformer_2 for the other"
        return folder / "transformer", (note,)
    return folder / "transformer", ()


def _is_folder(path: Path) -> bool:
    return kind_of(path) == "folder"
