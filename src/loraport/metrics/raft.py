"""RAFT, which VBench measures the dynamic degree with: the flow from one frame to the next (Teed and Deng 2020).

The features of every place of one frame are correlated with those of every place of the other; from a flow of nothing
on, a recurrent network reads the correlation around where the flow leads and corrects it, twenty times, at an eighth of
the size. Written from the paper and held to the code that VBench runs. Its weights are `raft-things.pth` of the
authors, which VBench downloads, or torchvision's copy of them (`raft_large_C_T_V1-22a6c225.pth`) by other names.
"""

import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional

from loraport.metrics.correlation import LEVELS, Correlation, places
from loraport.metrics.frames import as_tensor, padded
from loraport.metrics.motion import fastest
from loraport.metrics.weights import read_state, require_shapes

UPDATES = 20  # of the flow, as in VBench
BLOCK, LEAST = 8, 128  # pixels that a side is a multiple of, as in the paper's code, and that the network can take
RADIUS = 4  # how far around a place the correlation is read
FEATURES, HIDDEN = 256, 128  # channels that are correlated, and of the state that is carried on
WIDTHS = (64, 64, 96, 128)  # channels of an encoder, from its first convolution on
FINE = 8  # pixels of a frame for one of the flow
NORMED = ("running_mean", "running_var", "weight", "bias")  # what a norm over many pictures has learnt
PAPERS = (  # from torchvision's names to the paper's, tried in turn, all of them
    (r"^feature_encoder\.", "fnet."),
    (r"^context_encoder\.", "cnet."),
    (r"^([fc]net)\.convnormrelu\.0\.", r"\1.conv1."),
    (r"^([fc]net)\.convnormrelu\.1\.", r"\1.norm1."),
    (r"^([fc]net)\.conv\.", r"\1.conv2."),
    (r"\.convnormrelu(\d)\.0\.", r".conv\1."),
    (r"\.convnormrelu(\d)\.1\.", r".norm\1."),
    (r"\.motion_encoder\.conv(c|f)(?:orr|low)(\d)\.0\.", r".encoder.conv\1\2."),
    (r"\.motion_encoder\.conv\.0\.", ".encoder.conv."),
    (r"\.recurrent_block\.convgru(\d)\.conv(\w)\.", r".gru.conv\2\1."),
    (r"^mask_predictor\.convrelu\.0\.", "update_block.mask.0."),
    (r"^mask_predictor\.conv\.", "update_block.mask.2."),
)


class Raft:
    """The network.

    Args:
        file: its weights.
        device: where to run.

    Raises:
        FileError: no such file, or it is not of RAFT.
    """

    def __init__(self, file: Path, device: str = "cpu"):
        state = {papers_name(key): tensor for key, tensor in read_state(file).items()}
        wanted = shapes()
        fix = "raft-things.pth of the authors, or raft_large_C_T_V1 of torchvision"
        require_shapes(state, wanted, file=file, network="RAFT", fix=fix)
        self.state = {key: state[key].to(device) for key in wanted}
        self._device = device

    def speeds(self, clip: UInt8[np.ndarray, "f h w 3"]) -> list[float]:
        """Of each pair of successive frames, how far the fastest 5 % of the pixels move, in pixels."""
        return [fastest(flow.permute(1, 2, 0).numpy()) for flow in self.flows(clip)]

    @torch.inference_mode()
    def flows(self, clip: UInt8[np.ndarray, "f h w 3"]) -> Iterator[Float[Tensor, "2 i j"]]:
        """Of each pair of successive frames, how far each pixel moves to the right and down, edges drawn out."""
        for (frame, now), (_, then) in itertools.pairwise(map(self._seen, clip)):
            yield self._flow(frame, now, then).cpu()

    def _seen(self, frame: UInt8[np.ndarray, "h w 3"]) -> tuple[Float[Tensor, "1 3 i j"], Float[Tensor, "1 c k l"]]:
        """A frame as the network takes it, and its features."""
        whole, _ = padded(2 * (as_tensor(frame[None]) / 255) - 1, BLOCK, LEAST)
        whole = whole.to(self._device)
        return whole, self._encoded(whole, "fnet")

    def _flow(
        self, frame: Float[Tensor, "1 3 h w"], now: Float[Tensor, "1 c i j"], then: Float[Tensor, "1 c i j"]
    ) -> Float[Tensor, "2 h w"]:
        correlation = Correlation(now, then, RADIUS, keep=True)
        hidden, context = self._encoded(frame, "cnet").split(HIDDEN, 1)
        hidden, context = hidden.tanh(), context.relu()
        flow = torch.zeros_like(now[:, :2])
        for _ in range(UPDATES):
            seen = self._conv(correlation.around(places(now) + flow), "update_block.encoder.convc1").relu()
            seen = self._conv(seen, "update_block.encoder.convc2").relu()
            motion = self._conv(flow, "update_block.encoder.convf1").relu()
            motion = self._conv(motion, "update_block.encoder.convf2").relu()
            motion = self._conv(torch.cat([seen, motion], 1), "update_block.encoder.conv").relu()
            hidden = self._carried(hidden, torch.cat([context, motion, flow], 1))
            change = self._conv(hidden, "update_block.flow_head.conv1").relu()
            flow = flow + self._conv(change, "update_block.flow_head.conv2")
        return self._finer(flow, hidden)

    def _carried(self, hidden: Float[Tensor, "1 c h w"], x: Float[Tensor, "1 d h w"]) -> Float[Tensor, "1 c h w"]:
        """The state after a gated step along the rows, and one along the columns."""
        for number in (1, 2):
            both = torch.cat([hidden, x], 1)
            share = self._conv(both, f"update_block.gru.convz{number}").sigmoid()
            reset = self._conv(both, f"update_block.gru.convr{number}").sigmoid()
            new = self._conv(torch.cat([reset * hidden, x], 1), f"update_block.gru.convq{number}").tanh()
            hidden = (1 - share) * hidden + share * new
        return hidden

    def _finer(self, flow: Float[Tensor, "1 2 i j"], hidden: Float[Tensor, "1 c i j"]) -> Float[Tensor, "2 h w"]:
        """The flow of each pixel, as a mean of the nine around its place with weights of its own."""
        high, wide = flow.shape[2:]
        weights = self._conv(self._conv(hidden, "update_block.mask.0").relu(), "update_block.mask.2")[0] / 4
        weights = weights.unflatten(0, (9, FINE, FINE)).softmax(0)
        nine = functional.unfold(FINE * flow, 3, padding=1).view(2, 9, high, wide)
        return torch.einsum("kabij,ckij->ciajb", weights, nine).reshape(2, FINE * high, FINE * wide)

    def _encoded(self, frame: Float[Tensor, "1 3 h w"], net: str) -> Float[Tensor, "1 c i j"]:
        x = self._norm(self._conv(frame, f"{net}.conv1", 2), f"{net}.norm1").relu()
        for layer, block in itertools.product((1, 2, 3), (0, 1)):
            stem, stride = f"{net}.layer{layer}.{block}", 2 if layer > 1 and block == 0 else 1
            y = self._norm(self._conv(x, f"{stem}.conv1", stride), f"{stem}.norm1").relu()
            y = self._norm(self._conv(y, f"{stem}.conv2"), f"{stem}.norm2").relu()
            if stride > 1:
                x = self._norm(self._conv(x, f"{stem}.downsample.0", stride), f"{stem}.downsample.1")
            x = (x + y).relu()
        return self._conv(x, f"{net}.conv2")

    def _conv(self, x: Float[Tensor, "n c h w"], name: str, stride: int = 1) -> Float[Tensor, "n d i j"]:
        weight = self.state[f"{name}.weight"]
        middle = tuple(side // 2 for side in weight.shape[2:])
        return functional.conv2d(x, weight, self.state[f"{name}.bias"], stride, middle)

    def _norm(self, x: Float[Tensor, "n c h w"], name: str) -> Float[Tensor, "n c h w"]:
        if name.startswith("fnet"):  # each picture by itself
            return functional.instance_norm(x)
        mean, variance, weight, bias = (self.state[f"{name}.{kind}"] for kind in NORMED)
        return functional.batch_norm(x, mean, variance, weight, bias)


def papers_name(key: str) -> str:
    """A weight's name in the paper's code, from there or from torchvision."""
    for pattern, new in PAPERS:
        key = re.sub(pattern, new, key)
    return key


def shapes() -> dict[str, tuple[int, ...]]:
    """All weights that the network has, by the paper's names."""
    convs: dict[str, tuple[int, int, int, int]] = {}
    norms = {"cnet.norm1": WIDTHS[0]}
    for net in ("fnet", "cnet"):
        convs |= {f"{net}.conv1": (WIDTHS[0], 3, 7, 7), f"{net}.conv2": (FEATURES, WIDTHS[-1], 1, 1)}
    for layer, (into, out) in enumerate(itertools.pairwise(WIDTHS), 1):
        for net, (block, had) in itertools.product(("fnet", "cnet"), enumerate((into, out))):
            stem = f"{net}.layer{layer}.{block}"
            convs |= {f"{stem}.conv1": (out, had, 3, 3), f"{stem}.conv2": (out, out, 3, 3)}
            if layer > 1 and block == 0:
                convs[f"{stem}.downsample.0"] = (out, into, 1, 1)
        parts = [f"{block}.norm{number}" for block in (0, 1) for number in (1, 2)]
        norms |= {f"cnet.layer{layer}.{part}": out for part in parts + ["0.downsample.1"] * (layer > 1)}
    encoder, gru, head = "update_block.encoder", "update_block.gru", "update_block.flow_head"
    convs |= {f"{encoder}.convc1": (256, LEVELS * (2 * RADIUS + 1) ** 2, 1, 1), f"{encoder}.convc2": (192, 256, 3, 3)}
    convs |= {f"{encoder}.convf1": (128, 2, 7, 7), f"{encoder}.convf2": (64, 128, 3, 3)}
    convs[f"{encoder}.conv"] = (HIDDEN - 2, 64 + 192, 3, 3)
    for number, sides in ((1, (1, 5)), (2, (5, 1))):
        convs |= {f"{gru}.conv{part}{number}": (HIDDEN, 3 * HIDDEN, *sides) for part in "zrq"}
    convs |= {f"{head}.conv1": (256, HIDDEN, 3, 3), f"{head}.conv2": (2, 256, 3, 3)}
    convs |= {"update_block.mask.0": (256, HIDDEN, 3, 3), "update_block.mask.2": (9 * FINE**2, 256, 1, 1)}
    found: dict[str, tuple[int, ...]] = {f"{name}.{kind}": (out,) for name, out in norms.items() for kind in NORMED}
    for name, shape in convs.items():
        found |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return found
