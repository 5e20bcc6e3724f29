"""Commands that take an executor, on the pico models; and what is known of their files afterwards."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

import loraport
import pico
from loraport.engine.options import RunOptions


def write(folder: Path) -> pico.Pico:
    """The pico models, and a second LoRA."""
    made = pico.write(folder)
    save_file(pico.lora(9, rank=6), made.folder / "other.safetensors")
    return made


def transferred(files: pico.Pico, output: Path, options: RunOptions, method: str = "casa") -> tuple:
    report = loraport.transfer(
        files.lora, source=files.source, target=files.target, output=output, method=method, options=options
    )
    return output.read_bytes(), [replace(layer, seconds=0.0) for layer in report.layers], report.inputs


def many(
    files: pico.Pico, output: Path, options: RunOptions, loras: tuple[str, ...] = ("style", "other")
) -> list[bytes]:
    paths = [files.folder / f"{name}.safetensors" for name in loras]
    done = loraport.transfer_many(
        paths, source=files.source, target=files.target, output=output, method="casa", options=options
    )
    assert [each.error for each in done.outcomes] == [None] * len(loras)
    return [path.read_bytes() for path in sorted(output.iterdir())]


def resized(files: pico.Pico, output: Path, options: RunOptions) -> bytes:
    loraport.resize(files.lora, output, energy=0.9, options=options)  # two rounds through one executor
    return output.read_bytes()


def extracted(files: pico.Pico, output: Path, options: RunOptions) -> bytes:
    loraport.extract(files.source, files.target, output, rank=3, options=options)
    return output.read_bytes()


def analysed(files: pico.Pico, output: Path, options: RunOptions) -> list:
    found = loraport.analyze(files.source, files.target, files.lora, layers=r"^blocks\.1\.self", options=options)
    return [replace(layer, seconds=0.0) for layer in found.layers]


def checked(files: pico.Pico, output: Path, options: RunOptions) -> object:
    found = loraport.check(files.lora, source=files.source, target=files.target, options=options)
    return found.verdict, found.figures


COMMANDS: list[Callable[..., Any]] = [transferred, many, resized, extracted, analysed, checked]


def remembered(cache: Path) -> dict[str, dict[str, str]]:
    """The digests and checksums that are kept, by file and tensor."""
    pages = [json.loads(page.read_text()) for page in (cache / "digests").rglob("*.json")]
    return {page["identity"]: page["digests"] for page in pages}
