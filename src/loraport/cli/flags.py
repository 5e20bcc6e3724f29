"""From options as given to what the engine takes: a recipe and run options."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraport.cli.text import parse_size
from loraport.cli.voice import Voice
from loraport.containers.names import named_path
from loraport.errors import UsageError
from loraport.methods import DEFAULT

if TYPE_CHECKING:
    from loraport.engine.recipe import Recipe, RunOptions


@dataclass(frozen=True)
class Flags:
    """The options of a transfer or a plan as given, by name of the option."""

    loras: list[str]
    source: str | None
    target: str | None
    target_lora: str | None
    nested_source: str | None
    nested_target: str | None
    force: bool
    expert: str | None
    adapter: str | None
    strength: float
    scale: float | None
    drop: str | None
    allow_partial: bool
    method: str | None
    preset: str | None
    settings: list[str] | None
    amount: float
    layers: str | None
    output: Path | None
    rank: str
    to: str
    dtype: str
    overwrite: bool
    device: str
    workers: int | None
    executor: str
    max_memory: str | None
    cache: str | None
    log: str | None
    verbose: int
    quiet: bool
    as_json: bool

    @property
    def voice(self) -> Voice:
        """How to talk to the user."""
        return Voice(verbose=self.verbose, quiet=self.quiet, as_json=self.as_json)

    def recipe(self, lora: str) -> "Recipe":
        """The recipe for one of the LoRAs. Raises UsageError."""
        return build_recipe(
            lora,
            source=self.source,
            target=self.target,
            target_lora=self.target_lora,
            nested_source=self.nested_source,
            nested_target=self.nested_target,
            force=self.force,
            expert=self.expert,
            adapter=self.adapter,
            strength=self.strength,
            scale=self.scale,
            drop=self.drop,
            allow_partial=self.allow_partial,
            method=method_or_preset(self.method, self.preset),
            params=parse_settings(self.settings or []),
            layers=self.layers,
            rank=self.rank,
            amount=self.amount,
            to=self.to,
            dtype=self.dtype,
        )

    def options(self) -> "RunOptions":
        """How to use the machine. Raises UsageError."""
        return run_options(
            device=self.device,
            executor=self.executor,
            workers=self.workers,
            max_memory=self.max_memory,
            cache=self.cache,
            overwrite=self.overwrite,
            log=self.log,
        )


def output_file(given: Path, lora: str) -> Path:
    """The file to write for `lora`, where a folder may have been given."""
    return given / named_path(lora).name if given.is_dir() else given


def warn_of_name(path: Path, voice: Voice) -> None:
    """Say that programs will overlook the file that was written, if its name is one they overlook."""
    if path.suffix != ".safetensors":
        voice.warning(f"{path.name} does not end in .safetensors, and many programs list only such files")


def build_recipe(
    lora: str,
    *,
    source: str | None,
    target: str | None,
    target_lora: str | None,
    nested_source: str | None,
    nested_target: str | None,
    force: bool,
    expert: str | None,
    adapter: str | None,
    strength: float,
    scale: float | None,
    drop: str | None,
    allow_partial: bool,
    method: str,
    params: dict[str, Any],
    layers: str | None,
    rank: str = "auto",
    amount: float = 1.0,
    to: str = "universal",
    dtype: str = "same",
) -> "Recipe":
    """The recipe for one LoRA. Raises UsageError that names the setting that is wrong or missing."""
    settings = dict(locals())
    from loraport.engine.recipe import Recipe

    if source is None:
        raise UsageError("the source is not given", fix="name the model that the LoRA was trained on: --source MODEL")
    return Recipe.build(settings)


def run_options(
    *,
    device: str,
    executor: str,
    workers: int | None,
    max_memory: str | None,
    cache: str | None,
    overwrite: bool = False,
    log: str | None = None,
) -> "RunOptions":
    """Run options from texts. Raises UsageError for a value that is not understood or not available."""
    from loraport.engine.recipe import RunOptions

    if executor == "ray":
        raise UsageError("the ray executor is not available in this version", values="--executor ray",
                         fix="use --executor process for several processes on this machine")  # fmt: skip
    if executor not in ("thread", "serial", "process"):
        raise UsageError("unknown executor", values=executor, fix="use thread, serial or process")
    return RunOptions(
        device=device,
        executor=executor,
        workers=workers,
        max_memory=None if max_memory is None else parse_size(max_memory, name="--max-memory"),
        cache=cache,
        overwrite=overwrite,
        log=log,
    )


def method_or_preset(method: str | None, preset: str | None) -> str:
    """The one name that --method and --preset amount to. Raises UsageError when they contradict each other."""
    if preset is None:
        return method or DEFAULT
    from loraport.methods import registry

    if preset not in registry.PRESETS:
        raise UsageError(
            f"there is no preset named {preset!r}", values=f"known: {', '.join(registry.PRESETS)}",
            fix="loraport methods",
        )  # fmt: skip
    owner = registry.PRESETS[preset].method
    if method not in (None, owner):
        raise UsageError(f"the preset {preset} belongs to the method {owner}", values=f"--method {method}")
    return preset


def parse_settings(texts: list[str]) -> dict[str, Any]:
    """`name=value` texts by name, later ones winning. Raises UsageError."""
    settings = {}
    for text in texts:
        name, sign, value = text.partition("=")
        if not sign or not name.strip() or not value.strip():
            raise UsageError("a setting is not understood", values=f"--set {text}", fix="--set casa.q_dom=0.5")
        settings[name.strip()] = value.strip()
    return settings
