"""VideoAlign's reward: what people would say of a video's quality, its motion, and its fit to the prompt.

A Qwen2-VL of 2 B reads the frames and a text that asks for the three, and a linear head reads one number off the place
of each of three tokens of that text (Liu et al. 2025, KwaiVGI/VideoAlign). The user has all of it on the disk: the
authors' repository with their checkpoint in it (`prompt_template.py` has the text; it is read and not run), and the
configuration and tokenizer of Qwen2-VL-2B-Instruct. The authors' code runs on transformers 4.45 alone; here the
weights are given the names of today and their LoRA is added.

As in the authors' code, the places of the tokens are counted one by one, also those of the frames: in transformers
4.45 a forward pass outside of generation did so, and the reward was trained that way. So it was with frequencies of
positions in bfloat16, which came of casting the whole model; they are rounded here too.
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

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn.functional import interpolate

from loraport.errors import FileError, UsageError
from loraport.metrics.towers import CLIP_COLOURS, said_of
from loraport.metrics.weights import read_state

TOKENS = {"vq": "<|VQ_reward|>", "mq": "<|MQ_reward|>", "ta": "<|TA_reward|>"}
VIDEO = "<|video_pad|>"
TEMPLATE = "DETAILED_PROMPT_WITH_SPECIAL_TOKEN"
LEAST_FRAMES, MOST_FRAMES = 4, 768
LEAST_PIXELS = 128 * 28 * 28  # of a frame, below which it is made larger
_WRAPPED = "base_model.model."
_MARK = re.compile(r"<\|.*?\|>")
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
                fix="the one that is published (KwaiVGI/VideoReward) is read at three special tokens",
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


class VideoAlign:
    """The network and its head.

    Args:
        folder: the authors' repository with `checkpoints/` in it, or the folder of checkpoints with
            `prompt_template.py` beside `model_config.json`.
        base: folder of Qwen2-VL-2B-Instruct, of which the configuration and the tokenizer are read.
        device: where to run; in bfloat16 on a GPU, as the authors do, else in float32.

    Raises:
        FileError: something is missing, damaged or of another kind.
        UsageError: transformers is too old.
    """

    def __init__(self, folder: Path, base: Path, device: str = "cpu"):
        from transformers import AutoTokenizer, Qwen2VLConfig

        place, template = _found(folder)
        self.reward = Reward.read(place / "model_config.json")
        self.template = _template(template)
        with said_of(base, "tokenizer or configuration of Qwen2-VL"):
            self.tokenizer: Any = AutoTokenizer.from_pretrained(base, local_files_only=True)
            config: Any = Qwen2VLConfig.from_pretrained(base, local_files_only=True)
        if not self.tokenizer.chat_template:
            raise FileError("the tokenizer has no chat template", where=str(base), fix="take that of Qwen2-VL-Instruct")
        self.tokenizer.add_special_tokens({"additional_special_tokens": list(TOKENS.values())})
        file = _checkpoint(place)
        state = merged(read_state(file, keep_dtype=True), self.reward.scale)
        head, words = state.pop("rm_head.weight", None), state.get("language_model.embed_tokens.weight")
        if head is None or words is None:
            raise FileError("this is no checkpoint of VideoAlign", where=str(file), values=", ".join(list(state)[:3]))
        if len(words) != len(self.tokenizer):
            raise FileError(
                "the tokenizer is not the one of the reward", where=str(base),
                values=f"{len(self.tokenizer)} tokens, {len(words)} in the checkpoint",
                fix="give the folder of Qwen/Qwen2-VL-2B-Instruct",
            )  # fmt: skip
        config.text_config.vocab_size = len(words)
        dtype = torch.float32 if torch.device(device).type == "cpu" else torch.bfloat16
        self.network = _network(config, state, file).to(device, dtype)
        self.head = head.to(device, dtype)
        self._device, self._vision = device, config.vision_config

    def rewards(self, clip: UInt8[np.ndarray, "f h w 3"], prompt: str, fps: float) -> dict[str, float]:
        """Quality (`vq`), motion (`mq`), fit to the prompt (`ta`) and their sum (`align`), as the head gives them.

        Args:
            clip: two frames or more.
            prompt: what was asked for.
            fps: frames a second.
        """
        pixels, grid = self.patches(clip[self.reward.picked(len(clip), fps)])
        ids = self.tokens(prompt, int(grid.prod()) // self._vision.spatial_merge_size**2)
        places = torch.arange(ids.shape[1], device=self._device).expand(3, 1, -1)
        with torch.inference_mode():
            states = self.network(
                input_ids=ids.to(self._device),
                attention_mask=torch.ones_like(ids, device=self._device),
                position_ids=places,
                pixel_values_videos=pixels.to(self._device, self.head.dtype),
                video_grid_thw=grid.to(self._device),
            ).last_hidden_state[0]
            read = (states @ self.head.T).float().cpu()
        made = {}
        for output, (name, token) in enumerate(TOKENS.items()):  # one output for all three, or one for each
            at = ids[0] == self.tokenizer.convert_tokens_to_ids(token)
            made[name] = read[at, min(output, read.shape[1] - 1)].item()
        return {**made, "align": sum(made.values())}

    def normalised(self, rewards: Mapping[str, float]) -> dict[str, float]:
        """In standard deviations from the mean over the authors' data; `align` is their sum."""
        reward = self.reward
        made = {name: (rewards[name] - reward.means[name]) / reward.deviations[name] for name in TOKENS}
        return {**made, "align": sum(made.values())}

    def patches(self, frames: UInt8[np.ndarray, "n h w 3"]) -> tuple[Float[Tensor, "p d"], Tensor]:
        """Frames as the rows that the vision network takes, and how many there are in time, height and width."""
        side, merge, depth = (
            int(value) for value in (self._vision.patch_size, self._vision.spatial_merge_size,
                                     self._vision.temporal_patch_size)
        )  # fmt: skip
        shape = fitted(frames.shape[1], frames.shape[2], side * merge, self.reward.most_pixels)
        pixels = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2).float()
        pixels = interpolate(pixels, shape, mode="bicubic", align_corners=False, antialias=True).round().clamp(0, 255)
        mean, deviation = (torch.tensor(values).view(3, 1, 1) for values in CLIP_COLOURS)
        pixels = (pixels / 255 - mean) / deviation
        pixels = torch.cat([pixels, pixels[-1:].expand(-len(pixels) % depth, -1, -1, -1)])
        time, high, wide = len(pixels) // depth, shape[0] // side, shape[1] // side
        cut = pixels.reshape(time, depth, 3, high // merge, merge, side, wide // merge, merge, side)
        rows = cut.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(time * high * wide, -1)
        return rows, torch.tensor([[time, high, wide]])

    def tokens(self, prompt: str, places: int) -> Tensor:
        """What is asked, as tokens, with room for the frames."""
        asked = self.template.replace("{text_prompt}", _MARK.sub("", prompt))  # which could else say where to read
        said = [{"role": "user", "content": [{"type": "video", "video": ""}, {"type": "text", "text": asked}]}]
        text = self.tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True)
        return self.tokenizer(text.replace(VIDEO, VIDEO * places, 1), return_tensors="pt")["input_ids"]


def _network(config: Any, state: dict[str, Tensor], file: Path) -> Any:
    """Qwen2-VL without its own head, from weights by its names. Raises FileError, UsageError."""
    from transformers import Qwen2VLModel

    kind: Any = Qwen2VLModel
    with said_of(file, "reward"), torch.random.fork_rng(devices=[]):
        network, told = kind.from_pretrained(None, config=config, state_dict=state, output_loading_info=True)
    if not hasattr(network, "language_model"):
        raise UsageError("VideoAlign needs a newer transformers", fix="pip install 'transformers>=4.52'")
    missing, unknown = sorted(told["missing_keys"]), sorted(told["unexpected_keys"])
    if missing or unknown:
        raise FileError(
            "the weights do not make the network", where=str(file),
            values=f"{len(missing)} missing, {len(unknown)} unknown, e.g. {[*missing, *unknown][0]}",
        )  # fmt: skip
    round_frequencies(network)
    return network.eval().requires_grad_(False)


def round_frequencies(network: Any) -> None:
    """Round the frequencies of positions as a cast to bfloat16 does."""
    for name, frequencies in network.named_buffers():
        if name.endswith("inv_freq"):
            frequencies.copy_(frequencies.bfloat16())


def fitted(high: int, wide: int, multiple: int, most: int) -> tuple[int, int]:
    """The size that a frame is brought to: sides in multiples, neither too many pixels nor too few, about its shape."""
    made = [max(multiple, round(side / multiple) * multiple) for side in (high, wide)]
    if made[0] * made[1] > most:
        shrink = math.sqrt(high * wide / most)
        made = [max(multiple, math.floor(side / shrink / multiple) * multiple) for side in (high, wide)]
    elif made[0] * made[1] < LEAST_PIXELS:
        grow = math.sqrt(LEAST_PIXELS / (high * wide))
        made = [math.ceil(side * grow / multiple) * multiple for side in (high, wide)]
    return made[0], made[1]


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


def _found(folder: Path) -> tuple[Path, Path]:
    """Where the settings and the text are."""
    places = [place for place in (folder, folder / "checkpoints") if (place / "model_config.json").is_file()]
    files = [place / "prompt_template.py" for place in (folder, folder.parent)]
    texts = [file for file in files if file.is_file()]
    if not places or not texts:
        raise FileError(
            "VideoAlign is not here", where=str(folder),
            values=f"no {'model_config.json' if not places else 'prompt_template.py'}",
            fix="give a clone of KwaiVGI/VideoAlign with KwaiVGI/VideoReward downloaded into its checkpoints/",
        )  # fmt: skip
    return places[0], texts[0]


def _checkpoint(place: Path) -> Path:
    files = sorted(place.glob("checkpoint-*/model.*"), key=lambda file: _number(file.parent.name))
    held = [file for file in files if file.suffix in (".pth", ".safetensors")]
    if not held:
        raise FileError("there is no checkpoint of VideoAlign", where=str(place), values="no checkpoint-*/model.pth")
    return held[-1]


def _number(name: str) -> int:
    with contextlib.suppress(ValueError):
        return int(name.rsplit("-", 1)[-1])
    return -1


def _template(file: Path) -> str:
    """The text of a constant in a Python file, which is not run."""
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
