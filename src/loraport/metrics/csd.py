"""Contrastive style descriptors: what of CLIP ViT-L/14 was trained to see style (Somepalli et al. 2024).

The checkpoint of the authors (`model_state_dict`, names of OpenAI's CLIP) or a safetensors copy of it. The style is the
visual feature before CLIP's own projection, times `last_layer_style`, at length 1.
"""

import re
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from loraport.errors import FileError
from loraport.metrics.towers import Tower, said_of
from loraport.metrics.weights import read_state

HEAD_WIDTH = 64  # of all CLIP towers of OpenAI
RENAMED = {
    "class_embedding": "embeddings.class_embedding",
    "positional_embedding": "embeddings.position_embedding.weight",
    "conv1.weight": "embeddings.patch_embedding.weight",
    "ln_pre": "pre_layrnorm",
    "ln_post": "post_layernorm",
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}
_BLOCK = re.compile(r"transformer\.resblocks\.(\d+)\.(.+)")


class Csd(Tower):
    """The style network.

    Args:
        file: the checkpoint.
        device: where to run.

    Raises:
        FileError: no such file, or it is none of CSD.
    """

    def __init__(self, file: Path, device: str = "cpu"):
        state = read_state(file)
        style = state.get("last_layer_style")
        vision = {key.removeprefix("backbone."): tensor for key, tensor in state.items() if key.startswith("backbone.")}
        if style is None or "conv1.weight" not in vision:
            raise FileError(
                "this is not a CSD checkpoint", where=str(file), values=f"keys: {', '.join(list(state)[:3])}, ...",
                fix=
                    "give the authors' checkpoint.pth, or a safetensors copy; it holds backbone.* and "
                    "last_layer_style",
            )  # fmt: skip
        network = vision_network(vision, file)
        super().__init__(network, network.config, device)
        self.style = style.to(device)

    def embed(self, pixels: Float[Tensor, "n 3 i j"]) -> Float[Tensor, "n d"]:
        """The style, at length 1."""
        return normalize(self.network(pixel_values=pixels).pooler_output @ self.style, dim=1)


def vision_network(state: dict[str, Tensor], where: Path) -> Any:
    """CLIP's vision network of transformers from weights by OpenAI's names; its sizes are those of the weights.

    Raises:
        FileError: weights that are missing or do not fit each other.
    """
    from transformers import CLIPVisionConfig, CLIPVisionModel

    blocks = {int(found[1]) for key in state if (found := _BLOCK.match(key))}
    with said_of(where, "vision network"), torch.random.fork_rng(devices=[]):
        width, _, patch, _ = state["conv1.weight"].shape
        config = CLIPVisionConfig(
            hidden_size=width,
            intermediate_size=state["transformer.resblocks.0.mlp.c_fc.weight"].shape[0],
            num_hidden_layers=len(blocks),
            num_attention_heads=max(width // HEAD_WIDTH, 1),
            image_size=patch * round((state["positional_embedding"].shape[0] - 1) ** 0.5),
            patch_size=patch,
            hidden_act="quick_gelu",
            layer_norm_eps=1e-5,
        )
        network = CLIPVisionModel(config)
        prefix = "vision_model." if any(key.startswith("vision_model.") for key in network.state_dict()) else ""
        renamed = {f"{prefix}{name}": tensor for key, tensor in state.items() for name, tensor in _renamed(key, tensor)}
        lacking = [
            key for key in network.load_state_dict(renamed, strict=False).missing_keys if "position_ids" not in key
        ]
    if lacking:
        raise FileError("weights of the network are missing", where=str(where), values=f"e.g. {lacking[0]}")
    return network


def _renamed(key: str, tensor: Tensor) -> list[tuple[str, Tensor]]:
    """A weight by the names of transformers; the three projections of attention are one weight in the original."""
    block = _BLOCK.match(key)
    stem, inner = (f"encoder.layers.{block[1]}.", block[2]) if block else ("", key)
    fused = re.fullmatch(r"attn\.in_proj_(weight|bias)", inner)
    if fused:
        return [
            (f"{stem}self_attn.{one}_proj.{fused[1]}", part) for one, part in zip("qkv", tensor.chunk(3), strict=True)
        ]
    for old, new in RENAMED.items():
        if inner == old or inner.startswith(f"{old}."):
            return [(stem + new + inner.removeprefix(old), tensor)]
    return []  # the projection into the space of texts, which CSD does without
