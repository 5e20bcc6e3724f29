"""The tiny models of the zoo, on diffusers' real `WanTransformer3DModel`: loaded, given a LoRA, sampled.

A LoRA file enters through diffusers' own loader for Wan, the one behind `WanPipeline.load_lora_weights`, so that what
is sampled is what a user of the file would get.
"""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from diffusers import WanTransformer3DModel
from diffusers.loaders import WanLoraLoaderMixin
from jaxtyping import Float, Int
from torch import Tensor

from loraport.errors import FileError, UnmatchedKeysError, UsageError
from loraport.sampling.denoiser import Conditions
from loraport.sampling.network import load_network
from loraport.sampling.runner import ModelRunner, draw_noise
from loraport.sampling.schedule import Schedule
from loraport.sampling.wan import WanDenoiser
from loraport.zoo import world
from loraport.zoo.catalogue import TINY, ClipSize, ModelCard, Sampling, model_card, path, read_model_card
from loraport.zoo.position import tell_positions

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
        network = load_network(folder, torch.float32)
    network.requires_grad_(False).eval()
    _set_attention(network, card)
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


def merge_lora(network: WanTransformer3DModel, file: Path, *, strength: float = 1.0) -> None:
    """Add a LoRA to the weights: diffusers' loader puts it on, its fusing folds it in; half the time of a side path.

    Raises:
        FileError, UnmatchedKeysError: as `load_lora`.
    """
    load_lora(network, file, strength=strength)
    network.fuse_lora()
    with _own_randomness():
        network.unload_lora()


def remove_lora(network: WanTransformer3DModel) -> None:
    """Take the LoRA off again, if there is one."""
    if getattr(network, "peft_config", None):
        network.delete_adapters(list(network.peft_config))


def conditions(prompts: Int[Tensor, "n 4"]) -> Conditions:
    """Prompts of the tiny world, by attribute positions (`world.prompt_indices`), as its models take them."""
    return Conditions(world.encode(prompts), world.encode_null(1))


def noise(seeds: Sequence[int], clip: ClipSize = TINY) -> Float[Tensor, "n 3 f h w"]:
    """Starting noise, one clip per seed; a clip's noise does not depend on its neighbours."""
    return draw_noise((world.CHANNELS, *clip.shape), seeds)


def sample(
    network: WanTransformer3DModel,
    sampling: Sampling,
    prompts: Int[Tensor, "n 4"],
    noise: Float[Tensor, "n 3 f h w"],
    *,
    batch: int = 16,
    only: int | None = None,
) -> Float[Tensor, "n 3 f h w"]:
    """Sample one clip per prompt from the given noise by Euler steps.

    Args:
        network: a model from `load_model`, with or without a LoRA.
        sampling: steps, guidance and shift; the model's own are in its card.
        prompts: attribute positions (`world.prompt_indices`).
        noise: see `noise`.
        batch: clips at a time; part of what makes two runs equal to the last bit.
        only: take this step alone, from the states before it, for who changes the network between steps.

    Returns:
        Clips, nominally in [-1, 1] but not clamped.
    """
    if len(prompts) != len(noise):
        raise UsageError("every prompt needs its noise", values=f"{len(prompts)} prompts, {len(noise)} noises")
    if len(noise) == 0:
        return noise.clone()
    small = network.device.type == "cpu"
    schedule = Schedule.even(sampling.steps, shift=sampling.shift, guidance=sampling.guidance)
    runner = ModelRunner(WanDenoiser(network, network.device), schedule, batch, small)
    with runner.threads():
        given = conditions(prompts)
        return runner.sample(noise, given) if only is None else runner.step(only, noise, given)


@contextlib.contextmanager
def _own_randomness() -> Iterator[None]:
    """Diffusers and PEFT fill weights at random before they load them; the caller's random state is not theirs."""
    with torch.random.fork_rng(devices=[]):
        yield


def _set_attention(network: WanTransformer3DModel, card: ModelCard) -> None:
    attention = card.sampling.attention
    if attention == "full":
        return
    if attention != "frame-causal":
        raise UsageError(f"unknown attention {attention!r} in model.json", values="known: full, frame-causal")
    from loraport.zoo.attention import FrameCausalProcessor

    _, high, wide = network.config.patch_size
    per_frame = (card.clip.side // high) * (card.clip.side // wide)
    for block in network.blocks:
        block.attn1.set_processor(FrameCausalProcessor(per_frame))
