"""The header of a file: provenance in, stale facts out, and what strangers wrote in it or in a file beside."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loraport.containers.access import kind_of
from loraport.errors import FileError
from loraport.files import read_text
from loraport.version import __version__

CONTENT = "loraport.content"  # digest of all tensors; written by write_adapter, checked by verify
PROFILE = "loraport.profile"  # the output profile of a conversion; of a transfer it is in the recipe
LORA_CONFIG = "lora_adapter_metadata"  # where diffusers keeps rank and alpha
TRAINED_ON = "loraport.trained_on"  # what a transferred LoRA's input said of its model, by the texts of its header
BASES = ("ss_base_model_version", "ss_base_model", "base_model", "baseModel", "modelspec.base_model")
"""Texts by which programs that manage LoRAs say what model a file is for; trainers write what it was trained on."""
HEADER_NUMBERS = (("lora_alpha", "alpha"), ("lora_rank", "rank"))
"""As LongLive-Plug and some trainers write them into the header, a text each."""
MAX_JSON = 4 * 2**20
# Facts about the input file that are wrong for the output.
STALE = (
    LORA_CONFIG,
    *(name for names in HEADER_NUMBERS for name in names),
    "sshs_model_hash",
    "sshs_legacy_hash",
    "modelspec.hash_sha256",
    "modelspec.date",
)


def build_metadata(
    *,
    input_metadata: Mapping[str, str],
    recipe: Mapping[str, Any],
    inputs: Mapping[str, str],
    method: str,
    summary: Mapping[str, Any],
    rank: int,
    target_title: str,
    expert: str | None = None,
) -> dict[str, str]:
    """The text that goes into the output's header. No date, so that the same inputs give the same bytes.

    Args:
        input_metadata: the input LoRA's header; training facts and trigger words are kept.
        recipe: the settings that identify the result.
        inputs: name of an input -> digest.
        method: name and version.
        summary: a few numbers about the result.
        rank: of the output.
        target_title: the model that the output is for.
        expert: of Wan2.2 that it is for, if one was named: the files of a pair are told apart by their titles.
    """
    kept = {key: value for key, value in input_metadata.items() if key not in STALE and not key.startswith("loraport.")}
    trained_on = input_metadata.get(TRAINED_ON) or canonical_json({key: kept[key] for key in BASES if key in kept})
    kept |= {key: target_title for key in BASES if key in kept}
    title = kept.get("modelspec.title") or kept.get("ss_output_name") or "LoRA"
    part = f", {expert} noise" if expert is not None and f"{expert} noise" not in title else ""
    return {
        **kept,
        "format": "pt",
        "ss_network_dim": str(rank),
        "ss_network_alpha": str(rank),
        "ss_base_model_version": target_title,
        "modelspec.sai_model_spec": kept.get("modelspec.sai_model_spec", "1.0.0"),
        "modelspec.title": title + ("" if target_title in title else f" for {target_title}") + part,
        "modelspec.implementation": "loraport",
        TRAINED_ON: trained_on,
        "loraport.version": __version__,
        "loraport.method": method,
        "loraport.recipe": canonical_json(recipe),
        "loraport.inputs": canonical_json(inputs),
        "loraport.summary": canonical_json(summary),
    }


def converted_metadata(
    input_metadata: Mapping[str, str], profile: str, *, alpha_stays: bool, header_stays: bool, rank: int
) -> dict[str, str]:
    """The header of a file whose keys were renamed and whose numbers are those of the input.

    Args:
        input_metadata: the input's header; a transfer's account of itself stays true.
        profile: the output profile, which may be another than that of the transfer.
        alpha_stays: whether the output has alpha tensors, so that `ss_network_alpha` stays as it was.
        header_stays: whether `lora_adapter_metadata` holds the scale of the output too.
        rank: the largest of the file.
    """
    stale = set(STALE) - ({LORA_CONFIG} if header_stays else set())
    kept = {key: value for key, value in input_metadata.items() if key not in stale}
    if "ss_network_alpha" in kept and not alpha_stays:
        kept["ss_network_alpha"] = kept.get("ss_network_dim", str(rank))
    # The version also tells readers to look for no alpha outside the file.
    return {**kept, "format": "pt", "loraport.version": __version__, PROFILE: profile}


def stated_profile(metadata: Mapping[str, str]) -> str:
    """The output profile that a file was written in, as its header says; "None" where it does not."""
    recipe = read_json(metadata, "loraport.recipe")
    return str(metadata.get(PROFILE, recipe.get("to") if isinstance(recipe, dict) else None))


def content_digest(digests: Mapping[str, str]) -> str:
    """One digest for a whole file, from its keys and the digest of each tensor."""
    lines = "".join(f"{key} {digests[key]}\n" for key in sorted(digests))
    return hashlib.sha256(lines.encode()).hexdigest()


def canonical_json(value: Mapping[str, Any]) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def read_json(metadata: Mapping[str, str], key: str) -> Any | None:
    """A JSON field of a header that anybody may have written; None where it is absent, too long, or no JSON."""
    return _parsed(metadata.get(key, ""))


def read_table(file: Path) -> dict[str, Any]:
    """The table in a JSON file that anybody may have written; empty where there is none, or it cannot be read."""
    try:
        found = _parsed(read_text(file, "configuration", most=MAX_JSON)) if kind_of(file) == "file" else None
    except FileError:
        return {}
    return found if isinstance(found, dict) else {}


def _parsed(text: str) -> Any | None:
    if len(text) > MAX_JSON:
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
