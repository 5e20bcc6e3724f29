"""A tiny HunyuanVideo-1.5 in every naming, written out here independently of the package."""

import torch
from torch import Tensor

WIDTH, MLP, HEAD, TEXT, GLYPH_TEXT, GLYPH, IMAGE, FREQUENCY = 24, 48, 12, 20, 16, 32, 18, 8
BLOCKS, REFINERS, CHANNELS, OUTPUT = 2, 2, 8, 4
REFINER = "txt_in.individual_token_refiner.blocks"
TO_REFINER = "context_embedder.token_refiner.refiner_blocks"

# Tencent's name -> (the name in diffusers, shape), in a double block.
BLOCK = {
    "img_mod.linear": ("norm1.linear", (6 * WIDTH, WIDTH)),
    "img_attn_q": ("attn.to_q", (WIDTH, WIDTH)),
    "img_attn_k": ("attn.to_k", (WIDTH, WIDTH)),
    "img_attn_v": ("attn.to_v", (WIDTH, WIDTH)),
    "img_attn_proj": ("attn.to_out.0", (WIDTH, WIDTH)),
    "img_mlp.fc1": ("ff.net.0.proj", (MLP, WIDTH)),
    "img_mlp.fc2": ("ff.net.2", (WIDTH, MLP)),
    "txt_mod.linear": ("norm1_context.linear", (6 * WIDTH, WIDTH)),
    "txt_attn_q": ("attn.add_q_proj", (WIDTH, WIDTH)),
    "txt_attn_k": ("attn.add_k_proj", (WIDTH, WIDTH)),
    "txt_attn_v": ("attn.add_v_proj", (WIDTH, WIDTH)),
    "txt_attn_proj": ("attn.to_add_out", (WIDTH, WIDTH)),
    "txt_mlp.fc1": ("ff_context.net.0.proj", (MLP, WIDTH)),
    "txt_mlp.fc2": ("ff_context.net.2", (WIDTH, MLP)),
}
# In a block of the refiner; Tencent fuses the projections.
REFINER_BLOCK = {
    "self_attn_qkv": (("attn.to_q", "attn.to_k", "attn.to_v"), (3 * WIDTH, WIDTH)),
    "self_attn_proj": (("attn.to_out.0",), (WIDTH, WIDTH)),
    "mlp.fc1": (("ff.net.0.proj",), (4 * WIDTH, WIDTH)),
    "mlp.fc2": (("ff.net.2",), (WIDTH, 4 * WIDTH)),
    "adaLN_modulation.1": (("norm_out.linear",), (2 * WIDTH, WIDTH)),
}
OUTSIDE = {
    "txt_in.input_embedder": ("context_embedder.proj_in", (WIDTH, TEXT)),
    "txt_in.t_embedder.mlp.0": ("context_embedder.time_text_embed.timestep_embedder.linear_1", (WIDTH, FREQUENCY)),
    "txt_in.t_embedder.mlp.2": ("context_embedder.time_text_embed.timestep_embedder.linear_2", (WIDTH, WIDTH)),
    "txt_in.c_embedder.linear_1": ("context_embedder.time_text_embed.text_embedder.linear_1", (WIDTH, TEXT)),
    "txt_in.c_embedder.linear_2": ("context_embedder.time_text_embed.text_embedder.linear_2", (WIDTH, WIDTH)),
    "byt5_in.fc1": ("context_embedder_2.linear_1", (GLYPH, GLYPH_TEXT)),
    "byt5_in.fc2": ("context_embedder_2.linear_2", (GLYPH, GLYPH)),
    "byt5_in.fc3": ("context_embedder_2.linear_3", (WIDTH, GLYPH)),
    "vision_in.proj.1": ("image_embedder.linear_1", (IMAGE, IMAGE)),
    "vision_in.proj.3": ("image_embedder.linear_2", (WIDTH, IMAGE)),
    "time_in.mlp.0": ("time_embed.timestep_embedder.linear_1", (WIDTH, FREQUENCY)),
    "time_in.mlp.2": ("time_embed.timestep_embedder.linear_2", (WIDTH, WIDTH)),
    "final_layer.adaLN_modulation.1": ("norm_out.linear", (2 * WIDTH, WIDTH)),
    "final_layer.linear": ("proj_out", (OUTPUT, WIDTH)),
}
NORMS = {
    **{
        f"double_blocks.{n}.{a}_attn_{x}_norm": (f"transformer_blocks.{n}.attn.norm_{b}{x}", HEAD)
        for n in range(BLOCKS)
        for a, b in (("img", ""), ("txt", "added_"))
        for x in "qk"
    },
    **{f"{REFINER}.{n}.norm{i}": (f"{TO_REFINER}.{n}.norm{i}", WIDTH) for n in range(REFINERS) for i in (1, 2)},
    "byt5_in.layernorm": ("context_embedder_2.norm", GLYPH_TEXT),
    "vision_in.proj.0": ("image_embedder.norm_in", IMAGE),
    "vision_in.proj.4": ("image_embedder.norm_out", WIDTH),
}
OTHERS = {
    "img_in.proj": ("x_embedder.proj", (WIDTH, CHANNELS, 1, 1, 1)),
    "cond_type_embedding": ("cond_type_embed", (3, WIDTH)),
}


def layers(*, outside: bool = True) -> dict[str, tuple[int, int]]:
    """Linear layers by Tencent's names -> (out, in)."""
    found = {f"double_blocks.{n}.{name}": shape for n in range(BLOCKS) for name, (_, shape) in BLOCK.items()}
    if outside:
        found |= {f"{REFINER}.{n}.{name}": shape for n in range(REFINERS) for name, (_, shape) in REFINER_BLOCK.items()}
        found |= {name: shape for name, (_, shape) in OUTSIDE.items()}
    return found


def model(seed: int = 0) -> dict[str, Tensor]:
    """Every parameter by Tencent's names."""
    generator = torch.Generator().manual_seed(seed)

    def make(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator) / shape[-1] ** 0.5

    found = {}
    for name, shape in layers().items():
        found[f"{name}.weight"], found[f"{name}.bias"] = make(*shape), make(shape[0])
    for name, (_, size) in NORMS.items():
        found[f"{name}.weight"] = make(size)
        if "_attn_" not in name:
            found[f"{name}.bias"] = make(size)
    for name, (_, shape) in OTHERS.items():
        found[f"{name}.weight"] = make(*shape)
    return found | {"img_in.proj.bias": make(WIDTH)}


def to_diffusers(module: str) -> tuple[str, ...]:
    """The names in diffusers of what Tencent stores as one module, in the order of its rows."""
    if module.startswith("double_blocks."):
        _, n, rest = module.split(".", 2)
        return (f"transformer_blocks.{n}.{BLOCK[rest][0]}",) if rest in BLOCK else (NORMS[module][0],)
    if module.startswith(REFINER):
        n, rest = module.removeprefix(f"{REFINER}.").split(".", 1)
        return (
            tuple(f"{TO_REFINER}.{n}.{name}" for name in REFINER_BLOCK[rest][0])
            if rest in REFINER_BLOCK
            else (NORMS[module][0],)
        )
    return ((OUTSIDE | NORMS | OTHERS)[module][0],)


def swapped(tensor: Tensor) -> Tensor:
    """The halves the other way round."""
    return torch.cat([tensor[WIDTH:], tensor[:WIDTH]])


def diffusers_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of Tencent as diffusers has it."""
    found = {}
    for key, tensor in state.items():
        module, _, kind = key.rpartition(".")
        names = to_diffusers(module)
        whole = swapped(tensor) if module == "final_layer.adaLN_modulation.1" else tensor
        for name, part in zip(names, whole.chunk(len(names)), strict=True):
            found[f"{name}.{kind}"] = part.clone()
    return found


def repackaged_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of Tencent as it is repackaged for ComfyUI: the projections of every block fused."""
    found = {}
    for key, tensor in state.items():
        if "attn_q." in key:
            parts = [state[key.replace("attn_q.", f"attn_{x}.")] for x in "qkv"]
            found[key.replace("attn_q.", "attn_qkv.")] = torch.cat(parts)
        elif "attn_k." not in key and "attn_v." not in key:
            found[key] = tensor
    return found


def comfyui_name(key: str) -> str:
    """What ComfyUI calls a repackaged key in memory."""
    for old, new in {
        "txt_in.t_embedder.mlp.0": "txt_in.t_embedder.in_layer",
        "txt_in.t_embedder.mlp.2": "txt_in.t_embedder.out_layer",
        "txt_in.c_embedder.linear_1": "txt_in.c_embedder.in_layer",
        "txt_in.c_embedder.linear_2": "txt_in.c_embedder.out_layer",
        "_mod.linear": "_mod.lin",
        "_attn_qkv": "_attn.qkv",
        "mlp.fc1": "mlp.0",
        "mlp.fc2": "mlp.2",
        "_attn_q_norm.weight": "_attn.norm.query_norm.scale",
        "_attn_k_norm.weight": "_attn.norm.key_norm.scale",
        "_attn_proj": "_attn.proj",
        "_in.mlp.2": "_in.out_layer",
        "_in.mlp.0": "_in.in_layer",
    }.items():
        key = key.replace(old, new)
    return key


def factors(seed: int = 0, rank: int = 4, *, outside: bool = True) -> dict[str, tuple[Tensor, Tensor]]:
    """Random B and A for everything that Tencent stores as one linear layer."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: (torch.randn(m, rank, generator=generator), torch.randn(rank, n, generator=generator) / n**0.5)
        for name, (m, n) in layers(outside=outside).items()
    }


def in_diffusers(updates: dict[str, Tensor]) -> dict[str, Tensor]:
    """Updates (or B factors) by Tencent's names as diffusers applies them, by its module names."""
    state = diffusers_state({f"{name}.weight": update for name, update in updates.items()})
    return {key.removesuffix(".weight"): update for key, update in state.items()}


def loras(made: dict[str, tuple[Tensor, Tensor]]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A LoRA of B and A by Tencent's names: as it is, and on the layers of diffusers."""
    original, split = {}, {}
    for name, (b, a) in made.items():
        original |= {f"{name}.lora_B.weight": b, f"{name}.lora_A.weight": a}
        for other, part in in_diffusers({name: b}).items():
            split |= {f"transformer.{other}.lora_B.weight": part, f"transformer.{other}.lora_A.weight": a.clone()}
    return original, split


def with_loras(state: dict[str, Tensor], made: dict[str, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """The sums of a state dict of Tencent and the updates of B and A by its names, in float64."""
    updates = {f"{name}.weight": b.double() @ a.double() for name, (b, a) in made.items()}
    return {key: tensor.double() + updates.get(key, 0) for key, tensor in state.items()}
