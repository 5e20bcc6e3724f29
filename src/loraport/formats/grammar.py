"""The grammar of LoRA and checkpoint keys, read once from grammar.yaml."""

import re
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import yaml


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

    prefixes: tuple[str, ...]
    flat_prefixes: tuple[str, ...]
    experts: dict[str, str]
    wrappers: tuple[str, ...]
    text_encoders: tuple[str, ...]
    styles: dict[str, dict[str, str]]
    parts: dict[str, str]
    changes: dict[str, str]
    refused: tuple[tuple[str, re.Pattern[str]], ...]
    quantised: tuple[tuple[str, re.Pattern[str]], ...]
    quantised_dtypes: dict[str, str]
    foreign: tuple[tuple[str, re.Pattern[str]], ...]
    nests: tuple[str, ...]
    profiles: dict[str, dict[str, Any]]
    suffixes: tuple[tuple[re.Pattern[str], str, str | None], ...]

    def split_suffix(self, key: str) -> Suffix | None:
        """What a key's end says, or None for a key that is no part of a LoRA."""
        for pattern, part, style in self.suffixes:
            found = pattern.search(key)
            if found:
                adapter = found.groupdict().get("adapter")
                return Suffix(part, style, adapter, len(found.group()))
        return None

    def unwrap(self, key: str) -> str:
        """A key without the names that training wrappers put into it."""
        for wrapper in self.wrappers:
            key = key.replace(wrapper, "")
        return key

    def kind_refused(self, key: str) -> str | None:
        """The kind of adapter that a key betrays, if it is one that is refused."""
        return next((kind for kind, pattern in self.refused if pattern.search(key)), None)

    def kind_foreign(self, key: str) -> str | None:
        """The other family of models that a key belongs to, if it is recognised."""
        return next((title for title, pattern in self.foreign if pattern.search(key)), None)


@cache
def grammar() -> Grammar:
    """The grammar, read on first use."""
    data = yaml.safe_load((resources.files("loraport.formats") / "grammar.yaml").read_text("utf-8"))
    endings = [(text, part, style) for style, pair in data["styles"].items() for part, text in pair.items()]
    endings += [(text, part.removesuffix("_named"), None) for part, text in data["parts"].items()]
    endings.sort(key=lambda ending: -len(ending[0]))  # the longest ending wins
    return Grammar(
        prefixes=tuple(sorted(data["prefixes"], key=len, reverse=True)),
        flat_prefixes=tuple(sorted(data["flat_prefixes"], key=len, reverse=True)),
        experts=data["experts"],
        wrappers=tuple(data["wrappers"]),
        text_encoders=tuple(data["text_encoders"]),
        styles=data["styles"],
        parts=data["parts"],
        changes=data["changes"],
        refused=_patterns(data["refused"], "kind"),
        quantised=_patterns(data["quantised"], "kind"),
        quantised_dtypes=data["quantised_dtypes"],
        foreign=_patterns(data["foreign"], "title"),
        nests=tuple(data["nests"]),
        profiles=data["profiles"],
        suffixes=tuple((_ending(text), part, style) for text, part, style in endings),
    )


def _ending(text: str) -> re.Pattern[str]:
    return re.compile(re.escape(text).replace(re.escape("<adapter>"), r"(?P<adapter>[^.]+)") + "$")


def _patterns(rows: list[dict[str, str]], label: str) -> tuple[tuple[str, re.Pattern[str]], ...]:
    return tuple((row[label], re.compile(row["pattern"])) for row in rows)
