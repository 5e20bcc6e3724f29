"""Networks that judge clips, with random weights and few layers, as folders on the disk."""

import numpy as np
import transformers

import tinywan

WIDTH, SIZE, PATCH = 64, 24, 8


def frames(count=3, shape=(30, 40)):
    return np.random.default_rng(0).integers(0, 256, (count, *shape, 3), dtype=np.uint8)


def clip_folder(folder):
    vision = {"hidden_size": WIDTH, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 1}
    text = {**vision, "vocab_size": 12, "max_position_embeddings": 6, "eos_token_id": 1, "bos_token_id": 0}
    config = transformers.CLIPConfig(
        text_config=text, vision_config={**vision, "image_size": SIZE, "patch_size": PATCH}, projection_dim=20
    )
    transformers.CLIPModel(config).save_pretrained(folder)
    tinywan.tokenizer().save_pretrained(folder)
    return folder


def dino_folder(folder, kind="ViT"):
    config = getattr(transformers, f"{kind}Config")(
        hidden_size=WIDTH, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2, image_size=SIZE,
        patch_size=PATCH,
    )  # fmt: skip
    getattr(transformers, f"{kind}Model")(config).save_pretrained(folder)
    return folder
