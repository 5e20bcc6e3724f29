"""The files that a model consists of, and what lies beside them that says how they are read."""

from dataclasses import dataclass
from pathlib import Path

from loraport.containers.access import kind_of, list_folder
from loraport.containers.names import ENDINGS
from loraport.containers.references import TensorFile
from loraport.containers.shards import SHARD, shards_of_index
from loraport.errors import FileError, UsageError


@dataclass(frozen=True)
class Layout:
    """A model's files.

    Args:
        files: that hold tensors, in order of their names.
        beside: small files that go with them: the index, and the settings of a folder.
    """

    files: tuple[Path, ...]
    beside: tuple[Path, ...]

    def placed(self, output: Path) -> dict[Path, Path]:
        """Every file of the model -> the same file of another model in the same layout.

        Args:
            output: a file for a model in one file, a folder for any other. A model of one file may go into a folder
                that is there, or, with the settings beside it, into a new one.

        Raises:
            UsageError: a file for a model in several, or a name that says it is of another kind.
            FileError: a file stands where a folder is needed.
        """
        first = self.files[0]
        if len(self.files) == 1 and output.suffix in ENDINGS and kind_of(output) != "folder":
            if output.suffix != first.suffix and first.suffix in ENDINGS:
                raise UsageError(
                    "the output keeps the layout of the checkpoint, but its name says another",
                    values=f"{output.name}, made from {first.name}",
                    fix=f"-o {output.with_suffix(first.suffix)}",
                )
            return {first: output}
        if output.suffix in ENDINGS and kind_of(output) != "folder":
            raise UsageError(
                "the checkpoint consists of several files, so the output does too",
                values=f"{len(self.files)} files, and the name of one: {output.name}",
                fix=f"name a folder: -o {output.with_suffix('')}",
            )
        if kind_of(output) == "file":
            raise FileError("a folder is needed, but a file has this name", where=str(output), fix="name another one")
        return {file: output / file.name for file in (*self.files, *self.beside)}


def layout_of(found: TensorFile) -> Layout:
    """The files of what was located.

    Raises:
        FileError: a folder or an index that cannot be read.
    """
    refs = [ref for group in found.groups.values() for ref in group.values()]
    files = {file for ref in refs for file in ref.files}
    folder = next(iter(files)).parent
    index = next(
        (path for path in _indexes(found, folder) if {file.name for file in files} <= shards_of_index(path)), None
    )
    if index is not None:
        files |= {folder / name for name in shards_of_index(index)}
    alone = index is None and len(files) == 1 and kind_of(found.path) == "file"
    settings = [] if alone else [path for path in list_folder(folder) if path.suffix == ".json" and _settings(path)]
    return Layout(tuple(sorted(files)), (*([index] if index is not None else []), *settings))


def _indexes(found: TensorFile, folder: Path) -> list[Path]:
    if found.path.suffix == ".json":
        return [found.path]
    one = next(iter(found.groups.values()), {})
    sharded = any(SHARD.search(ref.file.name) for ref in one.values())
    if not sharded and kind_of(found.path) == "file":
        return []
    return [path for path in list_folder(folder) if ".index" in path.name and path.suffix == ".json"]


def _settings(path: Path) -> bool:
    return ".index" not in path.name and kind_of(path) == "file"
