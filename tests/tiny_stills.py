"""Whole pipelines of more families of stills, from prompt to pixels, as small as they can be built."""

from collections.abc import Callable
from typing import Any

import diffusers
import torch
import transformers

import tinywan
from tiny_pipelines import chatting
from tiny_videos import FLOW, TEXT, VOCABULARY, made, saved

QWEN3 = {
    "vocab_size": VOCABULARY, "hidden_size": TEXT, "intermediate_size": 20, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 1200,
}  # fmt: skip
QWEN_VAE = {
    "base_dim": 4, "z_dim": 2, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1, "latents_mean": [0.1, -0.2],
    "latents_std": [1.0, 0.8],
}  # fmt: skip


@saved
def qwen_image(shake: Callable[[Any], Any]) -> diffusers.DiffusionPipeline:
    """A QwenImagePipeline: sides in multiples of 16."""
    network = diffusers.QwenImageTransformer2DModel(
        in_channels=8, out_channels=2, num_layers=2, attention_head_dim=12, num_attention_heads=2,
        joint_attention_dim=TEXT, axes_dims_rope=(4, 4, 4),
    )  # fmt: skip
    encoder = transformers.Qwen3Config(**QWEN3, num_hidden_layers=1)
    return diffusers.QwenImagePipeline(
        tokenizer=tinywan.tokenizer(),
        text_encoder=made(transformers.Qwen3Model, {"config": encoder}),
        vae=made(diffusers.AutoencoderKLQwenImage, QWEN_VAE),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(**FLOW),
        transformer=shake(network),
    )


@saved
def flux2(shake: Callable[[Any], Any]) -> diffusers.DiffusionPipeline:
    """A Flux2KleinPipeline, whose latents are normalised in patches of two by two."""
    network = diffusers.Flux2Transformer2DModel(
        in_channels=8, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=3 * TEXT, timestep_guidance_channels=16, axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=False,
    )  # fmt: skip
    encoder = transformers.Qwen3Config(**QWEN3, num_hidden_layers=28)  # of which three are read
    vae = made(
        diffusers.AutoencoderKLFlux2,
        {"block_out_channels": (8, 8), "down_block_types": ("DownEncoderBlock2D",) * 2, "latent_channels": 2,
         "up_block_types": ("UpDecoderBlock2D",) * 2, "layers_per_block": 1, "norm_num_groups": 2,
         "mid_block_add_attention": False},
    )  # fmt: skip
    vae.bn.running_mean.copy_(torch.linspace(-0.3, 0.4, 8))
    vae.bn.running_var.copy_(torch.linspace(0.5, 2.0, 8))
    return diffusers.Flux2KleinPipeline(
        tokenizer=chatting(tinywan.tokenizer()),
        text_encoder=made(transformers.Qwen3ForCausalLM, {"config": encoder}),
        vae=vae,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(**FLOW),
        transformer=shake(network),
    )


@saved
def krea2(shake: Callable[[Any], Any]) -> diffusers.DiffusionPipeline:
    """A Krea2Pipeline: sides in multiples of 16."""
    network = diffusers.Krea2Transformer2DModel(
        in_channels=8, num_layers=2, attention_head_dim=12, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=80, timestep_embed_dim=16, text_hidden_dim=TEXT, num_text_layers=3,
        text_num_attention_heads=2, text_num_key_value_heads=2, text_intermediate_size=40, axes_dims_rope=(4, 4, 4),
    )  # fmt: skip
    rope = {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 10000.0}
    encoder = transformers.Qwen3VLTextConfig(**QWEN3, num_hidden_layers=2, rope_parameters=rope)
    return diffusers.Krea2Pipeline(
        tokenizer=tinywan.tokenizer(),
        text_encoder=made(transformers.Qwen3VLTextModel, {"config": encoder}),
        vae=made(diffusers.AutoencoderKLQwenImage, QWEN_VAE),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        transformer=shake(network),
        text_encoder_select_layers=(0, 1, 2),
    )


PIPELINES = {"qwen_image": qwen_image, "flux2": flux2, "krea2": krea2}
