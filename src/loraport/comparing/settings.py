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
        Setting(
            "Strengths of the LoRA to try on the target.", "--strengths", panel=CLIPS, metavar="S,S,...", default="1"
        ),
    ] = (1.0,)
    seeds: Annotated[
        int,
        Field(ge=1, le=1000),
        Setting("Clips per prompt, from seeds 0, 1, ...", "--seeds", panel=CLIPS, metavar="N"),
    ] = 1  # fmt: skip
    source_alone: Annotated[
        bool, Setting("Also render the source without the LoRA.", "--source-alone", panel=CLIPS)
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
        Setting("Number of frames of a video.", "--frames", panel=CLIPS, metavar="N", default="the pipeline's own"),
    ] = None
    fps: Annotated[
        float | None,
        Field(gt=0),
        Setting(
            "Frames per second of a video, used by its measures.",
            "--fps",
            panel=JUDGING,
            metavar="N",
            default="what the model is made for",
        ),
    ] = None
    offload: Annotated[
        Literal["none", "model", "sequential", "group"],
        Setting(
            "Which parts of a pipeline wait off the device: model (each part while another works), sequential or "
            "group (each layer).",
            "--offload", panel=RUNNING, metavar="HOW",
        ),
    ] = "none"  # fmt: skip
    precision: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        Setting("Number format of the weights. auto: bfloat16 on a GPU, float32 on the CPU.", "--precision",
                panel=RUNNING, metavar="DTYPE"),
    ] = "auto"  # fmt: skip
    clip: Annotated[
        PathText | None,
        Setting(
            "CLIP folder, to judge content and prompt.", "--clip", panel=JUDGING, metavar="FOLDER", path=True
        ),
    ] = None  # fmt: skip
    dino: Annotated[
        PathText | None,
        Setting(
            "DINO or DINOv2 folder, to judge structure.", "--dino", panel=JUDGING, metavar="FOLDER", path=True
        ),
    ] = None  # fmt: skip
    csd: Annotated[
        PathText | None,
        Setting("CSD checkpoint, to judge style.", "--csd", panel=JUDGING, metavar="FILE", path=True),
    ] = None
    aesthetic: Annotated[
        PathText | None,
        Setting(
            "LAION's aesthetic predictor. It works on the features of --clip, which must be ViT-L/14.", "--aesthetic",
            panel=JUDGING, metavar="FILE", path=True,
        ),
    ] = None  # fmt: skip
    raft: Annotated[
        PathText | None,
        Setting("RAFT weights, to measure the dynamic degree.", "--raft", panel=JUDGING, metavar="FILE",
                path=True),
    ] = None  # fmt: skip
    musiq: Annotated[
        PathText | None,
        Setting("MUSIQ weights, to measure the imaging quality.", "--musiq", panel=JUDGING, metavar="FILE",
                path=True),
    ] = None  # fmt: skip
    amt: Annotated[
        PathText | None,
        Setting("AMT-S weights, to measure the motion smoothness.", "--amt", panel=JUDGING, metavar="FILE",
                path=True),
    ] = None  # fmt: skip
    videoalign: Annotated[
        PathText | None,
        Setting(
            "VideoAlign repository with its checkpoint, to judge videos.", "--videoalign", panel=JUDGING,
            metavar="FOLDER", path=True,
        ),
    ] = None  # fmt: skip
    qwen: Annotated[
        PathText | None,
        Setting(
            "Qwen2-VL-2B-Instruct folder, from which VideoAlign takes its configuration and tokenizer.", "--qwen",
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
                "the strengths must be different numbers",
                values=", ".join(f"{s:g}" for s in self.strengths) or "none",
            )
