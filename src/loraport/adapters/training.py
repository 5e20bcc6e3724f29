"""What the header of a LoRA says of its training: by which trainer, on which model, how long.

Anybody may have written it, so that every text is made plain and short before it is shown, every number is one, and
nothing here decides how the file is read. What each trainer writes:

    kohya, musubi-tuner   ss_sd_model_name, ss_base_model_version, ss_network_module, ss_steps, ss_epoch, ...
    ai-toolkit            software, training_info (JSON), ss_base_model_version, the trigger word as only tag
    OneTrainer            ot_branch, ot_config (JSON)
    PEFT, diffusion-pipe  base_model_name_or_path in adapter_config.json
    diffusers             the same in lora_adapter_metadata
    anybody               modelspec.*; musubi-tuner states the trained part of the schedule in modelspec.timestep_range
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

from loraport.adapters.header import BASES, LORA_CONFIG, TRAINED_ON, read_json, read_table
from loraport.adapters.peft_config import CONFIG_FILE, PEFT_FILE
from loraport.wording import count

LONGEST = 120  # characters of a text
MOST_TAGS = 5
ONLY_HIGH, ONLY_LOW = 850, 900
"""Time steps (of 1000) from or up to which one expert of Wan2.2 alone is trained: its boundary is 875 or 900."""

_OF_A_TRANSFER = (*BASES, "ss_network_dim", "ss_network_alpha")
_MANY = 10_000  # entries of a table that are looked at
_NOTHING = {"", "none", "null", "nan", "false"}
# Written by trainers that took the model for the Stable Diffusion they knew.
_PLACEHOLDERS = {"sd_1.5", "sd_2.1", "sdxl_1.0", "sdxl_"}
_MUSUBI = re.compile(r"(^|\.)networks\.\w+_(wan|framepack|hv_1_5|qwen_image|flux_2|flux_kontext|zimage|kandinsky5)$")
# In the names of models that need few steps, and in those of models that do not although the former stands there too.
_DISTILLED = re.compile(
    r"turbo|lightning|schnell|distil|causvid|accvideo|fastwan|lightx2v|(self|rolling)[-_ ]?forcing|"
    r"krea[-_ ]?realtime|longlive|(?<![a-z])(lcm|dmd2?|rcm|(few|\d{1,2})[-_ ]?steps?)(?![a-z])",
    re.IGNORECASE,
)
_SWAPPED = "The source is the model that the LoRA was trained on: are --source and --target the wrong way round?"
_UNDISTILLED = re.compile(r"(?<![a-z])((base|raw|dev)(?![a-z])|(de|un)[-_ ]?(distil|turbo))", re.IGNORECASE)


@dataclass(frozen=True)
class Training:
    """How a LoRA was trained, as far as its header says so; empty where it does not.

    Attributes:
        trainer: the program.
        base: names of the model it was trained on, the most exact first.
        steps: how many.
        epochs: how many.
        rank: as set in the trainer; what is in the tensors decides.
        alpha: the same.
        timesteps: least and greatest of the time steps that were trained, of 1000.
        trigger: words that call it up.
        tags: the commonest words of the captions.
        comment: the trainer's own remark.
        license: under which it was published.
    """

    trainer: str = ""
    base: tuple[str, ...] = ()
    steps: int | None = None
    epochs: int | None = None
    rank: float | None = None
    alpha: float | None = None
    timesteps: tuple[int, int] | None = None
    trigger: str = ""
    tags: tuple[str, ...] = ()
    comment: str = ""
    license: str = ""

    @property
    def expert(self) -> str | None:
        """The expert of Wan2.2 whose part of the schedule alone was trained: "high", "low", or None."""
        if self.timesteps is None:
            return None
        least, greatest = self.timesteps
        return "high" if least >= ONLY_HIGH else "low" if greatest <= ONLY_LOW else None

    def to_json(self) -> dict[str, Any]:
        """What is known, as plain values."""
        found = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
        return {name: value for name, value in found.items() if value not in (None, "", [])}

    def sentence(self) -> str:
        """The main facts in one line; "" where there are none."""
        parts = [
            f"by {self.trainer}" if self.trainer else "",
            f"on {self.base[0]}" if self.base else "",
            count(self.steps, "step") if self.steps else "",
            count(self.epochs, "epoch") if self.epochs else "",
            f"time steps {self.timesteps[0]} to {self.timesteps[1]}" if self.timesteps else "",
            f"rank {self.rank:g}" if self.rank else "",
            f"alpha {self.alpha:g}" if self.alpha else "",
            f"trigger {self.trigger}" if self.trigger else "",
        ]
        return ", ".join(part for part in parts if part)


def read_training(path: Path, metadata: Mapping[str, str]) -> Training:
    """What is known of the training of a LoRA.

    Args:
        path: the file; `adapter_config.json` beside it is read if PEFT named the file.
        metadata: its header.
    """
    given = {key: text for key, text in metadata.items() if isinstance(text, str)}
    if "loraport.method" in given:  # a transfer wrote these: the model it was carried to, and the rank of the output
        given = {key: text for key, text in given.items() if key not in _OF_A_TRANSFER}
        given |= {key: text for key, text in _table(given, TRAINED_ON).items() if isinstance(text, str)}
    info, onetrainer = _table(given, "training_info"), _table(given, "ot_config")
    tags = [tag for tag, _ in _tags(_table(given, "ss_tag_frequency")).most_common(MOST_TAGS)]
    trainer = _trainer(given)
    trigger = _first(given.get(key) for key in ("modelspec.trigger_phrase", "trigger_word", "trigger_words"))
    if not trigger and trainer.startswith("ai-toolkit") and len(tags) == 1:
        trigger, tags = tags[0], []
    return Training(
        trainer=trainer,
        base=_bases(path, given, onetrainer),
        steps=_count(_first((given.get("ss_steps"), info.get("step"), given.get("steps")))),
        epochs=_count(_first((given.get("ss_epoch"), info.get("epoch")))),
        rank=_number(_first((given.get("ss_network_dim"), onetrainer.get("lora_rank")))),
        alpha=_number(_first((given.get("ss_network_alpha"), onetrainer.get("lora_alpha")))),
        timesteps=_range(given.get("modelspec.timestep_range", "")),
        trigger=trigger,
        tags=tuple(tags),
        comment=plain(given.get("ss_training_comment")),
        license=_first((given.get("modelspec.license"), given.get("license"))),
    )


def other_side(training: Training, source: str, target: str) -> str | None:
    """A sentence where the header says that the LoRA was trained on a model like the target, not like the source.

    Only the names can say so: words for few steps in the one and not in the other.

    Args:
        training: of the LoRA.
        source: the name that the user gave the model it was trained on, a path or a hub id.
        target: that of the model it is carried to.
    """
    for base in training.base:
        told, here, there = _is_distilled(base), _is_distilled(_end(source)), _is_distilled(_end(target))
        if told and not here:
            return (
                f"the header says that the LoRA was trained on {base}, but the source is {_end(source)}. For a "
                "LoRA trained on a distilled model, give that model as --source (and its training adapter as "
                "--source-lora)"
            )
        plainly = bool(_UNDISTILLED.search(base)) or (len(_words(base)) > 1 and _words(base) <= _words(_end(target)))
        if not told and here and not there and plainly:
            return f"the header says that the LoRA was trained on {base}, but the source is {_end(source)}. {_SWAPPED}"
    return None


def swapped_by_name(training: Training, source: str, target: str) -> str | None:
    """A sentence where the source is distilled by its name and the target is not, as if the two were swapped.

    Weights cannot tell: the drift of the one to the other is that of the other to the one, but for its sign.

    Args:
        training: of the LoRA; a distilled model in its header speaks for such a source.
        source: the name that the user gave the model it was trained on, a path or a hub id.
        target: that of the model it is carried to.
    """
    if any(map(_is_distilled, (_end(target), *training.base))) or not _is_distilled(_end(source)):
        return None
    return f"by its name the source ({source}) is a distilled model, but the target ({target}) is not. {_SWAPPED}"


def plain(value: Any) -> str:
    """A text from a stranger as one short line of visible characters; "" for nothing, and for what is no text."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return ""
    text = " ".join(str(value)[: 10 * LONGEST].split())
    text = "".join(char if char.isprintable() else "\ufffd" for char in text)
    if text.lower() in _NOTHING:
        return ""
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."


def _trainer(given: Mapping[str, str]) -> str:
    software = read_json(given, "software")
    named = software.get("name") if isinstance(software, dict) else software
    version = software.get("version") if isinstance(software, dict) else None
    if name := plain(named if named is not None else given.get("software")):
        return f"{name} {plain(version)}".strip()
    if "ot_branch" in given or "ot_config" in given:
        return "OneTrainer"
    module = plain(given.get("ss_network_module"))
    if _MUSUBI.search(module):
        return "musubi-tuner"
    if module:
        return f"a trainer of the kohya family ({module})"
    return ""


def _bases(path: Path, given: Mapping[str, str], onetrainer: Mapping[str, Any]) -> tuple[str, ...]:
    peft = [value for key, value in _table(given, LORA_CONFIG).items() if key.endswith("base_model_name_or_path")]
    exact = [given.get("ss_sd_model_name"), *peft, _beside(path, given), onetrainer.get("base_model_name")]
    said = [*exact, given.get("ss_base_model"), given.get("base_model"), given.get("ss_base_model_version")]
    names = dict.fromkeys(plain(name) for name in said)
    return tuple(name for name in names if name and name not in _PLACEHOLDERS)


def _beside(path: Path, given: Mapping[str, str]) -> Any:
    """The model in the configuration beside a file that PEFT named."""
    if "loraport.version" in given or path.stem != PEFT_FILE:
        return None
    # Where it matters that it cannot be read, it is refused when the scale is looked for.
    return read_table(path.parent / CONFIG_FILE).get("base_model_name_or_path")


def _table(given: Mapping[str, str], key: str) -> dict[str, Any]:
    found = read_json(given, key)
    return dict(islice(found.items(), _MANY)) if isinstance(found, dict) else {}


def _tags(folders: Mapping[str, Any]) -> Counter[str]:
    """How often each tag stands in the captions of all folders."""
    found: Counter[str] = Counter()
    for folder in folders.values():
        for tag, number in islice(folder.items(), _MANY) if isinstance(folder, dict) else ():
            if plain(tag) and isinstance(number, int) and 0 < number < 10**9:
                found[plain(tag)] += number
    return found


def _first(values: Iterable[Any]) -> str:
    return next((text for value in values if (text := plain(value))), "")


def _count(text: str) -> int | None:
    return int(text) if re.fullmatch(r"[0-9]{1,9}", text) else None


def _number(text: str) -> float | None:
    return float(text) if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", text) else None


def _range(text: str) -> tuple[int, int] | None:
    found = re.fullmatch(r"([0-9]{1,4}),([0-9]{1,4})", text[:20].replace(" ", ""))
    return (int(found[1]), int(found[2])) if found and int(found[1]) <= int(found[2]) <= 1000 else None


def _is_distilled(name: str) -> bool:
    return bool(_DISTILLED.search(name)) and not _UNDISTILLED.search(name)


def _end(name: str) -> str:
    """The last two parts of a path, which are also those of a hub id: folders above say nothing of the model."""
    return "/".join(PurePosixPath(name.replace("\\", "/")).parts[-2:]) or name


def _words(name: str) -> set[str]:
    return set(re.findall(r"[a-z]+|[0-9]+", PurePosixPath(name).stem.lower())) - {"safetensors"}
