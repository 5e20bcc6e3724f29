"""What is compared, by its headers: a pipeline of diffusers, or a transformer with another one's pipeline around it."""

import json
from dataclasses import dataclass
from pathlib import Path

from loraport.containers.names import hub_id, named_path
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
        two_experts: whether it is Wan2.2 with a transformer for each part of the schedule.
    """

    name: str
    path: Path
    base: Path | None
    family: Family
    two_experts: bool = False


def find_model(spec: str | Path, role: str, base: "Model | None" = None) -> Model:
    """Say what a model is, by its headers.

    Args:
        spec: a folder of a pipeline, or a hub id that is downloaded as diffusers does; with `base` also a folder of a
            transformer, or a file of weights; of Wan2.2's two transformers a folder with both.
        role: `source` or `target`, for messages.
        base: lends the other parts of the pipeline.

    Raises:
        FileError: nothing there. UsageError: no pipeline, and none to lend the parts; two experts of which one is
            missing, or never used.
        MismatchError: not the family of `base`, or not as many experts. UnsupportedError: nothing of diffusers runs it.
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
    two = (path / "transformer_2").is_dir()
    family = open_checkpoint(path, expert="high" if two else None).architecture.family
    if base is not None and family.name != base.family.name:
        raise MismatchError(
            "source and target are of different families", values=f"{base.family.title}, {family.title}"
        )
    if base is not None and two != base.two_experts:
        raise _other_experts(path, base, two=two)
    if two and whole and not _boundary(path):
        raise UsageError(
            f"the {role} has two transformers, of which its pipeline uses one", where=str(path / INDEX),
            values="no boundary_ratio", fix="write it there: 0.875 for Wan2.2-T2V-A14B",
        )  # fmt: skip
    if not family.diffusers.pipeline or "Modular" in family.diffusers.pipeline:
        known = sorted(
            one.title for one in families().values() if "Modular" not in (one.diffusers.pipeline or "Modular")
        )
        raise UnsupportedError(
            f"diffusers has no pipeline that compare can call for {family.title}",
            values=f"it calls: {', '.join(known)}",
        )
    return Model(str(spec), path, None if whole or base is None else base.base or base.path, family, two)


def _other_experts(path: Path, base: Model, *, two: bool) -> UsageError | MismatchError:
    if two:
        return MismatchError(
            "the target has two transformers, and the source one", where=str(path), values=f"source: {base.path}",
            fix=f"give one of them: {path / 'transformer'}",
        )  # fmt: skip
    return UsageError(
        "the source has two transformers, and the target one", where=str(path), values=f"source: {base.path}",
        fix="give a folder with both: transformer and transformer_2, as diffusers names them",
    )  # fmt: skip


def _boundary(path: Path) -> bool:
    """Whether a pipeline changes over to its second transformer."""
    try:
        return json.loads((path / INDEX).read_text(encoding="utf-8")).get("boundary_ratio") is not None
    except (OSError, ValueError, AttributeError):
        return True  # an index that cannot be read is said where it is loaded


def first_line(error: BaseException) -> str:
    """The first line of what an error says, or its name."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _downloaded(path: Path, role: str) -> Path:
    if path.exists():
        return path
    repository, inside = hub_id(path.as_posix()) or ("", "")
    if repository and not inside:
        from diffusers import DiffusionPipeline

        try:
            return Path(DiffusionPipeline.download(repository))
        except (OSError, ValueError, RuntimeError) as error:
            raise FileError(
                f"the {role} is neither there nor could it be downloaded", where=str(path), values=first_line(error)
            ) from error
    raise FileError(f"there is no such {role}", where=str(path), fix="give a diffusers folder, or a hub id")
