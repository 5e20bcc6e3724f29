"""What names say: `zoo:NAME` ships with the package, `owner/name` is on the hub, files of Wan2.2 name their expert."""

import re
from pathlib import Path
from typing import Literal

from loraport.errors import UsageError
from loraport.zoo import catalogue

ZOO = "zoo:"
TORCH_ENDINGS = (".bin", ".pt", ".pth", ".ckpt")
ENDINGS = (".safetensors", *TORCH_ENDINGS, ".gguf")
"""How files of weights end, in the order of preference."""
DISTRIBUTED = ".distcp"
_HUB_ID = re.compile(r"(hf:|hf://)?(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(/(?P<inside>[\w./-]+))?")

Expert = Literal["high", "low"]
EXPERTS: dict[Expert, tuple[str, ...]] = {
    "high": ("transformer", "high_noise_model"),
    "low": ("transformer_2", "low_noise_model"),
}
"""The experts of Wan2.2 by the part of the schedule they are for, and their folders (of diffusers, of the original)."""
_NOISE = re.compile(r"(?<![a-z])(high|low)[-_ .]?noise(?![a-z])", re.IGNORECASE)
_BARE = re.compile(r"(?<![a-z])(high|low)(?![a-z])", re.IGNORECASE)


def named_path(spec: str | Path) -> Path:
    """The path that a user's words for a model or a LoRA mean; anything but `zoo:NAME` is a path already.

    Raises:
        UsageError: nothing of that name ships; the message names what does.
    """
    text = str(spec)
    return catalogue.path(text.removeprefix(ZOO)) if text.startswith(ZOO) else Path(spec)


def as_text(name: str) -> str:
    """A name as it can be written into a file: half a character, as in names that are no UTF-8, is a question mark."""
    return name.encode("utf-8", "replace").decode("utf-8")


def hub_id(spec: str) -> tuple[str, str] | None:
    """The repository of the hub, and the folder in it or "", that a name may mean; None for what can only be a path.

    The endings of files tell, and no other dot: that of `Wan2.1-T2V-1.3B` is a part of the name.
    """
    found = _HUB_ID.fullmatch(spec)
    if found is None or Path(spec).suffix in (*ENDINGS, DISTRIBUTED, ".json"):
        return None
    return found["repo"], found["inside"] or ""


def expert_named(name: str, *, bare: bool = False) -> Expert | None:
    """The expert of Wan2.2 that a file's name speaks of ("style_high_noise"); None where it speaks of none or both.

    Args:
        name: of a file.
        bare: "high" or "low" alone is enough, which in other files than those of Wan2.2 may mean anything.
    """
    for pattern in (_NOISE, _BARE) if bare else (_NOISE,):
        found = {text.lower() for text in pattern.findall(name)}
        if len(found) == 1:
            return "high" if "high" in found else "low"
    return None


def without_expert(stem: str) -> str:
    """The name of a file (without its ending) without the expert at its end: `style_high_noise` gives `style`."""
    return re.sub(r"(?i)[-_ .]?(?<![a-z])(high|low)([-_ .]?noise)?$", "", stem) or stem


def renamed_for(path: Path, expert: Expert) -> Path:
    """The file beside `path` that has this expert in its name: `x_low_noise_v2` for `x_high_noise_v2`.

    Args:
        path: a file that is named after one expert (`expert_named`).
        expert: the one that is meant.
    """

    def meant(found: re.Match[str]) -> str:
        said = found[1]
        word = expert.upper() if said.isupper() else expert.title() if said.istitle() else expert
        return found[0].replace(said, word)

    return path.with_name(_NOISE.sub(meant, path.name))


def named_for(path: Path, expert: Expert) -> Path:
    """The file beside `path` that is named after it and an expert, as ai-toolkit names LoRAs: NAME_high_noise.

    Raises:
        UsageError: it has no name, as "" and "/" have none.
    """
    if not path.name:
        raise UsageError("a file of each expert cannot be named after a folder", where=str(path), fix="name a file")
    return path.with_name(f"{without_expert(path.stem)}_{expert}_noise{path.suffix}")
