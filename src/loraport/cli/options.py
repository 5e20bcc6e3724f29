"""The options that commands share, each said once, and what they become: a recipe and run options."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from loraport.cli.text import parse_size
from loraport.cli.voice import Voice
from loraport.errors import UsageError

if TYPE_CHECKING:
    from loraport.engine.recipe import Recipe, RunOptions

_MODELS, _METHOD, _OUTPUT, _MACHINE, _TALK = "Models", "Method", "Output", "Machine", "Messages"

Loras = Annotated[list[str], typer.Argument(metavar="LORA...", help="LoRA files to carry over.", show_default=False)]
Source = Annotated[
    Optional[str],  # noqa: UP045 - typer reads the annotation at run time on every Python
    typer.Option(
        "--source",
        "-s",
        metavar="MODEL",
        show_default=False,
        rich_help_panel=_MODELS,
        help="Model the LoRA was trained on: a safetensors file, a diffusers folder, or a hub id.",
    ),
]
Target = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--target",
        "-t",
        metavar="MODEL",
        show_default=False,
        rich_help_panel=_MODELS,
        help="Distilled model to carry it to: the same kinds, or a .pt file.",
    ),
]
TargetLora = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--target-lora",
        metavar="FILE[:STRENGTH]",
        show_default=False,
        rich_help_panel=_MODELS,
        help="Instead of --target: the target is the source plus this distillation LoRA.",
    ),
]
NestedSource = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--nested-source",
        metavar="NAME",
        show_default=False,
        rich_help_panel=_MODELS,
        help="Part of a .pt source to read, such as generator or generator_ema.",
    ),
]
NestedTarget = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--nested-target",
        metavar="NAME",
        show_default=False,
        rich_help_panel=_MODELS,
        help="Part of a .pt target to read, such as generator or generator_ema.",
    ),
]
Force = Annotated[
    bool,
    typer.Option("--force", rich_help_panel=_MODELS, help="Go on although the target does not look derived from it."),
]
Method = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--method",
        "-m",
        metavar="NAME",
        show_default="casa",
        rich_help_panel=_METHOD,
        help="How to carry it over; see `loraport methods`.",
    ),
]
Preset = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--preset",
        metavar="NAME",
        show_default=False,
        rich_help_panel=_METHOD,
        help="A method with settings chosen for it, such as released-code.",
    ),
]
Set = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        show_default=False,
        rich_help_panel=_METHOD,
        help="Change one setting of the method, such as casa.q_dom=0.5. May be repeated.",
    ),
]
Amount = Annotated[
    float,
    typer.Option(
        "--amount", metavar="0..1", rich_help_panel=_METHOD, help="0 is the LoRA reused as it is, 1 the full method."
    ),
]
Layers = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--layers",
        metavar="REGEX",
        show_default=False,
        rich_help_panel=_METHOD,
        help="Apply the method to layers that match; the others keep their update as it is.",
    ),
]
Drop = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--drop",
        metavar="REGEX",
        show_default=False,
        rich_help_panel=_METHOD,
        help="Leave layers that match out of the output.",
    ),
]
AllowPartial = Annotated[
    bool,
    typer.Option(
        "--allow-partial", rich_help_panel=_METHOD, help="Leave out what cannot be matched, instead of refusing."
    ),
]
Output = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(
        "--output",
        "-o",
        metavar="FILE",
        show_default=False,
        rich_help_panel=_OUTPUT,
        help="The file to write; a folder when several LoRAs are given.",
    ),
]
Rank = Annotated[
    str,
    typer.Option(
        "--rank",
        "-r",
        metavar="N|same|full|energy=X",
        rich_help_panel=_OUTPUT,
        help="Rank of the output. auto: the input's, at least 32. energy=0.99: as much as keeps 99 %.",
    ),
]
To = Annotated[
    str,
    typer.Option(
        "--to",
        metavar="PROFILE",
        rich_help_panel=_OUTPUT,
        help="Names in the output: universal, diffusers, kohya, original, same-as-input.",
    ),
]
Dtype = Annotated[
    str,
    typer.Option(
        "--dtype",
        metavar="TYPE",
        rich_help_panel=_OUTPUT,
        help="Number format of the output: same, float32, bfloat16, float16.",
    ),
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", rich_help_panel=_OUTPUT, help="Replace the output file if it exists.")
]
Device = Annotated[
    str, typer.Option("--device", metavar="NAME", rich_help_panel=_MACHINE, help="auto, cpu, cuda, cuda:1 or mps.")
]
Workers = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option(
        "--workers",
        min=1,
        metavar="N",
        show_default="by cores and memory",
        rich_help_panel=_MACHINE,
        help="Layers at a time.",
    ),
]
Executor = Annotated[
    str,
    typer.Option(
        "--executor", metavar="NAME", rich_help_panel=_MACHINE, help="How layers run: thread, serial or process."
    ),
]
MaxMemory = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--max-memory",
        metavar="SIZE",
        show_default="60 % of what is free",
        rich_help_panel=_MACHINE,
        help="Memory that the layers in work may take together, such as 16GB.",
    ),
]
Cache = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--cache",
        metavar="DIR|off",
        show_default="$LORAPORT_CACHE or the user's cache folder",
        rich_help_panel=_MACHINE,
        help="Where finished work is kept for the next run.",
    ),
]
Log = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--log",
        metavar="FILE|off",
        show_default="beside the output",
        rich_help_panel=_MACHINE,
        help="The run log, one line a layer.",
    ),
]
Verbose = Annotated[
    int,
    typer.Option(
        "--verbose", "-v", count=True, show_default=False, rich_help_panel=_TALK, help="Also show a table of layers."
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", rich_help_panel=_TALK, help="Show errors only.")]
Json = Annotated[bool, typer.Option("--json", rich_help_panel=_TALK, help="Print one JSON document on stdout.")]


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
    method: str | None
    preset: str | None
    settings: list[str] | None
    amount: float
    layers: str | None
    drop: str | None
    allow_partial: bool
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
        from loraport.engine.recipe import Recipe

        if self.source is None:
            raise UsageError(
                "the source is not given", fix="name the model that the LoRA was trained on: --source MODEL"
            )
        return Recipe.build(
            {
                "lora": lora,
                "source": self.source,
                "target": self.target,
                "target_lora": self.target_lora,
                "method": method_or_preset(self.method, self.preset),
                "params": parse_settings(self.settings or []),
                "rank": self.rank,
                "amount": self.amount,
                "layers": self.layers,
                "drop": self.drop,
                "to": self.to,
                "dtype": self.dtype,
                "nested_source": self.nested_source,
                "nested_target": self.nested_target,
                "allow_partial": self.allow_partial,
                "force": self.force,
            }
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
        return method or "casa"
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
