"""Sampling the tiny models: rectified flow on diffusers' real `WanTransformer3DModel`.

Time runs from 1 (noise) to 0 (clip), `x_t = (1 - t) x + t ε`, and the model predicts the velocity `ε - x`. A LoRA
file enters through diffusers' own loader for Wan, the one behind `WanPipeline.load_lora_weights`, so that what is
sampled is what a user of the file would get.
"""

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from diffusers import WanTransformer3DModel
from diffusers.loaders import WanLoraLoaderMixin
from jaxtyping import Float, Int
from torch import Generator, Tensor

from loraport.errors import FileError, UnmatchedKeysError, UsageError
from loraport.threads import cores, one_thread_each
from loraport.zoo import world
from loraport.zoo.catalogue import ModelCard, Sampling, model_card, path, read_model_card
from loraport.zoo.position import tell_positions

TIME_SCALE = 1000  # the model counts time from 0 to 1000
ADAPTER = "lora"


def load_model(model: str | Path) -> tuple[WanTransformer3DModel, ModelCard]:
    """Load a bundled model by name, or any folder with a `model.json`, in float32, ready to sample.

    Raises:
        UsageError: nothing of that name is bundled.
        FileError: a folder without a card.
    """
    folder = Path(model) if isinstance(model, Path) else path(model)
    card = read_model_card(folder) if isinstance(model, Path) else model_card(model)
    with _own_randomness():
        network = WanTransformer3DModel.from_pretrained(folder, subfolder="transformer", torch_dtype=torch.float32)
    network.requires_grad_(False).eval()
    _set_attention(network, card.sampling)
    tell_positions(network)
    return network, card


def load_lora(network: WanTransformer3DModel, file: Path, *, strength: float | int = 1.0) -> int:
    """Put a LoRA file on the network through diffusers' loader; replaces one loaded before.

    Args:
        network: the model, changed in place (the weights stay, the LoRA runs beside them).
        file: a safetensors file in any spelling that diffusers reads.
        strength: factor on the LoRA.

    Returns:
        Number of layers that the LoRA acts on.

    Raises:
        FileError: no such file.
        UnmatchedKeysError: the loader left part of the file unused.
    """
    file = Path(file)
    if not file.is_file():
        raise FileError("no such LoRA file", where=str(file))
    remove_lora(network)
    state = WanLoraLoaderMixin.lora_state_dict(file.parent, weight_name=file.name, local_files_only=True)
    with _own_randomness():
        WanLoraLoaderMixin.load_lora_into_transformer(state, network, adapter_name=ADAPTER)
    network.set_adapters(ADAPTER, weights=strength)
    placed = sum(f".{ADAPTER}." in key for key in network.state_dict())
    if placed != len(state):
        raise UnmatchedKeysError(
            "diffusers did not place every tensor of the LoRA", where=str(file), values=f"{placed} of {len(state)}"
        )
    return placed // 2


def remove_lora(network: WanTransformer3DModel) -> None:
    """Take the LoRA off again, if there is one."""
    if getattr(network, "peft_config", None):
        network.delete_adapters(list(network.peft_config))


def time_grid(sampling: Sampling) -> Float[Tensor, " steps_plus_one"]:
    """Times from 1 to 0, shifted towards the noisy end: `t = s u / (1 + (s - 1) u)`."""
    even = torch.linspace(1, 0, sampling.steps + 1)
    return sampling.shift * even / (1 + (sampling.shift - 1) * even)


def draw_noise(seeds: Sequence[int]) -> Float[Tensor, "n 3 f h w"]:
    """Starting noise, one clip per seed; a clip's noise does not depend on its neighbours."""
    shape = (world.CHANNELS, world.FRAMES, world.SIZE, world.SIZE)
    clips = [torch.randn(shape, generator=Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(clips) if clips else torch.empty(0, *shape)


def sample(
    network: WanTransformer3DModel,
    sampling: Sampling,
    prompts: Int[Tensor, "n 4"],
    noise: Float[Tensor, "n 3 f h w"],
    *,
    batch: int = 16,
    workers: int | None = None,
) -> Float[Tensor, "n 3 f h w"]:
    """Sample one clip per prompt from the given noise by Euler steps.

    Args:
        network: a model from `load_model`, with or without a LoRA.
        sampling: steps, guidance and shift; the model's own are in its card.
        prompts: attribute positions (`world.prompt_indices`).
        noise: `draw_noise`, on the device of the network.
        batch: clips at a time; part of what makes two runs equal to the last bit.
        workers: batches at a time on a CPU, all cores by default; changes nothing but the time.

    Returns:
        Clips, nominally in [-1, 1] but not clamped.
    """
    if len(prompts) != len(noise):
        raise UsageError("every prompt needs its noise", values=f"{len(prompts)} prompts, {len(noise)} noises")
    if len(noise) == 0:
        return noise.clone()
    times = time_grid(sampling)

    def denoise(part: Tensor, x: Tensor) -> Tensor:
        with torch.inference_mode():  # belongs to a thread, so it is entered in each
            tokens, null = world.encode(part).to(x.device), world.encode_null(len(part)).to(x.device)
            for now, then in itertools.pairwise(times):
                x = x + (then - now) * _velocity(network, x, now.to(x.device), tokens, null, sampling.guidance)
        return x

    parts = prompts.split(batch), noise.split(batch)
    if noise.device.type != "cpu":
        done = [denoise(*part) for part in zip(*parts, strict=True)]
    else:
        with one_thread_each(), ThreadPoolExecutor(workers or cores()) as pool:
            done = list(pool.map(denoise, *parts))
    return torch.cat(done)


@contextlib.contextmanager
def _own_randomness() -> Iterator[None]:
    """Diffusers and PEFT fill weights at random before they load them; the caller's random state is not theirs."""
    with torch.random.fork_rng(devices=[]):
        yield


def _velocity(
    network: WanTransformer3DModel,
    x: Float[Tensor, "n 3 f h w"],
    time: Float[Tensor, ""],
    tokens: Float[Tensor, "n 4 d"],
    null: Float[Tensor, "n 4 d"],
    guidance: float,
) -> Float[Tensor, "n 3 f h w"]:
    """Predicted velocity; with guidance w: `v_null + w (v_prompt - v_null)`."""
    if guidance == 1:
        return network(x, (time * TIME_SCALE).expand(len(x)), tokens, return_dict=False)[0]
    both = network(
        torch.cat([x, x]), (time * TIME_SCALE).expand(2 * len(x)), torch.cat([tokens, null]), return_dict=False
    )[0]
    prompted, unprompted = both.chunk(2)
    return unprompted + guidance * (prompted - unprompted)


def _set_attention(network: WanTransformer3DModel, sampling: Sampling) -> None:
    if sampling.attention == "full":
        return
    if sampling.attention != "frame-causal":
        raise UsageError(f"unknown attention {sampling.attention!r} in model.json", values="known: full, frame-causal")
    from loraport.zoo.attention import FrameCausalProcessor

    _, high, wide = network.config.patch_size
    per_frame = (world.SIZE // high) * (world.SIZE // wide)
    for block in network.blocks:
        block.attn1.set_processor(FrameCausalProcessor(per_frame))
