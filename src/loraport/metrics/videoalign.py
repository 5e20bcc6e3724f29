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

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn.functional import interpolate

from loraport.errors import FileError, UsageError
from loraport.metrics.frames import as_tensor
from loraport.metrics.towers import CLIP_COLOURS, said_of
from loraport.metrics.videoalign_folder import TOKENS, Reward, find_checkpoint, find_files, merged, read_template
from loraport.metrics.weights import read_state

VIDEO = "<|video_pad|>"
LEAST_PIXELS = 128 * 28 * 28  # of a frame, below which it is made larger
_MARK = re.compile(r"<\|.*?\|>")


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

        place, template = find_files(folder)
        self.reward = Reward.read(place / "model_config.json")
        self.template = read_template(template)
        with said_of(base, "tokenizer or configuration of Qwen2-VL"):
            self.tokenizer: Any = AutoTokenizer.from_pretrained(base, local_files_only=True)
            config: Any = Qwen2VLConfig.from_pretrained(base, local_files_only=True)
        if not self.tokenizer.chat_template:
            raise FileError("the tokenizer has no chat template", where=str(base), fix="use that of Qwen2-VL-Instruct")
        self.tokenizer.add_special_tokens({"additional_special_tokens": list(TOKENS.values())})
        file = find_checkpoint(place)
        state = merged(read_state(file, keep_dtype=True), self.reward.scale)
        head, words = state.pop("rm_head.weight", None), state.get("language_model.embed_tokens.weight")
        if head is None or words is None:
            raise FileError("this is not a VideoAlign checkpoint", where=str(file), values=", ".join(list(state)[:3]))
        if len(words) != len(self.tokenizer):
            raise FileError(
                "the tokenizer is not the one of the reward model", where=str(base),
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
        vision = self._vision
        side, merge, depth = vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size
        shape = fitted(frames.shape[1], frames.shape[2], side * merge, self.reward.most_pixels)
        pixels = interpolate(as_tensor(frames), shape, mode="bicubic", align_corners=False, antialias=True)
        pixels = pixels.round().clamp(0, 255)
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
            "the weights do not fit the network", where=str(file),
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
