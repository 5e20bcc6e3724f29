"""Tiny networks of diffusers' own classes, one for every family; and their weights respelled in every naming."""

import json
import logging
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from loraport.models.architecture import Architecture, measure
from loraport.models.checkpoint import open_checkpoint
from loraport.models.families import families
from loraport.models.family import Family
from loraport.models.joining import join
from loraport.models.keymap import keymap_of
from loraport.models.placement import lay_out


@dataclass(frozen=True)
class Network:
    """How diffusers builds a tiny one.

    Args:
        family: of ours.
        title: as a file of it is called.
        settings: of the class.
        pipeline: the parts of the pipeline besides the network, all of which a LoRA does without.
        more: arguments of the pipeline.
        classes: of the network and the pipeline, where they are not those of the family.
        beside: what the names of weights begin with that are no part of what a LoRA changes.
    """

    family: str
    title: str
    settings: dict[str, Any]
    pipeline: tuple[str, ...] = ("tokenizer", "text_encoder", "vae", "scheduler")
    more: dict[str, Any] = field(default_factory=dict)
    classes: tuple[str, str] | None = None
    beside: tuple[str, ...] = ()


LTX2 = {
    "in_channels": 8, "out_channels": 8, "num_attention_heads": 3, "attention_head_dim": 8, "cross_attention_dim": 24,
    "audio_in_channels": 6, "audio_out_channels": 6, "audio_num_attention_heads": 2, "audio_attention_head_dim": 8,
    "audio_cross_attention_dim": 16, "num_layers": 2, "caption_channels": 20,
}  # fmt: skip
COG = {
    "num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 4, "out_channels": 4, "time_embed_dim": 8,
    "text_embed_dim": 20, "num_layers": 2, "sample_width": 8, "sample_height": 8, "sample_frames": 9,
}  # fmt: skip
WAN = {
    "patch_size": (1, 2, 2), "num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 4, "out_channels": 4,
    "text_dim": 16, "freq_dim": 8, "ffn_dim": 48, "num_layers": 2, "rope_max_seq_len": 32, "cross_attn_norm": True,
}  # fmt: skip
NETWORKS = {
    "wan_vace": Network(
        "wan",
        "Wan (2 blocks, width 24)",
        WAN | {"vace_layers": [0, 1], "vace_in_channels": 12},
        classes=("WanVACETransformer3DModel", "WanVACEPipeline"),
    ),
    "wan_animate": Network(
        "wan",
        "Wan (2 blocks, width 24)",
        WAN | {
            "in_channels": 12, "latent_channels": 4, "image_dim": 20, "added_kv_proj_dim": 24,
            "inject_face_latents_blocks": 1, "face_encoder_hidden_dim": 8, "face_encoder_num_heads": 2,
            "motion_encoder_dim": 8, "motion_style_dim": 8, "motion_dim": 4, "motion_encoder_size": 8,
            "motion_encoder_channel_sizes": {"4": 4, "8": 4},
        },
        ("tokenizer", "text_encoder", "vae", "scheduler", "image_encoder", "image_processor"),
        classes=("WanAnimateTransformer3DModel", "WanAnimatePipeline"),
        beside=("motion_encoder.",),
    ),
    "minimax_h3": Network(
        "minimax_h3",
        "MiniMax-H3 (2 blocks, width 24)",
        {
            "num_attention_heads": 3, "attention_head_dim": 12, "hidden_size": 24, "num_layers": 2, "ffn_dim": 40,
            "num_refiner_layers": 2, "in_channels": 2, "audio_in_channels": 6, "text_dim": 20, "freq_dim": 8,
            "time_embed_hidden_dim": 28, "time_embed_dim": 10, "rope_freq_dim": 2,
        },
        (),
    ),
    "hunyuan_video": Network(
        "hunyuan_video",
        "HunyuanVideo (2 blocks, width 24)",
        {
            "in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 12, "num_layers": 2,
            "num_single_layers": 2, "num_refiner_layers": 2, "mlp_ratio": 3.0, "text_embed_dim": 20,
            "pooled_projection_dim": 10, "rope_axes_dim": (4, 4, 4),
        },
        ("tokenizer", "text_encoder", "vae", "scheduler", "text_encoder_2", "tokenizer_2"),
    ),
    "ltx2": Network(
        "ltx2",
        "LTX-2 (2 blocks, width 24)",
        LTX2 | {"gated_attn": True, "cross_attn_mod": True, "audio_gated_attn": True, "audio_cross_attn_mod": True,
                "use_keyframes_abs_pos_embedding": True},
        ("tokenizer", "text_encoder", "vae", "scheduler", "audio_vae", "connectors", "vocoder"),
    ),
    "ltx2.0": Network(
        "ltx2",
        "LTX-2 (2 blocks, width 24)",
        LTX2,
        ("tokenizer", "text_encoder", "vae", "scheduler", "audio_vae", "connectors", "vocoder"),
    ),
    "ltx_video": Network(
        "ltx_video",
        "LTX-Video (2 blocks, width 24)",
        {
            "in_channels": 8, "out_channels": 8, "num_attention_heads": 2, "attention_head_dim": 12,
            "cross_attention_dim": 24, "num_layers": 2, "caption_channels": 20,
        },
    ),
    "cogvideox": Network("cogvideox", "CogVideoX (2 blocks, width 32)", COG),
    "cogvideox1.5": Network(
        "cogvideox",
        "CogVideoX (2 blocks, width 32)",
        COG | {"ofs_embed_dim": 8, "use_rotary_positional_embeddings": True, "use_learned_positional_embeddings": True,
               "patch_size_t": 2, "patch_bias": False},
    ),
}  # fmt: skip


def build(name: str) -> Any:
    """The network, with weights of its own."""
    import diffusers

    network = NETWORKS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        kind = network.classes[0] if network.classes else families()[network.family].diffusers.model
        model = getattr(diffusers, kind)(**network.settings)
        for parameter in model.parameters():  # none is zero or one from the start
            torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    return model


def pipeline(name: str, model: Any) -> Any:
    """A pipeline that has nothing but the network."""
    import diffusers

    network = NETWORKS[name]
    kind = getattr(diffusers, network.classes[1] if network.classes else families()[network.family].diffusers.pipeline)
    if issubclass(kind, diffusers.ModularPipeline):
        made = kind()
        made.update_components(transformer=model)
        return made
    return kind(transformer=model, **dict.fromkeys(network.pipeline), **network.more)


def fused(
    loader: Any, network: Any, path: Path, caplog: pytest.LogCaptureFixture, *, warns: bool = False
) -> dict[str, Tensor]:
    """What a LoRA changes in a network once it is loaded and fused; nobody may have a word to say of it meanwhile.

    Args:
        loader: the pipeline of the network, or itself.
        network: with its own weights.
        path: the LoRA.
        caplog: pytest's.
        warns: whether there must be a word.
    """
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    loggers = [logging.getLogger(name) for name in ("diffusers", "peft")]
    caplog.clear()
    for logger in loggers:
        logger.addHandler(caplog.handler)
    try:
        with caplog.at_level(logging.WARNING):
            if loader is network:
                network.load_lora_adapter(path, prefix="transformer")
            else:
                loader.load_lora_weights(path)
    finally:
        for logger in loggers:
            logger.removeHandler(caplog.handler)
    said = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert bool(said) is warns, said
    assert not [name for name, parameter in network.named_parameters() if parameter.is_meta]
    if loader is network:
        network.fuse_lora()
        network.unload_lora()
    else:
        loader.fuse_lora(components=["transformer"])
        loader.unload_lora_weights()
    after = network.state_dict()
    assert after.keys() == before.keys()
    return {name: after[name] - tensor for name, tensor in before.items() if not torch.equal(after[name], tensor)}


@cache
def state(name: str) -> dict[str, Tensor]:
    """Its weights, as diffusers calls them."""
    beside = NETWORKS[name].beside
    return {key: t for key, t in build(name).state_dict().items() if not (beside and key.startswith(beside))}


def respell(weights: dict[str, Tensor], family: Family, naming: str) -> dict[str, Tensor]:
    """Weights by canonical names (with ".weight") in a naming: fused, in its order, and under its names."""
    keymap = keymap_of(family)
    sizes, _ = measure({key.removesuffix(".weight"): tuple(t.shape) for key, t in weights.items()}, family)
    stored: dict[str, dict[str, Tensor]] = {}
    for key, tensor in weights.items():
        bare = family.role(key) == "param"
        module, _, kind = (key, "", "") if bare else key.rpartition(".")
        norm = naming == "comfyui" and kind == "weight" and ".norm." in family.spell(module, naming)
        ending = f".{'scale' if norm else kind}" if kind else ""
        stored.setdefault(f"{family.spell(module, naming)}{ending}", {})[module] = tensor
    found = {}
    for key, parts in stored.items():
        module = next(iter(parts))
        held = keymap.held(family.spell(module, naming), naming)
        if len(held) == 1 and not held[0].order:
            found[key] = parts[module].contiguous()
            continue
        rows, places = lay_out(held, {name: len(tensor) for name, tensor in parts.items()}, sizes)
        found[key] = join([(places[name], tensor) for name, tensor in parts.items()], rows)
    return found


def write(name: str, naming: str, folder: Path, weights: dict[str, Tensor] | None = None, prefix: str = "") -> Path:
    """A checkpoint of the network in a naming.

    Args:
        weights: by canonical name; the network's own unless given.
    """
    folder.mkdir(parents=True, exist_ok=True)
    family = families()[NETWORKS[name].family]
    tensors = respell(canonical(name) if weights is None else weights, family, naming)
    tensors = {prefix + key: tensor for key, tensor in tensors.items()}
    if naming not in family.alike or not family.alike[naming].shards:
        save_file(tensors, folder / f"{naming}.safetensors")
        return folder / f"{naming}.safetensors"
    names = {key: f"{naming}-0000{1 + i % 2}-of-00002.safetensors" for i, key in enumerate(tensors)}
    for name in set(names.values()):
        save_file({key: tensors[key] for key, in_file in names.items() if in_file == name}, folder / name)
    index = folder / f"{naming}.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": names}), encoding="utf-8")
    return index


@cache
def canonical(name: str) -> dict[str, Tensor]:
    """Its weights by canonical name, by the table of names in diffusers alone."""
    family = families()[NETWORKS[name].family]
    own = state(name)
    found = {}
    counts = dict.fromkeys(family.counters.values(), 2)
    for module in family.modules(counts):
        place = family.place(module, "diffusers")
        assert place.index is None or place.order == ()
        for kind in ("", ".weight", ".bias"):
            tensor = own.get(place.name + kind)
            if tensor is not None:
                parts = tensor.chunk(len(place.order)) if place.order else (tensor,)
                order = sorted(range(len(parts)), key=place.order.__getitem__) if place.order else [0]
                found[module + kind] = torch.cat([parts[i] for i in order])
    return found


def architecture(name: str, folder: Path) -> Architecture:
    """What we make of it."""
    return open_checkpoint(write(name, "diffusers", folder)).architecture


def factors(name: str, layers: dict[str, tuple[int, int]], rank: int = 4) -> dict[str, tuple[Tensor, Tensor]]:
    """Random B and A for layers by canonical name."""
    generator = torch.Generator().manual_seed(len(name))
    return {
        layer: (torch.randn(m, rank, generator=generator), torch.randn(rank, n, generator=generator) / n**0.5)
        for layer, (m, n) in layers.items()
    }
