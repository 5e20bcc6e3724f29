"""What to compute: `Recipe`. How to go about it is in `options.py`.

Everything in a recipe can change the result, so it enters the keys of cached results and the header of the output.
Each field is the one place where its setting is defined: type, default, flag, help and documentation.
"""

import shlex
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from loraport.adapters.added_lora import AddedLora, added_loras
from loraport.engine.rank import RankRule
from loraport.errors import UsageError
from loraport.methods import DEFAULT
from loraport.settings import FrozenDict, PathText, Setting, Settings, regular_expression

DType = Literal["same", "float32", "bfloat16", "float16"]

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
