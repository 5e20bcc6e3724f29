"""VBench's aesthetic quality: LAION's linear predictor on CLIP's image features.

The predictor is one layer from CLIP ViT-L/14's features at length 1 to a grade from 0 to 10
(`sa_0_4_vit_l_14_linear.pth` of LAION-AI/aesthetic-predictor).
"""

from pathlib import Path

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from loraport.errors import FileError
from loraport.metrics.towers import Clip
from loraport.metrics.weights import read_state


class Aesthetic:
    """The predictor.

    Args:
        file: its weight and bias.
        clip: whose features it is given.

    Raises:
        FileError: no such file, it holds something else, or it was made for another CLIP.
    """

    def __init__(self, file: Path, clip: Clip):
        state = read_state(file)
        width = clip.network.config.projection_dim
        weight, bias = state.get("weight"), state.get("bias")
        if weight is None or bias is None or weight.ndim != 2 or len(weight) != 1 or bias.shape != (1,):
            raise FileError(
                "this is not LAION's aesthetic predictor", where=str(file),
                values=f"keys: {', '.join(list(state)[:3])}",
                fix="give sa_0_4_vit_l_14_linear.pth, which holds one weight and one bias",
            )  # fmt: skip
        if weight.shape[1] != width:
            raise FileError(
                "the aesthetic predictor was made for another CLIP", where=str(file),
                values=f"it takes {weight.shape[1]} features, but the given CLIP makes {width}",
                fix="use --clip with CLIP ViT-L/14 (openai/clip-vit-large-patch14)",
            )  # fmt: skip
        self.weight, self.bias = weight[0], bias

    def grade(self, features: Float[Tensor, "n d"]) -> float:
        """Mean over frames of a tenth of the grade, as VBench gives it: about 0 to 1."""
        return (normalize(features, dim=1) @ self.weight + self.bias).mean().item() / 10
