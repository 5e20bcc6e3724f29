"""One small network that reads a clip's attributes, style, identity and motion, and gives features for distances."""

from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

# Answers per head; "look", "ring" and "zigzag" tell what a user LoRA was to add.
HEADS = {"shape": 4, "colour": 6, "direction": 4, "background": 4, "look": 4, "ring": 2, "zigzag": 2}
ATTRIBUTES = ("shape", "colour", "direction", "background")
LOOKS = ("base", "noir", "outline", "stripe")
FEATURES = 64


class ClipClassifier(nn.Module):
    """Three strided 3D convolutions, one hidden layer, a head per question. Clips are 6 x 16 x 16, in [-1, 1]."""

    def __init__(self) -> None:
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
            nn.Linear(64 * 3 * 2 * 2, FEATURES),
        )
        self.heads = nn.ModuleDict({name: nn.Linear(FEATURES, count) for name, count in HEADS.items()})

    def features(self, clips: Tensor) -> Tensor:
        """[batch, FEATURES], what the Frechet distance is computed on."""
        return nn.functional.silu(self.body(clips))

    def forward(self, clips: Tensor) -> dict[str, Tensor]:
        """Logits [batch, answers] of each head."""
        features = self.features(clips)
        return {name: head(features) for name, head in self.heads.items()}


def save_classifier(model: ClipClassifier, path: Path) -> None:
    save_file({key: value.half().contiguous() for key, value in model.state_dict().items()}, path)


def load_classifier(path: Path) -> ClipClassifier:
    model = ClipClassifier()
    model.load_state_dict({key: value.float() for key, value in load_file(path).items()})
    return model.eval()
