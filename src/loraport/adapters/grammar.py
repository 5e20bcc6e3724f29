"""How the keys of LoRA files end, read once from grammar.yaml."""

import re
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib import resources

from loraport.adapters.kinds import KINDS
from loraport.models.keys import read_yaml

SET_BIAS = "set_bias"  # the part that is a bias whole; no end of a key says it, only PEFT's files do (saved.py)
NOTES = ("alpha", "lora_alpha", "lora_rank", "scalar")  # they say something of an update and are nothing without it
_LONGEST = 4  # no ending of a key has more dots than this


@dataclass(frozen=True)
class Suffix:
    """The end of a LoRA key: which part of a module it is, and in which style it is written."""

    part: str
    style: str | None
    adapter: str | None
    length: int


@dataclass(frozen=True)
class Grammar:
    """Everything that grammar.yaml says, with its patterns compiled."""

    text_encoders: tuple[str, ...]
    styles: dict[str, dict[str, str]]
    parts: dict[str, str]
    changes: dict[str, str]
    refused: tuple[tuple[str, re.Pattern[str]], ...]
    explained: tuple[tuple[str, re.Pattern[str]], ...]
    suffixes: tuple[tuple[re.Pattern[str], str, str | None], ...]
    nests: tuple[str, ...]
    sampling: tuple[str, ...]

    def split_suffix(self, key: str) -> Suffix | None:
        """What a key's end says, or None for a key that is no part of a LoRA."""
        tail = key.rsplit(".", _LONGEST)
        return _split(key if len(tail) <= _LONGEST else "." + ".".join(tail[1:]))

    def kind_refused(self, key: str) -> str | None:
        """The kind of adapter that a key betrays, if it is one that is refused."""
        if not any_refused().search(key):
            return None
        if self.split_suffix(key) is not None:
            return None  # understood, an adapter called "a1" included
        return next((kind for kind, pattern in self.refused if pattern.search(key)), None)

    def explanation(self, key: str) -> str | None:
        """What a key is that is no part of a LoRA, if it is known to occur."""
        return next((text for text, pattern in self.explained if pattern.search(key)), None)


@cache
def grammar() -> Grammar:
    """The grammar, read on first use."""
    data = read_yaml((resources.files("loraport.adapters") / "grammar.yaml").read_text("utf-8"))
    endings = [(text, part, style) for style, pair in data["styles"].items() for part, text in pair.items()]
    endings += [(text, part.removesuffix("_named"), None) for part, text in data["parts"].items()]
    endings += [(text, part, None) for kind in KINDS.values() for part, texts in kind.endings.items() for text in texts]
    endings.sort(key=lambda ending: -len(ending[0]))  # the longest ending wins
    return Grammar(
        text_encoders=tuple(data["text_encoders"]),
        styles=data["styles"],
        parts=data["parts"],
        changes=data["changes"],
        refused=tuple((row["kind"], re.compile(row["pattern"])) for row in data["refused"]),
        explained=tuple((row["text"], re.compile(row["pattern"])) for row in data["explained"]),
        suffixes=tuple((_ending(text), part, style) for text, part, style in endings),
        nests=tuple(data["nests"]),
        sampling=tuple(data["sampling"]),
    )


@lru_cache(maxsize=8192)
def _split(tail: str) -> Suffix | None:
    for pattern, part, style in grammar().suffixes:
        found = pattern.search(tail)
        if found:
            return Suffix(part, style, found.groupdict().get("adapter"), len(found.group()))
    return None


@cache
def any_refused() -> re.Pattern[str]:
    """One pattern for all kinds that are refused: a file has thousands of keys, and almost none of them is."""
    return re.compile("|".join(f"(?:{pattern.pattern})" for _, pattern in grammar().refused))


def _ending(text: str) -> re.Pattern[str]:
    return re.compile(re.escape(text).replace(re.escape("<adapter>"), r"(?P<adapter>[^.]+)") + "$")
