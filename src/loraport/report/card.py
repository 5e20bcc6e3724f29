"""A model card about a transferred LoRA: Markdown, with the YAML that model hubs read, and without local paths."""

import hashlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any

import yaml

from loraport.errors import FileError
from loraport.files import write_text
from loraport.report.frame import plain
from loraport.report.tables import written
from loraport.version import __version__
from loraport.wording import share

_FROM_HUB = re.compile(r"models--(?P<owner>[^/\\]+?)--(?P<name>[^/\\]+)")
_ANYBODYS = re.compile(r"(lora|model|adapter_model|pytorch_model|pytorch_lora_weights|diffusion_pytorch_model)[.-]")
_NO_NAME = ("transformer", "transformer_2", "high_noise_model", "low_noise_model")
_MARKS = re.compile(r"([\\`*\[\]<>|#])")


def write_card(output: Path, report: Mapping[str, Any]) -> Path:
    """Write the card of a transfer that wrote its file.

    Args:
        output: the Markdown file.
        report: `TransferReport.to_json()`.

    Raises:
        FileError: the card cannot be written, or the LoRA is not there any more.
    """
    write_text(Path(output), render_card(report))
    return Path(output)


def render_card(report: Mapping[str, Any]) -> str:
    """The card of `write_card` as text."""
    facts, file = report["summary"], Path(report["output"])
    front = yaml.safe_dump(_front(facts), sort_keys=False, allow_unicode=True, width=1000)
    sections = [("", _what(facts)), ("Use", _use(report, file)), ("Trained", _trained(facts))]
    sections += [("Licences", _licences(facts)), ("File", _hashes(file))]
    body = [f"# {_plain(file.stem)}"]
    for title, lines in sections:
        body += [f"## {title}"] if title else []
        body += ["\n".join(lines)]
    return f"---\n{front}---\n\n" + "\n\n".join(body) + "\n"


def name_of(path: str) -> str:
    """What to call a model or a LoRA in public: its id on the hub, else the name of its file or folder."""
    hub = _FROM_HUB.search(path)
    if hub is not None:
        return f"{hub['owner']}/{hub['name']}"
    parts = [part for part in PurePath(path).parts if part not in _NO_NAME]
    if len(parts) > 1 and _ANYBODYS.match(parts[-1]):
        return "/".join(parts[-2:])  # its folder says whose it is
    return parts[-1] if parts else path


def _front(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Texts for machines, as the hub documents them; `base_model` is that of the target."""
    training = facts["training"]
    bases = [facts["target"] or facts["source"], *(each["file"] for each in facts["target_lora"])]
    found: dict[str, Any] = {
        "base_model": [name_of(each) for each in bases],
        "base_model_relation": "adapter",
        "library_name": "diffusers",
        "tags": ["lora", "diffusers", "loraport"],
    }
    own = training.get("license")
    if own:
        known = re.fullmatch(r"[a-z0-9][a-z0-9.-]*", own.lower())  # the hub takes no other texts
        found |= {"license": own.lower()} if known else {"license": "other", "license_name": own}
    return found | ({"instance_prompt": training["trigger"]} if training.get("trigger") else {})


def _what(facts: Mapping[str, Any]) -> list[str]:
    made_of = " + ".join(f"{_code(name_of(each['file']))} at {each['strength']:g}" for each in facts["target_lora"])
    target = _code(name_of(facts["target"] or facts["source"])) + (f" + {made_of}" if made_of else "")
    settings = ", ".join(f"{key} {written(key, value)}" for key, value in facts["params"].items())
    rows = {
        "LoRA": _code(name_of(facts["lora"])),
        "trained on": f"{_code(name_of(facts['source']))}, {_plain(facts['source_title'])}",
        "for": f"{target}, {_plain(facts['target_title'])}",
        "method": f"{facts['method']}, amount {facts['amount']:g}" + (f" ({_plain(settings)})" if settings else ""),
        "strength before the method": f"{facts['strength']:g}",
        "rank": f"{facts['rank_in']} in the input, {facts['rank_out']} in this file, which holds "
        f"{share(facts['energy_kept_total'])} of the update's squared norm",
        "names of keys, number format": f"{facts['to']}, {facts['dtype']}",
    }
    return [
        f"This LoRA was transferred from one model to another from weights alone, with loraport {__version__}.",
        "",
        "| | |",
        "|---|---|",
        *(f"| {name} | {text} |" for name, text in rows.items()),
    ]


def _use(report: Mapping[str, Any], file: Path) -> list[str]:
    facts = report["summary"]
    lines = ["- Load it at strength 1.0, for which it was made."]
    for each in facts["target_lora"]:
        usage = f": {_plain(each['usage'])}" if each["usage"] else ""
        lines.append(f"- Use it together with {_code(name_of(each['file']))} at strength {each['strength']:g}{usage}")
    known, told = facts.get("target_known"), facts["target_usage"]
    said = [f"{known['name']}: {known['how']} ({known['seen']})"] if known else []
    said += [told] if told else []
    how = f": {_plain('; '.join(said))}" if said else ". Its page says how many steps and what guidance"
    lines.append(f"- Sample as its model is sampled{how}.")
    for way in report["load"]:
        program, colon, text = way.partition(": ")
        if colon and str(file) in way:
            lines.append(f"- {_plain(program)}: {_code(text.replace(str(file), file.name))}")
    ways = known["ways"] if known else {}
    return [*lines, *(f"- {_plain(program)}, to sample: {_code(way)}" for program, way in ways.items())]


def _trained(facts: Mapping[str, Any]) -> list[str]:
    training = facts["training"]
    told = {
        "trigger words": training.get("trigger"),
        "commonest tags": ", ".join(training.get("tags", [])),
        "by": training.get("trainer"),
        "on": ", ".join(training.get("base", [])),
        "steps": training.get("steps"),
        "epochs": training.get("epochs"),
        "remark": training.get("comment"),
    }
    return [f"- {name}: {_plain(str(text))}" for name, text in told.items() if text] or [
        "The LoRA's file does not say how it was trained."
    ]


def _licences(facts: Mapping[str, Any]) -> list[str]:
    own = facts["training"].get("license")
    names = [facts["source"], *([facts["target"]] if facts["target"] else [])]
    names += [each["file"] for each in (*facts["target_lora"], *facts["source_lora"])]
    models = ", ".join(_code(name) for name in dict.fromkeys(name_of(each) for each in names))
    return [
        "This file is made from the LoRA and from the weights of the models named here. The licence of each has a say "
        "in what may be done with it; some forbid commercial use.",
        "",
        f"- the LoRA {_code(name_of(facts['lora']))}: "
        + (_plain(own) if own else "its file names no licence; ask its author"),
        f"- {models}: see their pages",
    ]


def _hashes(file: Path) -> list[str]:
    """As Civitai calls them: AutoV2 is of the whole file, AutoV3 of the data without the header."""
    whole, data = hashlib.sha256(), hashlib.sha256()
    for part, piece in _pieces(file):
        whole.update(piece)
        if part == "data":
            data.update(piece)
    return [
        f"- {_code(file.name)}, {file.stat().st_size:,} bytes",
        f"- SHA-256 {whole.hexdigest()}",
        f"- AutoV2 {whole.hexdigest()[:10].upper()}, AutoV3 {data.hexdigest()[:12].upper()}",
    ]


def _pieces(file: Path) -> Iterator[tuple[str, bytes]]:
    try:
        with file.open("rb") as stream:
            length = stream.read(8)
            yield "header", length
            yield "header", stream.read(int.from_bytes(length, "little"))
            while piece := stream.read(2**24):
                yield "data", piece
    except OSError as error:
        raise FileError("the file that the card is about cannot be read", where=str(file), values=str(error)) from None


def _plain(text: str) -> str:
    """A text that stands in Markdown as it is."""
    return _MARKS.sub(r"\\\1", _line(text))


def _code(text: str) -> str:
    """A name between backticks, also in a table."""
    return "`" + _line(text).replace("`", "'").replace("|", "\\|") + "`"


def _line(text: str) -> str:
    """A text in one line, in which every character can be seen: names of files may hold any."""
    return " ".join(plain(text).split())
