"""How the keys of LoRA files end, read once from grammar.yaml."""

import re
from dataclasses import dataclass
from functools import cache
from importlib import resources

import yaml

from loraport.adapters.kinds import KINDS


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
    suffixes: tuple[tuple[re.Pattern[str], str, str | None], ...]

    def split_suffix(self, key: str) -> Suffix | None:
        """What a key's end says, or None for a key that is no part of a LoRA."""
        for pattern, part, style in self.suffixes:
            found = pattern.search(key)
            if found:
                adapter = found.groupdict().get("adapter")
                return Suffix(part, style, adapter, len(found.group()))
        return None

    def kind_refused(self, key: str) -> str | None:
        """The kind of adapter that a key betrays, if it is one that is refused."""
        return next((kind for kind, pattern in self.refused if pattern.search(key)), None)


@cache
def grammar() -> Grammar:
    """The grammar, read on first use."""
    data = yaml.safe_load((resources.files("loraport.adapters") / "grammar.yaml").read_text("utf-8"))
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
        suffixes=tuple((_ending(text), part, style) for text, part, style in endings),
    )


def _ending(text: str) -> re.Pattern[str]:
    return re.compile(re.escape(text).replace(re.escape("<adapter>"), r"(?P<adapter>[^.]+)") + "$")
