"""What the clips are to show: a text each, and for image-to-video the image that the clip begins with."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loraport.comparing.images import FirstFrame, find_images
from loraport.errors import UsageError
from loraport.files import read_text
from loraport.wording import count

MOST = 2**20  # bytes of a file
ROWS = ".jsonl"
FIELDS = {"prompt", "image"}


@dataclass(frozen=True)
class Prompt:
    """What a clip is to show.

    Attributes:
        text: in words.
        image: what it begins with; None for a model that makes videos or pictures of a text alone.
    """

    text: str
    image: FirstFrame | None = None


def read_prompts(
    given: str | Path | Sequence[str] | None, images: Sequence[str | Path] = ()
) -> tuple[Prompt, ...]:  # fmt: skip
    """The prompts with their images.

    Args:
        given: the texts; or a file, with a text a line, or in JSON lines (`.jsonl`) with `prompt` and, of every one or
            of none, `image`, whose path is that from the file's folder. None for what stands in the text file beside
            each image (`cat.txt` beside `cat.png`).
        images: files, or folders of them: one for every text, in the same order; one for all; or several for the only
            text.

    Raises:
        UsageError: no prompt, one that is there twice, images of which nobody says whose they are, or odd JSON.
        FileError: a file that cannot be read, or is no image.
    """
    pairs = _of_file(Path(given)) if isinstance(given, str | Path) else _alone(given or ())
    files = find_images(images)
    if files and any(image is not None for _, image in pairs):
        raise UsageError(
            "images are given twice", where=str(given), values=", ".join(map(str, images)),
            fix="leave out --image, or the images in the file",
        )  # fmt: skip
    if files and given is None:
        pairs = [(_beside(image), image) for image in files]
    elif files and pairs:
        pairs = _paired([text for text, _ in pairs], files)
    if not pairs:
        raise UsageError("there is no prompt", where=str(given) if isinstance(given, str | Path) else None)
    if len(set(pairs)) != len(pairs):
        text, image = next(pair for pair in pairs if pairs.count(pair) > 1)
        raise UsageError(
            "a prompt is given twice", values=text[:200] + ("" if image is None else f", with {image}"),
            fix="give it once; --seeds makes more clips of it",
        )  # fmt: skip
    looked = {image: FirstFrame.of(image) for _, image in pairs if image is not None}
    return tuple(Prompt(text, None if image is None else looked[image]) for text, image in pairs)


def _paired(texts: Sequence[str], images: Sequence[Path]) -> list[tuple[str, Path | None]]:
    if len(images) == 1:
        images = [images[0]] * len(texts)
    elif len(texts) == 1:
        texts = [texts[0]] * len(images)
    if len(images) != len(texts):
        raise UsageError(
            "it is not clear which image belongs to which prompt",
            values=f"{count(len(texts), 'prompt')}, {count(len(images), 'image')}",
            fix="give as many images as prompts, in the same order, or one image for all prompts, or one prompt "
            "for all images",
        )
    return list(zip(texts, images, strict=True))


def _beside(image: Path) -> str:
    """The text in the file that is named as the image is, as trainers of LoRAs keep captions."""
    file = image.with_suffix(".txt")
    text = " ".join(read_text(file, "text of an image", most=MOST).split()) if file.is_file() else ""
    if not text:
        raise UsageError(
            "an image has no prompt", where=str(image),
            fix=f"use --prompt TEXT for all, --prompts FILE with one for each, or a text in {file.name} beside it",
        )  # fmt: skip
    return text


def _alone(lines: Sequence[str]) -> list[tuple[str, Path | None]]:
    """Texts without images."""
    return [(text, None) for line in lines if (text := str(line).strip())]


def _of_file(file: Path) -> list[tuple[str, Path | None]]:
    """The rows of a file."""
    if file.suffix.lower() == ".json":
        raise UsageError(
            "prompts in JSON must be one object per line", where=str(file),
            fix=
                'write {"prompt": "a cat sits", "image": "cat.png"} on each line, in a file whose name ends in '
                f'{ROWS}',
        )  # fmt: skip
    held = read_text(file, "file of prompts", most=MOST)
    if file.suffix.lower() != ROWS:
        return _alone(held.splitlines())
    made: list[tuple[str, Path | None]] = []
    for number, line in enumerate(held.split("\n"), 1):
        if line.strip():
            try:
                made.append(_row(json.loads(line), file.parent))
            except (ValueError, RecursionError) as error:
                raise UsageError(
                    "a line of the prompts is not understood", where=f"{file}, line {number}", values=str(error),
                    fix='{"prompt": "a cat sits", "image": "cat.png"}',
                ) from error  # fmt: skip
    if len({image is None for _, image in made}) > 1:
        raise UsageError("some prompts have an image and some do not", where=str(file))
    return made


def _row(row: Any, folder: Path) -> tuple[str, Path | None]:
    """Raises ValueError."""
    if not isinstance(row, dict) or not all(isinstance(value, str) for value in row.values()):
        raise ValueError("it is not an object with texts")
    if set(row) - FIELDS:
        raise ValueError(f"{sorted(set(row) - FIELDS)[0][:80]}: nothing of that name is known")
    text = row.get("prompt", "").strip()
    if not text:
        raise ValueError("it has no prompt")
    return text, folder / row["image"] if "image" in row else None
