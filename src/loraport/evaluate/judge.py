"""The learnt judge: one small classifier that reads what a clip shows and gives features for Frechet distances.

Trained on renderings only (`training/train_classifier.py`), never on samples, so it owes nothing to any method.
"""

from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from loraport.errors import FileError, MismatchError, first_line
from loraport.evaluate.tasks import ATTRIBUTES
from loraport.zoo.catalogue import TINY, ClipSize

FAULTS = {"copies": 3, "ghost": 2, "blurred": 2}
"""How often the prompt's shape is there (0 to 2 times), whether another clip shows through, whether it is unsharp."""
HEADS = {"shape": 4, "colour": 6, "direction": 4, "background": 4, "look": 4, "ring": 2, "zigzag": 2} | FAULTS
LOOKS = ("base", "noir", "outline", "stripe")
FEATURES = 64
_BATCH = 256


class ClipClassifier(nn.Module):
    """Three strided 3D convolutions, one hidden layer, a linear head per question. Clips lie in [-1, 1].

    Args:
        cells: frames x height x width that are left after the convolutions.
    """

    def __init__(self, cells: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv3d(3, 24, 3, stride=(1, 2, 2), padding=1),
            nn.GroupNorm(4, 24),
            nn.SiLU(),
            nn.Conv3d(24, 48, 3, stride=(1, 2, 2), padding=1),
            nn.GroupNorm(8, 48),
            nn.SiLU(),
            nn.Conv3d(48, 64, 3, stride=2, padding=1),
            nn.GroupNorm(8, 64),
            nn.SiLU(),
            nn.Flatten(),
            nn.Linear(64 * cells, FEATURES),
        )
        self.heads = nn.ModuleDict({name: nn.Linear(FEATURES, count) for name, count in HEADS.items()})

    def forward(self, clips: Float[Tensor, "n 3 f h w"]) -> tuple[Float[Tensor, "n d"], dict[str, Tensor]]:
        """Features, and logits of each head."""
        features = nn.functional.silu(self.body(clips))
        return features, {name: head(features) for name, head in self.heads.items()}


@dataclass(frozen=True, eq=False)
class JudgeReading:
    """What the judge sees in clips: features, and for each head the probability of each answer."""

    features: Float[Tensor, "n d"]
    probabilities: dict[str, Float[Tensor, "n answers"]]

    def taught(self, style: str) -> Float[Tensor, " n"]:
        """Probability that a clip shows what the LoRA of this style was to teach."""
        if style in LOOKS:
            return self.probabilities["look"][:, LOOKS.index(style)]
        return self.probabilities[style][:, 1]

    def correct(self, attribute: str, prompts: Tensor) -> Float[Tensor, " n"]:
        """1 where the most likely answer is what the prompt (attribute positions, n x 4) asks for, else 0."""
        asked = prompts[:, ATTRIBUTES.index(attribute)]
        return (self.probabilities[attribute].argmax(1) == asked).float()

    def faults(self) -> dict[str, Float[Tensor, " n"]]:
        """What users complain of, by name, as probabilities: no shape, two shapes, ghosts, blur."""
        copies = self.probabilities["copies"]
        return {
            "missing": copies[:, 0],
            "doubled": copies[:, 2],
            "ghost": self.probabilities["ghost"][:, 1],
            "blurred": self.probabilities["blurred"][:, 1],
        }


@dataclass(frozen=True, eq=False)
class Judge:
    """A loaded classifier. Build it with `open_judge`."""

    network: ClipClassifier

    def read(self, clips: Float[Tensor, "n 3 f h w"]) -> JudgeReading:
        """Look at clips; pixels beyond [-1, 1] are cut first, as a player would."""
        features, logits = [], []
        with torch.inference_mode():
            for part in clips.clamp(-1, 1).split(_BATCH):
                seen, said = self.network(part)
                features.append(seen)
                logits.append(said)
        return JudgeReading(
            torch.cat(features).clone(), {name: torch.cat([part[name] for part in logits]).softmax(1) for name in HEADS}
        )


def bundled_judge() -> Path:
    """The classifier that ships with the package."""
    return Path(str(resources.files("loraport.evaluate"))) / "data" / "classifier.safetensors"


def cells(clip: ClipSize) -> int:
    """What the convolutions leave of a clip: frames x height x width."""
    return -(-clip.frames // 2) * (-(-clip.side // 8)) ** 2


def open_judge(file: Path | None = None, clip: ClipSize = TINY) -> Judge:
    """Load the classifier, the bundled one by default.

    Raises:
        FileError: there is no such file, or it is something else.
        MismatchError: it was trained on clips of another size.
    """
    file = file or bundled_judge()
    if not file.is_file():
        raise FileError("no such classifier", where=str(file))
    try:
        state = {key: value.float() for key, value in load_file(file).items()}
        known = state["body.10.weight"].shape[1] // 64
    except (SafetensorError, KeyError, IndexError) as error:
        raise FileError("this is no classifier of clips", where=str(file), values=first_line(error)) from error
    if known != cells(clip):
        raise MismatchError(
            "the classifier was trained on clips of a different size from what these models make",
            where=str(file),
            values=f"it reads {known} cells, {clip.frames} frames of {clip.side} x {clip.side} have {cells(clip)}",
            fix="give the family's own classifier: --judge FAMILY/classifier.safetensors",
        )
    with torch.random.fork_rng(devices=[]):  # a fresh network fills its weights at random
        network = ClipClassifier(known)
    network.load_state_dict(state)
    return Judge(network.requires_grad_(False).eval())
