"""Really trained tiny video models and LoRAs that ship with the package, and a world to train and judge them in.

`path` gives the files, `models` and `loras` say what there is; nothing here imports torch. The modules beside it are
`world` (prompts), `drawing` (their clips), `position` and `attention` (what diffusers' class lacks for them). What the
models are, how they were trained and how good they are is written in `data/README.md`.
"""

from loraport.zoo.catalogue import LoraCard, ModelCard, distillations, lora_card, loras, model_card, models, path

__all__ = ["LoraCard", "ModelCard", "distillations", "lora_card", "loras", "model_card", "models", "path"]
