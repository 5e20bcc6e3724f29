"""Whole Wan pipelines of diffusers, so small that random weights do: transformer, text encoder, tokenizer."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Generator
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

CHANNELS, FRAMES, SIZE, BLOCKS, WIDTH, FFN = 4, 2, 8, 2, 24, 48
LATENTS = f"{FRAMES}x{SIZE}x{SIZE}"
WORDS = ("<pad>", "</s>", "<unk>", "a", "cat", "dog", "boat", "runs", "sits", "sails", "red", "blue")
TEXTS = ("a cat sits", "a red dog runs", "a blue boat sails", "a dog sits")


def transformer(
    seed: int = 0, *, drift: float = 0.0, changes: Mapping[str, Any] | None = None
) -> WanTransformer3DModel:
    """Diffusers' own class with random weights; `drift` moves them as a distillation would."""
    config = {
        "patch_size": (1, 2, 2), "num_attention_heads": 2, "attention_head_dim": WIDTH // 2, "in_channels": CHANNELS,
        "out_channels": CHANNELS, "text_dim": 16, "freq_dim": 16, "ffn_dim": FFN, "num_layers": BLOCKS,
        "rope_max_seq_len": 32,
    }  # fmt: skip
    made, other = Generator().manual_seed(seed), Generator().manual_seed(seed + 1)
    with torch.random.fork_rng(devices=[]):
        network = WanTransformer3DModel(**(config | dict(changes or {})))
    for tensor in network.parameters():
        scale = 1.2 / tensor.shape[-1] ** 0.5 if tensor.ndim > 1 else 0.1
        noise = torch.randn(tensor.shape, generator=made) + drift * torch.randn(tensor.shape, generator=other)
        tensor.data = scale * noise + (tensor.data if tensor.ndim == 1 else 0)
    return network.eval()


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a word, with the end mark that T5 puts after a text."""
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def text_encoder() -> UMT5EncoderModel:
    """The encoder that Wan uses, with random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        made = UMT5EncoderModel(
            UMT5Config(vocab_size=len(WORDS), d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
        )
    return made.eval()


def pipeline(seed: int = 0, *, drift: float = 0.0, scheduler: object = None, encoder: bool = True) -> WanPipeline:
    """A pipeline without the decoder to pixels, which calibration never needs."""
    return WanPipeline(
        tokenizer=tokenizer() if encoder else None,
        text_encoder=text_encoder() if encoder else None,
        vae=None,
        scheduler=scheduler or FlowMatchEulerDiscreteScheduler(shift=3.0),
        transformer=transformer(seed, drift=drift),
    )


def lora(path: Path, *, rank: int = 2, size: float = 0.5) -> Path:
    """A LoRA for every attention and feed-forward layer."""
    made = Generator().manual_seed(3)
    shapes = {f"{a}.{p}": (WIDTH, WIDTH) for a in ("self_attn", "cross_attn") for p in "qkvo"}
    shapes |= {"ffn.0": (FFN, WIDTH), "ffn.2": (WIDTH, FFN)}
    tensors = {}
    for block in range(BLOCKS):
        for name, (out, into) in shapes.items():
            base = f"diffusion_model.blocks.{block}.{name}"
            tensors[f"{base}.lora_A.weight"] = torch.randn(rank, into, generator=made) / into**0.5
            tensors[f"{base}.lora_B.weight"] = size * torch.randn(out, rank, generator=made) / rank**0.5
    save_file(tensors, path)
    return path


def folders(inside: Path) -> tuple[Path, Path]:
    """Source and target as `save_pretrained` writes them; only the source has a text encoder."""
    pipeline().save_pretrained(inside / "source")
    pipeline(drift=0.2, encoder=False).save_pretrained(inside / "target")
    return inside / "source", inside / "target"
