"""RAFT, which VBench measures the dynamic degree with: the network of torchvision, weights that the user has.

Either torchvision's own (`raft_large_C_T_V1-22a6c225.pth`, which were ported from the paper's) or the paper's
`raft-things.pth`, which VBench downloads: the same numbers by other names.
"""

import itertools
import re
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8

from loraport.errors import FileError, UsageError
from loraport.metrics.frames import padded
from loraport.metrics.motion import fastest
from loraport.metrics.weights import read_state

UPDATES = 20  # of the flow, as in VBench
BLOCK, LEAST = 8, 128  # pixels that a side is a multiple of, as in the paper's code, and that the network can take
RENAMED = (  # from the paper's names to torchvision's, tried in turn, all of them
    (r"^fnet\.", "feature_encoder."),
    (r"^cnet\.", "context_encoder."),
    (r"^(\w+_encoder)\.conv1\.", r"\1.convnormrelu.0."),
    (r"^(\w+_encoder)\.norm1\.", r"\1.convnormrelu.1."),
    (r"^(\w+_encoder)\.conv2\.", r"\1.conv."),
    (r"\.(layer\d\.\d)\.conv(\d)\.", r".\1.convnormrelu\2.0."),
    (r"\.(layer\d\.\d)\.norm([12])\.", r".\1.convnormrelu\2.1."),
    (r"^update_block\.encoder\.conv([cf])(\d)\.", r"update_block.motion_encoder.conv\1\2.0."),
    (r"\.convc(\d)\.", r".convcorr\1."),
    (r"\.convf(\d)\.", r".convflow\1."),
    (r"^update_block\.encoder\.conv\.", "update_block.motion_encoder.conv.0."),
    (r"^update_block\.gru\.conv([zrq])(\d)\.", r"update_block.recurrent_block.convgru\2.conv\1."),
    (r"^update_block\.mask\.0\.", "mask_predictor.convrelu.0."),
    (r"^update_block\.mask\.2\.", "mask_predictor.conv."),
)


class Raft:
    """The network.

    Args:
        file: its weights.
        device: where to run.

    Raises:
        UsageError: torchvision is not installed, or is one of another PyTorch.
        FileError: no such file, or it is not of RAFT.
    """

    def __init__(self, file: Path, device: str = "cpu"):
        try:
            from torchvision.models.optical_flow import raft_large
        except (ImportError, RuntimeError, OSError) as error:  # one of another PyTorch fails in any of these ways
            raise UsageError(
                "RAFT needs a torchvision that belongs to this PyTorch",
                values=(str(error).strip().splitlines() or [""])[0][:200],
                fix="install the torchvision of the same release and build as torch, or leave --raft out",
            ) from error  # fmt: skip
        state = {torchvision_name(key): tensor for key, tensor in read_state(file).items()}
        with torch.random.fork_rng(devices=[]):
            self.network = raft_large(weights=None, progress=False)
        own = {key: tensor.shape for key, tensor in self.network.state_dict().items()}
        wrong = [key for key, shape in own.items() if key not in state or state[key].shape != shape]
        if wrong:
            raise FileError(
                "these are not the weights of RAFT", where=str(file), values=f"{len(wrong)} of {len(own)}: {wrong[0]}",
                fix="raft-things.pth of the authors, or raft_large_C_T_V1 of torchvision",
            )  # fmt: skip
        self.network.load_state_dict({key: state[key] for key in own})
        self.network.eval().requires_grad_(False).to(device)
        self._device = device

    def speeds(self, clip: UInt8[np.ndarray, "f h w 3"]) -> list[float]:
        """Of each pair of successive frames, how far the fastest 5 % of the pixels move, in pixels."""
        frames = torch.from_numpy(np.ascontiguousarray(clip)).permute(0, 3, 1, 2).float() / 127.5 - 1
        frames, _ = padded(frames, BLOCK, LEAST)
        found = []
        for now, then in itertools.pairwise(frames):
            with torch.inference_mode():
                flow = self.network(now[None].to(self._device), then[None].to(self._device), UPDATES)[-1][0]
            found.append(fastest(flow.cpu().permute(1, 2, 0).numpy()))
        return found


def torchvision_name(key: str) -> str:
    """A weight's name in torchvision, from there or from the paper's code."""
    for pattern, new in RENAMED:
        key = re.sub(pattern, new, key)
    return key
