"""Whole pipelines of diffusers on the disk, from prompt to pixels, so small that random weights do."""

from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    WanImageToVideoPipeline,
    WanPipeline,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from safetensors.torch import save_file
from torch import Generator, nn
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3Model,
)

import image_families
import tinywan

CHAT = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
Z_LAYERS = ("attention.to_q", "attention.to_v", "attention.to_out.0", "feed_forward.w1")


def wan(
    folder: Path, seed: int = 0, *, drift: float = 0.0, second: int | None = None, boundary: float | None = None,
    expand: bool = False,
) -> Path:  # fmt: skip
    """A WanPipeline: videos of 4 k + 1 frames, sides in multiples of 16; with `second`, the seed, of two experts.

    With `expand` it is as Wan2.2-TI2V-5B, which makes videos of a prompt alone and with an image.
    """
    pipe = WanPipeline(
        tokenizer=tinywan.tokenizer(),
        text_encoder=tinywan.text_encoder(),
        vae=wan_vae(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        transformer=tinywan.transformer(seed, drift=drift),
        transformer_2=None if second is None else tinywan.transformer(second, drift=drift),
        boundary_ratio=boundary,
        expand_timesteps=expand,
    )
    pipe.save_pretrained(folder)
    return folder


def wan_i2v(
    folder: Path, seed: int = 0, *, drift: float = 0.0, second: int | None = None, boundary: float | None = None
) -> Path:
    """A WanImageToVideoPipeline: as Wan2.1, which sees the image by CLIP too; with two experts as Wan2.2."""
    changes = {"in_channels": 3 * tinywan.CHANNELS}  # noise, mask, and the image
    changes |= {"image_dim": 16, "added_kv_proj_dim": tinywan.WIDTH} if second is None else {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(8)
        eye = CLIPVisionModel(
            CLIPVisionConfig(
                hidden_size=16, intermediate_size=20, num_hidden_layers=2, num_attention_heads=2, image_size=16,
                patch_size=8,
            )
        ).eval()  # fmt: skip
    one = second is None
    pipe = WanImageToVideoPipeline(
        tokenizer=tinywan.tokenizer(),
        text_encoder=tinywan.text_encoder(),
        vae=wan_vae(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        image_encoder=eye if one else None,
        image_processor=CLIPImageProcessor(size=16, crop_size=16) if one else None,
        transformer=tinywan.transformer(seed, drift=drift, changes=changes),
        transformer_2=None if second is None else tinywan.transformer(second, drift=drift, changes=changes),
        boundary_ratio=boundary,
    )
    pipe.save_pretrained(folder)
    return folder


def wan_vae() -> AutoencoderKLWan:
    """An eighth of the size of the video, 4 channels."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return AutoencoderKLWan(
            base_dim=4, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, latents_mean=[0.1, -0.2, 0.0, 0.3],
            latents_std=[1.0, 0.8, 1.2, 0.9],
        )  # fmt: skip


def wan_lora(file: Path, *, size: float = 0.5) -> Path:
    """A LoRA for it."""
    return tinywan.lora(file, size=size)


def z_image(folder: Path, seed: int = 0, *, drift: float = 0.0, vae: AutoencoderKL | None = None) -> Path:
    """A ZImagePipeline: stills, sides in multiples of 4."""
    network = z_network()
    state, other = (image_families.random_state(network, number) for number in (seed, seed + 1))
    network.load_state_dict({key: tensor + drift * other[key] for key, tensor in state.items()})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        encoder = Qwen3Model(
            Qwen3Config(
                vocab_size=len(tinywan.WORDS),
                hidden_size=20,
                intermediate_size=24,
                num_hidden_layers=2,
                num_attention_heads=2,
                num_key_value_heads=1,
                head_dim=8,
                max_position_embeddings=600,
            )
        )
    pipe = ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae or still_vae(),
        text_encoder=encoder.eval(),
        tokenizer=chatting(tinywan.tokenizer()),
        transformer=network.eval(),
    )
    pipe.save_pretrained(folder)
    return folder


def z_network() -> ZImageTransformer2DModel:
    """Diffusers' own class, with room for captions, which it pads to 32 tokens."""
    with torch.random.fork_rng(devices=[]):
        return ZImageTransformer2DModel(
            in_channels=4, dim=24, n_layers=2, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=20,
            axes_dims=[4, 4, 4], axes_lens=[128, 16, 16],
        )  # fmt: skip


def still_vae() -> AutoencoderKL:
    """Half the size of the picture, 4 channels."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(6)
        return AutoencoderKL(
            block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2, layers_per_block=1,
            up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4, norm_num_groups=2, sample_size=16,
            scaling_factor=0.5, shift_factor=0.1, mid_block_add_attention=False,
        ).eval()  # fmt: skip


def taught(vae: AutoencoderKL, steps: int = 300) -> AutoencoderKL:
    """The same after it has learnt to give back flat colours and what is nearly flat."""
    made = Generator().manual_seed(0)
    optimizer = torch.optim.Adam(vae.parameters(), 1e-2)
    with torch.enable_grad():
        for _ in range(steps):
            pictures = 1.6 * torch.rand((16, 3, 1, 1), generator=made) - 0.8
            pictures = pictures + 0.1 * torch.randn((16, 3, 8, 8), generator=made)
            latents = vae.encode(pictures).latent_dist.mode()
            noise = 0.1 * torch.randn(latents.shape, generator=made)
            loss = (vae.decode(latents + noise).sample - pictures).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return vae.eval().requires_grad_(False)


def z_image_lora(file: Path, *, size: float = 0.5, rank: int = 2) -> Path:
    """A LoRA for it."""
    made = Generator().manual_seed(3)
    network = image_families.CASES["z_image"].network()
    tensors = {}
    for name, module in network.named_modules():
        if isinstance(module, nn.Linear) and name.startswith("layers.") and name.split(".", 2)[2] in Z_LAYERS:
            m, n = module.weight.shape
            tensors[f"transformer.{name}.lora_A.weight"] = torch.randn(rank, n, generator=made) / n**0.5
            tensors[f"transformer.{name}.lora_B.weight"] = size * torch.randn(m, rank, generator=made) / rank**0.5
    save_file(tensors, file)
    return file


def chatting(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """The tokenizer, which now takes what is said as it is."""
    tokenizer.chat_template = CHAT
    return tokenizer
