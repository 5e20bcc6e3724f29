"""What to compute (`Recipe`) and how to go about it (`RunOptions`).

Everything in a recipe can change the result, so it enters the keys of cached results and the header of
the output. Nothing in the options can: device, workers, cache and paths are the machine's business.
Each field is the one place where its setting is defined: type, default, flag, help and documentation.
"""

import shlex
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from loraport.adapters.added_lora import AddedLora, added_loras
from loraport.engine.executors import NAMES as EXECUTORS
from loraport.engine.rank import RankRule
from loraport.errors import UsageError, did_you_mean
from loraport.methods import DEFAULT
from loraport.settings import FrozenDict, PathText, Setting, Settings, parse_size, regular_expression

DType = Literal["same", "float32", "bfloat16", "float16"]
RayData = Literal["auto", "paths", "store"]

MODELS, LORA, METHOD, OUTPUT, MACHINE = "Models", "LoRA", "Method", "Output", "Machine"
"""Panels of the help."""

Pattern = Annotated[str | None, AfterValidator(regular_expression)]


class Recipe(Settings):
    """One transfer, described by files and settings. Raises UsageError where they make no sense.

    The meaning of every field stands beside it; `loraport transfer --help` and `help(loraport.transfer)` show all.
    """

    lora: Annotated[PathText, Setting("The LoRA to carry over: a file, a folder, or zoo:NAME.", path=True)]
    source: Annotated[
        PathText,
        Setting(
            "Model the LoRA was trained on, distilled or not: a safetensors file, a diffusers folder, a hub id, or "
            "zoo:NAME.",
            "--source", "-s", panel=MODELS, metavar="MODEL", path=True,
        ),
    ]  # fmt: skip
    target: Annotated[
        PathText | None,
        Setting(
            "Model to carry it to, of the same family: the same kinds, or a .pt file.",
            "--target", "-t", panel=MODELS, metavar="MODEL", path=True,
        ),
    ] = None  # fmt: skip
    source_lora: Annotated[
        tuple[AddedLora, ...],
        BeforeValidator(added_loras),
        Setting(
            "A LoRA that was on the source while this one was trained, such as a training adapter. It is no part of "
            "the target, which without --target is the source alone. May be repeated; choices as for --target-lora.",
            "--source-lora", panel=MODELS, metavar="FILE[:STRENGTH]", path=True, many=True,
        ),
    ] = ()  # fmt: skip
    target_lora: Annotated[
        tuple[AddedLora, ...],
        BeforeValidator(added_loras),
        Setting(
            "A distillation LoRA that makes the target: it is added to the source, or to --target where one is given. "
            "May be repeated. FILE:0.5:expert=high also chooses (expert, adapter, scale) in this file.",
            "--target-lora", panel=MODELS, metavar="FILE[:STRENGTH]", path=True, many=True,
        ),
    ] = ()  # fmt: skip
    nested_source: Annotated[
        str | None,
        Setting(
            "Part of the source to read: generator or generator_ema of a .pt file, transformer_2 of a folder.",
            "--nested-source", panel=MODELS, metavar="NAME",
        ),
    ] = None  # fmt: skip
    nested_target: Annotated[
        str | None,
        Setting("Part of the target to read, in the same way.", "--nested-target", panel=MODELS, metavar="NAME"),
    ] = None
    architecture: Annotated[
        str,
        Setting(
            "Family of the models, where it is not to be recognised: its name, or any for one that is not known, whose "
            "layers are matched by name and shape alone.",
            "--architecture", panel=MODELS, metavar="NAME|any",
        ),
    ] = "auto"  # fmt: skip
    force: Annotated[
        bool,
        Setting(
            "Go on although source and target do not look like one model, their drift is mostly rounding, or the "
            "LoRA was transferred before.",
            "--force", panel=MODELS,
        ),
    ] = False  # fmt: skip
    strength: Annotated[
        float,
        Setting("Use the whole LoRA this strong, before any method.", "--strength", panel=LORA, metavar="X"),
    ] = 1.0
    scale: Annotated[
        float | None,
        Field(gt=0.0),
        Setting(
            "The LoRA's own scale, alpha / rank, where its file does not say it or says it wrong.",
            "--scale", panel=LORA, metavar="X", default="what its file says",
        ),
    ] = None  # fmt: skip
    expert: Annotated[
        Literal["high", "low"] | None,
        Setting(
            "Which expert of Wan2.2: its folder of a pipeline, its LoRA of every file with two.",
            "--expert", panel=LORA, metavar="high|low",
        ),
    ] = None  # fmt: skip
    adapter: Annotated[
        str | None,
        Setting(
            "Which LoRA of a file that holds several by name; of every file that has it.",
            "--adapter", panel=LORA, metavar="NAME",
        ),
    ] = None  # fmt: skip
    drop: Annotated[
        Pattern,
        Setting(
            "Leave layers and keys that match out of the output, and out of the distillation LoRAs.",
            "--drop", panel=LORA, metavar="REGEX",
        ),
    ] = None  # fmt: skip
    allow_partial: Annotated[
        bool, Setting("Leave out what cannot be matched, instead of refusing.", "--allow-partial", panel=LORA)
    ] = False
    method: Annotated[
        str,
        Setting(
            "How to carry it over: a method or a preset; see `loraport methods`.",
            "--method", "-m", panel=METHOD, metavar="NAME",
        ),
    ] = DEFAULT  # fmt: skip
    params: Annotated[
        dict[str, Any],
        AfterValidator(FrozenDict.of),
        Setting('Settings of the method, such as `{"q_dom": 0.5}`.'),
    ] = Field(default_factory=FrozenDict)
    amount: Annotated[
        float,
        Field(ge=0.0, le=1.0),
        Setting(
            "0 is the LoRA reused as it is, 1 the full method; in between a straight line.",
            "--amount", panel=METHOD, metavar="0..1",
        ),
    ] = 1.0  # fmt: skip
    layers: Annotated[
        Pattern,
        Setting(
            "Apply the method to layers that match; the others keep their update as it is.",
            "--layers", panel=METHOD, metavar="REGEX",
        ),
    ] = None  # fmt: skip
    rank: Annotated[
        str,
        BeforeValidator(lambda given: str(given) if type(given) is int else given),
        Setting(
            "Rank of the output. auto: the input's, at least 32 if the method adds to it. energy=0.99: keeps 99 %.",
            "--rank", "-r", panel=OUTPUT, metavar="N|same|full|energy=X",
        ),
    ] = "auto"  # fmt: skip
    to: Annotated[
        str,
        Setting(
            "Names in the output: universal, diffusers, kohya, original, fastvideo, same-as-input.",
            "--to", panel=OUTPUT, metavar="PROFILE",
        ),
    ] = "universal"  # fmt: skip
    dtype: Annotated[
        DType,
        Setting(
            "Number format of the output: same, float32, bfloat16, float16.",
            "--dtype", panel=OUTPUT, metavar="TYPE",
        ),
    ] = "same"  # fmt: skip

    def check(self) -> None:
        """Refuse settings that do not go together. Raises UsageError."""
        if self.target is None and not self.target_lora and not self.source_lora:
            raise UsageError(
                "the target is not given",
                fix="give a target checkpoint (--target), or distillation LoRAs for the source (--target-lora)",
            )
        RankRule.parse(self.rank)
        carried = self._chosen(AddedLora(file=self.lora))
        for what, given in (("distillation LoRA", self.target_lora), ("LoRA of the source", self.source_lora)):
            seen = set()
            for each in given:
                chosen = self._chosen(each)
                if chosen == carried:
                    raise UsageError(
                        f"the LoRA that is carried over is also given as a {what}",
                        values=each.file,
                        fix="leave it out there, or name the LoRA that was meant",
                    )
                if chosen in seen:
                    raise UsageError(
                        f"a {what} is given twice", values=each.file, fix="give it once, at the sum of the strengths"
                    )
                seen.add(chosen)

    def _chosen(self, lora: AddedLora) -> tuple[str, str | None, str | None]:
        file, expert, adapter = lora.identity
        return file, expert or self.expert, adapter or self.adapter

    @classmethod
    def build(cls, settings: dict[str, Any]) -> "Recipe":
        """Make a recipe from settings by name. Raises UsageError that names the bad one."""
        return cls.model_validate(settings)

    def flags(self, *without: str) -> tuple[str, ...]:
        """What is asked for besides files, as on the command line; settings at their defaults are left out.

        Args:
            without: settings that say nothing here.
        """
        found = []
        for name, setting in type(self).described().items():
            value, usual = getattr(self, name), type(self).model_fields[name].get_default(call_default_factory=True)
            if setting.path or name in without or value == usual:
                continue
            if name == "params":
                found += [shlex.join(["--set", f"{key}={text}"]) for key, text in value.items()]
            else:
                found.append(setting.flags[0] if value is True else shlex.join([setting.flags[0], str(value)]))
        return tuple(found)

    @property
    def rank_rule(self) -> RankRule:
        """The parsed `rank`."""
        return RankRule.parse(self.rank)


def _executor(name: str) -> str:
    if name not in EXECUTORS:
        raise UsageError(
            "unknown executor", values=name, fix=did_you_mean(name, EXECUTORS) or f"use {', '.join(EXECUTORS)}"
        )
    return name


def _cache(given: str | None) -> str | None:
    """The three words in any letters: a folder called `Off` is hardly meant, and `./Off` means it."""
    return given.casefold() if given is not None and given.casefold() in ("auto", "on", "off") else given


class RunOptions(Settings):
    """How a run uses the machine. None of these can change a byte of the output. Raises UsageError."""

    device: Annotated[
        str,
        BeforeValidator(lambda given: ",".join(given) if isinstance(given, list | tuple) else given),
        Setting(
            "auto, cpu, cuda (all of one kind), cuda:1, cuda:0,cuda:1 or mps.",
            "--device", panel=MACHINE, metavar="NAME",
        ),
    ] = "auto"  # fmt: skip
    workers: Annotated[
        int | None,
        Field(ge=1, le=10_000),
        Setting(
            "Layers at a time, on each device.",
            "--workers", panel=MACHINE, metavar="N", default="by cores and memory, two on a GPU",
        ),
    ] = None  # fmt: skip
    executor: Annotated[
        str,
        AfterValidator(_executor),
        Setting(f"How layers run: {', '.join(EXECUTORS)}.", "--executor", panel=MACHINE, metavar="NAME"),
    ] = "thread"
    ray_data: Annotated[
        RayData,
        Setting(
            "How machines of a Ray cluster come by tensors. paths: each reads the files. store: this command reads "
            "them and sends what a layer needs through Ray's object store. auto: that where a machine does not see "
            "the files.",
            "--ray-data", panel=MACHINE, metavar="auto|paths|store",
        ),
    ] = "auto"  # fmt: skip
    max_memory: Annotated[
        Annotated[int, Field(gt=0)] | None,
        BeforeValidator(lambda given: parse_size(given, name="--max-memory") if isinstance(given, str) else given),
        Setting(
            "Memory that the layers in work may take together, such as 16GB; on a GPU, what all tensors take.",
            "--max-memory", panel=MACHINE, metavar="SIZE", default="60 % of what is free, 85 % on a GPU",
        ),
    ] = None  # fmt: skip
    cache: Annotated[
        PathText | None,
        AfterValidator(_cache),
        Setting(
            "Finished layers are kept for the next run. auto: decompositions too, where the next LoRA of the pair "
            "gains more than writing them costs. on, or a folder: always. off: nothing.",
            "--cache", panel=MACHINE, metavar="auto|on|off|DIR",
            default="auto, in $LORAPORT_CACHE or the user's cache folder",
        ),
    ] = None  # fmt: skip
    verify_inputs: Annotated[
        bool,
        Setting(
            "Hash every tensor that is used anew, instead of believing what earlier runs remembered of a file whose "
            "size and times are still the same.",
            "--verify-inputs", panel=MACHINE,
        ),
    ] = False  # fmt: skip
    log: Annotated[
        PathText | None,
        Setting(
            "The run log, one line a layer.",
            "--log", panel=MACHINE, metavar="FILE|off", default="beside the output",
        ),
    ] = None  # fmt: skip
    overwrite: Annotated[bool, Setting("Replace the output file if it exists.", "--overwrite", panel=OUTPUT)] = False

    @property
    def cache_folder(self) -> str | None:
        """The folder that `cache` names, if it names one."""
        return None if self.cache in ("auto", "on", "off") else self.cache
