"""What a comparison can be told."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from loraport.errors import UsageError
from loraport.metrics.given import JudgeWeights
from loraport.sampling.schedule import RUNNING, numbers
from loraport.settings import PathText, Setting, Settings

CLIPS, JUDGING = "The clips", "Judging"
"""Panels of the help."""
COLOURS = {"red": (1.0, 0.0, 0.0), "green": (0.0, 1.0, 0.0), "blue": (0.0, 0.0, 1.0), "light": (1.0, 1.0, 1.0)}
"""What a probe can show: how much of red, green and blue."""


class CompareSettings(Settings):
    """Which clips are made, and what they are judged by. Raises UsageError."""

    strengths: Annotated[
        tuple[Annotated[float, Field(gt=0)], ...],
        BeforeValidator(numbers),
        Setting("Strengths of the LoRA on the target.", "--strengths", panel=CLIPS, metavar="S,S,...", default="1"),
    ] = (1.0,)
    seeds: Annotated[
        int,
        Field(ge=1, le=1000),
        Setting("Clips a prompt, from the seeds 0, 1, ...", "--seeds", panel=CLIPS, metavar="N"),
    ] = 1  # fmt: skip
    source_alone: Annotated[
        bool, Setting("Also the source without the LoRA.", "--source-alone", panel=CLIPS)
    ] = False  # fmt: skip
    negative: Annotated[
        str | None,
        Setting("Negative prompt.", "--negative", panel=CLIPS, metavar="TEXT", default="the pipeline's own"),
    ] = None
    height: Annotated[
        int | None,
        Field(gt=0),
        Setting("Height in pixels.", "--height", panel=CLIPS, metavar="N", default="the pipeline's own"),
    ] = None
    width: Annotated[
        int | None,
        Field(gt=0),
        Setting("Width in pixels.", "--width", panel=CLIPS, metavar="N", default="the pipeline's own"),
    ] = None
    frames: Annotated[
        int | None,
        Field(gt=0),
        Setting("Frames of a video.", "--frames", panel=CLIPS, metavar="N", default="the pipeline's own"),
    ] = None
    fps: Annotated[
        float | None,
        Field(gt=0),
        Setting(
            "Frames a second of a video, for what is measured of it.",
            "--fps",
            panel=JUDGING,
            metavar="N",
            default="what the model is made for",
        ),
    ] = None
    offload: Annotated[
        Literal["none", "model", "sequential", "group"],
        Setting(
            "What of a pipeline waits beside the device: model (each part while another works), sequential or group "
            "(each layer).",
            "--offload", panel=RUNNING, metavar="HOW",
        ),
    ] = "none"  # fmt: skip
    precision: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        Setting("Number format of the weights: auto is bfloat16 on a GPU, float32 on the CPU.", "--precision",
                panel=RUNNING, metavar="DTYPE"),
    ] = "auto"  # fmt: skip
    clip: Annotated[
        PathText | None,
        Setting(
            "Folder of a CLIP, to judge content and prompt by.", "--clip", panel=JUDGING, metavar="FOLDER", path=True
        ),
    ] = None  # fmt: skip
    dino: Annotated[
        PathText | None,
        Setting(
            "Folder of a DINO or DINOv2, to judge structure by.", "--dino", panel=JUDGING, metavar="FOLDER", path=True
        ),
    ] = None  # fmt: skip
    csd: Annotated[
        PathText | None,
        Setting("Checkpoint of CSD, to judge style by.", "--csd", panel=JUDGING, metavar="FILE", path=True),
    ] = None
    aesthetic: Annotated[
        PathText | None,
        Setting(
            "LAION's aesthetic predictor on the features of --clip, which has to be ViT-L/14.", "--aesthetic",
            panel=JUDGING, metavar="FILE", path=True,
        ),
    ] = None  # fmt: skip
    raft: Annotated[
        PathText | None,
        Setting("Weights of RAFT, to measure the dynamic degree with.", "--raft", panel=JUDGING, metavar="FILE",
                path=True),
    ] = None  # fmt: skip
    musiq: Annotated[
        PathText | None,
        Setting("Weights of MUSIQ, to measure the imaging quality with.", "--musiq", panel=JUDGING, metavar="FILE",
                path=True),
    ] = None  # fmt: skip
    amt: Annotated[
        PathText | None,
        Setting("Weights of AMT-S, to measure the motion smoothness with.", "--amt", panel=JUDGING, metavar="FILE",
                path=True),
    ] = None  # fmt: skip
    videoalign: Annotated[
        PathText | None,
        Setting(
            "VideoAlign's repository with its checkpoint, to judge videos by.", "--videoalign", panel=JUDGING,
            metavar="FOLDER", path=True,
        ),
    ] = None  # fmt: skip
    qwen: Annotated[
        PathText | None,
        Setting(
            "Folder of Qwen2-VL-2B-Instruct, of which VideoAlign takes configuration and tokenizer.", "--qwen",
            panel=JUDGING, metavar="FOLDER", path=True,
        ),
    ] = None  # fmt: skip

    def weights(self) -> JudgeWeights:
        """What to judge by."""
        names = ("clip", "dino", "csd", "aesthetic", "raft", "musiq", "amt", "videoalign", "qwen")
        given = {name: getattr(self, name) for name in names}
        return JudgeWeights(**{name: Path(path) for name, path in given.items() if path is not None})

    def check(self) -> None:
        """Refuse strengths that are said twice. Raises UsageError."""
        if not self.strengths or len(set(self.strengths)) != len(self.strengths):
            raise UsageError(
                "the strengths are to be different numbers",
                values=", ".join(f"{s:g}" for s in self.strengths) or "none",
            )
