"""Networks that turn frames and prompts into features, by the classes of transformers, from weights that the user has.

Nothing is downloaded: each is given as a folder (CLIP, DINO, DINOv2: `config.json` and safetensors, as on the hub) or
as a file (CSD, whose authors publish a checkpoint).
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from safetensors import SafetensorError
from torch import Tensor

from loraport.errors import FileError, first_line
from loraport.metrics.frames import resized
from loraport.metrics.given import KINDS, check_network

CLIP_COLOURS = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
IMAGENET_COLOURS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
AT_ONCE = 16  # frames a pass


class Tower:
    """A vision network.

    Attributes:
        network: its whole model, on its device, in float32.
        size: side of the square that it was trained on.
        patch: side of a patch.
    """

    colours = CLIP_COLOURS
    antialias = True

    def __init__(self, network: Any, config: Any, device: str):
        self.network = network.eval().requires_grad_(False).float().to(device)
        self.size, self.patch = int(config.image_size), int(config.patch_size)
        self.device = device

    def features(self, frames: UInt8[np.ndarray, "n h w 3"], *, as_vbench: bool = False) -> Float[Tensor, "n d"]:
        """Features of frames, a row each, on the CPU.

        Args:
            frames: of any size.
            as_vbench: prepare them as VBench does instead of as the network's authors do.
        """
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in self.colours)
        rows = []
        for start in range(0, len(frames), AT_ONCE):
            pixels = self.prepared(frames[start : start + AT_ONCE], as_vbench) / 255
            with torch.inference_mode():
                rows.append(self.embed(((pixels - mean) / std).to(self.device)).cpu())
        return torch.cat(rows).clone()

    def prepared(self, frames: UInt8[np.ndarray, "n h w 3"], as_vbench: bool) -> Float[Tensor, "n 3 i j"]:
        """Frames in the network's size, in [0, 255]."""
        return resized(frames, self.size, crop=True, bicubic=True, antialias=not as_vbench)

    def embed(self, pixels: Float[Tensor, "n 3 i j"]) -> Float[Tensor, "n d"]:
        """Features of prepared frames."""
        raise NotImplementedError


class Clip(Tower):
    """CLIP: pictures and texts in one space. VBench's background consistency takes ViT-B/32.

    Args:
        folder: with config.json, weights and the tokenizer's files.
        device: where to run.

    Raises:
        FileError: no such folder, or it is not CLIP's.
    """

    def __init__(self, folder: Path, device: str = "cpu"):
        from transformers import AutoTokenizer, CLIPModel

        network = load(CLIPModel, folder, KINDS["clip"])
        super().__init__(network, network.config.vision_config, device)
        with said_of(folder, "tokenizer"):
            self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)

    def embed(self, pixels: Float[Tensor, "n 3 i j"]) -> Float[Tensor, "n d"]:
        """The projected class token."""
        return self.network.visual_projection(self.network.vision_model(pixel_values=pixels).pooler_output)

    def text(self, prompt: str) -> Float[Tensor, "1 d"]:
        """Features of a prompt, cut at the tokens that CLIP takes."""
        room = self.network.config.text_config.max_position_embeddings
        tokens = self.tokenizer(prompt, truncation=True, max_length=room, return_tensors="pt").to(self.device)
        with torch.inference_mode():
            pooled = self.network.text_model(**tokens).pooler_output
            return self.network.text_projection(pooled).cpu().clone()


class Dino(Tower):
    """DINO or DINOv2: the class token. VBench's subject consistency takes DINO ViT-B/16.

    Args:
        folder: with config.json and weights.
        device: where to run.

    Raises:
        FileError: no such folder, or it is neither.
    """

    colours = IMAGENET_COLOURS

    def __init__(self, folder: Path, device: str = "cpu"):
        from transformers import AutoModel

        network = load(AutoModel, folder, KINDS["dino"])
        super().__init__(network, network.config, device)

    @property
    def plain(self) -> bool:
        """Whether it is DINO, which is interpolated to any size, and which VBench takes."""
        return self.network.config.model_type == "vit"

    def prepared(self, frames: UInt8[np.ndarray, "n h w 3"], as_vbench: bool) -> Float[Tensor, "n 3 i j"]:
        """VBench: the shorter side 224 and nothing cut off but what makes no whole patch; else the middle square."""
        side = min(self.size, 224)  # DINOv2 was trained at 518 and is used at 224
        if as_vbench:
            return resized(frames, side, crop=False, bicubic=False, antialias=False, multiple=self.patch)
        larger = resized(frames, side * 256 // 224, crop=False, bicubic=True)
        top, left = ((length - side) // 2 for length in larger.shape[2:])
        return larger[:, :, top : top + side, left : left + side]

    def embed(self, pixels: Float[Tensor, "n 3 i j"]) -> Float[Tensor, "n d"]:
        """The class token after the last norm."""
        more = {"interpolate_pos_encoding": True} if self.plain else {}  # DINOv2 always does
        return self.network(pixel_values=pixels, **more).last_hidden_state[:, 0]


def load(kind: Any, folder: Path, types: tuple[str, ...]) -> Any:
    """A model of transformers from a folder. Raises FileError."""
    check_network(folder, types)
    with said_of(folder, "network"), torch.random.fork_rng(devices=[]):
        network, told = kind.from_pretrained(
            folder, local_files_only=True, output_loading_info=True, use_safetensors=True
        )
        lacking = [key for key in told["missing_keys"] if "pooler" not in key]
    if lacking:
        raise FileError(
            "weights of the network are missing", where=str(folder), values=f"{len(lacking)}, e.g. {sorted(lacking)[0]}"
        )
    return network


@contextlib.contextmanager
def said_of(folder: Path, what: str) -> Iterator[None]:
    """What other libraries say of files that they cannot load, as an error of ours. Raises FileError."""
    try:
        yield
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        raise FileError(
            f"the {what} could not be loaded", where=str(folder),
            values=first_line(error)[:200],
        ) from error  # fmt: skip
