"""MUSIQ, which VBench measures the imaging quality with: how good a picture looks technically (Ke et al. 2021).

Patches of the picture in three sizes go through a few convolutions, get the places that they have in a grid of ten by
ten laid over the picture, and a transformer reads a grade off a token of its own. Written from the paper and its
authors' code; the weights are those that VBench takes, `musiq_spaq_ckpt-358bb6af.pth`, by the names that they have.
"""

import math
import re
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.nn import functional

from loraport.metrics.frames import as_tensor
from loraport.metrics.weights import read_state, require_shapes

PATCH, GRID, HEADS, GROUPS = 32, 10, 6, 32
SIDES = (224, 384)  # longer sides of the two smaller pictures; the third is the picture itself
LONGEST = 512  # side that VBench makes larger frames smaller to
AT_ONCE = 4  # frames a pass
ENCODER = "transformer_encoder"
_BLOCK = re.compile(rf"{ENCODER}\.transformer\.encoderblock_(\d+)\.")


class Musiq:
    """The network.

    Args:
        file: its weights.
        device: where to run.

    Raises:
        FileError: no such file, or it is not of MUSIQ with a single grade.
    """

    def __init__(self, file: Path, device: str = "cpu"):
        state = read_state(file)
        self.blocks = 1 + max((int(found[1]) for key in state if (found := _BLOCK.match(key))), default=-1)
        wanted = _shapes(state, max(self.blocks, 1))
        fix = "VBench's musiq_spaq_ckpt-358bb6af.pth"
        require_shapes(state, wanted, file=file, network="MUSIQ with one grade", fix=fix)
        self.state = {key: _standard(state[key]) if _is_conv(key) else state[key] for key in wanted}
        self.state = {key: tensor.to(device) for key, tensor in self.state.items()}
        self._device = device

    def grade(self, clip: UInt8[np.ndarray, "f h w 3"]) -> float:
        """Mean over frames of a hundredth of the grade, as VBench gives it: about 0 to 1."""
        grades = []
        for start in range(0, len(clip), AT_ONCE):
            frames = _smaller(as_tensor(clip[start : start + AT_ONCE]))
            with torch.inference_mode():
                grades.append(self.grades(frames.to(self._device) / 127.5 - 1).cpu())
        return torch.cat(grades).mean().item() / 100

    def grades(self, pictures: Float[Tensor, "n 3 h w"]) -> Float[Tensor, " n"]:
        """Grades from 0 to 100 of pictures in [-1, 1]."""
        patches, places, sizes = multiscale(pictures)
        n = len(pictures)
        x = self._linear(self._tokens(patches.flatten(0, 1)), "embedding").unflatten(0, (n, -1))
        x = x + self.state[f"{ENCODER}.posembed_input.position_emb"][0, places]
        x = x + self.state[f"{ENCODER}.scaleembed_input.scale_emb"][sizes]
        x = torch.cat([self.state[f"{ENCODER}.cls"].expand(n, -1, -1), x], 1)
        for number in range(self.blocks):
            stem = f"{ENCODER}.transformer.encoderblock_{number}"
            x = x + self._attention(self._norm(x, f"{stem}.norm1"), f"{stem}.attention")
            y = functional.gelu(self._linear(self._norm(x, f"{stem}.norm2"), f"{stem}.mlp.fc1"))
            x = x + self._linear(y, f"{stem}.mlp.fc2")
        return self._linear(self._norm(x[:, 0], f"{ENCODER}.encoder_norm"), "head")[:, 0]

    def _tokens(self, patches: Float[Tensor, "m 3 p p"]) -> Float[Tensor, "m d"]:
        """What the convolutions make of each patch: its places in rows, each with all channels."""
        x = functional.relu(self._groups(self._conv(patches, "conv_root", 2), "gn_root", 1e-6))
        x = functional.max_pool2d(functional.pad(x, _same(x, 3, 2)), 3, 2)
        y = functional.relu(self._groups(self._conv(x, "block1.conv1"), "block1.gn1"))
        y = functional.relu(self._groups(self._conv(y, "block1.conv2"), "block1.gn2"))
        y = self._groups(self._conv(y, "block1.conv3"), "block1.gn3")
        side = self._groups(self._conv(x, "block1.conv_proj"), "block1.gn_proj")
        return functional.relu(y + side).permute(0, 2, 3, 1).flatten(1)

    def _conv(self, x: Tensor, name: str, stride: int = 1) -> Tensor:
        weight = self.state[f"{name}.weight"]
        return functional.conv2d(functional.pad(x, _same(x, weight.shape[-1], stride)), weight, stride=stride)

    def _groups(self, x: Tensor, name: str, eps: float = 1e-4) -> Tensor:
        return functional.group_norm(x, GROUPS, self.state[f"{name}.weight"], self.state[f"{name}.bias"], eps)

    def _norm(self, x: Tensor, name: str) -> Tensor:
        return functional.layer_norm(x, x.shape[-1:], self.state[f"{name}.weight"], self.state[f"{name}.bias"], 1e-6)

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return functional.linear(x, self.state[f"{name}.weight"], self.state[f"{name}.bias"])

    def _attention(self, x: Float[Tensor, "n l d"], name: str) -> Float[Tensor, "n l d"]:
        query, key, value = (
            self._linear(x, f"{name}.{part}").unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for part in ("query", "key", "value")
        )
        made = functional.scaled_dot_product_attention(query, key, value)
        return self._linear(made.transpose(1, 2).flatten(2), f"{name}.out")


def multiscale(
    pictures: Float[Tensor, "n 3 h w"],
) -> tuple[Float[Tensor, "n l 3 p p"], Int[Tensor, " l"], Int[Tensor, " l"]]:
    """The patches of a picture in all sizes, the place of each in the grid, and which size it is of."""
    high, wide = pictures.shape[2:]
    patches, places, sizes = [], [], []
    for number, longest in enumerate((*SIDES, max(high, wide))):
        shape = [round(side * longest / max(high, wide)) for side in (high, wide)]
        made = pictures
        if longest != max(high, wide) or number < len(SIDES):
            made = functional.interpolate(pictures, shape, mode="bicubic", align_corners=False)
        made = functional.pad(made, _same(made, PATCH, PATCH))
        cut = functional.unfold(made, PATCH, stride=PATCH)
        patches.append(cut.transpose(1, 2).unflatten(-1, (3, PATCH, PATCH)))
        down, right = (torch.arange(n := math.ceil(side / PATCH), device=pictures.device) * GRID // n for side in shape)
        places.append((GRID * down[:, None] + right).flatten())
        sizes.append(torch.full_like(places[-1], number))
    return torch.cat(patches, 1), torch.cat(places), torch.cat(sizes)


def _smaller(frames: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 i j"]:
    longest = max(frames.shape[2:])
    if longest <= LONGEST:
        return frames
    shape = [int(LONGEST / longest * side) for side in frames.shape[2:]]
    return functional.interpolate(frames, shape, mode="bilinear", align_corners=False)


def _same(x: Tensor, kernel: int, stride: int) -> list[int]:
    """Padding after which there is an output for every stride that begins in the picture; the odd one at the end."""
    pads: list[int] = []
    for side in (x.shape[3], x.shape[2]):
        more = max((math.ceil(side / stride) - 1) * stride + kernel - side, 0)
        pads += [more // 2, more - more // 2]
    return pads


def _is_conv(key: str) -> bool:
    return key.rsplit(".", 2)[-2].startswith("conv")


def _standard(weight: Float[Tensor, "o i a b"]) -> Float[Tensor, "o i a b"]:
    """With mean 0 and standard deviation 1 for each output."""
    centred = weight - weight.mean((1, 2, 3), keepdim=True)
    return centred / (centred.std((1, 2, 3), keepdim=True) + 1e-5)


def _shapes(state: dict[str, Tensor], blocks: int) -> dict[str, tuple[int, ...]]:
    """All weights that the network has, of the width and depth that the file shows."""
    width = state["embedding.bias"].shape[0] if "embedding.bias" in state else 384
    inner = state[key].shape[0] if (key := f"{ENCODER}.transformer.encoderblock_0.mlp.fc1.bias") in state else 1152
    root = 64
    found: dict[str, tuple[int, ...]] = {"conv_root.weight": (root, 3, 7, 7), f"{ENCODER}.cls": (1, 1, width)}
    for name, out, into, kernel in (("1", root, root, 1), ("2", root, root, 3), ("3", 4 * root, root, 1),
                                    ("_proj", 4 * root, root, 1)):  # fmt: skip
        found[f"block1.conv{name}.weight"] = (out, into, kernel, kernel)
        found |= {f"block1.gn{name}.{kind}": (out,) for kind in ("weight", "bias")}
    found |= {f"gn_root.{kind}": (root,) for kind in ("weight", "bias")}
    found[f"{ENCODER}.posembed_input.position_emb"] = (1, GRID * GRID, width)
    found[f"{ENCODER}.scaleembed_input.scale_emb"] = (len(SIDES) + 1, width)
    layers = {"embedding": (width, 4 * root * (PATCH // 4) ** 2), "head": (1, width)}
    norms = [f"{ENCODER}.encoder_norm"]
    for number in range(blocks):
        stem = f"{ENCODER}.transformer.encoderblock_{number}"
        norms += [f"{stem}.norm1", f"{stem}.norm2"]
        layers |= {f"{stem}.attention.{part}": (width, width) for part in ("query", "key", "value", "out")}
        layers |= {f"{stem}.mlp.fc1": (inner, width), f"{stem}.mlp.fc2": (width, inner)}
    for name, shape in layers.items():
        found |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return found | {f"{name}.{kind}": (width,) for name in norms for kind in ("weight", "bias")}
