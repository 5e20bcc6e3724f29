"""LoRAs on layers that several families call alike: what to call them, and when that matters."""

from collections.abc import Iterable

from loraport.adapters.adapter import LoraAdapter
from loraport.adapters.dialect import SAME_AS_INPUT, profile_of
from loraport.errors import MismatchError
from loraport.models.family import Family
from loraport.models.keymap import keymap_of


def shared_title(titles: Iterable[str]) -> str:
    """One title for several: "Qwen-Image 20B or FLUX.1 12B (6 blocks, width 3072)"."""
    names, facts = zip(*(title.partition(" (")[::2] for title in titles), strict=True)
    return " or ".join(dict.fromkeys(names)) + (f" ({facts[0]}" if facts[0] else "")


def check_one_meant(lora: LoraAdapter, to: str) -> None:
    """Refuse to write names of one family where the LoRA may be of another that has other names there.

    Args:
        lora: opened without a model.
        to: the output profile.

    Raises:
        MismatchError: it may be of several families, and the output depends on which.
    """
    if to == SAME_AS_INPUT or not lora.others:
        return
    written = {family.title: _written(lora, family, to) for family in (lora.architecture.family, *lora.others)}
    if len({frozenset(names) for names in written.values()}) > 1:
        raise MismatchError(
            f"the LoRA may be for {' or '.join(written)}: all of them have the layers that it changes, but under "
            "different names in the output",
            where=str(lora.path),
            values=f"{next(iter(next(iter(written.values()))))} or {next(iter(list(written.values())[-1]))}",
            fix=f"choose one with --model MODEL or --architecture {lora.architecture.family.name}, or use --to "
            "same-as-input",
        )


def _written(lora: LoraAdapter, family: Family, to: str) -> set[str]:
    """What the layers would be called in the output if the LoRA were of a family."""
    own, naming = lora.architecture.family, profile_of(to, lora.dialect).of(family).dialect.names
    keymap = keymap_of(family)
    found = {own.spell(name, lora.dialect.names) for name in lora.layers}
    held = [at.parts for path in sorted(found) if (at := keymap.resolve(path)) is not None]
    return {family.spell(part.module, naming) for parts in held for part in parts}
