"""What is compared, by its headers: a pipeline of diffusers, or a transformer with another one's pipeline around it."""

from dataclasses import dataclass
from pathlib import Path

from loraport.containers.names import named_path
from loraport.errors import FileError, MismatchError, UnsupportedError, UsageError
from loraport.models.checkpoint import open_checkpoint
from loraport.models.families import families
from loraport.models.family import Family

INDEX = "model_index.json"


@dataclass(frozen=True)
class Model:
    """A model that can be opened as a pipeline.

    Attributes:
        name: what the user called it.
        path: a folder of a pipeline or of a transformer, or a file.
        base: the pipeline that lends the other parts, for a path that is no whole pipeline.
        family: what it is.
    """

    name: str
    path: Path
    base: Path | None
    family: Family


def find_model(spec: str | Path, role: str, base: "Model | None" = None) -> Model:
    """Say what a model is, by its headers.

    Args:
        spec: a folder of a pipeline, or a hub id that is downloaded as diffusers does; with `base` also a folder of a
            transformer, or a file of weights.
        role: `source` or `target`, for messages.
        base: lends the other parts of the pipeline.

    Raises:
        FileError: nothing there. UsageError: no pipeline, and none to lend the parts.
        MismatchError: not the family of `base`. UnsupportedError: nothing of diffusers runs it.
    """
    if str(spec).startswith("zoo:"):
        raise UsageError(
            f"the {role} is a bundled model, which has no pipeline of diffusers", values=str(spec),
            fix="loraport demo and loraport evaluate show the bundled models",
        )  # fmt: skip
    path = _downloaded(named_path(spec), role)
    whole = (path / INDEX).is_file()
    if not whole and base is None:
        raise UsageError(
            f"the {role} is no whole pipeline", where=str(path), values=f"no {INDEX}",
            fix="give the diffusers folder of the model, with text encoder, scheduler and VAE",
        )  # fmt: skip
    family = open_checkpoint(path, expert="high" if (path / "transformer_2").is_dir() else None).architecture.family
    if (path / "transformer_2").is_dir():
        raise UnsupportedError(
            f"the {role} has two transformers, each with a LoRA of its own, which compare does not run yet",
            where=str(path), fix="run the pipeline yourself; transfer --expert both makes the files",
        )  # fmt: skip
    if base is not None and family.name != base.family.name:
        raise MismatchError(
            "source and target are of different families", values=f"{base.family.title}, {family.title}"
        )
    if not family.diffusers.pipeline or "Modular" in family.diffusers.pipeline:
        known = sorted(
            one.title for one in families().values() if "Modular" not in (one.diffusers.pipeline or "Modular")
        )
        raise UnsupportedError(
            f"diffusers has no pipeline that compare can call for {family.title}",
            values=f"it calls: {', '.join(known)}",
        )
    return Model(str(spec), path, None if whole or base is None else base.base or base.path, family)


def first_line(error: BaseException) -> str:
    """The first line of what an error says, or its name."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _downloaded(path: Path, role: str) -> Path:
    if path.exists():
        return path
    parts = path.parts
    if len(parts) == 2 and not path.is_absolute() and not path.suffix:
        from diffusers import DiffusionPipeline

        try:
            return Path(DiffusionPipeline.download("/".join(parts)))
        except (OSError, ValueError, RuntimeError) as error:
            raise FileError(
                f"the {role} is neither there nor could it be downloaded", where=str(path), values=first_line(error)
            ) from error
    raise FileError(f"there is no such {role}", where=str(path), fix="give a diffusers folder, or a hub id")
