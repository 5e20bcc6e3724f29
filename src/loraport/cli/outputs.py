"""Which LoRAs a command takes, where it writes, and what is to be said about both."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from loraport.cli.console import Console
from loraport.engine.many.asked import Asked, find_loras, list_loras, output_name
from loraport.errors import UsageError
from loraport.wording import count


def asked_loras(given: Sequence[str], folder: Path, console: Console, *, recursive: bool) -> list[Asked]:
    """The LoRAs of a job on many, as `find_loras`. It is said how many more there are in subfolders."""
    found = find_loras(given, folder, recursive=recursive)
    more = 0 if recursive else len(list_loras(given, folder, recursive=True)) - len(found)
    if more:
        console.remark(f"{count(more, 'LoRA', 'is/are')} in subfolders, which --recursive takes too")
    return found


def output_file(given: str, lora: str) -> Path:
    """The file to write for `lora`, where a folder may have been given: one that is there, or by a slash at the end."""
    path = Path(given)
    return path / output_name(lora) if _is_folder(given) else path


def named_file(given: str) -> Path:
    """The file to write, where nothing could name it but the user. Raises UsageError for a folder."""
    if _is_folder(given):
        raise UsageError(
            "the output is a folder", where=given, fix=f"name a file: -o {Path(given) / 'NAME.safetensors'}"
        )
    return Path(given)


def _is_folder(given: str) -> bool:
    return given.endswith(("/", os.sep)) or Path(given).is_dir()


def warn_of_name(path: Path, console: Console) -> None:
    """Say that programs will overlook the file that was written, if its name is one they overlook."""
    if path.suffix != ".safetensors":
        console.warning(
            f"{path.name} does not end in .safetensors: many programs do not list such a file, or read it as another "
            "format"
        )


def write_beside(beside: Mapping[str, Path], facts: Mapping[str, Any]) -> None:
    """Write the page and the card about a LoRA, as far as they are asked for. Raises FileError.

    Args:
        beside: "page", "card" -> where.
        facts: `TransferReport.to_json()`.
    """
    if beside:
        from loraport.report import write_card, write_page

        for what, file in beside.items():
            {"page": write_page, "card": write_card}[what](file, facts)
