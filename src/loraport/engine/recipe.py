"""What to compute: `Recipe`. How to go about it is in `options.py`.

Everything in a recipe can change the result, so it enters the keys of cached results and the header of the output.
Each field is the only place where its setting is defined: type, default, flag, help and documentation.
"""

import shlex
from collections.abc import Mapping
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
    """One transfer, described by files and settings. Raises UsageError where they make no sense."""

    lora: Annotated[PathText, Setting("LoRA to transfer: a file, a folder, or zoo:NAME.", path=True)]
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
            "Target model, of the same family: a safetensors or .pt file, a diffusers folder, a hub id, or zoo:NAME.",
            "--target", "-t", panel=MODELS, metavar="MODEL", path=True,
        ),
    ] = None  # fmt: skip
    source_lora: Annotated[
        tuple[AddedLora, ...],
        BeforeValidator(added_loras),
        Setting(
            "LoRA that was on the source during training, such as a training adapter. It is not part of the "
            "target; without --target, the target is the source alone. May be repeated; takes the same choices as "
            "--target-lora.",
            "--source-lora", panel=MODELS, metavar="FILE[:STRENGTH]", path=True, many=True,
        ),
    ] = ()  # fmt: skip
    target_lora: Annotated[
        tuple[AddedLora, ...],
        BeforeValidator(added_loras),
        Setting(
            "Distillation LoRA that makes the target: added to --target if given, otherwise to the source. May be "
            "repeated. FILE:0.5:expert=high also sets options for this file (expert, adapter, scale).",
            "--target-lora", panel=MODELS, metavar="FILE[:STRENGTH]", path=True, many=True,
        ),
    ] = ()  # fmt: skip
    nested_source: Annotated[
        str | None,
        Setting(
            "Part of the source to read, such as generator or generator_ema in a .pt file, or transformer_2 in a "
            "folder.",
            "--nested-source", panel=MODELS, metavar="NAME",
        ),
    ] = None  # fmt: skip
    nested_target: Annotated[
        str | None,
        Setting("Part of the target to read, chosen in the same way.", "--nested-target", panel=MODELS, metavar="NAME"),
    ] = None
    architecture: Annotated[
        str,
        Setting(
            "Family of the models, if it should not be detected. any: an unknown family, whose layers are matched "
            "by name and shape alone.",
            "--architecture", panel=MODELS, metavar="NAME|any",
        ),
    ] = "auto"  # fmt: skip
    force: Annotated[
        bool,
        Setting(
            "Go on even if source and target do not look like versions of one model, their drift is mostly "
            "rounding, or the LoRA was transferred before.",
            "--force", panel=MODELS,
        ),
    ] = False  # fmt: skip
    strength: Annotated[
        float,
        Setting("Strength of the whole LoRA.", "--strength", panel=LORA, metavar="X"),
    ] = 1.0
    scale: Annotated[
        float | None,
        Field(gt=0.0),
        Setting(
            "The LoRA's own scale (alpha / rank), if its file does not state it or states it wrongly.",
            "--scale", panel=LORA, metavar="X", default="what its file states",
        ),
    ] = None  # fmt: skip
    expert: Annotated[
        Literal["high", "low"] | None,
        Setting(
            "Wan2.2 expert to use: its folder in a pipeline, its LoRA in every file that holds both.",
            "--expert", panel=LORA, metavar="high|low",
        ),
    ] = None  # fmt: skip
    adapter: Annotated[
        str | None,
        Setting(
            "Name of the LoRA to use from files that hold several. Applies to every file that has it.",
            "--adapter", panel=LORA, metavar="NAME",
        ),
    ] = None  # fmt: skip
    drop: Annotated[
        Pattern,
        Setting(
            "Leave out layers and keys that match, from LoRAs and output.",
            "--drop", panel=LORA, metavar="REGEX",
        ),
    ] = None  # fmt: skip
    allow_partial: Annotated[
        bool,
        Setting("Leave out what cannot be matched, instead of stopping with an error.", "--allow-partial", panel=LORA),
    ] = False
    method: Annotated[
        str,
        Setting(
            "Transfer method or preset; `loraport methods` lists them.",
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
            "How much of the method to apply: 0 reuses the LoRA as it is, 1 is the full method. Values in between "
            "interpolate linearly.",
            "--amount", panel=METHOD, metavar="0..1",
        ),
    ] = 1.0  # fmt: skip
    layers: Annotated[
        Pattern,
        Setting(
            "Apply the method only to layers that match. The others keep their update unchanged.",
            "--layers", panel=METHOD, metavar="REGEX",
        ),
    ] = None  # fmt: skip
    rank: Annotated[
        str,
        BeforeValidator(lambda given: str(given) if type(given) is int else given),
        Setting(
            "Rank of the output: a number, same (as the input), full, or energy=0.99 for the rank that keeps 99 %. "
            "auto: the input's, but at least 32 if the method adds to it.",
            "--rank", "-r", panel=OUTPUT, metavar="N|same|full|energy=X",
        ),
    ] = "auto"  # fmt: skip
    to: Annotated[
        str,
        Setting(
            "Key names in the output: universal, diffusers, kohya, original, fastvideo or same-as-input.",
            "--to", panel=OUTPUT, metavar="PROFILE",
        ),
    ] = "universal"  # fmt: skip
    dtype: Annotated[
        DType,
        Setting(
            "Number format of the output: same (as the input), float32, bfloat16 or float16.",
            "--dtype", panel=OUTPUT, metavar="TYPE",
        ),
    ] = "same"  # fmt: skip

    def check(self) -> None:
        """Refuse settings that do not go together. Raises UsageError."""
        if self.target is None and not self.target_lora and not self.source_lora:
            raise UsageError(
                "the target is not given",
                fix="give a target checkpoint (--target) or distillation LoRAs for the source (--target-lora)",
            )
        RankRule.parse(self.rank)
        carried = self._chosen(AddedLora(file=self.lora))
        for what, given in (("distillation LoRA", self.target_lora), ("LoRA of the source", self.source_lora)):
            seen = set()
            for each in given:
                chosen = self._chosen(each)
                if chosen == carried:
                    raise UsageError(
                        f"the LoRA to transfer is also given as a {what}",
                        values=each.file,
                        fix="remove it there, or name the LoRA you meant",
                    )
                if chosen in seen:
                    raise UsageError(
                        f"a {what} is given twice", values=each.file, fix="give it once, with the strengths added up"
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
        """The settings other than files, as command-line flags; settings at their defaults are left out.

        Args:
            without: settings to leave out.
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


def recipe_settings(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the arguments of a function (`locals()` in its first lines) that are settings of a recipe."""
    given = {name: value for name, value in arguments.items() if name in Recipe.model_fields}
    return given | ({"params": given["params"] or {}} if "params" in given else {})
