"""The corpus: for every trainer the names and shapes it would write for a two-block model, and what is expected.

Made from the documented naming rules of each trainer, for width 24; no file of anybody's was copied.
"""

import json

D, F, R = 24, 48, 4


def blocks(modules: dict, called: str = "blocks") -> dict:
    return {f"{called}.{n}.{name}": shape for n in range(2) for name, shape in modules.items()}


ORIGINAL = {
    **{f"{kind}.{name}": (D, D) for kind in ("self_attn", "cross_attn") for name in "qkvo"},
    "ffn.0": (F, D),
    "ffn.2": (D, F),
}
IMAGE = {"cross_attn.k_img": (D, D), "cross_attn.v_img": (D, D)}
DIFFUSERS = {
    **{f"{kind}.{name}": (D, D) for kind in ("attn1", "attn2") for name in ("to_q", "to_k", "to_v", "to_out.0")},
    "ffn.net.0.proj": (F, D),
    "ffn.net.2": (D, F),
}
DIFFUSERS_IMAGE = {"attn2.add_k_proj": (D, D), "attn2.add_v_proj": (D, D)}
FASTVIDEO = {
    **dict.fromkeys(("to_q", "to_k", "to_v", "to_out"), (D, D)),
    **{f"attn2.{name}": (D, D) for name in ("to_q", "to_k", "to_v", "to_out")},
    "ffn.fc_in": (F, D),
    "ffn.fc_out": (D, F),
}
HYBRID = {
    **{f"{kind}.{name}": (D, D) for kind in ("self_attn", "cross_attn") for name in ("q", "k", "v", "to_out.0")},
    "ffn.net.0.proj": (F, D),
    "ffn.net.2": (D, F),
}
# HunyuanVideo: Tencent's fused projections in double and single blocks, and the names in diffusers.
HUNYUAN_1 = {
    **{f"{a}_attn_qkv": (3 * D, D) for a in ("img", "txt")},
    **{f"{a}_attn_proj": (D, D) for a in ("img", "txt")},
    **{f"{a}_mlp.fc1": (F, D) for a in ("img", "txt")},
    **{f"{a}_mlp.fc2": (D, F) for a in ("img", "txt")},
}
HUNYUAN_1_MOD = {f"{a}_mod.linear": (6 * D, D) for a in ("img", "txt")}
HUNYUAN_1_SINGLE = {"linear1": (3 * D + F, D), "linear2": (D, D + F)}
HUNYUAN_1_SINGLE_DIFFUSERS = {
    **{f"attn.{x}": (D, D) for x in ("to_q", "to_k", "to_v")},
    "proj_mlp": (F, D),
    "proj_out": (D, D + F),
}
# LTX-2: Lightricks' names inside a block, which diffusers shares; the audio stream is narrower.
LTX = {
    **{f"{a}.{x}": (D, D) for a in ("attn1", "attn2") for x in ("to_q", "to_k", "to_v", "to_out.0")},
    "ff.net.0.proj": (F, D),
    "ff.net.2": (D, F),
}
COGVIDEOX = blocks(
    {name: shape for name, shape in LTX.items() if "attn2" not in name}
    | {f"norm{i}.linear": (6 * D, 8) for i in (1, 2)},
    "transformer_blocks",
)
AUDIO = 16
LTX_AUDIO = {
    **{f"audio_{a}.{x}": (AUDIO, AUDIO) for a in ("attn1", "attn2") for x in ("to_q", "to_k", "to_v", "to_out.0")},
    **{f"audio_to_video_attn.{x}": (AUDIO, AUDIO) for x in ("to_k", "to_v")},
    "audio_to_video_attn.to_q": (AUDIO, D),
    "audio_to_video_attn.to_out.0": (D, AUDIO),
    **{f"video_to_audio_attn.{x}": (AUDIO, D) for x in ("to_k", "to_v")},
    **{f"video_to_audio_attn.{x}": (AUDIO, AUDIO) for x in ("to_q", "to_out.0")},
    "audio_ff.net.0.proj": (32, AUDIO),
    "audio_ff.net.2": (AUDIO, 32),
}
LTX2 = blocks(LTX | LTX_AUDIO, "transformer_blocks")
LTX_OUTSIDE = {
    "patchify_proj": (D, 8),
    "audio_patchify_proj": (AUDIO, 6),
    "adaln_single.linear": (6 * D, D),
    "audio_adaln_single.linear": (6 * AUDIO, AUDIO),
    "av_ca_a2v_gate_adaln_single.emb.timestep_embedder.linear_1": (D, 8),
    "av_ca_video_scale_shift_adaln_single.linear": (4 * D, D),
}
# HunyuanVideo-1.5: Tencent's split projections, ComfyUI's fused ones, and the names in diffusers.
HUNYUAN = {
    **{f"{a}_attn_{x}": (D, D) for a in ("img", "txt") for x in ("q", "k", "v", "proj")},
    **{f"{a}_mod.linear": (6 * D, D) for a in ("img", "txt")},
    **{f"{a}_mlp.fc1": (F, D) for a in ("img", "txt")},
    **{f"{a}_mlp.fc2": (D, F) for a in ("img", "txt")},
}
HUNYUAN_COMFYUI = {
    **{f"{a}_attn.qkv": (3 * D, D) for a in ("img", "txt")},
    **{f"{a}_attn.proj": (D, D) for a in ("img", "txt")},
    **{f"{a}_mod.lin": (6 * D, D) for a in ("img", "txt")},
    **{f"{a}_mlp.0": (F, D) for a in ("img", "txt")},
    **{f"{a}_mlp.2": (D, F) for a in ("img", "txt")},
}
HUNYUAN_DIFFUSERS = {
    **{f"attn.{x}": (D, D) for x in ("to_q", "to_k", "to_v", "to_out.0")},
    **{f"attn.{x}": (D, D) for x in ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")},
    **{f"{a}.linear": (6 * D, D) for a in ("norm1", "norm1_context")},
    **{f"{a}.net.0.proj": (F, D) for a in ("ff", "ff_context")},
    **{f"{a}.net.2": (D, F) for a in ("ff", "ff_context")},
}
HUNYUAN_1_BLOCKS = blocks(HUNYUAN_1, "double_blocks") | blocks(HUNYUAN_1_SINGLE, "single_blocks")
HUNYUAN_1_BLOCKS_DIFFUSERS = blocks(HUNYUAN_DIFFUSERS, "transformer_blocks") | blocks(
    HUNYUAN_1_SINGLE_DIFFUSERS, "single_transformer_blocks"
)
# Krea 2: keys and values have fewer heads than queries. Two kinds of blocks beside the others fuse the text.
KV = 12
KREA2 = {
    **{f"attn.w{x}": (D, D) for x in "qo"},
    **{f"attn.w{x}": (KV, D) for x in "kv"},
    "attn.gate": (D, D),
    "mlp.gate": (F, D),
    "mlp.up": (F, D),
    "mlp.down": (D, F),
}
KREA2_DIFFUSERS = {
    **{f"attn.to_{x}": (D, D) for x in ("q", "out.0", "gate")},
    **{f"attn.to_{x}": (KV, D) for x in "kv"},
    "ff.gate": (F, D),
    "ff.up": (F, D),
    "ff.down": (D, F),
}
KREA2_FUSED = {"attn.to_qkv": (D + 2 * KV, D)} | {
    name: shape for name, shape in KREA2_DIFFUSERS.items() if name not in ("attn.to_q", "attn.to_k", "attn.to_v")
}
# Z-Image: fused and split projections; two refiners beside the layers.
Z_IMAGE_MLP = {"feed_forward.w1": (F, D), "feed_forward.w2": (D, F), "feed_forward.w3": (F, D)}
Z_IMAGE = {"attention.qkv": (3 * D, D), "attention.out": (D, D)} | Z_IMAGE_MLP
Z_IMAGE_SPLIT = {f"attention.to_{x}": (D, D) for x in ("q", "k", "v", "out.0")} | Z_IMAGE_MLP
# Qwen-Image has one set of names; in 2.1 ComfyUI fuses gate and projection.
QWEN_ATTENTION = {f"attn.{x}": (D, D) for x in ("to_q", "to_k", "to_v", "to_out.0")}
QWEN = {
    **QWEN_ATTENTION,
    **{f"attn.{x}": (D, D) for x in ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")},
    **{f"{a}_mod.1": (6 * D, D) for a in ("img", "txt")},
    **{f"{a}_mlp.net.0.proj": (F, D) for a in ("img", "txt")},
    **{f"{a}_mlp.net.2": (D, F) for a in ("img", "txt")},
}
QWEN_IMAGE = blocks(QWEN, "transformer_blocks")
QWEN_21 = QWEN_ATTENTION | {"img_mlp.gate_layer": (F, D), "img_mlp.proj": (F, D), "img_mlp.out": (D, F)}
QWEN_21_COMFYUI = QWEN_ATTENTION | {"img_mlp.gate_up": (2 * F, D), "img_mlp.out": (D, F)}
# FLUX.2: the first layer of a gated feed-forward is twice as wide as the second; single blocks fuse everything.
FLUX2_DOUBLE = {
    **{f"{a}_attn.qkv": (3 * D, D) for a in ("img", "txt")},
    **{f"{a}_attn.proj": (D, D) for a in ("img", "txt")},
    **{f"{a}_mlp.0": (6 * D, D) for a in ("img", "txt")},
    **{f"{a}_mlp.2": (D, 3 * D) for a in ("img", "txt")},
}
FLUX2_SINGLE = {"linear1": (9 * D, D), "linear2": (D, 4 * D)}
FLUX2 = blocks(FLUX2_DOUBLE, "double_blocks") | blocks(FLUX2_SINGLE, "single_blocks")
FLUX2_DOUBLE_DIFFUSERS = {
    **{f"attn.{x}": (D, D) for x in ("to_q", "to_k", "to_v", "to_out.0")},
    **{f"attn.{x}": (D, D) for x in ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")},
    **{f"{a}.linear_in": (6 * D, D) for a in ("ff", "ff_context")},
    **{f"{a}.linear_out": (D, 3 * D) for a in ("ff", "ff_context")},
}
FLUX2_SINGLE_DIFFUSERS = {"attn.to_qkv_mlp_proj": (9 * D, D), "attn.to_out": (D, 4 * D)}
FLUX2_DIFFUSERS = blocks(FLUX2_DOUBLE_DIFFUSERS, "transformer_blocks") | blocks(
    FLUX2_SINGLE_DIFFUSERS, "single_transformer_blocks"
)
WAN_KINDS = ("self_attn", "cross_attn")
# MiniMax-H3: fused projections of more rows than the stream is wide; what follows the time alone is narrow.
INNER, TIME = 128, 16
H3 = {
    "attn.qkv_proj": (3 * INNER, D),
    "attn.out_proj": (D, INNER),
    "mlp.fc1": (2 * F, D),
    "mlp.fc2": (D, F),
}
H3_MODULATION = {"adaln_proj.linear": (18 * D, TIME)}
H3_DIFFUSERS = {
    **{f"attn.to_{x}": (INNER, D) for x in "qkv"},
    "attn.to_out.0": (D, INNER),
    "ff.net.0.proj": (2 * F, D),
    "ff.net.2": (D, F),
}
AB = (".lora_A.weight", ".lora_B.weight")
NAMED = (".lora_A.default.weight", ".lora_B.default.weight")
DOWN_UP = (".lora_down.weight", ".lora_up.weight")
ALPHA = {".alpha": []}
NOTHING: dict = {}


def each(prefix: str, modules: dict, parts, *, flat: bool = False) -> dict:
    """The keys that `parts` gives for the sides of a layer."""
    found = {}
    for name, (out, into) in modules.items():
        stem = prefix + (name.replace(".", "_") if flat else name)
        found |= {stem + suffix: shape for suffix, shape in parts(out, into).items()}
    return found


def keys(prefix: str, modules: dict, pair: tuple[str, str], *, flat: bool = False, extra: dict = NOTHING) -> dict:
    """Two factors of rank R."""
    return each(prefix, modules, lambda m, n: {pair[0]: [R, n], pair[1]: [m, R]} | extra, flat=flat)


def kohya(modules: dict, prefix: str = "lora_unet_") -> dict:
    """As kohya's trainers and their kin write every layer: flattened names, down, up and alpha."""
    return keys(prefix, modules, DOWN_UP, flat=True, extra=ALPHA)


def lokr(
    prefix: str, modules: dict, *, rank: int = 0, both: bool = False, flat: bool = False, extra: dict = NOTHING
) -> dict:
    """LoKr with a small matrix of 4 x 4; rank 0 keeps the large one whole."""

    def parts(m: int, n: int) -> dict:
        found = {}
        for part, rows, columns, r in ((".lokr_w1", 4, 4, rank if both else 0), (".lokr_w2", m // 4, n // 4, rank)):
            found |= {f"{part}_a": [rows, r], f"{part}_b": [r, columns]} if r else {part: [rows, columns]}
        return found | extra

    return each(prefix, modules, parts, flat=flat)


def loha(prefix: str, modules: dict, *, flat: bool = False, extra: dict = NOTHING) -> dict:
    """LoHa of two pairs of rank 2."""
    pairs = (".hada_w1", ".hada_w2")
    return each(
        prefix,
        modules,
        lambda m, n: {k: v for w in pairs for k, v in ((f"{w}_a", [m, 2]), (f"{w}_b", [2, n]))} | extra,
        flat=flat,
    )


def extraction(prefix: str) -> dict:
    """What an extraction from two checkpoints writes: factors where large, whole differences elsewhere."""
    found = keys(prefix, blocks(ORIGINAL), DOWN_UP)
    for n in range(2):
        found |= {f"{prefix}blocks.{n}.{name}.diff_b": [shape[0]] for name, shape in ORIGINAL.items()}
        found |= {f"{prefix}blocks.{n}.{a}.norm_{x}.diff": [D] for a in ("self_attn", "cross_attn") for x in "qk"}
        found |= {f"{prefix}blocks.{n}.norm3.diff": [D], f"{prefix}blocks.{n}.norm3.diff_b": [D]}
        found[f"{prefix}blocks.{n}.diff_m"] = [1, 6, D]
    for name, shape in {"time_embedding.0": [D, 8], "head.head": [16, D], "text_embedding.0": [D, 16]}.items():
        found |= {f"{prefix}{name}.diff": shape, f"{prefix}{name}.diff_b": [shape[0]]}
    found |= {f"{prefix}patch_embedding.diff": [D, 4, 1, 2, 2], f"{prefix}patch_embedding.diff_b": [D]}
    found[f"{prefix}head.diff_m"] = [1, 2, D]
    return found


def adaptive(prefix: str, modules: dict) -> dict:
    """What KJNodes extracts: as many singular vectors of each layer as hold a share, norms and biases beside."""
    found = {}
    for number, (name, (out, into)) in enumerate(modules.items()):
        rank = 1 + number % R
        found |= {f"{prefix}{name}.lora_up.weight": [out, rank], f"{prefix}{name}.lora_down.weight": [rank, into]}
        found[f"{prefix}{name}.diff_b"] = [out]
    found |= {f"{prefix}blocks.{n}.{a}.norm_{x}.diff": [D] for n in range(2) for a in WAN_KINDS for x in "qk"}
    return found | {f"{prefix}blocks.{n}.norm3.diff": [D] for n in range(2)} | {f"{prefix}patch_embedding.diff_b": [D]}


def entry(about: str, keys: dict, *, layers: int = 0, passthrough: int = 0, error: str = "", **more) -> dict:
    expect = {"error": error} if error else {"layers": layers, "passthrough": passthrough}
    return {"about": about, "keys": keys, "expect": expect | more.pop("expect", {}), **more}


META = json.dumps({"transformer.r": R, "transformer.lora_alpha": 2 * R, "transformer.use_rslora": False})
CORPUS = {
    "diffusers": entry(
        "WanPipeline.save_lora_weights with its configuration in the header",
        keys("transformer.", blocks(DIFFUSERS), AB),
        layers=20,
        metadata={"format": "pt", "lora_adapter_metadata": META},
        expect={"names": "diffusers", "scale": 2.0},
    ),
    "diffusers-model": entry(
        "model.save_lora_adapter",
        keys("", blocks(DIFFUSERS), AB),
        layers=20,
        expect={"prefix": "", "names": "diffusers"},
    ),
    "diffusers-i2v": entry(
        "an image-to-video LoRA of diffusers",
        keys("transformer.", blocks(DIFFUSERS | DIFFUSERS_IMAGE), AB),
        layers=24,
        expect={"names": "diffusers"},
    ),
    "peft": entry(
        "PEFT save_pretrained, adapter_config.json beside",
        keys("base_model.model.", blocks(DIFFUSERS), AB),
        layers=20,
        config={"peft_type": "LORA", "r": R, "lora_alpha": 6, "use_rslora": True},
        expect={"scale": 3.0, "alpha": "config"},
    ),
    "peft-wrapped": entry(
        "PEFT over a pipeline's transformer, with biases",
        keys("base_model.model.transformer.", blocks(DIFFUSERS), AB)
        | {f"base_model.model.transformer.{n}.lora_B.bias": [s[0]] for n, s in blocks(DIFFUSERS).items()},
        layers=20,
        passthrough=20,
    ),
    "musubi": entry(
        "musubi-tuner / kohya",
        kohya(blocks(ORIGINAL)),
        layers=20,
        alpha=1.0,
        metadata={"ss_network_dim": "4", "ss_network_alpha": "1.0", "ss_network_module": "networks.lora_wan"},
        expect={"names": "original", "scale": 0.25, "flat": True, "alpha": "alpha"},
    ),
    "musubi-i2v": entry(
        "musubi-tuner, image-to-video",
        kohya(blocks(ORIGINAL | IMAGE)),
        layers=24,
        alpha=4.0,
    ),
    "kohya-diffusers-names": entry(
        "flattened diffusers names",
        kohya(blocks(DIFFUSERS)),
        layers=20,
        alpha=8.0,
        expect={"names": "diffusers", "scale": 2.0},
    ),
    "videox-fun": entry(
        "VideoX-Fun: the separator doubles",
        kohya(blocks(ORIGINAL), "lora_unet__"),
        layers=20,
        alpha=2.0,
        expect={"prefix": "lora_unet__", "scale": 0.5},
    ),
    "diffusion-pipe": entry(
        "diffusion-pipe: alpha is always the rank",
        keys("diffusion_model.", blocks(ORIGINAL), AB),
        layers=20,
        config={"peft_type": "LORA", "r": R, "lora_alpha": R},
        expect={"scale": 1.0},
    ),
    "ai-toolkit": entry(
        "ai-toolkit",
        keys("diffusion_model.", blocks(ORIGINAL), AB),
        layers=20,
        metadata={"software": '{"name": "ai-toolkit"}', "ss_output_name": "style"},
    ),
    "ai-toolkit-wan22": entry(
        "ai-toolkit, both experts of Wan2.2 in one file",
        keys("diffusion_model.transformer_1.", blocks(ORIGINAL), AB)
        | keys("diffusion_model.transformer_2.", blocks(ORIGINAL), AB),
        layers=20,
        expert="low",
        dropped=40,
    ),
    "diffsynth": entry(
        "DiffSynth-Studio",
        keys("", blocks(ORIGINAL), NAMED),
        layers=20,
        expect={"adapter": "default", "prefix": ""},
    ),
    "diffsynth-prefixed": entry(
        "DiffSynth-Studio without --remove_prefix_in_ckpt",
        keys("pipe.dit.", blocks(ORIGINAL), NAMED),
        layers=20,
    ),
    "fastvideo": entry(
        "FastVideo's extractor, names of its own",
        keys("", blocks(FASTVIDEO), AB, extra={".lora_alpha": [1], ".lora_rank": [1]}),
        layers=20,
        alpha=8.0,
        expect={"names": "fastvideo", "scale": 2.0, "alpha": "lora_alpha"},
    ),
    "fastvideo-gates": entry(
        "FastVideo's extractor on FastWan: the gates of its sparse attention are no layers of the base",
        keys("", blocks(FASTVIDEO | {"to_gate_compress": (D, D)}), AB, extra={".lora_alpha": [1], ".lora_rank": [1]}),
        alpha=4.0,
        error="to_gate_compress",
    ),
    "fastvideo-direct": entry(
        "FastVideo's extractor, reading the file directly",
        keys("", blocks(DIFFUSERS), AB, extra={".lora_alpha": [1], ".lora_rank": [1]}),
        layers=20,
        alpha=4.0,
    ),
    "lightning": entry(
        "LightX2V / Lightning: down and up, no alpha",
        keys("diffusion_model.", blocks(ORIGINAL), DOWN_UP),
        layers=20,
        dtype="BF16",
    ),
    "lightx2v-trained": entry(
        "LightX2V's trainer for Wan: bare original names; alpha is in its settings only, which set it to the rank",
        keys("", blocks(ORIGINAL), AB),
        layers=20,
        expect={"names": "original", "prefix": "", "scale": 1.0},
    ),
    "wan22-lightning": entry(
        "Wan2.2-Lightning: down and up with alpha",
        keys("diffusion_model.", blocks(ORIGINAL), DOWN_UP, extra=ALPHA),
        layers=20,
        alpha=0.5,
        dtype="BF16",
        expect={"scale": 0.125},
    ),
    "longlive-plug-few-step": entry(
        "LongLive-Plug, few steps, exported for LightX2V: bare original names, alpha as a number in the header",
        keys("", blocks(ORIGINAL), AB),
        layers=20,
        dtype="BF16",
        metadata={"format": "pt", "alpha": "8.0", "rank": "4"},
        expect={"names": "original", "prefix": "", "scale": 2.0},
    ),
    "longlive-plug-cfg": entry(
        "LongLive-Plug, guidance: PEFT over Wan's own network",
        keys("base_model.model.", blocks(ORIGINAL), AB),
        layers=20,
        config={"peft_type": "LORA", "r": R, "lora_alpha": R, "use_rslora": False, "target_modules": [*ORIGINAL]},
        expect={"names": "original", "scale": 1.0},
    ),
    "kjnodes-adaptive": entry(
        "KJNodes' LoraExtractKJ (Kijai's CausVid and lightx2v LoRAs): another rank in every layer, norms, all biases",
        adaptive("diffusion_model.", blocks(ORIGINAL) | {"time_embedding.2": (D, D), "head.head": (16, D)}),
        layers=22,
        passthrough=22 + 8 + 2 + 1,
        dtype="F16",
        profiles=["universal", "kohya", "original", "same-as-input"],
    ),
    "lightx2v-extraction": entry(
        "LightX2V extraction of a small model: whole differences, biases, modulation",
        extraction("diffusion_model."),
        layers=23,
        passthrough=20 + 8 + 4 + 2 + 3 + 2 + 1,
        dtype="BF16",
        profiles=["universal", "original", "same-as-input"],
    ),
    "simpletuner-comfy": entry(
        "SimpleTuner --lora_format comfyui",
        keys("diffusion_model.", blocks(ORIGINAL), AB, extra=ALPHA),
        layers=20,
        alpha=8.0,
    ),
    "onetrainer": entry(
        "flattened diffusers names with their own prefix",
        kohya(blocks(DIFFUSERS), "lora_transformer_"),
        layers=20,
        alpha=1.0,
    ),
    "hybrid": entry(
        "names half converted in place, then flattened",
        kohya(blocks(HYBRID), "lycoris_"),
        layers=20,
        alpha=4.0,
    ),
    "causal-trainers": entry(
        "trainers of causal models: generator.model.",
        keys("generator.model.", blocks(ORIGINAL), DOWN_UP, extra=ALPHA),
        layers=20,
        alpha=8.0,
    ),
    "lokr-musubi": entry(
        "musubi-tuner / LyCORIS LoKr: w1 whole, w2 in factors",
        lokr("lora_unet_", blocks(ORIGINAL), rank=2, flat=True, extra=ALPHA),
        layers=20,
        alpha=1.0,
        metadata={"ss_network_module": "networks.lokr", "ss_network_dim": "2", "ss_network_alpha": "1.0"},
        expect={"names": "original", "scale": 0.5, "flat": True, "others": ["LoKr"]},
    ),
    "lokr-decompose-both": entry(
        "LyCORIS LoKr with decompose_both",
        lokr("lora_unet_", blocks(ORIGINAL), rank=2, both=True, flat=True, extra=ALPHA),
        layers=20,
        alpha=4.0,
        expect={"scale": 2.0},
    ),
    "lokr-ai-toolkit": entry(
        "ai-toolkit LoKr of full rank: both matrices whole, the huge alpha counts for nothing",
        lokr("diffusion_model.", blocks(ORIGINAL), extra=ALPHA),
        layers=20,
        alpha=9999999.0,
        dtype="BF16",
        metadata={"software": '{"name": "ai-toolkit"}'},
        expect={"scale": 1.0, "prefix": "diffusion_model."},
    ),
    "lokr-simpletuner": entry(
        "SimpleTuner LyCORIS: flattened diffusers names",
        lokr("lycoris_", blocks(DIFFUSERS), rank=2, flat=True, extra=ALPHA),
        layers=20,
        alpha=2.0,
        metadata={"lycoris_config": json.dumps({"algo": "lokr", "linear_dim": 2, "linear_alpha": 2, "factor": 4})},
        expect={"names": "diffusers", "scale": 1.0, "prefix": "lycoris_"},
    ),
    "lokr-diffusion-pipe": entry(
        "diffusion-pipe LoKr: PEFT, its configuration beside",
        lokr("diffusion_model.", blocks(ORIGINAL), rank=2),
        layers=20,
        config={"peft_type": "LOKR", "r": 2, "alpha": 2},
        expect={"scale": 1.0},
    ),
    "lokr-peft": entry(
        "PEFT LoKr of two whole matrices: PEFT divides by the rank it states all the same",
        lokr("base_model.model.", blocks(DIFFUSERS)),
        layers=20,
        config={"peft_type": "LOKR", "r": 32, "alpha": 16},
        expect={"scale": 0.5, "alpha": "config"},
    ),
    "loha-musubi": entry(
        "musubi-tuner / LyCORIS LoHa",
        loha("lora_unet_", blocks(ORIGINAL), flat=True, extra=ALPHA),
        layers=20,
        alpha=1.0,
        metadata={"ss_network_module": "networks.loha", "ss_network_dim": "2", "ss_network_alpha": "1.0"},
        expect={"scale": 0.5, "flat": True, "others": ["LoHa"]},
    ),
    "loha-peft": entry(
        "PEFT LoHa, the state dictionary as it is: with the adapter's name",
        {f"{key}.default": shape for key, shape in loha("base_model.model.", blocks(DIFFUSERS)).items()},
        layers=20,
        config={"peft_type": "LOHA", "r": 2, "alpha": 8},
        expect={"scale": 4.0, "adapter": "default"},
    ),
    "dora": entry(
        "DoRA of PEFT",
        keys("base_model.model.", blocks(DIFFUSERS), AB)
        | {f"base_model.model.{n}.lora_magnitude_vector": [s[0]] for n, s in blocks(DIFFUSERS).items()},
        layers=20,
        needs_source=True,
        config={"peft_type": "LORA", "r": R, "lora_alpha": 8, "use_dora": True},
        expect={"others": ["plain factors", "DoRA"]},
    ),
    "dora-lycoris": entry(
        "LyCORIS with weight_decompose, for rows",
        kohya(blocks(ORIGINAL), "lycoris_")
        | each("lycoris_", blocks(ORIGINAL), lambda m, n: {".dora_scale": [m, 1]}, flat=True),
        layers=20,
        needs_source=True,
        alpha=2.0,
        expect={"others": ["plain factors", "DoRA"]},
    ),
    "dora-onetrainer": entry(
        "OneTrainer with its usual DoRA, for inputs",
        kohya(blocks(DIFFUSERS), "lora_transformer_")
        | each("lora_transformer_", blocks(DIFFUSERS), lambda m, n: {".dora_scale": [1, n]}, flat=True),
        layers=20,
        needs_source=True,
        alpha=1.0,
    ),
    "dora-ai-toolkit": entry(
        "ai-toolkit's DoRA",
        keys("diffusion_model.", blocks(ORIGINAL), AB)
        | each("diffusion_model.", blocks(ORIGINAL), lambda m, n: {".magnitude": [m]}),
        layers=20,
        needs_source=True,
    ),
    "oft-lycoris": entry(
        "LyCORIS diag-oft with rescale",
        each(
            "lycoris_",
            blocks(ORIGINAL),
            lambda m, n: {".oft_blocks": [m // 4, 4, 4], ".rescale": [m, 1], ".alpha": []},
            flat=True,
        ),
        layers=20,
        needs_source=True,
        alpha=0.001,
        expect={"others": ["OFT"]},
    ),
    "boft-lycoris": entry(
        "LyCORIS boft",
        each("lycoris_", blocks(ORIGINAL), lambda m, n: {".oft_blocks": [3, m // 6, 6, 6], ".alpha": []}, flat=True),
        layers=20,
        needs_source=True,
        alpha=0.0,
    ),
    "oft-peft": entry(
        "OFT of PEFT",
        each("base_model.model.", blocks(DIFFUSERS), lambda m, n: {".oft_R.weight": [n // 8, 28]}),
        layers=20,
        needs_source=True,
        config={"peft_type": "OFT", "r": 0, "oft_block_size": 8, "use_cayley_neumann": True},
    ),
    "glora-lycoris": entry(
        "LyCORIS glora",
        each(
            "lycoris_",
            blocks(ORIGINAL),
            lambda m, n: {
                ".a1.weight": [n, R],
                ".a2.weight": [R, n],
                ".b1.weight": [m, R],
                ".b2.weight": [R, n],
                ".alpha": [],
            },
            flat=True,
        ),
        layers=20,
        needs_source=True,
        alpha=2.0,
        expect={"scale": 0.5},
    ),
    "ia3-lycoris": entry(
        "LyCORIS ia3",
        each("lycoris_", blocks(ORIGINAL), lambda m, n: {".weight": [m], ".on_input": []}, flat=True),
        layers=20,
        needs_source=True,
    ),
    "ia3-peft": entry(
        "IA3 of PEFT, with the second layer of the feed-forward by its inputs",
        each(
            "base_model.model.",
            blocks(DIFFUSERS),
            lambda m, n: {".ia3_l": [1, n] if n == F else [m, 1]},
        ),
        layers=20,
        needs_source=True,
        config={"peft_type": "IA3"},
    ),
    "split-kohya": entry(
        "kohya's split_dims: a pair of factors for each part of the rows",
        each(
            "lora_unet_",
            blocks({"ffn.0": (F, D)}),
            lambda m, n: {
                **{f".lora_down.{i}.weight": [R, n] for i in range(2)},
                **{f".lora_up.{i}.weight": [m // 2, R] for i in range(2)},
                ".alpha": [],
            },
            flat=True,
        ),
        layers=2,
        alpha=2.0,
        expect={"scale": 0.5, "others": ["split LoRA"]},
    ),
    "hunyuan-video-15-tencent": entry(
        "HunyuanVideo-1.5's own trainer, all linear layers: the scale stands in the header only",
        keys(
            "",
            blocks(HUNYUAN, "double_blocks")
            | {
                "txt_in.individual_token_refiner.blocks.1.self_attn_qkv": (3 * D, D),
                "txt_in.individual_token_refiner.blocks.1.mlp.fc1": (4 * D, D),
                "final_layer.adaLN_modulation.1": (2 * D, D),
            },
            AB,
        ),
        layers=28 + 4 + 1,
        metadata={"lora_adapter_metadata": json.dumps({"r": R, "lora_alpha": 2 * R})},
        expect={"names": "original", "scale": 2.0, "alpha": "metadata"},
    ),
    "hunyuan-video-15-musubi": entry(
        "musubi-tuner for HunyuanVideo-1.5",
        kohya(blocks(HUNYUAN, "double_blocks")),
        layers=28,
        alpha=1.0,
        expect={"names": "original", "scale": 0.25},
    ),
    "hunyuan-video-15-diffusion-pipe": entry(
        "diffusion-pipe for HunyuanVideo-1.5: ComfyUI's names, fused projections",
        keys("diffusion_model.", blocks(HUNYUAN_COMFYUI, "double_blocks"), AB),
        layers=28,
        dtype="BF16",
        expect={"names": "comfyui", "scale": 1.0},
    ),
    "hunyuan-video-15-comfyui-kohya": entry(
        "musubi-tuner's LoRA converted for ComfyUI: fused projections, alpha tensors, biases",
        kohya(blocks(HUNYUAN_COMFYUI, "double_blocks"))
        | {f"lora_unet_double_blocks_{n}_img_attn_qkv.diff_b": [3 * D] for n in range(2)},
        layers=28,
        passthrough=6,
        alpha=2.0,
        expect={"names": "comfyui", "scale": 0.5},
    ),
    "hunyuan-video-15-diffusers": entry(
        "the network's save_lora_adapter",
        keys("", blocks(HUNYUAN_DIFFUSERS, "transformer_blocks") | {"norm_out.linear": (2 * D, D)}, AB),
        layers=29,
        expect={"names": "diffusers"},
    ),
    "hunyuan-video-diffusion-pipe": entry(
        "diffusion-pipe for HunyuanVideo: Tencent's fused names behind the prefix of diffusers",
        keys(
            "transformer.",
            blocks(HUNYUAN_1 | HUNYUAN_1_MOD, "double_blocks")
            | blocks(HUNYUAN_1_SINGLE | {"modulation.linear": (3 * D, D)}, "single_blocks"),
            AB,
        ),
        layers=2 * 14 + 2 * 6,
        dtype="BF16",
        expect={"names": "original", "prefix": "transformer.", "scale": 1.0},
    ),
    "hunyuan-video-musubi": entry(
        "musubi-tuner for HunyuanVideo, without modulation",
        kohya(HUNYUAN_1_BLOCKS),
        layers=2 * 12 + 2 * 5,
        alpha=1.0,
        metadata={"ss_network_module": "networks.lora", "ss_network_dim": "4", "ss_network_alpha": "1.0"},
        expect={"names": "original", "scale": 0.25, "flat": True},
    ),
    "hunyuan-video-comfyui": entry(
        "musubi-tuner's LoRA converted for ComfyUI: Tencent's names, dotted",
        keys("diffusion_model.", HUNYUAN_1_BLOCKS, AB),
        layers=2 * 12 + 2 * 5,
        expect={"names": "original"},
    ),
    "hunyuan-video-single-only": entry(
        "one fused weight of a single block tells its own parts apart: by its inputs",
        keys("diffusion_model.", blocks({"linear1": (3 * D + F, D)}, "single_blocks"), AB),
        layers=2 * 4,
    ),
    "hunyuan-video-diffusers": entry(
        "HunyuanVideoPipeline.save_lora_weights",
        keys(
            "transformer.",
            HUNYUAN_1_BLOCKS_DIFFUSERS
            | {f"context_embedder.token_refiner.refiner_blocks.0.attn.to_{x}": (D, D) for x in "qkv"}
            | {"norm_out.linear": (2 * D, D)},
            AB,
        ),
        layers=2 * 14 + 2 * 5 + 4,
        metadata={"format": "pt", "lora_adapter_metadata": META},
        expect={"names": "diffusers", "scale": 2.0},
    ),
    "flux-all-blocks": entry(
        "FLUX in diffusers, whose layers are those of HunyuanVideo: told by how many blocks it has",
        keys(
            "transformer.",
            {f"transformer_blocks.{n}.attn.to_q": (D, D) for n in range(19)}
            | {f"single_transformer_blocks.{n}.attn.to_q": (D, D) for n in range(38)},
            AB,
        ),
        error="FLUX",
    ),
    "cogvideox-diffusers": entry(
        "CogVideoXPipeline.save_lora_weights, attention and feed-forward",
        keys("transformer.", COGVIDEOX, AB),
        layers=2 * 8,
        metadata={"format": "pt", "lora_adapter_metadata": META},
        expect={"names": "diffusers", "scale": 2.0, "family": "cogvideox"},
    ),
    "cogvideox-videox-fun": entry(
        "VideoX-Fun for CogVideoX: flattened names of diffusers, the separator doubles",
        kohya(COGVIDEOX, "lora_unet__"),
        layers=2 * 8,
        alpha=2.0,
        expect={"scale": 0.5, "family": "cogvideox"},
    ),
    "cogvideox-sat": entry(
        "SAT's LoRA for CogVideoX: three pairs of factors on the fused weight",
        {
            f"model.diffusion_model.transformer.layers.{n}.attention.query_key_value.matrix_{x}.{i}": shape
            for n in range(2)
            for i in range(3)
            for x, shape in (("A", [R, D]), ("B", [D, R]))
        },
        error="SAT LoRA",
    ),
    "ltx2-trainer": entry(
        "Lightricks' trainer for LTX-2, attention only: no alpha anywhere",
        keys(
            "diffusion_model.",
            blocks({k: s for k, s in (LTX | LTX_AUDIO).items() if "attn" in k}, "transformer_blocks"),
            AB,
        ),
        layers=2 * 24,
        dtype="BF16",
        expect={"names": "original", "scale": 1.0},
    ),
    "ltx2-ai-toolkit": entry(
        "ai-toolkit for LTX-2, with gates",
        keys(
            "diffusion_model.",
            blocks(
                LTX | LTX_AUDIO | {"attn1.to_gate_logits": (2, D), "audio_attn1.to_gate_logits": (2, AUDIO)},
                "transformer_blocks",
            ),
            AB,
        ),
        layers=2 * 30,
        metadata={"software": '{"name": "ai-toolkit"}'},
    ),
    "ltx2-distilled": entry(
        "a distillation LoRA of Lightricks: layers outside the blocks, and the text connectors",
        keys("diffusion_model.", LTX2 | LTX_OUTSIDE, AB)
        | keys("text_embedding_projection.", {"aggregate_embed": (D, 20)}, AB),
        layers=2 * 28 + 6,
        passthrough=2,
        dtype="BF16",
    ),
    "ltx2-diffusers": entry(
        "LTX2Pipeline.save_lora_weights",
        keys(
            "transformer.",
            LTX2 | {"proj_in": (D, 8), "time_embed.linear": (6 * D, D), "av_cross_attn_video_a2v_gate.linear": (D, D)},
            AB,
        ),
        layers=2 * 28 + 3,
        metadata={"format": "pt", "lora_adapter_metadata": META},
        expect={"names": "diffusers", "scale": 2.0},
    ),
    "ltx2-simpletuner-connectors": entry(
        "SimpleTuner for LTX-2 in ComfyUI's format, when it trained the text connectors too (its issue 2349)",
        keys("diffusion_model.", LTX2, AB, extra=ALPHA)
        | keys(
            "diffusion_model.connectors.audio_connector.",
            blocks({name: shape for name, shape in LTX.items() if "attn1" in name}, "transformer_blocks"),
            AB,
            extra=ALPHA,
        ),
        layers=2 * 28,
        passthrough=2 * 4 * 3,
        alpha=4.0,
        expect={"prefix": "diffusion_model.", "family": "ltx2"},
    ),
    "ltx2-kohya": entry(
        "musubi-tuner's way for LTX-2",
        kohya(LTX2),
        layers=2 * 28,
        alpha=1.0,
        expect={"scale": 0.25, "flat": True},
    ),
    "ltx-video-diffusion-pipe": entry(
        "diffusion-pipe for LTX-Video",
        keys("diffusion_model.", blocks(LTX, "transformer_blocks"), AB),
        layers=2 * 10,
        dtype="BF16",
    ),
    "ltx-video-diffusers": entry(
        "LTXPipeline.save_lora_weights",
        keys(
            "transformer.", blocks(LTX, "transformer_blocks") | {"proj_in": (D, 8), "time_embed.linear": (6 * D, D)}, AB
        ),
        layers=2 * 10 + 2,
        expect={"names": "diffusers"},
    ),
    "flux": entry(
        "kohya for FLUX",
        kohya(
            blocks({"img_attn_qkv": (3 * 3072, 3072), "img_mlp_0": (4 * 3072, 3072)}, "double_blocks")
            | blocks({"linear1": (7 * 3072, 3072)}, "single_blocks")
        ),
        alpha=10.0,
        error="FLUX",
    ),
    "qwen-image-ai-toolkit": entry(
        "ai-toolkit for Qwen-Image",
        keys("diffusion_model.", QWEN_IMAGE, AB),
        layers=28,
        dtype="BF16",
        expect={"family": "qwen_image"},
    ),
    "qwen-image-lightning": entry(
        "Lightning: bare names, down and up, alpha",
        keys("", QWEN_IMAGE, DOWN_UP, extra=ALPHA),
        layers=28,
        alpha=4.0,
    ),
    "qwen-image-musubi": entry(
        "musubi-tuner for Qwen-Image",
        kohya(QWEN_IMAGE),
        layers=28,
        alpha=1.0,
        expect={"scale": 0.25},
    ),
    "qwen-image-diffusers": entry(
        "diffusers and DiffSynth-Studio for Qwen-Image",
        keys("transformer.", QWEN_IMAGE, NAMED),
        layers=28,
    ),
    "lokr-qwen-image-lycoris": entry(
        "SimpleTuner LyCORIS for Qwen-Image",
        lokr("lycoris_", QWEN_IMAGE, rank=2, flat=True, extra=ALPHA),
        layers=28,
        alpha=2.0,
    ),
    "qwen-image-21-diffusers": entry(
        "ai-toolkit and diffusers for Qwen-Image-2.1: the halves of ComfyUI's fused weight",
        keys("transformer.", blocks(QWEN_21, "transformer_blocks"), AB),
        layers=14,
        expect={"family": "qwen_image_21"},
    ),
    "qwen-image-21-comfyui": entry(
        "ComfyUI's trainer for Qwen-Image-2.1: gate and projection in one weight",
        keys("diffusion_model.", blocks(QWEN_21_COMFYUI, "transformer_blocks"), DOWN_UP, extra=ALPHA),
        layers=14,
        alpha=4.0,
        expect={"names": "comfyui"},
    ),
    "krea2-ai-toolkit": entry(
        "ai-toolkit for Krea 2: original names, the blocks that fuse the text among them",
        keys(
            "diffusion_model.",
            blocks(KREA2) | blocks(KREA2, "txtfusion.layerwise_blocks") | blocks(KREA2, "txtfusion.refiner_blocks"),
            AB,
        ),
        layers=48,
        dtype="BF16",
        expect={"names": "original", "prefix": "diffusion_model."},
    ),
    "krea2-peft": entry(
        "PEFT over Krea's own network, layers outside the blocks too",
        keys("base_model.model.", blocks(KREA2) | {"first": (D, 8), "tproj.1": (6 * D, D), "last.linear": (8, D)}, AB),
        layers=19,
        expect={"names": "original"},
    ),
    "krea2-diffusers": entry(
        "Krea2Pipeline.save_lora_weights",
        keys("transformer.", blocks(KREA2_DIFFUSERS, "transformer_blocks"), AB),
        layers=16,
        metadata={"format": "pt", "lora_adapter_metadata": META},
        expect={"names": "diffusers", "scale": 2.0},
    ),
    "krea2-diffusers-attention": entry(
        "the training script of diffusers: projections of the attention, by names common to many families",
        keys(
            "transformer.",
            blocks({f"attn.to_{x}": KREA2_DIFFUSERS[f"attn.to_{x}"] for x in "qkv"}, "transformer_blocks"),
            AB,
        ),
        layers=6,
        expect={"names": "diffusers", "family": "krea2"},
    ),
    "krea2-musubi": entry(
        "musubi-tuner for Krea 2",
        kohya(blocks(KREA2)),
        layers=16,
        alpha=4.0,
        expect={"names": "original", "scale": 1.0},
    ),
    "krea2-turbo-lora": entry(
        "the LoRA between Raw and Turbo as ComfyUI has it: down and up",
        keys("diffusion_model.", blocks(KREA2), DOWN_UP),
        layers=16,
        dtype="BF16",
    ),
    "lokr-krea2-ai-toolkit": entry(
        "ai-toolkit LoKr for Krea 2",
        lokr("diffusion_model.", blocks(KREA2), extra=ALPHA),
        layers=16,
        alpha=9999999.0,
        expect={"scale": 1.0},
    ),
    "lokr-krea2-lycoris": entry(
        "SimpleTuner LyCORIS for Krea 2: flattened diffusers names",
        lokr("lycoris_", blocks(KREA2_DIFFUSERS, "transformer_blocks"), rank=2, flat=True, extra=ALPHA),
        layers=16,
        alpha=2.0,
        expect={"names": "diffusers", "scale": 1.0},
    ),
    "krea2-simpletuner-fused": entry(
        "SimpleTuner for Krea 2 with fuse_qkv_projections, which its guide sets (its issue 3222)",
        keys(
            "transformer.",
            blocks({"attn.to_qkv": (D + 2 * KV, D), "attn.to_out.0": (D, D)}, "transformer_blocks")
            | blocks({"attn.to_qkv": (48, 16), "attn.to_out.0": (16, 16)}, "text_fusion.layerwise_blocks")
            | blocks({"attn.to_qkv": (48, 16), "attn.to_out.0": (16, 16)}, "text_fusion.refiner_blocks"),
            AB,
        ),
        layers=3 * 2 * 4,
        expect={"names": "diffusers", "prefix": "transformer."},
    ),
    "dora-krea2-lycoris-fused": entry(
        "SimpleTuner LyCORIS for Krea 2 with fused projections and DoRA (ComfyUI's issue 16234)",
        lokr("lycoris_", blocks(KREA2_FUSED, "transformer_blocks"), flat=True, extra=ALPHA)
        | each("lycoris_", blocks(KREA2_FUSED, "transformer_blocks"), lambda m, n: {".dora_scale": [m, 1]}, flat=True),
        layers=16,
        needs_source=True,
        alpha=2.0,
        expect={"names": "diffusers"},
    ),
    "z-image-ai-toolkit": entry(
        "ai-toolkit for Z-Image: split projections, refiners and modulation among them",
        keys(
            "diffusion_model.",
            blocks(Z_IMAGE_SPLIT | {"adaLN_modulation.0": (4 * D, D)}, "layers")
            | blocks(Z_IMAGE_SPLIT, "noise_refiner")
            | blocks(Z_IMAGE_SPLIT, "context_refiner"),
            AB,
        ),
        layers=44,
        dtype="BF16",
        expect={"names": "diffusers", "prefix": "diffusion_model."},
    ),
    "z-image-kohya": entry(
        "kohya / musubi-tuner over Z-Image's own network: fused projections",
        kohya(blocks(Z_IMAGE, "layers")),
        layers=14,
        alpha=2.0,
        expect={"names": "original", "scale": 0.5},
    ),
    "z-image-kohya-split": entry(
        "kohya names of the split projections",
        kohya(blocks(Z_IMAGE_SPLIT, "layers") | blocks(Z_IMAGE_SPLIT, "context_refiner")),
        layers=28,
        alpha=4.0,
        expect={"names": "diffusers"},
    ),
    "z-image-diffusers": entry(
        "ZImagePipeline.save_lora_weights: projections of the attention",
        keys("transformer.", blocks({k: s for k, s in Z_IMAGE_SPLIT.items() if "att" in k}, "layers"), AB),
        layers=8,
        expect={"names": "diffusers", "family": "z_image"},
    ),
    "z-image-dotted": entry(
        "trainers that write lora.down with a dot",
        keys("", blocks(Z_IMAGE, "layers"), (".lora.down.weight", ".lora.up.weight"), extra=ALPHA),
        layers=14,
        alpha=4.0,
    ),
    "lokr-z-image-ai-toolkit": entry(
        "ai-toolkit LoKr for Z-Image",
        lokr("diffusion_model.", blocks(Z_IMAGE_SPLIT, "layers"), extra=ALPHA),
        layers=14,
        alpha=9999999.0,
        expect={"scale": 1.0},
    ),
    "lokr-z-image-fused": entry(
        "LyCORIS LoKr over the fused projections",
        lokr("lora_unet_", blocks(Z_IMAGE, "layers"), rank=2, flat=True, extra=ALPHA),
        layers=14,
        alpha=2.0,
    ),
    "flux2-ai-toolkit": entry(
        "ai-toolkit for FLUX.2 klein",
        keys("diffusion_model.", FLUX2, AB),
        layers=24 + 4,
        dtype="BF16",
        expect={"names": "original", "family": "flux2"},
    ),
    "flux2-musubi": entry(
        "musubi-tuner for FLUX.2",
        kohya(FLUX2),
        layers=28,
        alpha=1.0,
        expect={"names": "original", "scale": 0.25},
    ),
    "flux2-diffusers": entry(
        "the training script of diffusers for FLUX.2 klein",
        keys("transformer.", FLUX2_DIFFUSERS, AB),
        layers=28,
        metadata={"format": "pt", "lora_adapter_metadata": META},
        expect={"names": "diffusers", "scale": 2.0},
    ),
    "flux2-musubi-converted": entry(
        "musubi-tuner's convert_lora.py on one for FLUX.2 klein 9B (its issue 905)",
        keys(
            "diffusion_model.",
            blocks({name.replace("attn.", "attn_"): shape for name, shape in FLUX2_DOUBLE.items()}, "double_blocks")
            | blocks(FLUX2_SINGLE, "single_blocks"),
            AB,
        ),
        layers=2 * 12 + 2 * 2,
        expect={"names": "original", "family": "flux2"},
    ),
    "lokr-flux2-ai-toolkit": entry(
        "ai-toolkit LoKr for FLUX.2: over the fused projections",
        lokr("diffusion_model.", FLUX2, extra=ALPHA),
        layers=28,
        alpha=9999999.0,
    ),
    "lokr-flux2-lycoris": entry(
        "SimpleTuner LyCORIS for FLUX.2",
        lokr("lycoris_", FLUX2_DIFFUSERS, rank=2, flat=True),
        layers=28,
        expect={"names": "diffusers"},
    ),
    "sdxl-diffusers": entry(
        "diffusers for a UNet, attention layers only",
        keys("unet.", {f"down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_{x}": (D, D) for x in "qkv"}, AB),
        error="Stable Diffusion UNet",
    ),
    "vace": entry(
        "DiffSynth for Wan with VACE blocks, of which it trains these alone",
        keys("", blocks(ORIGINAL, "vace_blocks") | {"vace_blocks.0.before_proj": (D, D)}, NAMED),
        layers=21,
        expect={"adapter": "default", "family": "wan"},
    ),
    "vace-diffusers": entry(
        "WanVACEPipeline.save_lora_weights",
        keys(
            "transformer.",
            blocks(DIFFUSERS) | blocks(DIFFUSERS | {"proj_out": (D, D)}, "vace_blocks"),
            AB,
        ),
        layers=42,
        expect={"names": "diffusers", "family": "wan"},
    ),
    "wan-animate": entry(
        "ai-toolkit and musubi-tuner for Animate: the adapter for faces too",
        keys(
            "diffusion_model.",
            blocks(ORIGINAL | IMAGE)
            | blocks({"linear1_q": (D, D), "linear1_kv": (2 * D, D), "linear2": (D, D)}, "face_adapter.fuser_blocks"),
            AB,
        ),
        layers=24 + 8,
        expect={"names": "original", "family": "wan"},
    ),
    "wan-comfyui-trainer": entry(
        "ComfyUI's own trainer: factors, biases and norms of every module",
        keys("diffusion_model.", blocks(ORIGINAL), DOWN_UP, extra=ALPHA)
        | {f"diffusion_model.{n}.diff_b": [s[0]] for n, s in blocks(ORIGINAL).items()}
        | {f"diffusion_model.blocks.{n}.norm3.diff{x}": [D] for n in range(2) for x in ("", "_b")},
        layers=20,
        passthrough=24,
        alpha=1.0,
        profiles=["universal", "kohya", "original", "same-as-input"],
        expect={"scale": 0.25},
    ),
    "minimax-h3-ai-toolkit": entry(
        "ai-toolkit for MiniMax-H3, modulation and what refines the text among it",
        keys("diffusion_model.", blocks(H3 | H3_MODULATION) | blocks(H3, "token_refiner.blocks"), AB),
        layers=2 * 7 + 2 * 6,
        dtype="BF16",
        expect={"names": "original", "family": "minimax_h3"},
    ),
    "minimax-h3-diffsynth": entry(
        "DiffSynth-Studio for MiniMax-H3: rows of query, key and value in turns, which only the named adapter shows",
        keys("", blocks(H3), NAMED),
        layers=12,
        expect={"names": "by_head", "adapter": "default", "family": "minimax_h3"},
    ),
    "minimax-h3-musubi": entry(
        "musubi-tuner for MiniMax-H3",
        kohya(blocks(H3)),
        layers=12,
        alpha=1.0,
        expect={"names": "original", "scale": 0.25},
    ),
    "minimax-h3-turbo": entry(
        "a LoRA of few steps for MiniMax-H3: bare names",
        keys("", blocks(H3 | H3_MODULATION) | {"final_layer.adaln_proj.linear": (2 * D, TIME)}, AB),
        layers=15,
        dtype="BF16",
        expect={"names": "original", "prefix": "", "family": "minimax_h3"},
    ),
    "minimax-h3-diffusers": entry(
        "MiniMaxH3ModularPipeline.save_lora_weights",
        keys("transformer.", blocks(H3_DIFFUSERS, "transformer_blocks"), AB),
        layers=12,
        metadata={"format": "pt", "lora_adapter_metadata": META},
        expect={"names": "diffusers", "scale": 2.0, "family": "minimax_h3"},
    ),
    "qwen-image-diffsynth": entry(
        "DiffSynth-Studio for Qwen-Image: bare names, a named adapter",
        keys("", QWEN_IMAGE, NAMED),
        layers=28,
        expect={"adapter": "default", "family": "qwen_image"},
    ),
    "qwen-image-onetrainer": entry(
        "OneTrainer for Qwen-Image",
        kohya(QWEN_IMAGE, "lora_transformer_"),
        layers=28,
        alpha=4.0,
        expect={"prefix": "lora_transformer_", "scale": 1.0},
    ),
    "qwen-image-videox-fun": entry(
        "VideoX-Fun for Qwen-Image: the separator doubles",
        kohya(QWEN_IMAGE, "lora_unet__"),
        layers=28,
        alpha=2.0,
        expect={"prefix": "lora_unet__", "scale": 0.5},
    ),
    "hunyuan-video-onetrainer": entry(
        "OneTrainer for HunyuanVideo: flattened names of diffusers",
        kohya(HUNYUAN_1_BLOCKS_DIFFUSERS, "lora_transformer_"),
        layers=2 * 14 + 2 * 5,
        alpha=1.0,
        expect={"names": "diffusers", "scale": 0.25, "family": "hunyuan_video"},
    ),
    "hunyuan-video-onetrainer-embedding": entry(
        "OneTrainer for HunyuanVideo with a trained word, whose vectors lie beside the LoRA",
        kohya(HUNYUAN_1_BLOCKS_DIFFUSERS, "lora_transformer_")
        | {"bundle_emb.[word].llama": [2, 32], "bundle_emb.[word].clip_l": [2, 16]},
        layers=2 * 14 + 2 * 5,
        passthrough=2,
        alpha=1.0,
        expect={"family": "hunyuan_video"},
    ),
    "hunyuan-video-i2v-tencent": entry(
        "Tencent's trainer for HunyuanVideo-I2V: flattened names behind a prefix of its own",
        kohya(HUNYUAN_1_BLOCKS, "Hunyuan_video_I2V_lora_"),
        layers=2 * 12 + 2 * 5,
        alpha=4.0,
        dtype="BF16",
        expect={"names": "original", "prefix": "Hunyuan_video_I2V_lora_", "flat": True, "scale": 1.0},
    ),
    "hunyuan-video-framepack-musubi": entry(
        "musubi-tuner for FramePack, whose network has the names of diffusers",
        kohya(HUNYUAN_1_BLOCKS_DIFFUSERS),
        layers=2 * 14 + 2 * 5,
        alpha=4.0,
        expect={"names": "diffusers", "prefix": "lora_unet_", "family": "hunyuan_video"},
    ),
    "ltx2-diffsynth": entry(
        "DiffSynth-Studio for LTX-2: bare names, a named adapter",
        keys("", LTX2, NAMED),
        layers=2 * 28,
        expect={"adapter": "default", "family": "ltx2"},
    ),
    "z-image-onetrainer": entry(
        "OneTrainer for Z-Image",
        kohya(blocks(Z_IMAGE_SPLIT, "layers"), "lora_transformer_"),
        layers=14,
        alpha=1.0,
        expect={"prefix": "lora_transformer_", "names": "diffusers", "scale": 0.25},
    ),
    "z-image-diffsynth": entry(
        "DiffSynth-Studio for Z-Image: split names, a named adapter",
        keys("", blocks(Z_IMAGE_SPLIT, "layers"), NAMED),
        layers=14,
        expect={"adapter": "default", "family": "z_image"},
    ),
    "z-image-videox-fun": entry(
        "VideoX-Fun for Z-Image, the LoRA of few steps among them",
        kohya(blocks(Z_IMAGE_SPLIT, "layers"), "lora_unet__"),
        layers=14,
        alpha=4.0,
        expect={"prefix": "lora_unet__", "names": "diffusers"},
    ),
    "flux2-diffsynth": entry(
        "DiffSynth-Studio for FLUX.2: names of diffusers, a named adapter",
        keys("", FLUX2_DIFFUSERS, NAMED),
        layers=28,
        expect={"names": "diffusers", "adapter": "default", "family": "flux2"},
    ),
    "ltx2-diffusion-pipe": entry(
        "diffusion-pipe for LTX-2: all linear layers of the blocks",
        keys("diffusion_model.", LTX2, AB),
        layers=2 * 28,
        config={"peft_type": "LORA", "r": R, "lora_alpha": R},
        expect={"scale": 1.0},
    ),
    "krea2-comfyui-trainer": entry(
        "Krea's and ComfyUI's trainers for Krea 2: down and up, alpha",
        keys("diffusion_model.", blocks(KREA2), DOWN_UP, extra=ALPHA),
        layers=16,
        alpha=4.0,
        expect={"names": "original", "scale": 1.0},
    ),
    "sana-diffusers": entry(
        "SanaPipeline.save_lora_weights",
        keys(
            "transformer.",
            blocks({f"{a}.to_{x}": (2240, 2240) for a in ("attn1", "attn2") for x in "qkv"}, "transformer_blocks"),
            AB,
        ),
        error="SANA",
    ),
    "sd3-diffusers": entry(
        "StableDiffusion3Pipeline.save_lora_weights",
        keys("transformer.", blocks({f"attn.to_{x}": (1536, 1536) for x in "qkv"}, "transformer_blocks"), AB),
        error="Stable Diffusion 3",
    ),
    "kandinsky5-diffusers": entry(
        "Kandinsky5T2VPipeline.save_lora_weights",
        keys(
            "transformer.",
            blocks({f"self_attention.to_{x}": (D, D) for x in ("query", "key", "value")}, "visual_transformer_blocks"),
            AB,
        ),
        error="Kandinsky 5",
    ),
    "hidream-ai-toolkit": entry(
        "ai-toolkit for HiDream",
        keys("diffusion_model.", blocks({f"block.attn1.to_{x}": (D, D) for x in "qkv"}, "double_stream_blocks"), AB),
        error="HiDream",
    ),
    "cosmos-predict2": entry(
        "diffusion-pipe for Cosmos-Predict2 and Anima: blocks of the name that Wan has",
        keys(
            "diffusion_model.",
            blocks({f"{a}_attn.{x}_proj": (2048, 2048) for a in ("self", "cross") for x in ("q", "output")}),
            AB,
        ),
        error="Cosmos-Predict2",
    ),
    "flux3": entry(
        "the training script of diffusers for FLUX.3",
        keys("transformer.", blocks({f"attn.to_{x}": (D, D) for x in "qkv"}, "mode_blocks.image"), AB),
        error="FLUX.3",
    ),
    "longcat": entry(
        "the LoRAs that come with LongCat-Video: a word of their own for each dot",
        keys(
            "lora",
            {
                f"___lorahyphen___blocks___lorahyphen___{n}___lorahyphen___{kind}___lorahyphen___proj": (D, D)
                for n in range(2)
                for kind in ("attn", "cross_attn")
            },
            DOWN_UP,
        ),
        error="LongCat-Video",
    ),
    "wan-chained-prefixes": entry(
        "SimpleTuner: the pipeline's prefix, then PEFT's",
        keys("transformer.base_model.model.", blocks(DIFFUSERS), AB),
        layers=20,
        expect={"prefix": "transformer.base_model.model."},
    ),
    "fastvideo-trained": entry(
        "FastVideo's own training: its names, the factors as bare parameters; alpha is in its settings only",
        keys(
            "", blocks({name: shape for name, shape in FASTVIDEO.items() if "ffn" not in name}), (".lora_A", ".lora_B")
        ),
        layers=16,
        expect={"names": "fastvideo", "prefix": "", "scale": 1.0},
    ),
    "hunyuan-video-videox-fun": entry(
        "VideoX-Fun for HunyuanVideo: flattened names of diffusers, the separator doubles",
        kohya(HUNYUAN_1_BLOCKS_DIFFUSERS, "lora_unet__"),
        layers=2 * 14 + 2 * 5,
        alpha=2.0,
        expect={"names": "diffusers", "prefix": "lora_unet__", "scale": 0.5, "family": "hunyuan_video"},
    ),
    "ltx2-videox-fun": entry(
        "VideoX-Fun for LTX-2: the separator doubles",
        kohya(LTX2, "lora_unet__"),
        layers=2 * 28,
        alpha=2.0,
        expect={"prefix": "lora_unet__", "scale": 0.5, "family": "ltx2"},
    ),
    "simpletuner-diffusers": entry(
        "SimpleTuner's usual format: that of diffusers, its configuration in the header",
        keys("transformer.", blocks(DIFFUSERS), AB),
        layers=20,
        metadata={"lora_adapter_metadata": META},
        expect={"names": "diffusers", "scale": 2.0},
    ),
    "full-lycoris": entry(
        "LyCORIS full, and ai-toolkit's of that kind: whole differences of weights and biases",
        each("lycoris_", blocks(ORIGINAL), lambda m, n: {".diff": [m, n], ".diff_b": [m]}, flat=True),
        layers=20,
        passthrough=20,
        expect={"prefix": "lycoris_"},
    ),
    "vera-peft": entry(
        "VeRA of PEFT with its projections saved: two vectors a layer, two matrices for all",
        each("base_model.model.", blocks(DIFFUSERS), lambda m, n: {".vera_lambda_b": [m], ".vera_lambda_d": [R]})
        | {"base_model.vera_A": [R, F], "base_model.vera_B": [F, R]},
        layers=20,
        config={"peft_type": "VERA", "r": R, "save_projection": True},
        expect={"names": "diffusers"},
    ),
    "boft-peft": entry(
        "BOFT of PEFT",
        each("base_model.model.", blocks(DIFFUSERS), lambda m, n: {".boft_R": [1, n // 4, 4, 4], ".boft_s": [m, 1]}),
        layers=20,
        needs_source=True,
        config={"peft_type": "BOFT", "boft_block_size": 4},
    ),
    "oft-onetrainer": entry(
        "OneTrainer's OFT: names of diffusers, a flag where the rotations are scaled",
        each("transformer.", blocks(DIFFUSERS), lambda m, n: {".oft_R.weight": [n // 8, 28], ".oft_R.scaled_oft": []}),
        layers=20,
        needs_source=True,
    ),
    "mochi-genmo": entry(
        "Genmo's trainer for Mochi: the factors as bare parameters",
        keys(
            "",
            blocks({f"attn.{x}": (9216, 3072) for x in ("qkv_x", "qkv_y")} | {"attn.proj_x": (3072, 3072)}),
            (".lora_A", ".lora_B"),
        ),
        error="Mochi",
    ),
    "hunyuan-dit-peft": entry(
        "Tencent's trainer for HunyuanDiT",
        keys(
            "base_model.model.",
            blocks({"attn1.Wqkv": (3 * 1408, 1408), **{f"attn{i}.out_proj": (1408, 1408) for i in (1, 2)}}),
            AB,
        ),
        error="HunyuanDiT",
    ),
    "sd-attention-processors": entry(
        "early diffusers for a UNet: factors of the attention's processors",
        keys(
            "unet.",
            {f"down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_{x}": (D, D) for x in "qkv"},
            ("_lora.down.weight", "_lora.up.weight"),
        ),
        error="Stable Diffusion UNet",
    ),
    "sd-linear-layers": entry(
        "diffusers before PEFT for a UNet",
        keys(
            "unet.",
            {f"up_blocks.1.attentions.0.transformer_blocks.0.attn1.to_{x}": (D, D) for x in "qkv"},
            (".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"),
        ),
        error="Stable Diffusion UNet",
    ),
    "sdxl": entry(
        "kohya for a UNet",
        {
            "lora_unet_input_blocks_4_1_proj_in.lora_down.weight": [R, D],
            "lora_unet_input_blocks_4_1_proj_in.lora_up.weight": [D, R],
            "lora_unet_input_blocks_4_1_proj_in.alpha": [],
        },
        error="Stable Diffusion",
        alpha=1.0,
    ),
}
