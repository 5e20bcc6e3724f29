"""Prompts for the probes: built in for the tiny models, else a file of embeddings, or of text with a text encoder."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Generator

from loraport.calibration.denoiser import Runnable
from loraport.calibration.rollout import Conditions
from loraport.errors import FileError, MismatchError, UsageError

PROMPTED, EMPTY = "prompt_embeds", "negative_prompt_embeds"


def conditions_for(source: Runnable, target: Runnable, file: Path | None, *, seed: int = 0) -> Conditions:
    """The prompts that both models are run with.

    Args:
        file: a safetensors file with `prompt_embeds` (prompts x tokens x width) and `negative_prompt_embeds`
            (1 x tokens x width), or a text file with a prompt a line, for a source folder that has its text encoder.
            None for the tiny models, which bring their own.

    Raises:
        UsageError: no file for a model that brings no prompts.
        FileError: a file that cannot be read, or no text encoder for a text file.
        MismatchError: embeddings of odd shapes.
    """
    if file is None and source.bundled and target.bundled:
        return tiny_prompts(seed)
    if file is None:
        raise UsageError(
            "no prompts are given, and this model has none built in",
            fix=f"--prompts FILE: safetensors with {PROMPTED} and {EMPTY}, or text (one a line) "
            "beside a source folder with its text encoder",
        )
    if not file.is_file():
        raise FileError("no such file of prompts", where=str(file))
    if file.suffix == ".safetensors":
        return read_embeddings(file)
    return encode_text(file, source)


def tiny_prompts(seed: int = 0) -> Conditions:
    """Every prompt of the tiny world, shuffled; not in the order in which `world.draw_prompts` draws them."""
    from loraport.zoo import world

    known = world.all_prompts()
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
            "the embeddings are not complete", where=str(file), values=f"holds {', '.join(held) or 'nothing'}",
            fix=f"it needs {PROMPTED} and {EMPTY}, as WanPipeline.encode_prompt returns them",
        )  # fmt: skip
    prompted, empty = held[PROMPTED].float(), held[EMPTY].float()[:1]
    if prompted.ndim != 3 or empty.ndim != 3 or prompted.shape[1:] != empty.shape[1:] or not len(prompted):
        raise MismatchError(
            "the embeddings do not fit each other", where=str(file),
            values=f"{PROMPTED} {list(prompted.shape)}, {EMPTY} {list(empty.shape)}",
        )  # fmt: skip
    return Conditions(prompted, empty)


def encode_text(file: Path, source: Runnable) -> Conditions:
    """Prompts from a text file, by the text encoder that lies in the source's folder; it is let go of afterwards."""
    texts = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not texts:
        raise UsageError("the file of prompts is empty", where=str(file))
    folder = source.checkpoint
    if folder is None or not (folder / "text_encoder").is_dir() or not (folder / "tokenizer").is_dir():
        raise FileError(
            "there is no text encoder for these prompts",
            where=str(folder or source.name),
            fix="give a diffusers folder with text_encoder/ and tokenizer/ as the source, or a file of embeddings",
        )
    from diffusers import WanPipeline

    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        pipeline = WanPipeline.from_pretrained(folder, transformer=None, vae=None)
        prompted, empty = pipeline.encode_prompt(texts, [""] * len(texts), do_classifier_free_guidance=True)
    return Conditions(prompted.float().clone(), empty[:1].float().clone(), tuple(texts))
