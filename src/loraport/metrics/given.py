"""What the user gives to judge by, looked at without loading any of it: torch is not needed for a refusal."""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from loraport.errors import FileError, UsageError
from loraport.files import read_json

KINDS = {"clip": ("clip",), "dino": ("vit", "dinov2")}
"""Folders with a network of transformers, and what its configuration calls it."""


@dataclass(frozen=True)
class JudgeWeights:
    """Where the user keeps weights to judge by; None for what is not wanted.

    Attributes:
        clip: folder of a CLIP.
        dino: folder of a DINO or DINOv2.
        csd: checkpoint of CSD.
        aesthetic: LAION's predictor on the features of `clip`.
        raft: weights of RAFT.
        musiq: weights of MUSIQ.
        amt: weights of AMT-S.
        videoalign: the authors' repository with their checkpoint.
        qwen: folder of the Qwen2-VL that it was made of.
        lite: weights of EfficientNet-Lite0; those of the package by default, where it is installed.
        faces: CenterFace as ONNX; that of the package by default, where it and OpenCV are installed.
        poses: folder with BlazePose's networks; that of the package by default, where it, LiteRT and OpenCV are there.
        identity: folder with dlib's face recognition; that of the package by default, where it and dlib are installed.
    """

    clip: Path | None = None
    dino: Path | None = None
    csd: Path | None = None
    aesthetic: Path | None = None
    raft: Path | None = None
    musiq: Path | None = None
    amt: Path | None = None
    videoalign: Path | None = None
    qwen: Path | None = None
    lite: Path | None = None
    faces: Path | None = None
    poses: Path | None = None
    identity: Path | None = None

    def check(self) -> None:
        """Refuse what cannot judge, as far as names and configurations tell.

        Raises:
            UsageError: one is given without another that it needs, or a package is missing.
            FileError: one is not there, or of another kind.
        """
        if self.aesthetic is not None and self.clip is None:
            raise UsageError("the aesthetic predictor needs CLIP's features", fix="use --clip with CLIP ViT-L/14")
        if (self.videoalign is None) != (self.qwen is None):
            raise UsageError("VideoAlign needs two folders", fix="give --videoalign FOLDER and --qwen FOLDER")
        by_transformers = (self.clip, self.dino, self.csd, self.videoalign)
        if any(given is not None for given in by_transformers) and not installed("transformers"):
            raise UsageError(
                "judging by CLIP, DINO, CSD or VideoAlign needs transformers", fix="pip install 'loraport[metrics]'"
            )
        for name, types in KINDS.items():
            folder = getattr(self, name)
            if folder is not None:
                check_network(folder, types)
        for file in (self.csd, self.aesthetic, self.raft, self.musiq, self.amt):
            if file is not None:
                check_file(file)


def check_network(folder: Path, types: Sequence[str]) -> None:
    """Raises FileError unless it is the folder of such a network of transformers."""
    file = folder / "config.json"
    if not file.is_file():
        raise FileError(
            "this is not a folder with a network to judge by", where=str(folder),
            fix="give the folder to which the model's hub repository was downloaded, with its config.json",
        )  # fmt: skip
    found = read_json(file, "network's configuration").get("model_type")
    if found not in types:
        raise FileError(
            "the network is of another kind", where=str(file), values=f"{str(found)[:80]}; expected: {', '.join(types)}"
        )


def check_file(file: Path) -> None:
    """Raises FileError unless there is such a file."""
    if not file.is_file():
        what = (
            "a folder was given where one file of weights is needed"
            if file.is_dir()
            else "there is no such file of weights"
        )
        raise FileError(what, where=str(file), fix="give the path of the .pth or .safetensors file")


def installed(*modules: str) -> bool:
    """Whether such modules are there. None is imported."""
    return all(importlib.util.find_spec(each) is not None for each in modules)
