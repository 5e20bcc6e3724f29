"""Header against content: is an output file what its header says, and do loaders take it?"""

from dataclasses import replace
from pathlib import Path

from loraport.adapters.adapter import LoraAdapter
from loraport.adapters.checks import Check
from loraport.adapters.dialect import PROFILES, Dialect
from loraport.adapters.header import CONTENT, content_digest, read_json, stated_profile
from loraport.adapters.in_diffusers import biases_for_diffusers, loaded_by_diffusers
from loraport.adapters.loaders import IN_FULL, takers
from loraport.adapters.parse import open_adapter
from loraport.containers.dtypes import FORMATS
from loraport.containers.references import TensorRef, open_tensors
from loraport.errors import LoraportError, MismatchError, NumericalError, UnmatchedKeysError
from loraport.models.checkpoint import Checkpoint
from loraport.wording import count

KEYS = "every key is understood"
FITS = "fits the model"


def verify_adapter(
    path: str | Path,
    model: Checkpoint | None = None,
    *,
    load: bool = False,
    expert: str | None = None,
    adapter: str | None = None,
) -> tuple[Check, ...]:
    """Compare a LoRA with its own header, and with a model if one is given. Reads every tensor.

    Args:
        path: the file; one written by this package can be checked in full, any other as far as it goes.
        model: the model it is meant for.
        load: also hand it to the loader of diffusers, where that is installed.
        expert: which LoRA of the file, as for `open_adapter`.
        adapter: the same.

    Raises:
        FileError: it cannot be read at all.
        UnsupportedError: it is no plain LoRA.
        MismatchError: it is none at all.
        UsageError: it holds several LoRAs and none was named.
    """
    try:
        lora = _opened(path, model, expert, adapter)
    except UnmatchedKeysError as error:
        return (Check(KEYS, False, _in_one_line(error)),)
    except NumericalError as error:
        return (Check("all numbers are finite", False, _in_one_line(error)),)
    refs = open_tensors(lora.path).groups[lora.nest]
    checks = [Check(KEYS, True, f"{count(len(lora.keys), 'key')}, {count(len(lora.layers), 'layer')}")]
    checks += _header(lora)
    checks += _scale(lora)
    checks += _content(lora, refs)
    checks += _empty(lora)
    if model is not None:
        checks.append(_fit(lora, model, expert, adapter))
    checks += biases_for_diffusers(lora, refs)
    checks += [Check(title, True if title == IN_FULL else None, names) for title, names in takers(lora.content)]
    if load and all(check.passed is not False for check in checks):
        checks.append(loaded_by_diffusers(lora, refs))
    return tuple(checks)


def _header(lora: LoraAdapter) -> list[Check]:
    made = lora.metadata.get("loraport.version")
    if made is None:
        return [Check("header says how it was made", None, "not written by loraport: no content to compare with")]
    checks = [Check("header says how it was made", True, f"loraport {made}")]
    summary = read_json(lora.metadata, "loraport.summary")
    layers = summary.get("layers") if isinstance(summary, dict) else None
    if layers is not None:
        # Layers that were added for their bias alone, or to fill a fused weight, are not counted there.
        weights = {layer.keys[0] for layer in lora.layers.values()}
        least = 0 if any(item.param.endswith(".bias") for item in lora.passthrough) else len(weights)
        same = isinstance(layers, int) and least <= layers <= len(lora.layers)
        checks.append(Check("every layer is there", same, f"{count(len(lora.layers), 'layer')}, header {layers}"))
    stated = lora.metadata.get("ss_network_dim")
    if stated is not None and _transferred(lora):
        alone = [layer.rank for name, layer in lora.layers.items() if layer.factored and name not in lora.fused]
        rank = max(alone, default=lora.max_rank)
        # Where every weight is fused, the ranks of its layers have been added up.
        added_up = {str(part) for part in range(1, rank) if rank % part == 0} if not alone else set()
        right = stated == str(rank) or stated in added_up
        checks.append(Check("rank as stated", right, f"rank {rank}, header {stated}"))
    recipe = read_json(lora.metadata, "loraport.recipe")
    recipe = recipe if isinstance(recipe, dict) else {}
    profile = PROFILES.get(stated_profile(lora.metadata))
    if profile is not None and lora.layers:
        same = _spelled_as(lora, profile.of(lora.architecture.family).dialect)
        checks.append(Check("names as stated", same, f"{lora.dialect.title}, header {profile.name}"))
    if "dtype" in recipe and lora.layers:
        same = FORMATS[lora.dtype].dtype == recipe["dtype"]
        checks.append(Check("dtype as stated", same, f"{lora.dtype}, header {recipe['dtype']}"))
    return checks


def _spelled_as(lora: LoraAdapter, dialect: Dialect) -> bool:
    """Whether the file is spelled in a dialect. Two namings of a family may agree on all layers of a file."""
    family = lora.architecture.family
    dialect = dialect.of(lora.keys)
    if lora.dialect != dialect and lora.dialect.names in family.namings:
        alike = all(family.spell(x, lora.dialect.names) == family.spell(x, dialect.names) for x in lora.layers)
        return alike and replace(lora.dialect, names=dialect.names) == dialect
    return lora.dialect == dialect


def _scale(lora: LoraAdapter) -> list[Check]:
    factored = {name: layer.rank for name, layer in lora.layers.items() if layer.factored}
    ranks = sorted({rank for name, rank in factored.items() if name not in lora.fused})
    added = sorted({rank for name, rank in factored.items() if name in lora.fused} - set(ranks))
    scales = sorted({layer.scale for layer in lora.layers.values()})
    sources = sorted({layer.scale_source for layer in lora.layers.values() if layer.scale != 1.0})
    wrong = False if _transferred(lora) else None  # a transfer promises both, a trainer neither
    mixed = "; diffusers before 0.40 scales mixed ranks wrongly" if len(ranks) > 1 else ""
    by = f" by {', '.join(sources)}; not every loader reads it" if sources else ""
    return [
        Check(
            "one rank in the whole file",
            True if len(ranks) <= 1 else wrong,
            (", ".join(map(str, ranks or added)) or "no factors")
            + (f"; {', '.join(map(str, added))} in fused weights" if ranks and added else "")
            + mixed,
        ),
        Check(
            "no scale beside the factors",
            True if scales in ([1.0], []) else wrong,
            "strength 1 is as it was made" if scales in ([1.0], []) else ", ".join(f"{s:g}" for s in scales) + by,
        ),
    ]


def _content(lora: LoraAdapter, refs: dict[str, TensorRef]) -> list[Check]:
    import torch  # only now: what its header says against a file is said at once

    from loraport.containers.tensors import digest, read_tensor

    broken = [
        key
        for key, ref in refs.items()
        if (tensor := read_tensor(ref)).is_floating_point() and not torch.isfinite(tensor.float()).all()
    ]
    checks = [Check("all numbers are finite", not broken, ", ".join(broken[:5]) or count(len(refs), "tensor"))]
    stated = lora.metadata.get(CONTENT)
    if stated is not None:
        actual = content_digest({key: digest(ref) for key, ref in refs.items()})
        checks.append(Check("content as written", actual == stated, actual[:16]))
    return checks


def _empty(lora: LoraAdapter) -> list[Check]:
    zero = [name for name, layer in lora.layers.items() if layer.is_zero()]
    if not zero:
        return []
    found = f"{len(zero)} of {count(len(lora.layers), 'layer', 'has/have')} an update of zero, e.g. {zero[0]}"
    whole = "the LoRA is empty: every update is zero"
    return [Check("it changes something", None, whole if len(zero) == len(lora.layers) else found)]


def _opened(path: str | Path, model: Checkpoint | None, expert: str | None, adapter: str | None) -> LoraAdapter:
    """The file by itself; where names and shapes leave open what it is, as one for the model.

    Of a family that is not known the layers are those that the model names.
    """
    by_names = model if model is not None and model.architecture.family.unnamed else None
    try:
        return open_adapter(path, by_names, role="model", expert=expert, adapter=adapter)
    except UnmatchedKeysError:
        raise
    except MismatchError:
        if model is None or model is by_names:
            raise
    return open_adapter(path, model, role="model", expert=expert, adapter=adapter)


def _fit(lora: LoraAdapter, model: Checkpoint, expert: str | None, adapter: str | None) -> Check:
    try:
        open_adapter(lora.path, model, role="model", expert=expert, adapter=adapter)
    except MismatchError as error:
        return Check(FITS, False, _in_one_line(error))
    return Check(FITS, True, model.architecture.title)


def _transferred(lora: LoraAdapter) -> bool:
    return "loraport.recipe" in lora.metadata


def _in_one_line(error: LoraportError) -> str:
    return ": ".join(part for part in (error.what.rstrip("."), error.values) if part)
