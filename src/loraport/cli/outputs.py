"""Where a command writes, and what is to be said about the name."""

from pathlib import Path

from loraport.cli.console import Console
from loraport.engine.many import output_name


def output_file(given: Path, lora: str) -> Path:
    """The file to write for `lora`, where a folder may have been given."""
    return given / output_name(lora) if given.is_dir() else given


def warn_of_name(path: Path, console: Console) -> None:
    """Say that programs will overlook the file that was written, if its name is one they overlook."""
    if path.suffix != ".safetensors":
        console.warning(f"{path.name} does not end in .safetensors, and many programs list only such files")
