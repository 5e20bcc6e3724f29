"""The plan of a job on both experts of Wan2.2: those of two transfers, and what is to be said of the two together."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from loraport.adapters.parse import expert_of_keys, experts_in
from loraport.adapters.refusals import NO_EXPERT
from loraport.containers.locate import expert_folders
from loraport.containers.names import EXPERTS, Expert, expert_named, named_for
from loraport.engine.experts.asked import Experts
from loraport.engine.options import RunOptions
from loraport.engine.output import check_outputs, input_files, written_files
from loraport.engine.plan import TransferPlan, make_plan
from loraport.engine.recipe import Recipe
from loraport.errors import Interrupted, LoraportError, MismatchError
from loraport.models.architecture import require_same_size
from loraport.writable import check_apart


def both_are_meant(lora: str, source: str, experts: Experts) -> bool:
    """Whether a command is about both experts: it says so, or the LoRA and the source both hold two.

    Raises:
        FileError: the LoRA cannot be read.
    """
    if experts.expert is not None:
        return experts.expert == "both"
    return bool(experts.low) or (len(expert_folders(source)) == 2 and len(experts_in(lora)) == 2)


@dataclass(frozen=True)
class ExpertsPlan:
    """What a job on both experts will do.

    Attributes:
        plans: of each expert, the high-noise one first.
        warnings: sentences for the user about the two together.
    """

    plans: Mapping[Expert, TransferPlan]
    warnings: tuple[str, ...]

    @property
    def cost(self) -> float:
        """Operations expected when nothing is cached."""
        return sum(plan.cost for plan in self.plans.values())


def make_experts_plan(recipes: Mapping[Expert, Recipe]) -> ExpertsPlan:
    """Match the files of both experts and write the work orders, by headers alone.

    Args:
        recipes: of each expert.

    Raises:
        LoraportError: as `make_plan`, with the expert named.
        MismatchError: both experts would be the same model, or models of different sizes.
    """
    plans: dict[Expert, TransferPlan] = {}
    for expert in EXPERTS:
        with naming(expert):
            plans[expert] = _without_idle(make_plan(recipes[expert]))
    high, low = plans["high"], plans["low"]
    require_same_size(
        high.source.architecture, low.source.architecture, where=f"{high.source.path} and {low.source.path}"
    )
    for role, one, other in (("source", high.source, low.source), ("target", high.target, low.target)):
        if one is not None and other is not None and one.tensors == other.tensors:
            raise MismatchError(
                f"both experts would have the same {role}",
                where=str(one.path),
                fix=f"give a folder with both experts, or the other one with --{role}-low",
            )
    return ExpertsPlan(plans, tuple(_doubts(plans)))


def check_experts_outputs(
    plan: ExpertsPlan,
    outputs: Mapping[Expert, Path] | None,
    options: RunOptions,
    also: Iterable[tuple[str, Path]] = (),
    beside: Mapping[Expert, Mapping[str, Path]] | None = None,
) -> None:
    """As `check_outputs`, for the files of both experts.

    Args:
        plan: of both.
        outputs: the file of each, if any are written.
        options, also: as there.
        beside: of each expert, as there.
    """
    inputs = [*also, *(found for one in plan.plans.values() for found in input_files(one))]
    written: list[tuple[str, Path]] = []
    for expert, one in plan.plans.items():
        path, settings = None if outputs is None else outputs[expert], options_of(expert, options)
        more = (beside or {}).get(expert)
        check_outputs(path, one, settings, inputs, more)
        written += [
            (f"{role} of the {expert}-noise expert", file) for role, file in written_files(path, settings, more)
        ]
    check_apart(written)


def options_of(expert: Expert, options: RunOptions) -> RunOptions:
    """The same with a run log of the expert's own."""
    if options.log in (None, "off"):
        return options
    return options.model_copy(update={"log": str(named_for(Path(options.log), expert))})


def _without_idle(plan: TransferPlan) -> TransferPlan:
    """Without the remark that the expert chose nothing in a LoRA: here it chose the models."""
    return replace(plan, warnings=tuple(text for text in plan.warnings if NO_EXPERT not in text))


def _doubts(plans: Mapping[Expert, TransferPlan]) -> Iterator[str]:
    high, low = plans["high"], plans["low"]
    if high.adapter.path == low.adapter.path and high.adapter.keys == low.adapter.keys and not high.adapter.dropped:
        yield f"{high.adapter.path.name} is used for both experts, since its names mention neither"
    keys = {each.adapter.path: each.adapter.keys for each in high.added}
    for path in sorted(keys.keys() & {each.adapter.path for each in low.added}):
        if len(set(expert_of_keys(keys[path]).values())) < 2:
            yield f"{path.name} is used for both experts; --target-lora-low sets another for the low-noise one"
    for role in ("lora", "source", "target", "target_lora"):
        for one, other in zip(_names(high.recipe, role), _names(low.recipe, role), strict=False):
            if one == other:
                continue
            told = [expert_named(path.name, bare=True) for path in (one, other)]
            if expert_named(one.name) == "low" or expert_named(other.name) == "high" or told == ["low", "high"]:
                flag = role.replace("_", "-")
                yield (
                    f"by their names the two are the wrong way round: {one.name} is given for the high-noise "
                    f"expert, {other.name} for the low-noise one (--{flag}, --{flag}-low)"
                )


@contextlib.contextmanager
def naming(expert: Expert) -> Iterator[None]:
    """Say in every failure which expert it is about."""
    try:
        yield
    except Interrupted:
        raise
    except LoraportError as error:
        what = f"{expert}-noise expert: {error.what}"
        raise type(error)(what, where=error.where, values=error.values, fix=error.fix) from error


def _names(recipe: Recipe, role: str) -> list[Path]:
    given = getattr(recipe, role)
    if isinstance(given, tuple):
        return [Path(each.file) for each in given]
    return [Path("" if given is None else str(given))]
