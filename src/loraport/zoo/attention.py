"""Frame-causal self-attention for diffusers' Wan model: a frame sees itself and the frames before it.

Autoregressive ("causal") distillations of video models attend like this. Diffusers has no switch for it, so the
processor of each self-attention layer is replaced; weights and their names stay as they are.
"""

import torch
from diffusers.models.transformers.transformer_wan import WanAttention, WanAttnProcessor
from jaxtyping import Bool, Float
from torch import Tensor


class FrameCausalProcessor(WanAttnProcessor):
    """Wan's own attention under a block-triangular mask.

    Args:
        tokens_per_frame: tokens of one latent frame; tokens are ordered by frame.
    """

    def __init__(self, tokens_per_frame: int):
        super().__init__()
        self.tokens_per_frame = tokens_per_frame

    def __call__(
        self,
        attn: WanAttention,
        hidden_states: Float[Tensor, "b tokens d"],
        encoder_hidden_states: Float[Tensor, "b text e"] | None = None,
        attention_mask: Bool[Tensor, "tokens tokens"] | None = None,
        rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Float[Tensor, "b tokens d"]:
        """Attend; the mask is added for self-attention only (no `encoder_hidden_states`)."""
        if encoder_hidden_states is None and attention_mask is None:
            frame = torch.arange(hidden_states.shape[1], device=hidden_states.device) // self.tokens_per_frame
            attention_mask = frame[:, None] >= frame[None, :]
        return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, rotary_emb)
