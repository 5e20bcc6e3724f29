"""Which folder a model that is to be run lies in, and what keeps it from being run: known before anything is loaded."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loraport.containers.names import named_path
from loraport.errors import FileError, MismatchError, UsageError
from loraport.files import read_json
from loraport.zoo import catalogue

CARD = "model.json"


def find_folder(spec: str | Path, role: str) -> Path:
    """The folder of a model given by path or as `zoo:NAME`. Raises FileError, UsageError."""
    path = named_path(spec)
    made = path.parent.parent / "models" / path.stem  # a tiny model that is its parent and this LoRA
    folder = made if path.parent.name == catalogue.DISTILLATIONS and (made / CARD).is_file() else path
    if not folder.is_dir():
        raise FileError(
            f"the {role} is not a folder that can be run" if folder.exists() else f"there is no such {role}",
            where=str(spec),
            fix="calibration runs the model, so it needs a diffusers folder (config.json and weights), "
            f"or a bundled model: {', '.join(f'zoo:{name}' for name in catalogue.models())}",
        )
    return folder


def config_of(folder: Path, role: str) -> dict[str, Any]:
    """What a folder says of its Wan transformer. Raises FileError, MismatchError."""
    file = next((file for file in (folder / "transformer/config.json", folder / "config.json") if file.is_file()), None)
    if file is None:
        raise FileError(f"the {role} has no transformer/config.json", where=str(folder), fix="give a diffusers folder")
    config = read_json(file, f"configuration of the {role}")
    if config.get("_class_name") != "WanTransformer3DModel":
        raise MismatchError(
            f"the {role} is not a Wan transformer", where=str(file), values=str(config.get("_class_name")),
            fix="other models can be run through loraport.calibration.Denoiser",
        )  # fmt: skip
    check_config(config, role, str(file))
    return config


def check_config(config: Mapping[str, Any], role: str, where: str) -> None:
    """Raises MismatchError unless this Wan transformer takes noise and a prompt only."""
    if config.get("image_dim") or config["in_channels"] != config["out_channels"]:
        raise MismatchError(
            f"the {role} takes an image besides the prompt, which this command cannot give it",
            where=where,
            values=f"{config['in_channels']} channels in, {config['out_channels']} out",
            fix="plug in your own code through loraport.calibration.Denoiser",
        )


def two_experts(role: str, where: str) -> MismatchError:
    """The message for models that hand over from one transformer to another on the way."""
    return MismatchError(
        f"the {role} has two transformers, one for early and one for late steps, which cannot be calibrated together",
        where=where,
        fix="plug in your own code through loraport.calibration.Denoiser, which picks one of them by the time",
    )


def need_diffusers() -> None:
    """Raises UsageError unless what runs the models is installed."""
    import importlib.util

    missing = [name for name in ("diffusers", "peft") if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(
            "running the models needs more than a transfer does", values=f"not installed: {', '.join(missing)}",
            fix="pip install 'loraport[diffusers]'",
        )  # fmt: skip
