# ruff: noqa: E501 - the table of measures has a line a measure
"""All measures, what each means, and what it needs. Each is to be read beside the motion: most rise when it falls."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from loraport.metrics import closeness, colour, detail, motion, similarity
from loraport.metrics.csd import Csd
from loraport.metrics.lite import LiteFeatures, weights_in_package
from loraport.metrics.towers import Clip, Dino, need_transformers


@dataclass(frozen=True)
class Measure:
    """What one number means.

    Attributes:
        key: its name in JSON.
        title: head of its column.
        help: one sentence for the reader.
        better: "higher" or "lower" where that is plain, which it mostly is not.
        digits: decimals that are worth printing.
        pair: whether it compares with the clip of source and LoRA.
        video: whether a still has none.
        needs: "" for nothing; or `opencv`, `lite` (packages), `clip`, `dino`, `csd` (weights that the user gives).
    """

    key: str
    title: str
    help: str
    better: str | None = None
    digits: int = 2
    pair: bool = False
    video: bool = False
    needs: str = ""


MOTION = ("frame_difference", "flow")
"""What stands beside every other number: how much moves."""
MEASURES = (
    Measure("frame_difference", "frame difference", "Mean change from frame to frame, in levels of 255: how much moves or flickers.", video=True),
    Measure("flow", "flow", "Optical flow (Farneback) of the fastest 5 % of the pixels, a frame, in shares of the height: how fast things move.", digits=4, video=True, needs="opencv"),
    Measure("colour", "colour", "Distance of the mean colour from that of source + LoRA, in CIE Lab; about 2 is just visible.", "lower", 1, pair=True),
    Measure("colour_spread", "colour spread", "The same for the standard deviations of L, a and b: contrast and variety of colours.", "lower", 1, pair=True),
    Measure("distance", "distance", "Root mean square difference of the pixels from source + LoRA, in levels of 255. Another composition is as far as another style.", "lower", 1, pair=True),
    Measure("ssim", "SSIM", "Structural similarity to source + LoRA: 1 is the same picture. Another composition lowers it as another style does.", "higher", 3, pair=True),
    Measure("features", "features", "Cosine of EfficientNet-Lite0 features with source + LoRA, five frames: what is shown, more than how.", "higher", 3, pair=True, needs="lite"),
    Measure("csd", "style (CSD)", "Cosine of style descriptors with source + LoRA, five frames. Its published weights do not reproduce its paper's numbers.", "higher", 3, pair=True, needs="csd"),
    Measure("clip", "CLIP", "Cosine of CLIP's image features with source + LoRA, five frames: what is shown.", "higher", 3, pair=True, needs="clip"),
    Measure("dino", "DINO", "Cosine of DINO or DINOv2 features with source + LoRA, five frames: identity and structure.", "higher", 3, pair=True, needs="dino"),
    Measure("clip_text", "prompt (CLIP)", "Cosine of CLIP's image features with the prompt, five frames. A LoRA that restyles may lower it.", None, 3, needs="clip"),
    Measure("subject_consistency", "subject consistency", "VBench's, with the DINO that was given (theirs is ViT-B/16): 1 is a clip in which nothing moves.", None, 3, video=True, needs="dino"),
    Measure("background_consistency", "background consistency", "VBench's, with the CLIP that was given (theirs is ViT-B/32): 1 is a clip in which nothing moves.", None, 3, video=True, needs="clip"),
    Measure("flicker", "no flicker", "VBench's temporal flickering, exactly: 1 less the frame difference / 255. 1 is a clip in which nothing moves.", None, 3, video=True),
    Measure("edges", "edges", "Mean length of the Sobel gradient, in levels a pixel: outlines and texture, and noise too.", None, 2),
    Measure("sharpness", "sharpness", "Variance of the Laplacian: fine detail, and noise too.", None, 1),
    Measure("chroma", "chroma", "Mean distance of the pixels from grey in CIE Lab.", None, 1),
    Measure("contrast", "contrast", "Standard deviation of the lightness within a frame.", None, 1),
)  # fmt: skip
BY_KEY = {measure.key: measure for measure in MEASURES}
_OF_ONE: dict[str, Callable[[UInt8[np.ndarray, "f h w 3"]], float]] = {
    "frame_difference": motion.frame_difference,
    "flow": motion.flow,
    "flicker": motion.flicker,
    "edges": detail.edges,
    "sharpness": detail.sharpness,
    "chroma": colour.chroma,
    "contrast": colour.contrast,
}
_OF_TWO: dict[str, Callable[[UInt8[np.ndarray, "f h w 3"], UInt8[np.ndarray, "f h w 3"]], float]] = {
    "colour": colour.colour_shift,
    "colour_spread": colour.colour_spread_shift,
    "distance": closeness.distance,
    "ssim": closeness.ssim,
}


@dataclass(frozen=True)
class Weights:
    """Where the user keeps weights to judge by; None for what is not wanted.

    Attributes:
        clip: folder of a CLIP.
        dino: folder of a DINO or DINOv2.
        csd: checkpoint of CSD.
        lite: weights of EfficientNet-Lite0; those of the package by default, where it is installed.
    """

    clip: Path | None = None
    dino: Path | None = None
    csd: Path | None = None
    lite: Path | None = None


@dataclass
class Judges:
    """What the numbers are made with. Networks are loaded by `open`, before any clip is made.

    Attributes:
        flow: whether OpenCV is there.
        clip, dino, csd, lite: networks, or None.
    """

    flow: bool = False
    clip: Clip | None = None
    dino: Dino | None = None
    csd: Csd | None = None
    lite: LiteFeatures | None = None

    @classmethod
    def open(cls, weights: Weights, device: str = "cpu") -> "Judges":
        """Load what was given and what is installed.

        Raises:
            FileError: weights that are missing, damaged or of another network.
            UsageError: a package that is missing.
        """
        if weights.clip or weights.dino or weights.csd:
            need_transformers()
        return cls(
            flow=motion.has_flow(),
            clip=None if weights.clip is None else Clip(weights.clip, device),
            dino=None if weights.dino is None else Dino(weights.dino, device),
            csd=None if weights.csd is None else Csd(weights.csd, device),
            lite=None if weights.lite is None and weights_in_package() is None else LiteFeatures(weights.lite, device),
        )

    def measures(self, *, video: bool) -> tuple[Measure, ...]:
        """Which numbers there are.

        Args:
            video: whether the clips have more than one frame.
        """
        there = {"": True, "opencv": self.flow} | {
            name: getattr(self, name) for name in ("lite", "clip", "dino", "csd")
        }
        return tuple(each for each in MEASURES if there[each.needs] and (video or not each.video))

    def judge(
        self,
        clip: UInt8[np.ndarray, "f h w 3"],
        reference: UInt8[np.ndarray, "f h w 3"] | None,
        prompt: str,
    ) -> dict[str, float]:
        """All numbers of one clip, by key of the measure.

        Args:
            clip: what is judged.
            reference: source + LoRA of the same prompt and seed, of the same size; None for that itself.
            prompt: what was asked for.
        """
        wanted = {each.key for each in self.measures(video=len(clip) > 1)}
        found = {key: of(clip) for key, of in _OF_ONE.items() if key in wanted}
        looked = clip[similarity.looked_at(len(clip))]
        if reference is not None:
            other = reference[similarity.looked_at(len(reference))]
            found |= {key: of(clip, reference) for key, of in _OF_TWO.items() if key in wanted}
            for key, network in (("features", self.lite), ("csd", self.csd), ("clip", self.clip), ("dino", self.dino)):
                if network is not None:
                    found[key] = similarity.likeness(network.features(looked), network.features(other))
        if self.clip is not None:
            found["clip_text"] = similarity.likeness_to_text(self.clip.features(looked), self.clip.text(prompt))
        for key, tower in (("subject_consistency", self.dino), ("background_consistency", self.clip)):
            if tower is not None and key in wanted:
                found[key] = similarity.consistency(tower.features(clip, as_vbench=True))
        return found
