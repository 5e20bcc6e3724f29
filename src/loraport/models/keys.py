"""Prefixes, wrappers and foreign names of model keys, read once from keys.yaml."""

import re
from dataclasses import dataclass
from functools import cache
from importlib import resources

import yaml


@dataclass(frozen=True)
class KeyRules:
    """Everything that keys.yaml says, with its patterns compiled."""

    prefixes: tuple[str, ...]
    flat_prefixes: tuple[str, ...]
    experts: dict[str, str]
    wrappers: tuple[str, ...]
    foreign: tuple[tuple[str, re.Pattern[str]], ...]
    nests: tuple[str, ...]
    adapter_keys: re.Pattern[str]

    def unwrap(self, key: str) -> str:
        """A key without the names that training wrappers put into it."""
        for wrapper in self.wrappers:
            key = key.replace(wrapper, "")
        return key

    def kind_foreign(self, key: str) -> str | None:
        """The other family of models that a key belongs to, if it is recognised."""
        return next((title for title, pattern in self.foreign if pattern.search(key)), None)


@cache
def key_rules() -> KeyRules:
    """The rules, read on first use."""
    data = yaml.safe_load((resources.files("loraport.models") / "keys.yaml").read_text("utf-8"))
    return KeyRules(
        prefixes=tuple(sorted(data["prefixes"], key=len, reverse=True)),
        flat_prefixes=tuple(sorted(data["flat_prefixes"], key=len, reverse=True)),
        experts=data["experts"],
        wrappers=tuple(data["wrappers"]),
        foreign=tuple((row["title"], re.compile(row["pattern"])) for row in data["foreign"]),
        nests=tuple(data["nests"]),
        adapter_keys=re.compile(data["adapter_keys"]),
    )
