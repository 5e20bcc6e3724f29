"""What a job on both experts of Wan2.2 is asked for: settings besides a recipe, the two recipes, the two outputs."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator

from loraport.adapters.added_lora import AddedLora, added_loras
from loraport.containers.names import EXPERTS, Expert, expert_named, named_for, renamed_for
from loraport.engine.recipe import LORA, MODELS, Recipe
from loraport.errors import UsageError
from loraport.settings import PathText, Setting, Settings


class Experts(Settings):
    """What a job on both experts takes besides a recipe, which is that of the high-noise one. Raises UsageError.

    Anything may be left out if a folder or a file of the recipe holds both experts.
    """

    expert: Annotated[
        Literal["high", "low", "both"] | None,
        Setting(
            "Wan2.2 expert to use: its folder in a pipeline, its LoRA in every file that holds both. both: one "
            "job that writes two files.",
            "--expert", panel=LORA, metavar="high|low|both",
        ),
    ] = None  # fmt: skip
    lora_low: Annotated[
        PathText | None,
        Setting(
            "LoRA for the low-noise expert, if the main one is for the high-noise expert.",
            "--lora-low", panel=LORA, metavar="FILE", path=True,
        ),
    ] = None  # fmt: skip
    source_low: Annotated[
        PathText | None,
        Setting(
            "Low-noise source, if --source is not a folder with both experts.",
            "--source-low", panel=MODELS, metavar="MODEL", path=True,
        ),
    ] = None  # fmt: skip
    target_low: Annotated[
        PathText | None,
        Setting(
            "Low-noise target, if --target is not a folder with both experts.",
            "--target-low", panel=MODELS, metavar="MODEL", path=True,
        ),
    ] = None  # fmt: skip
    target_lora_low: Annotated[
        tuple[AddedLora, ...],
        BeforeValidator(added_loras),
        Setting(
            "Distillation LoRA for the low-noise expert, if --target-lora does not serve both. Of two files named "
            "after the experts, either one finds the other. May be repeated.",
            "--target-lora-low", panel=MODELS, metavar="FILE[:STRENGTH]", path=True, many=True,
        ),
    ] = ()  # fmt: skip

    def check(self) -> None:
        """Refuse settings that do not go together. Raises UsageError."""
        named = [name for name in _LOW if getattr(self, name)]
        if self.expert in ("high", "low") and named:
            raise UsageError(
                "one expert is chosen, but an option for the low-noise expert of a pair is given",
                values=f"--expert {self.expert}, --{named[0].replace('_', '-')}",
                fix="use --expert both, or leave --expert out",
            )

    @property
    def low(self) -> dict[str, Any]:
        """What is given for the low-noise expert, by the field of a recipe that it stands for."""
        return {name.removesuffix("_low"): value for name in _LOW if (value := getattr(self, name))}


_LOW = ("lora_low", "source_low", "target_low", "target_lora_low")


def recipes_of(recipe: Recipe, experts: Experts) -> dict[Expert, Recipe]:
    """The two recipes of a job on both experts.

    A LoRA that its name says is one of two (`style_high_noise`) brings the other, if that lies beside it.

    Raises:
        UsageError: there is no other one for a distillation LoRA that is named after one expert.
    """
    low: dict[str, Any] = dict(experts.low)
    high: dict[str, Any] = {}
    if "lora" not in low and (pair := _pair_of(recipe.lora)):
        high["lora"], low["lora"] = pair["high"], pair["low"]
    one_kind = recipe.target is None or not recipe.target_lora  # else each takes the place of its own
    if one_kind and ("target" in low or "target_lora" in low):
        low = {"target": None, "target_lora": (), **low}
    if "target_lora" not in low:
        high["target_lora"], low["target_lora"] = (loras_for(recipe.target_lora, expert) for expert in EXPERTS)
    return {
        "high": recipe.model_copy(update={"expert": "high", **high}),
        "low": recipe.model_copy(update={"expert": "low", **low}),
    }


def loras_for(given: tuple[AddedLora, ...], expert: Expert) -> tuple[AddedLora, ...]:
    """Of distillation LoRAs for both experts those of one: in place of what is named after the other, its pair.

    Args:
        given: the LoRAs.
        expert: the one that is meant.

    Raises:
        UsageError: one is named after the other expert, and its pair does not lie beside it.
    """
    files = {each.identity[0] for each in given}
    found = []
    for each in given:
        named = expert_named(Path(each.file).name)
        if named is None or named == expert or each.expert is not None:
            found.append(each)
            continue
        pair = renamed_for(Path(each.file), expert)
        other = each.model_copy(update={"file": str(pair)})
        if not pair.is_file():
            two = {named: each.file, expert: "FILE"}
            raise UsageError(
                f"a distillation LoRA is named after the {named}-noise expert, and the other expert has none",
                where=each.file,
                values=f"no {pair.name} beside it",
                fix=f"name both: --target-lora {two['high']} --target-lora-low {two['low']} "
                "(the same file twice uses it for both)",
            )
        if other.identity[0] not in files:
            found.append(other)
    return tuple(found)


def _pair_of(lora: str) -> dict[Expert, str] | None:
    path = Path(lora)
    if expert_named(path.name) is None:
        return None
    files = {expert: renamed_for(path, expert) for expert in EXPERTS}
    return {expert: str(file) for expert, file in files.items()} if all(map(Path.is_file, files.values())) else None


def outputs_of(output: Path) -> dict[Expert, Path]:
    """The two files that are named after one: NAME_high_noise and NAME_low_noise, as ai-toolkit names them."""
    return {expert: named_for(output, expert) for expert in EXPERTS}
