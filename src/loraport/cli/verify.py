"""`loraport verify`: is this file what its header says, and will it load?"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from loraport.cli import text
from loraport.cli.console import Console
from loraport.cli.flags import Given, command
from loraport.cli.options import Model, argument, option
from loraport.engine.many.asked import holds_many, list_loras
from loraport.engine.recipe import Recipe
from loraport.errors import FileError, LoraportError, MismatchError
from loraport.wording import count

if TYPE_CHECKING:
    from loraport.adapters.arrival import Arrival, Loss
    from loraport.adapters.checks import Check

EXAMPLE = """Check a file after a copy or download, then against the model it is meant for:

    loraport verify style-fast.safetensors

    loraport verify style-fast.safetensors --model FastWan2.1-T2V-1.3B/

Check everything that a transfer of a folder wrote:

    loraport verify --recursive loras-fast/

See what a program would make of a file:

    loraport verify style-fast.safetensors --for ComfyUI"""
_TITLES = {"error": "refused", "wrong": "wrongly", "unknown": "not known"}
_MARKS = {True: "ok", False: "FAILED", None: "note"}


@command(Recipe.part("expert", "adapter", "architecture"))
def verify(
    given: Given,
    console: Console,
    files: Annotated[list[str], argument("FILE", "LoRA files to check, or folders of them.")],
    recursive: Annotated[bool, option("--recursive", help="Also check LoRAs in subfolders.")] = False,
    model: Model = None,
    consumer: Annotated[str | None, option(
        "--for", metavar="PROGRAM",
        help=
            "Show what this program would make of the files: matched keys, scale, what it drops. "
            "docs/consumers.md lists the programs.",
    )] = None,
    load: Annotated[bool, option(
        "--load/--no-load", help="Also load the file with diffusers, if installed.", default=True
    )] = True,
) -> None:  # fmt: skip
    """Check LoRA files: every key known, every number finite, and content as the header of a transfer states.

    A note is no failure: something that not every loader takes, in a file that never promised more. With --for it is
    a failure (3) if that program would leave something out or refuse the file. Of several files only failures and
    notes are listed; -v lists all.
    """
    from loraport.adapters.arrival import Arrival, rows_of
    from loraport.adapters.checks import Verification
    from loraport.adapters.parse import open_adapter
    from loraport.adapters.verify import verify_adapter
    from loraport.models.checkpoint import open_checkpoint

    choice = given.checked()
    architecture = choice.pop("architecture")
    rows = [] if consumer is None else rows_of(consumer)
    if any(holds_many(file, recursive=recursive) for file in files):
        files = [each.lora for each in list_loras(files, Path(), recursive=recursive)]
    fits = None if model is None else open_checkpoint(model, expert=choice["expert"], architecture=architecture)
    documents: list[dict[str, Any]] = []
    failures: list[LoraportError] = []
    for file in files:
        try:
            checks = verify_adapter(file, fits, load=load, **choice)
        except LoraportError as error:
            documents.append({"path": file, "ok": False, "error": error.to_json()})
            failures.append(error)
            continue
        shown = [check for check in checks if not check.passed or len(files) == 1 or console.verbose]
        passed = count(len(checks) - len(shown), "check")
        lines = [f"  {check.name:<30} {_MARKS[check.passed]:<8} {check.found}" for check in shown]
        console.result(f"{file}  ({passed} ok)" if len(shown) < len(checks) else file, *lines)
        bad = [check for check in checks if check.passed is False]
        documents.append(Verification(file, checks).to_json())
        if bad:
            failures.append(_failure(file, bad[0]))
        elif rows:
            lora = open_adapter(file, fits, role="model", architecture=architecture, **choice)
            arrivals = [Arrival(lora, row) for row in rows]
            for arrival in arrivals:
                console.result(*_lines(arrival))
            short = next((arrival for arrival in arrivals if arrival.arrives is False), None)
            documents[-1] |= {"ok": short is None, "for": [_facts(arrival) for arrival in arrivals]}
            if short is not None:
                failures.append(_short(file, short))
    if len(files) > 1:
        console.result(f"{len(files) - len(failures)} of {len(files)} files pass")
    console.document(documents[0] if len(files) == 1 else {"files": documents})
    console.errors(failures)
    if failures:
        raise typer.Exit(failures[0].exit_code)


def _failure(file: str, check: "Check") -> LoraportError:
    from loraport.adapters.verify import FITS, KEYS

    if check.name == FITS:
        return MismatchError("the file does not fit the model", where=file, values=check.found)
    again = "copy or download it again, or repeat the transfer"
    return FileError(
        f"the file failed a check: {check.name}",
        where=file,
        values=check.found,
        fix=again
        if check.name != KEYS
        else f"for an unknown family: --architecture any --model MODEL; otherwise {again}",
    )


def _lines(arrival: "Arrival") -> list[str]:
    """What a program makes of a file, for people."""
    from loraport.adapters.consumers import HOW

    lora, name = arrival.lora, arrival.consumer.name
    seen = "; ".join(f"{version}: its code was {HOW[how]}" for version, how in arrival.looked_at.items())
    if arrival.reading is None:
        known = arrival.lora.content.family in arrival.consumer.families
        what = "this spelling of LoRAs" if known else "LoRAs"
        told = [
            f"  {'not known':<9} nobody has looked at what it does with {what} for {lora.architecture.family.title}"
        ]
    else:
        scales = " and ".join(f"{scale:g}" for scale in arrival.scales)
        told = [f"  {'matched':<9} {len(arrival.matched)} of {count(len(lora.keys), 'key')}"]
        told += [f"  {'scale':<9} {scales} at strength 1"] if scales else []
        told += [f"  {_TITLES.get(loss.outcome.word, 'left out'):<9} {_loss(loss)}" for loss in arrival.losses]
    told += [f"  {'to do':<9} {arrival.remedy}"] if arrival.remedy else []
    told += [f"  {'load it':<9} {arrival.load}"] if arrival.matched else []
    return [f"for {name} ({seen}), as a LoRA for {lora.architecture.title}:", *told]


def _loss(loss: "Loss") -> str:
    from loraport.adapters.consumers import OUTCOMES, PARTS

    what = PARTS.get(loss.part, "the whole profile is not read" if not loss.outcome.remark else "the profile")
    keys = f"{count(len(loss.keys), 'key')}, " if loss.keys else ""
    remark = f"; {loss.outcome.remark}" if loss.outcome.remark else ""
    shown = f" ({text.listing(loss.keys, 2)})" if loss.keys else ""
    return f"{keys}{what}: {OUTCOMES[loss.outcome.word]}{remark}{shown}"


def _facts(arrival: "Arrival") -> dict[str, Any]:
    """The same as plain values."""
    return {
        "program": arrival.consumer.name,
        "looked_at": arrival.looked_at,
        "family": arrival.lora.content.family,
        "profile": arrival.lora.content.profile,
        "verdict": arrival.verdict,
        "arrives": arrival.arrives,
        "keys": len(arrival.lora.keys),
        "matched": list(arrival.matched),
        "scale": list(arrival.scales),
        "lost": [
            {"part": loss.part, "outcome": loss.outcome.word, "remark": loss.outcome.remark, "keys": list(loss.keys)}
            for loss in arrival.losses
        ],
        "remedy": arrival.remedy,
        "load": arrival.load,
    }


def _short(file: str, arrival: "Arrival") -> LoraportError:
    return MismatchError(
        f"{arrival.consumer.name} would not load all of the file",
        where=file,
        values=arrival.summary,
        fix=arrival.remedy or "no profile would make it load more",
    )
