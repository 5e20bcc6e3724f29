"""Tiny networks of image families as diffusers builds them; the other names of their parameters, written out here."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field

import diffusers
import torch
from diffusers.loaders import single_file_utils
from torch import Tensor, nn

Rules = list[tuple[str, str]]


@dataclass(frozen=True)
class Case:
    """One family.

    Args:
        network: builds a network of it.
        pipeline: the pipeline of diffusers that loads LoRAs for it.
        rules: from a name in diffusers to the original one, tried in turn, all of them.
        fused: pattern of the part of an original name -> the last parts in diffusers that it holds, in order.
        halves: modules of diffusers of which the halves lie the other way round in the original.
        flattened: parameters of diffusers that are one row in the original.
        naming: what the package calls the names that are not those of diffusers.
        universal: whether diffusers reads the universal profile.
        to_diffusers: the conversion of checkpoints in diffusers itself.
    """

    network: Callable[[], nn.Module]
    pipeline: str
    rules: Rules
    to_diffusers: Callable[[dict[str, Tensor]], dict[str, Tensor]]
    fused: dict[str, tuple[str, ...]] = field(default_factory=dict)
    halves: tuple[str, ...] = ()
    flattened: str = ""
    naming: str = "original"
    universal: bool = True

    def original(self, name: str) -> str:
        """The original name of a parameter or module of diffusers, as if nothing were fused."""
        for pattern, new in self.rules:
            name = re.sub(pattern, new, name)
        return name

    def original_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """A state dict of diffusers as the original has it."""
        found: dict[str, Tensor] = {}
        for key, tensor in state.items():
            stem, _, kind = key.rpartition(".")
            for fused, parts in self.fused.items():
                if stem.endswith(f".{parts[0]}"):
                    start = stem.removesuffix(parts[0])
                    found[self.original(f"{start}{fused}.{kind}")] = torch.cat(
                        [state[f"{start}{part}.{kind}"] for part in parts]
                    )
                    break
                if stem.endswith(tuple(f".{part}" for part in parts)):
                    break
            else:
                whole = torch.cat(tensor.chunk(2)[::-1]) if stem in self.halves else tensor
                whole = whole.flatten() if self.flattened and re.search(self.flattened, key) else whole
                found[self.original(key)] = whole
        return found


def _krea2() -> nn.Module:
    return diffusers.Krea2Transformer2DModel(
        in_channels=8, num_layers=2, attention_head_dim=12, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=80, timestep_embed_dim=16, text_hidden_dim=24, num_text_layers=3,
        text_num_attention_heads=2, text_num_key_value_heads=2, text_intermediate_size=40, axes_dims_rope=(4, 4, 4),
    )  # fmt: skip


KREA2 = Case(
    _krea2,
    "Krea2Pipeline",
    [
        (r"^transformer_blocks\.", "blocks."),
        (r"^(blocks\.\d+)\.scale_shift_table", r"\1.mod.lin"),
        (r"^text_fusion\.", "txtfusion."),
        (r"\.attn\.to_([qkv])", r".attn.w\1"),
        (r"\.attn\.to_out\.0", ".attn.wo"),
        (r"\.attn\.to_gate", ".attn.gate"),
        (r"\.ff\.", ".mlp."),
        (r"\.attn\.norm_([qk])\.weight", r".attn.qknorm.\1norm.scale"),
        (r"\.norm1\.weight", ".prenorm.scale"),
        (r"\.norm2\.weight", ".postnorm.scale"),
        (r"^img_in", "first"),
        (r"^time_embed\.linear_1", "tmlp.0"),
        (r"^time_embed\.linear_2", "tmlp.2"),
        (r"^time_mod_proj", "tproj.1"),
        (r"^txt_in\.norm\.weight", "txtmlp.0.scale"),
        (r"^txt_in\.linear_1", "txtmlp.1"),
        (r"^txt_in\.linear_2", "txtmlp.3"),
        (r"^final_layer\.linear", "last.linear"),
        (r"^final_layer\.norm\.weight", "last.norm.scale"),
        (r"^final_layer\.scale_shift_table", "last.modulation.lin"),
    ],
    single_file_utils.convert_krea2_transformer_checkpoint_to_diffusers,
    flattened=r"^transformer_blocks\.\d+\.scale_shift_table",
)


def _z_image() -> nn.Module:
    return diffusers.ZImageTransformer2DModel(
        in_channels=4, dim=24, n_layers=2, n_refiner_layers=2, n_heads=2, n_kv_heads=2, cap_feat_dim=20,
        axes_dims=[4, 4, 4], axes_lens=[8, 8, 8],
    )  # fmt: skip


Z_IMAGE = Case(
    _z_image,
    "ZImagePipeline",
    [
        (r"\.attention\.to_out\.0", ".attention.out"),
        (r"\.attention\.norm_([qk])", r".attention.\1_norm"),
        (r"^all_x_embedder\.2-1", "x_embedder"),
        (r"^all_final_layer\.2-1", "final_layer"),
    ],
    single_file_utils.convert_z_image_transformer_checkpoint_to_diffusers,
    fused={"attention.qkv": ("attention.to_q", "attention.to_k", "attention.to_v")},
)


def _qwen_image() -> nn.Module:
    return diffusers.QwenImageTransformer2DModel(
        in_channels=8, out_channels=2, num_layers=2, attention_head_dim=12, num_attention_heads=2,
        joint_attention_dim=20, axes_dims_rope=(4, 4, 4),
    )  # fmt: skip


QWEN_IMAGE = Case(_qwen_image, "QwenImagePipeline", [], dict)


def _qwen_image_21() -> nn.Module:
    return diffusers.QwenImage21Transformer2DModel(
        in_channels=8, out_channels=8, num_layers=2, attention_head_dim=12, num_attention_heads=2,
        context_in_dim=20, axes_dims_rope=(4, 4, 4),
    )  # fmt: skip


QWEN_IMAGE_21 = Case(
    _qwen_image_21,
    "QwenImagePipeline",  # the same loader; that of 2.1 cannot be built without a text encoder
    [],
    single_file_utils.convert_qwen_image21_transformer_checkpoint_to_diffusers,
    fused={"img_mlp.gate_up": ("img_mlp.gate_layer", "img_mlp.proj")},
    naming="comfyui",
    universal=False,
)


def _flux2() -> nn.Module:
    return diffusers.Flux2Transformer2DModel(
        in_channels=8, num_layers=2, num_single_layers=2, attention_head_dim=12, num_attention_heads=2,
        joint_attention_dim=20, timestep_guidance_channels=16, axes_dims_rope=(3, 3, 3, 3), guidance_embeds=False,
    )  # fmt: skip


FLUX2 = Case(
    _flux2,
    "Flux2KleinPipeline",
    [
        (r"^single_transformer_blocks\.(\d+)\.attn\.norm_q\.weight", r"single_blocks.\1.norm.query_norm.scale"),
        (r"^single_transformer_blocks\.(\d+)\.attn\.norm_k\.weight", r"single_blocks.\1.norm.key_norm.scale"),
        (r"^single_transformer_blocks\.(\d+)\.attn\.to_qkv_mlp_proj", r"single_blocks.\1.linear1"),
        (r"^single_transformer_blocks\.(\d+)\.attn\.to_out", r"single_blocks.\1.linear2"),
        (r"^transformer_blocks\.", "double_blocks."),
        (r"\.attn\.norm_q\.weight", ".img_attn.norm.query_norm.scale"),
        (r"\.attn\.norm_k\.weight", ".img_attn.norm.key_norm.scale"),
        (r"\.attn\.norm_added_q\.weight", ".txt_attn.norm.query_norm.scale"),
        (r"\.attn\.norm_added_k\.weight", ".txt_attn.norm.key_norm.scale"),
        (r"\.attn\.to_out\.0", ".img_attn.proj"),
        (r"\.attn\.to_add_out", ".txt_attn.proj"),
        (r"\.attn\.qkv", ".img_attn.qkv"),
        (r"\.attn\.added_qkv", ".txt_attn.qkv"),
        (r"\.ff\.linear_in", ".img_mlp.0"),
        (r"\.ff\.linear_out", ".img_mlp.2"),
        (r"\.ff_context\.linear_in", ".txt_mlp.0"),
        (r"\.ff_context\.linear_out", ".txt_mlp.2"),
        (r"_modulation(_img|_txt)?\.linear", r"_modulation\1.lin"),
        (r"^x_embedder", "img_in"),
        (r"^context_embedder", "txt_in"),
        (r"^time_guidance_embed\.timestep_embedder\.linear_1", "time_in.in_layer"),
        (r"^time_guidance_embed\.timestep_embedder\.linear_2", "time_in.out_layer"),
        (r"^norm_out\.linear", "final_layer.adaLN_modulation.1"),
        (r"^proj_out", "final_layer.linear"),
    ],
    single_file_utils.convert_flux2_transformer_checkpoint_to_diffusers,
    fused={
        "attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
        "attn.added_qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    },
    halves=("norm_out.linear",),
)
CASES = {
    "krea2": KREA2,
    "z_image": Z_IMAGE,
    "qwen_image": QWEN_IMAGE,
    "qwen_image_21": QWEN_IMAGE_21,
    "flux2": FLUX2,
}


def random_state(network: nn.Module, seed: int) -> dict[str, Tensor]:
    """Random weights for all parameters of a network."""
    generator = torch.Generator().manual_seed(seed)
    return {
        key: torch.randn(tensor.shape, generator=generator) / tensor.shape[-1] ** 0.5
        for key, tensor in network.state_dict().items()
    }


def linear(network: nn.Module, part: str = "") -> dict[str, tuple[int, int]]:
    """Linear layers of a network in whose name a pattern is found -> (out, in)."""
    return {
        name: (module.out_features, module.in_features)
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear) and re.search(part, name)
    }


def factors(layers: dict[str, tuple[int, int]], seed: int = 0, rank: int = 3) -> dict[str, tuple[Tensor, Tensor]]:
    """Random B and A for each layer."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: (torch.randn(m, rank, generator=generator), torch.randn(rank, n, generator=generator) / n**0.5)
        for name, (m, n) in layers.items()
    }
