"""What is compared, by its headers: a pipeline of diffusers, or a transformer with another one's pipeline around it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loraport.containers.names import hub_id, named_path
from loraport.errors import FileError, MismatchError, UnsupportedError, UsageError, first_line
from loraport.files import read_json
from loraport.metrics.given import installed
from loraport.models.architecture import Architecture
from loraport.models.checkpoint import open_checkpoint
from loraport.models.families import families
from loraport.models.family import Family

INDEX = "model_index.json"
NEEDS = {"WanImageToVideoPipeline": "ftfy", "LTX2ImageToVideoPipeline": "av"}
"""What a pipeline needs once it is called, and asks for no sooner."""


@dataclass(frozen=True)
class Model:
    """A model that can be opened as a pipeline.

    Attributes:
        name: what the user called it.
        path: a folder of a pipeline or of a transformer, or a file.
        base: the pipeline that lends the other parts, for a path that is no whole pipeline.
        architecture: what it is; of two transformers the first.
        by_prompt: class of the pipeline that runs it by a prompt alone; "" where nothing does.
        by_image: class of the one that is given an image besides; "" where nothing is.
        two_experts: whether it is Wan2.2 with a transformer for each part of the schedule.
    """

    name: str
    path: Path
    base: Path | None
    architecture: Architecture
    by_prompt: str
    by_image: str
    two_experts: bool = False

    @property
    def family(self) -> Family:
        """Which models are alike."""
        return self.architecture.family

    def pipeline(self, *, with_image: bool) -> str:
        """The class that runs it. Raises UsageError where an image is missing, or of no use."""
        found = self.by_image if with_image else self.by_prompt
        if not found and with_image:
            raise UsageError(
                "an image is given, but the model makes clips from a prompt alone", where=str(self.path),
                values=self.by_prompt, fix="leave --image out, or give the image-to-video model",
            )  # fmt: skip
        if not found:
            raise UsageError(
                "the model makes videos that begin with an image, and none is given", where=str(self.path),
                values=self.by_image, fix="--image FILE, one for each prompt or one for all",
            )  # fmt: skip
        package = NEEDS.get(found)
        if package is not None and not installed(package):
            raise UsageError(
                f"{found} of diffusers needs a package that is not installed", values=package,
                fix=f"pip install {package}",
            )  # fmt: skip
        return found


def find_model(spec: str | Path, role: str, base: Model | None = None) -> Model:
    """Say what a model is, by its headers.

    Args:
        spec: a folder of a pipeline, or a hub id that is downloaded as diffusers does; with `base` also a folder of a
            transformer, or a file of weights; of Wan2.2's two transformers a folder with both.
        role: `source` or `target`, for messages.
        base: lends the other parts of the pipeline.

    Raises:
        FileError: nothing there. UsageError: no pipeline, and none to lend the parts; two experts of which one is
            missing, or never used.
        MismatchError: not the family of `base`, not as many experts, or not what its transformer takes.
        UnsupportedError: nothing of diffusers runs it with LoRAs.
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
            f"the {role} is not a complete pipeline", where=str(path), values=f"no {INDEX}",
            fix="give the diffusers folder of the model, with text encoder, scheduler and VAE",
        )  # fmt: skip
    two = (path / "transformer_2").is_dir()
    found = open_checkpoint(path, expert="high" if two else None).architecture
    family = found.family
    if base is not None:
        _check_alike(base, path, found, two=two)
    _check_runs(family)
    lender = None if whole or base is None else base.path
    index = read_json((lender or path) / INDEX, "pipeline's index")
    if two and whole and index.get("boundary_ratio") is None:
        raise UsageError(
            f"the {role} has two transformers, but its pipeline uses only one", where=str(path / INDEX),
            values="no boundary_ratio", fix="add it there: 0.875 for Wan2.2-T2V-A14B, 0.9 for Wan2.2-I2V-A14B",
        )  # fmt: skip
    return Model(str(spec), path, lender, found, *_classes(index, family), two)


def _classes(index: Mapping[str, Any], family: Family) -> tuple[str, str]:
    """The classes of the pipelines that run a model by a prompt alone, and with an image; "" where none does."""
    named, own = str(index.get("_class_name")), family.diffusers
    if named not in (own.pipeline, own.image_pipeline):
        return named, named  # what a call of it takes is seen when it is loaded
    both = own.image_optional or index.get("expand_timesteps") is True  # as Wan2.2-TI2V-5B says that it does both
    return (
        own.pipeline if both or named == own.pipeline else "",
        own.image_pipeline if both or named == own.image_pipeline else "",
    )


def _check_alike(base: Model, path: Path, found: Architecture, *, two: bool) -> None:
    """Raises MismatchError or UsageError unless source and target can be run alike."""
    family = found.family
    if family.name != base.family.name:
        raise MismatchError(
            "source and target are of different families", values=f"{base.family.title}, {family.title}"
        )
    if two and not base.two_experts:
        raise MismatchError(
            "the target has two transformers, but the source has one", where=str(path), values=f"source: {base.path}",
            fix=f"give one of them: {path / 'transformer'}",
        )  # fmt: skip
    if base.two_experts and not two:
        raise UsageError(
            "the source has two transformers, but the target has one", where=str(path), values=f"source: {base.path}",
            fix="give a folder with both: transformer and transformer_2, as diffusers names them",
        )  # fmt: skip
    channels = [one.dimensions.get("in_channels") for one in (base.architecture, found)]
    if None not in channels and channels[0] != channels[1]:
        raise MismatchError(
            "the transformers of source and target take different things, as one for text-to-video and one for "
            "image-to-video do", where=str(path), values=f"channels in: {channels[0]} and {channels[1]}",
        )  # fmt: skip


def _check_runs(family: Family) -> None:
    """Raises UnsupportedError unless diffusers has a pipeline of the family, and loads LoRAs for it."""

    def runs(one: Family) -> bool:
        return bool(one.diffusers.loader) and "Modular" not in (one.diffusers.pipeline or "Modular")

    if not runs(family):
        lacking = "loads no LoRAs" if "Modular" not in (family.diffusers.pipeline or "Modular") else "has no pipeline"
        raise UnsupportedError(
            f"diffusers {lacking} for {family.title}",
            values=f"supported: {', '.join(sorted(one.title for one in families().values() if runs(one)))}",
        )


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
                f"the {role} does not exist here and could not be downloaded",
                where=str(path),
                values=first_line(error)[:200],
                fix="check the path, or the id and the network",
            ) from error
    raise FileError(f"there is no such {role}", where=str(path), fix="give a diffusers folder, or a hub id")
