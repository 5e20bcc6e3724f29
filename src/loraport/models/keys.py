"""Prefixes, wrappers and foreign names of model keys, read once from keys.yaml."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib import resources
from itertools import islice
from typing import Any

import yaml

from loraport.containers.names import Expert

MAX_LOOKED_AT = 5000  # keys of a file that are looked at to tell what else it may be


@dataclass(frozen=True)
class KeyRules:
    """Everything that keys.yaml says, with its patterns compiled.

    `peel` matches the longest prefix that may stand before a module path; `flattened` one that may follow a flat
    prefix, with underscores.
    """

    flat_prefixes: tuple[str, ...]
    experts: dict[str, Expert]
    peel: re.Pattern[str]
    flattened: re.Pattern[str]
    wrappers: tuple[str, ...]
    foreign: tuple[tuple[str, re.Pattern[str]], ...]
    nests: tuple[str, ...]
    adapter_keys: re.Pattern[str]

    def unwrap(self, key: str) -> str:
        """A key without the names that training wrappers put into it."""
        for wrapper in self.wrappers:
            key = key.replace(wrapper, "")
        return key

    def kind_foreign(self, keys: Iterable[str]) -> str | None:
        """The other family of models that keys belong to, if it is recognised. The most telling pattern wins."""
        looked_at = list(islice(keys, MAX_LOOKED_AT))
        return next((title for title, pattern in self.foreign if any(map(pattern.search, looked_at))), None)


@cache
def key_rules() -> KeyRules:
    """The rules, read on first use."""
    data = read_yaml((resources.files("loraport.models") / "keys.yaml").read_text("utf-8"))
    dotted = {*data["prefixes"], *data["experts"]}
    return KeyRules(
        flat_prefixes=tuple(data["flat_prefixes"]),
        experts=data["experts"],
        peel=_longest({*dotted, *data["flat_prefixes"]}),
        flattened=_longest({prefix.replace(".", "_") for prefix in dotted}),
        wrappers=tuple(data["wrappers"]),
        foreign=tuple((row["title"], re.compile(row["pattern"])) for row in data["foreign"]),
        nests=tuple(data["nests"]),
        adapter_keys=re.compile(data["adapter_keys"]),
    )


def _longest(prefixes: Iterable[str]) -> re.Pattern[str]:
    return re.compile("|".join(re.escape(prefix) for prefix in sorted(prefixes, key=len, reverse=True)))


def read_yaml(text: str) -> Any:
    """What a yaml file of the package or the user's says, by libyaml where PyYAML was built with it: ten times as fast.

    Raises:
        yaml.YAMLError: it is none.
    """
    return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
