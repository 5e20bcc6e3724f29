"""What a check finds: a verdict, the reasons for it, and every figure that they rest on."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from loraport.engine.results import InputFile, KnownModel

SCHEMA = 1
"""Of the JSON document; raised when a name goes or changes its meaning."""

Verdict = Literal["use as is", "use at strength", "convert", "cannot help"]
Stage = Literal["headers", "sample", "all layers"]

EXIT_CODES: Mapping[Verdict, int] = {"use as is": 0, "use at strength": 10, "convert": 11, "cannot help": 12}
"""Of the command. Errors keep theirs (1 to 5, 130): then there is no verdict."""


@dataclass(frozen=True)
class Null:
    """What a figure would be if there were nothing to see.

    Attributes:
        name: of the null model, such as "Gaussian drift of the same norm" or "rounding of the stored numbers".
        value: the figure under it, in the figure's own unit.
    """

    name: str
    value: float


@dataclass(frozen=True)
class Quantity:
    """One quantity over the layers that were looked at.

    Attributes:
        key: short name, the same in `LayerCheck.figures`.
        title: what to call it.
        help: what it is, in one sentence.
        unit: "share" (of 1), "factor", or "cosine" (-1 to 1).
        of: what it describes: "pair" (the two models), "lora" (this LoRA on the pair), "method".
        value: over all these layers together.
        low: smallest value of a layer.
        high: largest value of a layer.
        layers: how many layers it was measured on.
        nulls: null models beside it.
    """

    key: str
    title: str
    help: str
    unit: str
    of: str
    value: float
    low: float
    high: float
    layers: int
    nulls: tuple[Null, ...] = ()


@dataclass(frozen=True)
class LayerCheck:
    """One layer that was looked at.

    Attributes:
        name: canonical layer name.
        shape: (out, in).
        kind: type of the layer, its name without block numbers.
        depth: of its block, 0 for the first and 1 for the last one.
        figures: by key; those that need a decomposition only where one was made.
        nulls: figure's key -> null model -> value.
    """

    name: str
    shape: tuple[int, int]
    kind: str
    depth: float
    figures: Mapping[str, float]
    nulls: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Coverage:
    """Where the LoRA meets the target, by headers.

    Attributes:
        keys: in the LoRA's file.
        layers: linear layers that the LoRA changes.
        met: layers of these that source and target both have in that size.
        kept: keys for other things than linear layers, which are passed on unchanged.
        dropped: keys that match nothing, or were left out by request.
        of_model: linear layers of the source.
    """

    keys: int
    layers: int
    met: int
    kept: int
    dropped: tuple[str, ...]
    of_model: int


@dataclass(frozen=True)
class Kind:
    """How the target was made from the source, as far as weights and names tell.

    Attributes:
        name: such as "distribution matching", "regression", "a LoRA", "rounding only", "unrelated", "not told".
        sentence: why it looks so.
        by: "weights" or "names".
    """

    name: str
    sentence: str
    by: str


@dataclass(frozen=True)
class Reason:
    """One sentence for the verdict.

    Attributes:
        text: the sentence.
        figure: key of the figure it rests on; "" if it rests on headers.
        threshold: name of the threshold that decided; "" if none did.
        bound: its value.
        measured: on which pairs the threshold was measured, and by which command.
    """

    text: str
    figure: str = ""
    threshold: str = ""
    bound: float | None = None
    measured: str = ""


@dataclass(frozen=True)
class CheckResult:
    """The outcome of a check; `to_json()` is what `--json` prints.

    Attributes:
        lora: the LoRA file.
        source: the model it was trained on.
        source_title: that model in words; "" if it could not be opened.
        target: the distilled model; None if LoRAs make it from the source.
        target_title: that model in words.
        target_lora: the distillation LoRAs that make the target, with their strengths, in words.
        verdict: what to do.
        strength: strength at which to use the LoRA on the target, as it is or converted; None with "cannot help".
        headline: the verdict in one sentence.
        reasons: why, the most important first.
        stage: what was looked at.
        coverage: where the LoRA meets the target; None if the files could not be matched.
        kind: how the target was made; None if no weights were looked at and no name tells.
        figures: every quantity, with its nulls.
        layers: the layers that were looked at, in the model's order.
        layers_of: how many layers could have been looked at.
        command: how to go on, as a command line; "" if there is nothing to run.
        load: how to use the LoRA on the target, one program a line.
        known: what names and headers say: how the LoRA was trained, how the target is sampled.
        warnings: what else the user should know.
        seconds: wall time.
        inputs: the inputs, with digests as far as earlier runs remember them (that of a LoRA is quickly computed).
            Empty if the files could not be matched.
        flags: what was asked for besides files, as flags.
        target_known: the well-known model that the target is, judging by its name, and how its authors sample it.
        target_usage: how the target is sampled, as files beside it say.
    """

    lora: str
    source: str
    source_title: str
    target: str | None
    target_title: str
    target_lora: tuple[str, ...]
    verdict: Verdict
    strength: float | None
    headline: str
    reasons: tuple[Reason, ...]
    stage: Stage
    coverage: Coverage | None = None
    kind: Kind | None = None
    figures: tuple[Quantity, ...] = field(default=(), repr=False)
    layers: tuple[LayerCheck, ...] = field(default=(), repr=False)
    layers_of: int = 0
    command: str = ""
    load: tuple[str, ...] = ()
    known: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    seconds: float = 0.0
    inputs: tuple[InputFile, ...] = ()
    flags: tuple[str, ...] = ()
    target_known: KnownModel | None = None
    target_usage: str | None = None

    @property
    def exit_code(self) -> int:
        """Of the command for this verdict."""
        return EXIT_CODES[self.verdict]

    def figure(self, key: str) -> Quantity | None:
        """The figure of that key, None where it was not measured."""
        return next((figure for figure in self.figures if figure.key == key), None)

    def to_json(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {"schema": SCHEMA, "exit_code": self.exit_code} | _plain(asdict(self))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value
