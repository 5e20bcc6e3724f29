"""The images that clips begin with: which files are meant, and whether each is one."""

import hashlib
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from loraport.errors import FileError, UsageError

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
"""What counts as an image in a folder."""
EVEN = 0.05  # by which an image may be wider or narrower than a clip, whose sides are rounded
DEEP = ("I", "F")
"""What Pillow calls more than 8 bits a channel begins with; it would cut such numbers off instead of rounding them."""


@dataclass(frozen=True)
class FirstFrame:
    """An image that clips begin with.

    Attributes:
        file: the image.
        digest: SHA-256 of the file.
        width, height: in pixels, as it is looked at.
    """

    file: Path
    digest: str
    width: int
    height: int

    @classmethod
    def of(cls, file: Path) -> "FirstFrame":
        """Look at a file. Raises FileError if it is no image."""
        digest, image = _read(file)
        return cls(file, digest, *image.size)

    def open(self) -> "Picture":
        """The image in RGB, upright. Raises FileError if it is not what it was."""
        digest, image = _read(self.file)
        if digest != self.digest:
            raise FileError(
                "an image changed while clips were made of it", where=str(self.file), fix="run the same command again"
            )
        return image


def find_images(given: Sequence[str | Path]) -> tuple[Path, ...]:
    """The files of images: as they are named, and of a folder all that lie in it, by name (2 before 10).

    Raises:
        UsageError: a folder without images.
    """
    return tuple(file for each in given for file in _files(Path(each)))


def said_of_shapes(images: Sequence[FirstFrame], size: tuple[int, int] | None) -> tuple[str, ...]:
    """A sentence on images that become wider or narrower in clips of a width and height; none where it is not known."""
    if size is None:
        return ()
    wide, high = size
    odd = [one for one in dict.fromkeys(images) if abs(one.width * high / (one.height * wide) - 1) > EVEN]
    if not odd:
        return ()
    others = f" and {len(odd) - 1} more" if len(odd) > 1 else ""
    return (
        f"{odd[0].file.name}{others}: {odd[0].width} x {odd[0].height}, which the pipeline stretches to clips of "
        f"{wide} x {high}. Crop it first, or set another --width and --height.",
    )


def _files(path: Path) -> Iterator[Path]:
    if not path.is_dir():
        yield path
        return
    inside = [file for file in path.iterdir() if file.suffix.lower() in SUFFIXES and not file.name.startswith(".")]
    if not inside:
        raise UsageError(
            "there is no image in this folder", where=str(path), values=f"looked for {', '.join(SUFFIXES)}"
        )
    yield from sorted(inside, key=lambda file: (_in_order(file.name.lower()), file.name))


def _in_order(name: str) -> list[str | int]:
    """Text and numbers in turns, so that 2 comes before 10."""
    return [int(part) if number % 2 else part for number, part in enumerate(re.split(r"(\d+)", name))]


def _read(file: Path) -> "tuple[str, Picture]":
    """SHA-256 of a file, and the image in it: turned as its camera says, in RGB, as diffusers loads images."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    if not file.is_file():
        raise FileError(
            "there is no such image", where=str(file), fix="give the path of an image, or of a folder of them"
        )
    try:
        data = file.read_bytes()
        with Image.open(io.BytesIO(data)) as held:
            if held.mode.startswith(DEEP):
                raise FileError(
                    "the image has more than 8 bits per channel", where=str(file),
                    values=f"Pillow calls it {held.mode}", fix="save it with 8 bits per channel",
                )  # fmt: skip
            image = ImageOps.exif_transpose(held).convert("RGB")
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        unknown = isinstance(error, UnidentifiedImageError)  # whose words are of an object in memory
        reason = "not a kind of image that Pillow knows" if unknown else str(error)
        raise FileError(
            "the image cannot be read", where=str(file), values=(reason.strip().splitlines() or [""])[0][:200],
            fix="save it as PNG or JPEG",
        ) from error  # fmt: skip
    return hashlib.sha256(data).hexdigest(), image
