"""Prompts for the probes: built in for the tiny models, else embeddings, or texts with a text encoder."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Generator, Tensor

from loraport.errors import FileError, MismatchError, UsageError, first_line
from loraport.files import read_text
from loraport.sampling.denoiser import Conditions, Runnable
from loraport.zoo import world

if TYPE_CHECKING:
    from diffusers import WanPipeline

PROMPTED, EMPTY = "prompt_embeds", "negative_prompt_embeds"
TOKENS = 512
"""Length that prompts are padded to, as `WanPipeline` pads them when it is called; Wan attends to the padding too."""
MOST = 2**20  # bytes of a text file
AT_ONCE = 4  # texts in one pass of the encoder, which may be large


def conditions_for(
    source: Runnable, target: Runnable, prompts: Path | Sequence[str] | None, *, seed: int = 0
) -> Conditions:
    """The prompts that both models are run with.

    Args:
        prompts: a safetensors file with `prompt_embeds` (prompts x tokens x width) and `negative_prompt_embeds`
            (1 x tokens x width); or a text file with a prompt a line, or the texts themselves, for the text encoder
            of the source, else of the target. None for the tiny models, which bring their own.

    Raises:
        UsageError: no prompts for a model that brings none.
        FileError: a file that cannot be read, or no text encoder for texts.
        MismatchError: embeddings of odd shapes.
    """
    if prompts is None and source.bundled and target.bundled:
        return tiny_prompts(seed)
    if prompts is None:
        raise UsageError(
            "no prompts are given, and this model has no built-in ones",
            fix=f"--prompts FILE: safetensors with {PROMPTED} and {EMPTY}, or text (one a line) "
            "beside a source folder with its text encoder",
        )
    if not isinstance(prompts, Path):
        return encode_texts(prompts, source, target)
    if not prompts.is_file():
        raise FileError("no such file of prompts", where=str(prompts))
    if prompts.suffix == ".safetensors":
        return read_embeddings(prompts)
    lines = (line.strip() for line in read_text(prompts, "file of prompts", most=MOST).splitlines())
    return encode_texts([line for line in lines if line], source, target, file=prompts)


def tiny_prompts(seed: int = 0, prompts: Sequence[world.Prompt] | None = None) -> Conditions:
    """Prompts of the tiny world as its models take them: by default all that are not held out, shuffled."""
    if prompts is None:
        known = [prompt for prompt in world.all_prompts() if not prompt.held_out]
        order = torch.randperm(len(known), generator=Generator().manual_seed(7_919 + seed)).tolist()
        prompts = [known[i] for i in order]
    return Conditions(
        world.encode(world.prompt_indices(prompts)), world.encode_null(1), tuple(prompt.text for prompt in prompts)
    )


def read_embeddings(file: Path) -> Conditions:
    """Prompts that a text encoder made before."""
    try:
        held = load_file(file)
    except (SafetensorError, OSError) as error:
        raise FileError("the embeddings cannot be read", where=str(file), values=str(error)) from error
    if PROMPTED not in held or EMPTY not in held:
        raise FileError(
            "the embeddings are not complete", where=str(file), values=f"holds {', '.join([*held][:5]) or 'nothing'}",
            fix=f"give {PROMPTED} and {EMPTY}, as WanPipeline.encode_prompt returns them",
        )  # fmt: skip
    prompted, empty = held[PROMPTED].float(), held[EMPTY].float()[:1]
    if prompted.ndim != 3 or empty.ndim != 3 or prompted.shape[1:] != empty.shape[1:] or not len(prompted):
        raise MismatchError(
            "the embeddings do not fit each other", where=str(file),
            values=f"{PROMPTED} {list(prompted.shape)}, {EMPTY} {list(empty.shape)}",
        )  # fmt: skip
    return Conditions(prompted, empty)


def encode_texts(
    texts: Sequence[str], source: Runnable, target: Runnable, *, file: Path | None = None
) -> Conditions:  # fmt: skip
    """Prompts from texts, by the text encoder of the source, or else that of the target.

    Raises:
        UsageError: no texts. FileError: neither model has a text encoder, or it cannot be loaded.
    """
    if not texts:
        raise UsageError("there is no text among the prompts", where=None if file is None else str(file))
    encode = source.encode or target.encode
    if encode is None:
        raise FileError(
            "there is no text encoder for these prompts",
            where=", ".join(str(model.checkpoint or model.name) for model in (source, target)),
            fix="give a diffusers folder with text_encoder/ and tokenizer/ or a pipeline that has both as the source, "
            f"or a file of embeddings ({PROMPTED} and {EMPTY})",
        )
    return encode(texts)


def has_encoder(folder: Path) -> bool:
    """Whether a diffusers folder has a text encoder to go with its transformer."""
    return all((folder / part).is_dir() for part in ("text_encoder", "tokenizer"))


def encode_by_folder(folder: Path, texts: Sequence[str], device: torch.device) -> Conditions:
    """By the text encoder in a diffusers folder, which is loaded and let go of. Raises FileError."""
    from diffusers import WanPipeline

    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    try:
        # the encoder is filled at random before it is loaded; newer versions call the dtype otherwise, older do not
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            pipeline = WanPipeline.from_pretrained(folder, transformer=None, vae=None, torch_dtype=dtype)
        pipeline.to(device)
    except (OSError, ValueError, ImportError) as error:
        raise FileError(
            "the text encoder could not be loaded", where=str(folder), values=first_line(error),
            fix=f"repair the folder, or encode the prompts elsewhere and give a file with {PROMPTED} and {EMPTY}",
        ) from error  # fmt: skip
    return encode_by(pipeline, texts)


def encode_by(pipeline: "WanPipeline", texts: Sequence[str]) -> Conditions:
    """By a pipeline in memory, exactly as it encodes prompts when it is called; a few texts at a time."""

    def encoded(part: Sequence[str]) -> Tensor:
        made = pipeline.encode_prompt(list(part), do_classifier_free_guidance=False, max_sequence_length=TOKENS)
        return made[0].float().cpu()

    encoder = pipeline.text_encoder
    training = encoder.training
    encoder.eval()  # a freshly made encoder would drop parts at random
    try:
        with torch.inference_mode():
            rows = [encoded(texts[first : first + AT_ONCE]) for first in range(0, len(texts), AT_ONCE)]
            empty = encoded([""])
    finally:
        encoder.train(training)
    return Conditions(torch.cat(rows).clone(), empty.clone(), tuple(texts))
