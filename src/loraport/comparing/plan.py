"""What a comparison is made of, as far as headers tell: known before torch is loaded."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from loraport.comparing.pairs import LoraFiles
from loraport.comparing.prompts import Prompt
from loraport.comparing.settings import CompareSettings
from loraport.comparing.sides import Side
from loraport.comparing.variants import Role, Variant
from loraport.metrics.given import JudgeWeights


@dataclass(frozen=True)
class ComparePlan:
    """A comparison that is to be made.

    Attributes:
        sides: source and target.
        loras: the files of the LoRA, and of what was made of it.
        variants: the ways of making the clips.
        prompts: what they are to show.
        settings: which clips.
        weights: what to judge by.
        folder: where everything goes.
    """

    sides: Mapping[Role, Side]
    loras: tuple[LoraFiles, ...]
    variants: tuple[Variant, ...]
    prompts: tuple[Prompt, ...]
    settings: CompareSettings
    weights: JudgeWeights
    folder: Path

    @property
    def with_images(self) -> bool:
        """Whether clips begin with an image."""
        return self.prompts[0].image is not None
