"""How a run uses the machine: `RunOptions`. What is computed is in `recipe.py`.

Nothing here can change the result: device, workers, cache and paths concern only the machine. Each field is the only
place where its setting is defined: type, default, flag, help and documentation.
"""

from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from loraport.engine.devices import named_devices
from loraport.engine.executors import NAMES as EXECUTORS
from loraport.engine.recipe import MACHINE, OUTPUT
from loraport.errors import UsageError, one_of
from loraport.settings import PathText, Setting, Settings, parse_size

RayData = Literal["auto", "paths", "store"]


def _executor(name: str) -> str:
    if name not in EXECUTORS:
        raise UsageError(f"there is no executor named {name!r}", fix=one_of(name, EXECUTORS))
    return name


def _cache(given: str | None) -> str | None:
    """The three words in any letters: a folder called `Off` is hardly meant, and `./Off` means it."""
    return given.casefold() if given is not None and given.casefold() in ("auto", "on", "off") else given


def _device(text: str) -> str:
    named_devices(text)  # a name that is none is refused before anything is read
    return text


class RunOptions(Settings):
    """How a run uses the machine. None of these can change a byte of the output. Raises UsageError."""

    device: Annotated[
        str,
        BeforeValidator(lambda given: ",".join(given) if isinstance(given, list | tuple) else given),
        AfterValidator(_device),
        Setting(
            "Device to compute on: auto, cpu, cuda (all of one kind), cuda:1, cuda:0,cuda:1 or mps.",
            "--device", panel=MACHINE, metavar="NAME",
        ),
    ] = "auto"  # fmt: skip
    workers: Annotated[
        int | None,
        Field(ge=1, le=10_000),
        Setting(
            "Number of layers to process at a time on each device.",
            "--workers", panel=MACHINE, metavar="N",
            default="by cores and memory; four on a GPU (two with process and ray); always one on mps",
        ),
    ] = None  # fmt: skip
    executor: Annotated[
        str,
        AfterValidator(_executor),
        Setting(f"How to run layers: {', '.join(EXECUTORS)}.", "--executor", panel=MACHINE, metavar="NAME"),
    ] = "thread"
    ray_data: Annotated[
        RayData,
        Setting(
            "How machines of a Ray cluster get tensors. paths: each reads the files. store: this command reads "
            "them and sends what a layer needs through Ray's object store. auto: store for machines that do not "
            "see the files, paths otherwise.",
            "--ray-data", panel=MACHINE, metavar="auto|paths|store",
        ),
    ] = "auto"  # fmt: skip
    max_memory: Annotated[
        Annotated[int, Field(gt=0)] | None,
        BeforeValidator(lambda given: parse_size(given, name="--max-memory") if isinstance(given, str) else given),
        Setting(
            "Most memory that the layers in progress may take together, such as 16GB. On a GPU, most that the "
            "program may take there.",
            "--max-memory", panel=MACHINE, metavar="SIZE", default="60 % of what is free; 85 % on a GPU",
        ),
    ] = None  # fmt: skip
    cache: Annotated[
        PathText | None,
        AfterValidator(_cache),
        Setting(
            "What to keep for later runs. auto: finished layers, and decompositions if they save the next LoRA of "
            "the pair more time than writing them costs. on, or a folder: always both. off: nothing.",
            "--cache", panel=MACHINE, metavar="auto|on|off|DIR",
            default="auto, in $LORAPORT_CACHE or the user's cache folder",
        ),
    ] = None  # fmt: skip
    verify_inputs: Annotated[
        bool,
        Setting(
            "Hash every tensor used again, instead of trusting the hashes that earlier runs recorded for files "
            "whose size and times have not changed.",
            "--verify-inputs", panel=MACHINE,
        ),
    ] = False  # fmt: skip
    log: Annotated[
        PathText | None,
        Setting(
            "Run log to write, one line per layer; off: none.",
            "--log", panel=MACHINE, metavar="FILE|off", default="beside the output",
        ),
    ] = None  # fmt: skip
    overwrite: Annotated[bool, Setting("Replace the output if it exists.", "--overwrite", panel=OUTPUT)] = False

    @property
    def cache_folder(self) -> str | None:
        """The folder named by `cache`, if any."""
        return None if self.cache in ("auto", "on", "off") else self.cache
