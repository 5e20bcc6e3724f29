"""Which LoRAs a job on many is about, and which file is made of each: folders listed, names that collide refused."""

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from loraport.containers.access import kind_of, list_folder
from loraport.containers.names import named_path
from loraport.engine.options import RunOptions
from loraport.errors import FileError, UsageError

ENDINGS = (".safetensors", ".gguf", ".pt", ".pth", ".bin", ".ckpt")
"""Of the files in a folder that are taken for LoRAs; previews, notes and logs lie beside them."""


EXISTS = "the output already exists"
"""Why there is nothing to do for a LoRA."""


@dataclass(frozen=True)
class Asked:
    """One LoRA of a job on many.

    Attributes:
        lora: a file, a folder that holds one LoRA, or zoo:NAME.
        output: the file to be made of it.
    """

    lora: str
    output: Path


def output_name(lora: str) -> str:
    """The name of the file made of `lora`, a path or `zoo:NAME`, in a folder."""
    return f"{stem_of(Path(lora.removeprefix('zoo:')).name)}.safetensors"


def stem_of(name: str) -> str:
    """The name of a file without the ending of a LoRA; a version number at its end stays."""
    stem, dot, ending = name.rpartition(".")
    return stem if dot and f".{ending.lower()}" in ENDINGS else name


def holds_many(lora: str, *, recursive: bool) -> bool:
    """Whether this is a folder of LoRAs, and not a LoRA: a file, or a folder as PEFT and diffusers save one.

    A folder with a single file of another name is that LoRA, unless the folders inside are looked into as well.
    """
    folder = named_path(lora)
    try:
        if kind_of(folder) != "folder" or is_saved(folder):
            return False
        files = len(_files(folder))
        return recursive or files > 1 or (files == 0 and any(map(os.path.isdir, list_folder(folder))))
    except FileError:
        return False  # it is refused where it is opened


def find_loras(given: Iterable[str], folder: Path, *, recursive: bool = False) -> list[Asked]:
    """List the LoRAs and the files to be made of them.

    Args:
        given: files, folders that hold one LoRA or several, zoo:NAME.
        folder: where the files are to be made. Of a folder that was given they get the paths that they have in it.
        recursive: also look into the folders inside.

    Raises:
        UsageError: there is no LoRA in a folder, or two would get the same name; the folder is a model.
    """
    found = list_loras(given, folder, recursive=recursive)
    if not folder.is_dir() and (folder.exists() or folder.suffix in ENDINGS):
        named = ", ".join(each.lora for each in found[:3]) + (" ..." if len(found) > 3 else "")
        raise UsageError(
            "several LoRAs need an output folder",
            values=f"{folder} for {named}",
            fix="-o FOLDER; models are given as --source and --target",
        )
    _refuse_collisions(found)
    return found


def list_loras(given: Iterable[str], folder: Path, *, recursive: bool) -> list[Asked]:
    """As `find_loras`, whatever the names are and whether they collide.

    Raises:
        UsageError: there is no LoRA in a folder, or it is a model.
    """
    found: list[Asked] = []
    for lora in given:
        root = named_path(lora)
        if not holds_many(lora, recursive=recursive):
            found.append(Asked(lora, folder / output_name(lora)))
            continue
        if (root / "model_index.json").exists():
            raise UsageError(
                "LoRAs are needed here, but this folder is a model", where=lora, fix="give the LoRA's own file"
            )
        inside = list(_listed(root, folder, recursive, set()))
        if not inside:
            more = "" if recursive or not any(map(os.path.isdir, list_folder(root))) else ", or --recursive"
            raise no_lora_in(root, more)
        found += [
            Asked(str(path), folder / path.relative_to(root).with_name(output_name(path.name))) for path in inside
        ]
    return found


def no_lora_in(folder: Path, more: str = "") -> UsageError:
    """The refusal of a folder without any; `more`: what else can be done about it."""
    return UsageError(
        "the folder holds no LoRA",
        values=f"{folder}: no file that ends in {', '.join(ENDINGS)}",
        fix=f"name another folder{more}",
    )


def check_skip(options: RunOptions, *, skip_existing: bool) -> None:
    """Refuse to skip and to replace the same files. Raises UsageError."""
    if skip_existing and options.overwrite:
        raise UsageError(
            "existing outputs are either skipped or replaced, not both",
            values="--skip-existing and --overwrite",
            fix="use only one of them",
        )


def check_options(options: RunOptions) -> None:
    """Refuse what makes no sense for several outputs. Raises UsageError."""
    if options.log not in (None, "off"):
        raise UsageError(
            "a run log describes one LoRA",
            values=f"--log {options.log}",
            fix="leave --log out (each output gets its own log beside it), or use --log off",
        )


def _listed(folder: Path, output: Path, recursive: bool, seen: set[str]) -> Iterator[Path]:
    """The LoRAs in a folder. What cannot be listed stands for itself, to be refused where it is opened."""
    try:
        if is_saved(folder) and seen:
            yield folder
            return
        seen.add(os.path.realpath(folder))
        yield from _files(folder)
        inside = [path for path in list_folder(folder) if not path.name.startswith(".") and os.path.isdir(path)]
    except FileError:
        yield folder
        return
    for path in inside if recursive else ():
        real = os.path.realpath(path)
        if real not in seen and real != os.path.realpath(output):  # a link in a circle; what an earlier command made
            yield from _listed(path, output, recursive, seen)


def _files(folder: Path) -> list[Path]:
    return [
        path
        for path in list_folder(folder)
        if path.suffix.lower() in ENDINGS and not path.name.startswith(".") and not os.path.isdir(path)
    ]


def is_saved(folder: Path) -> bool:
    """Whether PEFT or diffusers saved one LoRA as this folder."""
    from loraport.adapters.opened import FILES  # with the grammar of keys, for which --help need not wait

    return any((folder / name).exists() for name in FILES)


def _refuse_collisions(asked: Iterable[Asked]) -> None:
    by_name: dict[str, list[Asked]] = defaultdict(list)
    for each in asked:
        by_name[str(each.output).casefold()].append(each)  # one name on Windows and macOS
    for first, *more in by_name.values():
        if more:
            raise UsageError(
                "two LoRAs would get the same output name",
                values=f"{first.output} of {', '.join(each.lora for each in (first, *more))}",
                fix="give each its own name, or transfer them with two commands into two folders",
            )
