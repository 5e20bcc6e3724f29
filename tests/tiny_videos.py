"""Whole pipelines of more families of videos, from prompt to pixels, as small as they can be built."""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from safetensors.torch import save_file
from torch import Generator

import tinywan

VOCABULARY, TEXT = len(tinywan.WORDS), 16
FLOW = {"shift": 3.0}


def saved(build: Callable[[Callable[[Any], Any]], Any]) -> Callable[..., Path]:
    """Of what builds a pipeline, given what makes the weights of its transformer: what writes it to a folder.

    It leaves no trace in the random numbers of others. `seed` and `drift` are those of `shaken`.
    """

    @functools.wraps(build)
    def written(folder: Path, seed: int = 0, *, drift: float = 0.0) -> Path:
        with torch.random.fork_rng(devices=[]):
            build(functools.partial(shaken, seed=seed, drift=drift)).save_pretrained(folder)
        return folder

    return written


def made(kind: Callable[..., Any], settings: Mapping[str, Any], seed: int = 5) -> Any:
    """A network with the random weights that it begins with."""
    torch.manual_seed(seed)
    return kind(**settings).eval()


def shaken(network: Any, seed: int, drift: float) -> Any:
    """Weights none of which is zero or one from the start; `drift` moves them as a distillation would."""
    one, other = Generator().manual_seed(seed), Generator().manual_seed(seed + 1)
    for tensor in network.parameters():
        scale = 0.6 / tensor.shape[-1] ** 0.5 if tensor.ndim > 1 else 0.1
        noise = torch.randn(tensor.shape, generator=one) + drift * torch.randn(tensor.shape, generator=other)
        tensor.data = scale * noise + (tensor.data if tensor.ndim == 1 else 0)
    return network.eval()


@saved
def ltx_video(shake: Callable[[Any], Any]) -> diffusers.DiffusionPipeline:
    """An LTXPipeline: videos of 8 k + 1 frames, sides in multiples of 32."""
    network = diffusers.LTXVideoTransformer3DModel(
        in_channels=8, out_channels=8, num_attention_heads=2, attention_head_dim=12, cross_attention_dim=24,
        num_layers=2, caption_channels=TEXT,
    )  # fmt: skip
    vae = {
        "latent_channels": 8, "block_out_channels": (8,) * 4, "decoder_block_out_channels": (8,) * 4,
        "layers_per_block": (1,) * 5, "decoder_layers_per_block": (1,) * 5,
        "spatio_temporal_scaling": (True, True, False, False), "patch_size": 1,
        "decoder_spatio_temporal_scaling": (True, True, False, False),
    }  # fmt: skip
    return diffusers.LTXPipeline(
        tokenizer=tinywan.tokenizer(),
        text_encoder=tinywan.text_encoder(),
        vae=made(diffusers.AutoencoderKLLTXVideo, vae),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(**FLOW),
        transformer=shake(network),
    )


@saved
def hunyuan_video(shake: Callable[[Any], Any]) -> diffusers.DiffusionPipeline:
    """A HunyuanVideoPipeline: videos of 4 k + 1 frames, sides in multiples of 16."""
    llama = transformers.LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=TEXT, intermediate_size=20, num_hidden_layers=2, num_attention_heads=2
    )
    return diffusers.HunyuanVideoPipeline(
        **hunyuan_video_parts(),
        tokenizer=tinywan.tokenizer(),
        text_encoder=made(transformers.LlamaModel, {"config": llama}),
        transformer=shake(hunyuan_video_network()),
    )


def hunyuan_video_network(image_condition_type: str | None = None) -> diffusers.HunyuanVideoTransformer3DModel:
    """The transformer of both pipelines."""
    return diffusers.HunyuanVideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=12, num_layers=1, num_single_layers=1,
        num_refiner_layers=1, mlp_ratio=3.0, text_embed_dim=TEXT, pooled_projection_dim=TEXT, rope_axes_dim=(4, 4, 4),
        image_condition_type=image_condition_type,
    )  # fmt: skip


def hunyuan_video_parts() -> dict[str, Any]:
    """What else both are made of."""
    vae = {"latent_channels": 4, "block_out_channels": (8,) * 4, "layers_per_block": 1, "norm_num_groups": 4}
    clip = transformers.CLIPTextConfig(
        vocab_size=VOCABULARY, hidden_size=TEXT, intermediate_size=20, num_hidden_layers=1, num_attention_heads=2,
        eos_token_id=1, bos_token_id=0,
    )  # fmt: skip
    return {
        "tokenizer_2": tinywan.tokenizer(),
        "text_encoder_2": made(transformers.CLIPTextModel, {"config": clip}),
        "vae": made(diffusers.AutoencoderKLHunyuanVideo, vae),
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(**FLOW),
    }


@saved
def ltx2(shake: Callable[[Any], Any]) -> diffusers.DiffusionPipeline:
    """An LTX2Pipeline, with sound."""
    from diffusers.pipelines.ltx2 import LTX2TextConnectors, LTX2Vocoder

    gemma = transformers.Gemma3TextConfig(
        vocab_size=VOCABULARY, hidden_size=TEXT, intermediate_size=20, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, max_position_embeddings=1024, layer_types=["full_attention"] * 2,
    )  # fmt: skip
    network = diffusers.LTX2VideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=8, cross_attention_dim=16,
        audio_in_channels=4, audio_out_channels=4, audio_num_attention_heads=2, audio_attention_head_dim=4,
        audio_cross_attention_dim=8, num_layers=2, caption_channels=TEXT, rope_double_precision=False,
        rope_type="split",
    )  # fmt: skip
    connectors = {
        "caption_channels": TEXT, "text_proj_in_factor": 3, "connector_rope_base_seq_len": 32,
        "rope_double_precision": False, "rope_type": "split",
    } | {
        f"{stream}_connector_{name}": value
        for stream in ("video", "audio")
        for name, value in {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 1,
                            "num_learnable_registers": None}.items()
    }  # fmt: skip
    vae = {
        "latent_channels": 4, "block_out_channels": (8,), "decoder_block_out_channels": (8,), "layers_per_block": (1,),
        "decoder_layers_per_block": (1, 1), "spatio_temporal_scaling": (True,), "patch_size": 1,
        "decoder_spatio_temporal_scaling": (True,), "decoder_inject_noise": (False, False),
        "downsample_type": ("spatiotemporal",), "upsample_type": ("spatiotemporal",), "upsample_residual": (False,),
        "upsample_factor": (1,), "down_block_types": ("LTX2VideoDownBlock3D",), "decoder_causal": False,
    }  # fmt: skip
    audio = {
        "base_channels": 4, "ch_mult": (1,), "num_res_blocks": 1, "resolution": 32, "latent_channels": 2,
        "mel_bins": 8,
    }  # fmt: skip
    voice = {
        "in_channels": 16, "hidden_channels": 32, "upsample_kernel_sizes": [4, 4], "upsample_factors": [2, 2],
        "resnet_kernel_sizes": [3], "resnet_dilations": [[1, 3, 5]], "output_sampling_rate": 16000,
    }  # fmt: skip
    return diffusers.LTX2Pipeline(
        tokenizer=tinywan.tokenizer(),
        text_encoder=made(transformers.Gemma3TextModel, {"config": gemma}),
        connectors=made(LTX2TextConnectors, connectors),
        vae=made(diffusers.AutoencoderKLLTX2Video, vae),
        audio_vae=made(diffusers.AutoencoderKLLTX2Audio, audio),
        vocoder=made(LTX2Vocoder, voice),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(**FLOW),
        transformer=shake(network),
    )


@saved
def hunyuan_video_i2v(shake: Callable[[Any], Any]) -> diffusers.DiffusionPipeline:
    """A HunyuanVideoImageToVideoPipeline, in which the image takes the place of the first frame."""
    network = hunyuan_video_network(image_condition_type="token_replace")
    words = ["<image>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    tokenizer = tinywan.tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": words})
    size = VOCABULARY + len(words)
    sees = transformers.CLIPVisionConfig(
        hidden_size=TEXT, intermediate_size=20, num_hidden_layers=2, num_attention_heads=2, image_size=336,
        patch_size=14,
    )  # fmt: skip
    reads = transformers.LlamaConfig(
        vocab_size=size, hidden_size=TEXT, intermediate_size=20, num_hidden_layers=2, num_attention_heads=2,
        pad_token_id=0,
    )  # fmt: skip
    llava = transformers.LlavaConfig(
        vision_config=sees, text_config=reads, image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        pad_token_id=0,
    )  # fmt: skip
    return diffusers.HunyuanVideoImageToVideoPipeline(
        **hunyuan_video_parts(),
        tokenizer=tokenizer,
        text_encoder=made(transformers.LlavaForConditionalGeneration, {"config": llava}),
        transformer=shake(network),
        image_processor=transformers.CLIPImageProcessor(size=336, crop_size=336),
    )


@saved
def cogvideox(shake: Callable[[Any], Any]) -> diffusers.DiffusionPipeline:
    """A CogVideoXPipeline: videos of 4 k + 1 frames, sides in multiples of 16."""
    return diffusers.CogVideoXPipeline(**cogvideox_parts(shake, in_channels=4))


@saved
def cogvideox_i2v(shake: Callable[[Any], Any]) -> diffusers.DiffusionPipeline:
    """A CogVideoXImageToVideoPipeline, which is given the image beside the noise."""
    return diffusers.CogVideoXImageToVideoPipeline(**cogvideox_parts(shake, in_channels=8))


def cogvideox_parts(shake: Callable[[Any], Any], in_channels: int) -> dict[str, Any]:
    """What both pipelines are made of."""
    network = diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=in_channels, out_channels=4, time_embed_dim=8,
        text_embed_dim=TEXT, num_layers=2, sample_width=2, sample_height=2, sample_frames=9,
    )  # fmt: skip
    vae = {"latent_channels": 4, "block_out_channels": (8,) * 4, "layers_per_block": 1, "norm_num_groups": 2}
    scheduler = diffusers.CogVideoXDDIMScheduler(
        prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing"
    )
    return {
        "tokenizer": tinywan.tokenizer(),
        "text_encoder": tinywan.text_encoder(),
        "vae": made(diffusers.AutoencoderKLCogVideoX, vae),
        "scheduler": scheduler,
        "transformer": shake(network),
    }


PIPELINES = {"ltx_video": ltx_video, "hunyuan_video": hunyuan_video, "ltx2": ltx2, "cogvideox": cogvideox}


def lora(folder: Path, file: Path, *, size: float = 0.5, rank: int = 2) -> Path:
    """A LoRA for the attention of all blocks of the transformer in a pipeline's folder."""
    from safetensors import safe_open

    one, tensors = Generator().manual_seed(3), {}
    with safe_open(next((folder / "transformer").glob("*.safetensors")), framework="pt") as held:
        for key in held.keys():  # noqa: SIM118 - it has no iterator
            if key.startswith("transformer_blocks.") and key.endswith(("to_q.weight", "to_v.weight")):
                m, n = held.get_slice(key).get_shape()
                stem = f"transformer.{key.removesuffix('.weight')}"
                tensors[f"{stem}.lora_A.weight"] = torch.randn(rank, n, generator=one) / n**0.5
                tensors[f"{stem}.lora_B.weight"] = size * torch.randn(m, rank, generator=one) / rank**0.5
    save_file(tensors, file)
    return file
