"""What the nodes do, on paths: nothing of ComfyUI in here."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import loraport
from loraport.engine.events import Event, LayerDone

SUFFIX = ".safetensors"
_INPUTS = {"output": "save_as", "target-lora": "distillation_lora"} | {
    name: name for name in ("source", "target", "method", "strength", "amount", "rank", "device", "overwrite")
}


def in_words_of_the_node(text: str) -> str:
    """A message in which options of the command line are called what the inputs of the node are, where it has them."""
    return re.sub(r"--([a-z]+(?:-[a-z]+)*)", lambda found: _INPUTS.get(found[1], found[0]), text)


def output_name(lora: str, target: str, wanted: str = "") -> str:
    """Name of the new LoRA inside the LoRA folder, with slashes on every system.

    Args:
        lora: name of the LoRA in ComfyUI's list.
        target: name of the model it is transferred to, or of the LoRA that makes it.
        wanted: what the user typed; empty for STEM_for_TARGET in the subfolder of the LoRA.

    Raises:
        LoraportError: it leads out of the folder.
    """
    old, model = (PurePosixPath(name.replace("\\", "/")) for name in (lora, target))
    text = wanted.strip().replace("\\", "/") or str(old.parent / f"{old.stem}_for_{model.stem}")
    name = PurePosixPath(text if text.endswith(SUFFIX) else text + SUFFIX)
    if name.is_absolute() or ".." in name.parts or ":" in text or name.name == SUFFIX:
        raise loraport.LoraportError(
            "the name leads out of the LoRA folder or is none",
            values=wanted,
            fix="give a name such as style_fast or mine/style_fast",
        )
    return str(name)


def replaceable(output: Path) -> bool:
    """Whether a file that is there is an earlier result of a transfer, so that a workflow can simply run again."""
    if not output.is_file():
        return False
    try:
        return "loraport.recipe" in loraport.inspect(output).metadata
    except loraport.LoraportError:
        return False


def transfer(
    settings: Mapping[str, Any],
    output: Path,
    *,
    device: str,
    overwrite: bool,
    on_progress: Callable[[float], None],
) -> str:
    """Transfer a LoRA.

    Args:
        settings: arguments of `loraport.transfer` by name.
        output: the file to write; an earlier result is replaced, any other file only with `overwrite`.
        device: as in `loraport.RunOptions`.
        overwrite: replace whatever is there.
        on_progress: told the share of the work that is done, 0 to 1. What it raises ends the run.

    Returns:
        What became of it, for people.

    Raises:
        LoraportError: what is wrong and what to do; nothing has been written.
    """

    share = 0.0

    def listen(event: Event) -> None:
        nonlocal share
        if isinstance(event, LayerDone) and event.total:
            share = event.done / event.total
        on_progress(share)  # of whatever was told, so that a cancel is heard early

    options = loraport.RunOptions(device=device, overwrite=overwrite or replaceable(output), log="off")
    output.parent.mkdir(parents=True, exist_ok=True)
    report = loraport.transfer(**settings, output=output, options=options, on_event=listen)
    facts = report.summary
    lines = [
        f"{output.name}: {facts.layers} layers by {facts.method}, rank {facts.rank_in} -> {facts.rank_out}, "
        f"{facts.energy_kept_total:.2%} of the new update kept"
    ]
    return "\n".join(lines + [f"note: {in_words_of_the_node(text)}" for text in report.warnings])


def verdict(lora: Path, model: Path | None = None) -> str:
    """What a LoRA is and whether it is in order, in words. A file that cannot be used is an answer, no error.

    Args:
        lora: the file.
        model: also say whether it fits this model.
    """
    try:
        facts = loraport.inspect(lora)
        lines = [f"{lora.name}: {facts.title or 'of no model that is known'}"]
        if facts.kind != "lora":
            return "\n".join([f"NOT A LORA. {lines[0]}", facts.refused]).rstrip()
        lines += [f"{facts.layers} layers, rank {_listed(facts.ranks)}, scale {_listed(facts.scales)}, {facts.dialect}"]
        lines += [facts.trained] if facts.trained else []
        lines += [f"note: {text}" for text in facts.findings]
        if facts.refused:
            return "\n".join([f"CANNOT BE USED. {facts.refused}", *lines])
        found = loraport.verify(lora, model=model, load=False)
    except loraport.LoraportError as error:
        return f"CANNOT BE USED. {error.message}"
    marks = {True: "ok", False: "FAILED", None: "note"}
    lines += [f"{marks[check.passed]}: {check.name}: {check.found}" for check in found.checks]
    bad = [check.name for check in found.checks if check.passed is False]
    return "\n".join([f"NOT IN ORDER: {', '.join(bad)}" if bad else "IN ORDER", *lines])


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(counts) or "unknown"
