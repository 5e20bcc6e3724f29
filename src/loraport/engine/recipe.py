"""What to compute (`Recipe`) and how to go about it (`RunOptions`), kept apart on purpose.

Everything in a recipe can change the result, so it enters the keys of cached results and the header of
the output. Nothing in the options can: device, workers, cache and paths are the machine's business.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from loraport.errors import UsageError
from loraport.methods import DEFAULT

LEAST_RANK = 32
"""The default output rank never falls below this: restoring the drift needs room of its own."""

DType = Literal["same", "float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class RankRule:
    """How many rank-one terms each layer of the output may hold.

    kind: `auto` (the input's rank, at least 32; the input's own for methods that keep it), `same`,
    `full` (min(m, n): nothing is lost), `fixed` (`value` terms) or `energy` (as many as keep the share
    `value` of the squared Frobenius norm).
    """

    kind: Literal["auto", "same", "full", "fixed", "energy"]
    value: int | float = 0

    @classmethod
    def parse(cls, text: str) -> "RankRule":
        """Read `auto`, `same`, `full`, a whole number, or `energy=0.99`. Raises UsageError."""
        text = str(text).strip()
        if text in ("auto", "same", "full"):
            return cls(text)  # type: ignore[arg-type]
        if re.fullmatch(r"\d+", text) and int(text) > 0:
            return cls("fixed", int(text))
        match = re.fullmatch(r"energy=(0?\.\d+|1(\.0*)?)", text)
        if match and float(match[1]) > 0:
            return cls("energy", float(match[1]))
        raise UsageError(
            "the rank is not understood",
            values=text,
            fix="give a whole number, same, full, or energy=0.99 (a share between 0 and 1)",
        )

    def for_input(self, rank: int, keeps: bool) -> "RankRule":
        """Settle `auto` and `same` for an input whose largest rank is `rank`; `keeps`: the method needs no more."""
        if self.kind == "same" or (self.kind == "auto" and keeps):
            return RankRule("fixed", rank)
        if self.kind == "auto":
            return RankRule("fixed", max(rank, LEAST_RANK))
        return self

    def __str__(self) -> str:
        return {"fixed": f"{self.value:g}", "energy": f"energy={self.value:g}"}.get(self.kind, self.kind)


class Recipe(BaseModel):
    """One transfer, described by files and settings; checked on construction.

    Attributes:
        lora: the LoRA file.
        source: checkpoint that the LoRA was trained on (file, diffusers folder, hub id).
        target: checkpoint to move it to; None when `target_lora` describes the target.
        target_lora: the target is the source plus this distillation LoRA, `FILE` or `FILE:STRENGTH`.
        method, params: a method or preset of `loraport.methods` and its settings.
        rank: see `RankRule`.
        amount: 0 is direct reuse, 1 the full method, in between a straight line of updates.
        strength: a factor on the whole LoRA, before any method.
        scale: the LoRA's own scale (alpha / rank), stated by hand; None takes what its file says.
        layers: regular expression; layers that do not match keep the input's update unchanged.
        drop: regular expression; layers that match are left out of the output.
        to: output profile. dtype: of the output's tensors.
        nested_source, nested_target: which part of a `.pt` to read (`generator`, `generator_ema`).
        expert: `high` or `low`, for a file that holds the LoRAs of both Wan2.2 experts.
        adapter: which adapter, for a file that names several.
        allow_partial: leave out what cannot be matched instead of refusing.
        force: go on although the target does not look derived from the source, or the LoRA was transferred before.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    lora: str
    source: str
    target: str | None = None
    target_lora: str | None = None
    method: str = DEFAULT
    params: dict[str, Any] = Field(default_factory=dict)
    rank: str = "auto"
    amount: float = Field(default=1.0, ge=0.0, le=1.0)
    strength: float = Field(default=1.0, allow_inf_nan=False)
    scale: float | None = Field(default=None, gt=0.0, allow_inf_nan=False)
    layers: str | None = None
    drop: str | None = None
    to: str = "universal"
    dtype: DType = "same"
    nested_source: str | None = None
    nested_target: str | None = None
    expert: Literal["high", "low"] | None = None
    adapter: str | None = None
    allow_partial: bool = False
    force: bool = False

    @field_validator("layers", "drop")
    @classmethod
    def _is_a_regex(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                re.compile(value)
            except re.error as error:
                raise ValueError(f"not a regular expression: {error}") from error
        return value

    @classmethod
    def build(cls, settings: dict[str, Any]) -> "Recipe":
        """Make a recipe from settings by name. Raises UsageError that names the bad one."""
        try:
            recipe = cls(**settings)
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(str(part) for part in first["loc"])
            raise UsageError(f"bad setting {name}: {first['msg']}", values=str(first.get("input"))) from error
        if (recipe.target is None) == (recipe.target_lora is None):
            raise UsageError(
                "the target is not given" if recipe.target is None else "two targets are given",
                fix="give either a target checkpoint (--target) or a distillation LoRA (--target-lora)",
            )
        RankRule.parse(recipe.rank)
        return recipe

    @property
    def rank_rule(self) -> RankRule:
        """The parsed `rank`."""
        return RankRule.parse(self.rank)

    def target_lora_parts(self) -> tuple[str, float] | None:
        """`target_lora` as (file, strength); the strength is 1 when not given. Raises UsageError."""
        if self.target_lora is None:
            return None
        path, _, tail = self.target_lora.rpartition(":")
        if not path or Path(self.target_lora).exists():  # a colon may be part of the name (C:\...)
            return self.target_lora, 1.0
        try:
            return path, float(tail)
        except ValueError:
            return self.target_lora, 1.0


@dataclass(frozen=True)
class RunOptions:
    """How a run uses the machine. None of these can change a byte of the output.

    Attributes:
        device: `auto`, `cpu`, `cuda` (all of one kind), `cuda:1` or `mps`.
        executor: one of `loraport.engine.executors.NAMES`.
        workers: layers at a time on each device; None means as many as cores and memory allow, and two on a GPU.
        max_memory: bytes that all layers in flight may take; None means 60 % of the memory that is free now, on a
            GPU 85 % of its own.
        cache: folder of the cache, None for the default one, `off` for none.
        verify_inputs: hash every tensor that is used anew, instead of believing what earlier runs remembered of a
            file whose size and times are still the same.
        overwrite: replace an existing output file.
        log: where the run log goes; None means beside the output, `off` for none.
    """

    device: str = "auto"
    executor: str = "thread"
    workers: int | None = None
    max_memory: int | None = None
    cache: str | None = None
    verify_inputs: bool = False
    overwrite: bool = False
    log: str | None = None
