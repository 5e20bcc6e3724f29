"""What the authors' folder of VideoAlign holds: the settings of the reward, its text, and the weights of its network.

The text lies in a Python file, which is read and not run. The weights have the names of transformers 4.45 and a LoRA
beside them; they are given the names of today, and the LoRA is added.
"""

import ast
import contextlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from loraport.errors import FileError

TOKENS = {"vq": "<|VQ_reward|>", "mq": "<|MQ_reward|>", "ta": "<|TA_reward|>"}
TEMPLATE = "DETAILED_PROMPT_WITH_SPECIAL_TOKEN"
LEAST_FRAMES, MOST_FRAMES = 4, 768
_WRAPPED = "base_model.model."
_FACTOR = re.compile(r"\.lora_([AB])(\.default)?\.weight$")


@dataclass(frozen=True)
class Reward:
    """What `model_config.json` says of the reward.

    Attributes:
        scale: of the LoRA.
        fps: frames a second that are looked at.
        frames: how many are, whatever the length; None for as many as `fps` says.
        most_pixels: of a frame.
        means, deviations: of the rewards over the authors' data, by name.
    """

    scale: float
    fps: float
    frames: int | None
    most_pixels: int
    means: Mapping[str, float]
    deviations: Mapping[str, float]

    @classmethod
    def read(cls, file: Path) -> "Reward":
        """Raises FileError if it is of another kind."""
        try:
            told = json.loads(file.read_text(encoding="utf-8"))
            data, model, lora = (told[part] for part in ("data_config", "model_config", "peft_lora_config"))
            norm = told["inference_config"]
            rank = lora["lora_r"]
            wrong = {
                "output_dim": model["output_dim"] not in (1, 3),
                "use_special_tokens": not model["use_special_tokens"],
                "prompt_template_type": data["prompt_template_type"] != "detailed_special",
                "sample_type": data.get("sample_type", "uniform") != "uniform",
            }
            found = cls(
                scale=lora["lora_alpha"] / (math.sqrt(rank) if lora.get("use_rslora") else rank),
                fps=float(data["fps"] or 0),
                frames=data["num_frames"],
                most_pixels=int(data["max_frame_pixels"]),
                means={name: float(norm[f"{name.upper()}_mean"]) for name in TOKENS},
                deviations={name: float(norm[f"{name.upper()}_std"]) for name in TOKENS},
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError) as error:
            raise FileError(
                "the settings of the reward cannot be read", where=str(file), values=f"{type(error).__name__}: {error}",
                fix="it is the model_config.json beside VideoAlign's checkpoint",
            ) from error  # fmt: skip
        if any(wrong.values()):
            raise FileError(
                "this is a reward of another kind", where=str(file),
                values=", ".join(name for name, is_so in wrong.items() if is_so),
                fix="use the published one (KwaiVGI/VideoReward), which is read at three special tokens",
            )  # fmt: skip
        return found

    def picked(self, frames: int, fps: float) -> list[int]:
        """The frames that are looked at, of so many at that rate."""
        if self.frames is not None:
            count = 2 * round(self.frames / 2)
        else:
            most = min(MOST_FRAMES, frames) // 2 * 2
            count = 2 * round(min(max(frames / fps * self.fps, LEAST_FRAMES), most) / 2)
        return torch.linspace(0, frames - 1, min(count, frames)).round().long().tolist()


def merged(state: dict[str, Tensor], scale: float) -> dict[str, Tensor]:
    """The weights by the names that transformers has today, with the LoRA added to those it changes."""
    plain, factors = {}, dict[str, dict[str, Tensor]]()
    for key, tensor in state.items():
        name = key.removeprefix(_WRAPPED)
        factor = _FACTOR.search(name)
        if factor is not None:
            factors.setdefault(_today(name[: factor.start()]), {})[factor[1]] = tensor
        elif name != "lm_head.weight":
            plain[_today(name.replace(".base_layer.", "."))] = tensor
    for stem, pair in factors.items():
        weight = plain.get(f"{stem}.weight")
        if weight is None or set(pair) != {"A", "B"}:
            raise FileError("a LoRA without its layer is in the checkpoint", where=stem)
        update = scale * pair["B"].float() @ pair["A"].float()
        plain[f"{stem}.weight"] = (weight.float() + update).to(weight.dtype)
    return plain


def _today(name: str) -> str:
    """transformers 4.45 had the text network in `model` and the frames' in `visual`."""
    if name.startswith(("model.language_model.", "model.visual.")):
        return name.removeprefix("model.")
    return re.sub(r"^model\.", "language_model.", name)


def find_files(folder: Path) -> tuple[Path, Path]:
    """The folder with the settings, and the file with the text. Raises FileError."""
    places = [place for place in (folder, folder / "checkpoints") if (place / "model_config.json").is_file()]
    files = [place / "prompt_template.py" for place in (folder, folder.parent)]
    texts = [file for file in files if file.is_file()]
    if not places or not texts:
        raise FileError(
            "VideoAlign is not in this folder", where=str(folder),
            values=f"no {'model_config.json' if not places else 'prompt_template.py'}",
            fix="give a clone of KwaiVGI/VideoAlign with KwaiVGI/VideoReward downloaded into its checkpoints/",
        )  # fmt: skip
    return places[0], texts[0]


def find_checkpoint(place: Path) -> Path:
    """The weights of the last checkpoint in the folder with the settings. Raises FileError."""
    files = sorted(place.glob("checkpoint-*/model.*"), key=lambda file: _number(file.parent.name))
    held = [file for file in files if file.suffix in (".pth", ".safetensors")]
    if not held:
        raise FileError("there is no VideoAlign checkpoint", where=str(place), values="no checkpoint-*/model.pth")
    return held[-1]


def _number(name: str) -> int:
    with contextlib.suppress(ValueError):
        return int(name.rsplit("-", 1)[-1])
    return -1


def read_template(file: Path) -> str:
    """The text of a constant in a Python file, which is not run. Raises FileError."""
    try:
        tree: Any = ast.parse(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, SyntaxError) as error:
        raise FileError("the text of the reward cannot be read", where=str(file), values=str(error)) from error
    for node in tree.body:
        named = isinstance(node, ast.Assign) and any(getattr(one, "id", "") == TEMPLATE for one in node.targets)
        if named and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            text: str = node.value.value
            if "{text_prompt}" in text and all(token in text for token in TOKENS.values()):
                return text
    raise FileError("the text of the reward is not in this file", where=str(file), values=f"no {TEMPLATE}")
