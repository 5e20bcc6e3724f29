"""From what a user names to the tensors of one LoRA: a file, a folder that holds one, or a part of a torch file."""

from dataclasses import dataclass
from pathlib import Path

from loraport.adapters.grammar import NOTES, grammar
from loraport.adapters.peft_config import PEFT_FILE
from loraport.containers.access import kind_of, list_folder
from loraport.containers.names import TORCH_ENDINGS
from loraport.containers.references import open_tensors
from loraport.containers.stored import Group
from loraport.errors import FileError, MismatchError, UsageError

STEMS = (PEFT_FILE, "pytorch_lora_weights")
FILES = tuple(f"{stem}{ending}" for stem in STEMS for ending in (".safetensors", ".bin"))


@dataclass(frozen=True)
class Opened:
    """The tensors of one LoRA.

    Args:
        path: the file.
        refs: key -> tensor.
        metadata: the header's text.
        nest: the names that lead to the tensors in a torch file.
        chosen: whether `adapter` chose among several such parts, so that it says nothing of the keys.
        notes: choices made on the way, for the user.
    """

    path: Path
    refs: Group
    metadata: dict[str, str]
    nest: tuple[str, ...] = ()
    chosen: bool = False
    notes: tuple[str, ...] = ()


def open_file(path: Path, adapter: str | None = None) -> Opened:
    """Find the one LoRA that is meant, by headers.

    Args:
        path: a file or a folder.
        adapter: which one, of a torch file that holds several by name (`generator_lora`, `critic_lora`).

    Raises:
        FileError: a folder that holds none or several, or a damaged file.
        MismatchError: a file without tensors.
        UsageError: several LoRAs in a torch file, and none of them is the usual one.
    """
    if kind_of(path) == "folder":
        path = in_folder(path)
    file = open_tensors(path)
    rules = grammar()

    def holds_lora(group: Group) -> bool:
        found = (rules.split_suffix(key) for key in group)
        return any(suffix is not None and suffix.part not in NOTES for suffix in found)

    groups = {nest: group for nest, group in file.groups.items() if holds_lora(group)} or dict(file.groups)
    if not any(groups.values()):
        raise MismatchError("a LoRA is needed here, but this file holds no tensors", where=str(path))
    nest, notes = _choose(path, list(groups), adapter)
    return Opened(path, groups[nest], file.metadata, nest, _names(adapter, nest), notes)


def in_folder(folder: Path) -> Path:
    """PEFT's and diffusers' names first, each as safetensors if there is one; else the only file.

    Raises:
        FileError: there are none or several.
    """
    for ending in (".safetensors", ".bin"):
        named = [folder / f"{stem}{ending}" for stem in STEMS if kind_of(folder / f"{stem}{ending}") == "file"]
        if len(named) == 1:
            return named[0]
        if named:
            raise _which(folder, named)
    items = list_folder(folder)
    files = [item for item in items if item.suffix == ".safetensors"] or [
        item for item in items if item.suffix in TORCH_ENDINGS and kind_of(item) == "file"
    ]
    if len(files) != 1:
        raise _which(folder, files)
    return files[0]


def _which(folder: Path, files: list[Path]) -> FileError:
    if (folder / "model_index.json").exists():
        said = "a LoRA is needed here, but this folder is a model"
        return FileError(said, where=str(folder), fix="give the LoRA's own file")
    more = f" and {len(files) - 3} more" if len(files) > 3 else ""
    return FileError(
        "cannot tell which file of the folder is the LoRA",
        where=str(folder),
        values=", ".join(item.name for item in files[:3]) + more or "neither a safetensors nor a torch file",
        fix="name the file itself",
    )


def _choose(path: Path, nests: list[tuple[str, ...]], adapter: str | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Which part of a torch file is meant, and what to say about it."""
    if len(nests) == 1:
        return nests[0], ()
    wanted = [nest for nest in nests if _names(adapter, nest)]
    if len(wanted) == 1:
        return wanted[0], ()
    for preferred in grammar().nests if not wanted else ():
        found = [nest for nest in nests if nest and nest[-1] == preferred]
        if len(found) == 1:
            others = ", ".join(_said(nest) for nest in nests if nest != found[0])
            return found[0], (f"using {_said(found[0])}; the file also holds {others} (--adapter chooses)",)
    raise UsageError(
        "the file holds several LoRAs; choose one",
        where=str(path),
        values=", ".join(map(_said, wanted or nests)),
        fix=f"--adapter {_said(nests[-1])}",
    )


def _names(adapter: str | None, nest: tuple[str, ...]) -> bool:
    return adapter is not None and (adapter in nest or ".".join(nest) == adapter)


def _said(nest: tuple[str, ...]) -> str:
    return ".".join(nest) or "(outermost)"
