"""AMT-S, which VBench measures the motion smoothness with: it makes the frame half way between two (Li et al. 2023).

The features of every place of one frame are correlated with those of every place of the other. The flow from the
middle to either frame is decoded coarse to fine, and refined at each of three sizes by the correlation that is found
where it leads. Three pairs of flows, each with a mask and a residual, then make three pictures; their mean, corrected
once more, is the frame. Written from the paper and held to the code that VBench runs; the weights are those that it
takes, `amt-s.pth`, by the names that they have. Their terms forbid commercial use.
"""

import itertools
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional

from loraport.metrics.correlation import LEVELS, Correlation, places
from loraport.metrics.frames import as_tensor, padded
from loraport.metrics.weights import read_state, require_shapes

WIDTHS = (20, 32, 44, 56)  # channels at a half, a fourth, an eighth and a sixteenth of the size
FEATURES = 84  # channels that are correlated
RADIUS = 3  # how far around a place the correlation is read
SIDE = 20  # channels of a decoder that have convolutions of their own
HIDDEN, MOTION, SEEN, JOINED = 76, 20, 64, 68  # channels of a refinement
FLOWS = 3  # pairs of flows at the full size
BLOCK, LEAST = 16, 128  # pixels that a side is a multiple of, as in VBench, and that the network can take


class Amt:
    """The network.

    Args:
        file: its weights.
        device: where to run.

    Raises:
        FileError: no such file, or it is not of AMT-S.
    """

    def __init__(self, file: Path, device: str = "cpu"):
        state = read_state(file)
        wanted = shapes()
        fix = "amt-s.pth of MCG-NKU/AMT, which VBench takes; not its larger networks, AMT-L and AMT-G"
        require_shapes(state, wanted, file=file, network="AMT-S", fix=fix)
        self.state = {key: state[key].to(device) for key in wanted}
        self._device = device

    def smoothness(self, clip: UInt8[np.ndarray, "f h w 3"]) -> float:
        """VBench's motion smoothness: 1 less the mean error / 255 of every second frame, made of those beside it.

        As there, what is made is cut down to whole levels, not rounded, and a last frame that has no next one is left
        out. 1 where no frame is between two, for which VBench has no number.
        """
        kept = (as_tensor(frame[None]) / 255 for frame in clip[::2])
        errors = []
        for pair, true in zip(itertools.pairwise(kept), clip[1::2], strict=False):
            made = (self.between(torch.cat(pair)) * 255).permute(1, 2, 0).numpy().astype(np.uint8)
            errors.append(np.abs(made.astype(np.int16) - true).mean())
        return (255 - float(np.mean(errors))) / 255 if errors else 1.0

    @torch.inference_mode()
    def between(self, pair: Float[Tensor, "2 3 h w"]) -> Float[Tensor, "3 h w"]:
        """The frame half way between two in [0, 1].

        Frames are never made smaller for it, which VBench does where a GPU has little memory for them.
        """
        whole, (top, left) = padded(pair, BLOCK, LEAST)
        made = self._between(whole.to(self._device)).cpu()
        return made[:, top : top + pair.shape[2], left : left + pair.shape[3]]

    def _between(self, pair: Float[Tensor, "2 3 h w"]) -> Float[Tensor, "3 h w"]:
        mean = pair.mean()
        pair = pair - mean
        features = self._features(pair)
        fine, middle, coarse, coarsest = self._pyramid(pair)
        time = coarsest.new_full((1, 1, *coarsest.shape[2:]), 0.5)
        made = self._decoded(torch.cat([_joined(coarsest), time], 1), "decoder4")
        flows, hidden = made[:, :4].unflatten(1, (2, 2))[0], made[:, 4:]
        flows, hidden = self._refined(flows, hidden, features, "update4", 1.0)
        for frames, number, shrunk in ((coarse, 3, 2.0), (middle, 2, 4.0)):
            made = self._decoded(_seen_along(flows, frames, hidden), f"decoder{number}")
            flows, hidden = _twice(flows) + made[:, :4].unflatten(1, (2, 2))[0], made[:, 4:]
            flows, hidden = self._refined(flows, hidden, features, f"update{number}", shrunk)
        made = self._decoded(_seen_along(flows, fine, hidden), "decoder1")[0]
        change, mask, residual = made.split([4 * FLOWS, FLOWS, 3 * FLOWS])
        several = _twice(flows)[:, None] + change.unflatten(0, (2, FLOWS, 2))
        first, last = (warped(frame.expand(FLOWS, -1, -1, -1), each) for frame, each in zip(pair, several, strict=True))
        mask = mask[:, None].sigmoid()
        pictures = mask * first + (1 - mask) * last + mean + residual.unflatten(0, (FLOWS, 3))
        merged = self._prelu(self._conv(_joined(pictures), "comb_block.0"), "comb_block.1")
        return (pictures.mean(0) + self._conv(merged, "comb_block.2")[0]).clamp(0, 1)

    def _features(self, pair: Float[Tensor, "2 3 h w"]) -> Float[Tensor, "2 c i j"]:
        """What is correlated, at an eighth of the size."""
        x = functional.instance_norm(self._conv(pair, "feat_encoder.conv1", 2)).relu()
        for layer, block in itertools.product((1, 2, 3), (0, 1)):
            stem, stride = f"feat_encoder.layer{layer}.{block}", 2 if layer > 1 and block == 0 else 1
            y = functional.instance_norm(self._conv(x, f"{stem}.conv1")).relu()
            y = functional.instance_norm(self._conv(y, f"{stem}.conv2", stride)).relu()
            y = functional.instance_norm(self._conv(y, f"{stem}.conv3")).relu()
            if stride > 1:
                x = functional.instance_norm(self._conv(x, f"{stem}.downsample.0", stride))
            x = (x + y).relu()
        return self._conv(x, "feat_encoder.conv2")

    def _pyramid(self, pair: Float[Tensor, "2 3 h w"]) -> list[Float[Tensor, "2 _ _ _"]]:
        """What is decoded, at a half, a fourth, an eighth and a sixteenth of the size."""
        found = []
        for number in range(1, len(WIDTHS) + 1):
            for part, stride in ((0, 2), (1, 1)):
                stem = f"encoder.pyramid{number}.{part}"
                pair = self._prelu(self._conv(pair, f"{stem}.0", stride), f"{stem}.1")
            found.append(pair)
        return found

    def _decoded(self, x: Float[Tensor, "1 c h w"], name: str) -> Float[Tensor, "1 d 2*h 2*w"]:
        """At twice the size, the flows to both frames, or what changes them, and what is handed on."""
        stem = f"{name}.convblock"
        x = self._prelu(self._conv(x, f"{stem}.0.0"), f"{stem}.0.1")
        y = x
        for all_of_it, its_side in (("1.conv1", "1.conv2"), ("1.conv3", "1.conv4")):
            y = self._prelu(self._conv(y, f"{stem}.{all_of_it}.0"), f"{stem}.{all_of_it}.1")
            side = self._prelu(self._conv(y[:, -SIDE:], f"{stem}.{its_side}.0"), f"{stem}.{its_side}.1")
            y = torch.cat([y[:, :-SIDE], side], 1)
        x = self._prelu(x + self._conv(y, f"{stem}.1.conv5"), f"{stem}.1.prelu")
        weight, bias = (self.state[f"{stem}.2.{kind}"] for kind in ("weight", "bias"))
        return functional.conv_transpose2d(x, weight, bias, stride=2, padding=1)

    def _refined(
        self,
        flows: Float[Tensor, "2 2 h w"],
        hidden: Float[Tensor, "1 c h w"],
        features: Float[Tensor, "2 d i j"],
        name: str,
        shrunk: float,
    ) -> tuple[Float[Tensor, "2 2 h w"], Float[Tensor, "1 c h w"]]:
        """Flows and what is handed on, corrected by the correlation at the size of the features.

        The flow from one frame to the other is taken for twice that from the middle to the other.
        """
        small = _scaled(flows, 1 / shrunk) / shrunk
        seen = Correlation(features, features.flip(0), RADIUS, keep=False).around(places(features) + 2 * small.flip(0))
        seen = _leaky(self._conv(_joined(seen), f"{name}.convc1"))
        motion = _leaky(self._conv(_joined(small), f"{name}.convf1"))
        motion = _leaky(self._conv(motion, f"{name}.convf2"))
        both = _leaky(self._conv(torch.cat([seen, motion], 1), f"{name}.conv"))
        x = self._head(torch.cat([both, _joined(small), _scaled(hidden, 1 / shrunk)], 1), f"{name}.gru")
        change = self._head(x, f"{name}.flow_head").unflatten(1, (2, 2))[0]
        return (
            flows + shrunk * _scaled(change, shrunk),
            hidden + _scaled(self._head(x, f"{name}.feat_head"), shrunk),
        )

    def _head(self, x: Float[Tensor, "1 c h w"], name: str) -> Float[Tensor, "1 d h w"]:
        return self._conv(_leaky(self._conv(x, f"{name}.0")), f"{name}.2")

    def _conv(self, x: Float[Tensor, "n c h w"], name: str, stride: int = 1) -> Float[Tensor, "n d i j"]:
        weight = self.state[f"{name}.weight"]
        return functional.conv2d(x, weight, self.state[f"{name}.bias"], stride, weight.shape[-1] // 2)

    def _prelu(self, x: Float[Tensor, "n c h w"], name: str) -> Float[Tensor, "n c h w"]:
        return functional.prelu(x, self.state[f"{name}.weight"])


def warped(pictures: Float[Tensor, "n c h w"], flows: Float[Tensor, "n 2 h w"]) -> Float[Tensor, "n c h w"]:
    """At each place what lies where its flow, x and y in pixels, leads to; beyond the edge what lies on it."""
    last = flows.new_tensor([flows.shape[3] - 1, flows.shape[2] - 1])
    points = (2 * (places(flows) + flows).permute(0, 2, 3, 1) / last - 1).clamp(-1, 1)
    return functional.grid_sample(pictures, points, align_corners=True)


def _seen_along(
    flows: Float[Tensor, "2 2 h w"], frames: Float[Tensor, "2 d h w"], hidden: Float[Tensor, "1 c h w"]
) -> Float[Tensor, "1 e h w"]:
    return torch.cat([hidden, _joined(warped(frames, flows)), _joined(flows)], 1)


def _twice(flows: Float[Tensor, "2 2 h w"]) -> Float[Tensor, "2 2 2*h 2*w"]:
    return 2 * _scaled(flows, 2.0)


def _scaled(x: Float[Tensor, "n c h w"], by: float) -> Float[Tensor, "n c i j"]:
    return x if by == 1 else functional.interpolate(x, scale_factor=by, mode="bilinear", align_corners=False)


def _joined(x: Float[Tensor, "n c h w"]) -> Float[Tensor, "1 m h w"]:
    return x.flatten(0, 1)[None]


def _leaky(x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
    return functional.leaky_relu(x, 0.1)


def shapes() -> dict[str, tuple[int, ...]]:
    """All weights that the network has."""
    convs = {"feat_encoder.conv1": (32, 3, 7), "feat_encoder.conv2": (FEATURES, 96, 1)}
    slopes = {"comb_block.1": 6 * FLOWS}
    for layer, (into, out) in enumerate(((32, 32), (32, 64), (64, 96)), 1):
        for block, had in enumerate((into, out)):
            stem, inner = f"feat_encoder.layer{layer}.{block}", out // 4
            convs |= {f"{stem}.conv1": (inner, had, 1), f"{stem}.conv2": (inner, inner, 3)}
            convs |= {f"{stem}.conv3": (out, inner, 1)}
        if into != out:
            convs[f"feat_encoder.layer{layer}.0.downsample.0"] = (out, into, 1)
    for level, (into, out) in enumerate(itertools.pairwise((3, *WIDTHS)), 1):
        for part, had in enumerate((into, out)):
            convs[f"encoder.pyramid{level}.{part}.0"] = (out, had, 3)
            slopes[f"encoder.pyramid{level}.{part}.1"] = out
    found: dict[str, tuple[int, ...]] = {}
    for number, width in enumerate(WIDTHS, 1):
        stem, had, inner = f"decoder{number}.convblock", 3 * width + 4, 3 * width
        if number == len(WIDTHS):
            had, inner = 2 * width + 1, 2 * width
        out = 8 * FLOWS if number == 1 else WIDTHS[number - 2] + 4
        convs |= {f"{stem}.0.0": (inner, had, 3), f"{stem}.1.conv5": (inner, inner, 3)}
        slopes |= {f"{stem}.0.1": inner, f"{stem}.1.prelu": inner}
        for conv, size in (("conv1", inner), ("conv2", SIDE), ("conv3", inner), ("conv4", SIDE)):
            convs[f"{stem}.1.{conv}.0"], slopes[f"{stem}.1.{conv}.1"] = (size, size, 3), size
        found |= {f"{stem}.2.weight": (inner, out, 4, 4), f"{stem}.2.bias": (out,)}
    for number, width in zip((2, 3, 4), WIDTHS, strict=False):
        stem = f"update{number}"
        convs[f"{stem}.convc1"] = (SEEN, 2 * LEVELS * (2 * RADIUS + 1) ** 2, 1)
        convs |= {f"{stem}.convf1": (2 * MOTION, 4, 7), f"{stem}.convf2": (MOTION, 2 * MOTION, 3)}
        convs |= {f"{stem}.conv": (JOINED, SEEN + MOTION, 3), f"{stem}.gru.0": (HIDDEN, JOINED + 4 + width, 3)}
        convs |= {f"{stem}.{part}": (HIDDEN, HIDDEN, 3) for part in ("gru.2", "feat_head.0", "flow_head.0")}
        convs |= {f"{stem}.feat_head.2": (width, HIDDEN, 3), f"{stem}.flow_head.2": (4, HIDDEN, 3)}
    convs |= {"comb_block.0": (6 * FLOWS, 3 * FLOWS, 3), "comb_block.2": (3, 6 * FLOWS, 3)}
    for name, (out, into, kernel) in convs.items():
        found |= {f"{name}.weight": (out, into, kernel, kernel), f"{name}.bias": (out,)}
    return found | {f"{name}.weight": (size,) for name, size in slopes.items()}
