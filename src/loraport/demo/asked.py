"""What a demo is asked for: bundled models and a LoRA that belong together."""

import importlib.util

from loraport.errors import UsageError
from loraport.zoo.catalogue import LoraCard, ModelCard, lora_card, model_card

NEEDED = ("diffusers", "peft", "PIL")


def cards_of(lora: str, target: str) -> tuple[LoraCard, ModelCard, ModelCard]:
    """What is known of the LoRA, of its source and of the target. Nothing is loaded.

    Args:
        lora: name of a bundled LoRA.
        target: of a bundled model.

    Raises:
        UsageError: unknown names, a target that was not made from the LoRA's source, or diffusers is not installed.
    """
    card = lora_card(lora)
    source, goal = model_card(card.source), model_card(target)
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(
            "the demo samples the models, which needs more packages than a transfer",
            values=f"not installed: {', '.join(missing)}",
            fix="pip install 'loraport[diffusers,report]'",
        )
    if goal.parent != source.name:
        raise UsageError(
            f"{goal.name} was not made from {source.name}, which the LoRA was trained on",
            values=f"made from {goal.parent or 'nothing: it is a source'}",
        )
    return card, source, goal
