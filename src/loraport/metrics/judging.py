"""The judges: what the numbers of a clip are made with, and the numbers."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TypeVar

import numpy as np
from jaxtyping import Float, UInt8
from torch import Tensor

from loraport.metrics import closeness, colour, detail, identity, motion, posture, similarity
from loraport.metrics.aesthetic import Aesthetic
from loraport.metrics.amt import Amt
from loraport.metrics.colour import Colours
from loraport.metrics.csd import Csd
from loraport.metrics.faces import Faces, face_weights
from loraport.metrics.given import JudgeWeights, installed
from loraport.metrics.identity import Descriptors, FaceIdentity, identity_weights
from loraport.metrics.lite import LiteFeatures, lite_weights
from loraport.metrics.measures import INSTALL, MEASURES, ClipMeasure
from loraport.metrics.musiq import Musiq
from loraport.metrics.poses import Poses, pose_weights
from loraport.metrics.raft import Raft
from loraport.metrics.towers import Clip, Dino
from loraport.metrics.videoalign import VideoAlign

Network = TypeVar("Network")
Pixels = UInt8[np.ndarray, "f h w 3"]
_OF_ONE: dict[str, Callable[[Pixels], float]] = {
    "frame_difference": motion.frame_difference,
    "flow": motion.flow,
    "foretold": motion.foretold,
    "flicker": motion.flicker,
    "edges": detail.edges,
    "sharpness": detail.sharpness,
}
_OF_TWO: dict[str, Callable[[Pixels, Pixels], float]] = {
    "distance": closeness.distance,
    "ssim": closeness.ssim,
}


@dataclass
class Judges:
    """What the numbers are made with. Networks are loaded by `open`, before any clip is made.

    Attributes:
        opencv: whether it is there.
        lite, faces, identity, poses, clip, dino, csd, aesthetic, raft, musiq, amt, videoalign: networks, or None.
    """

    opencv: bool = False
    lite: LiteFeatures | None = None
    faces: Faces | None = None
    identity: FaceIdentity | None = None
    poses: Poses | None = None
    clip: Clip | None = None
    dino: Dino | None = None
    csd: Csd | None = None
    aesthetic: Aesthetic | None = None
    raft: Raft | None = None
    musiq: Musiq | None = None
    amt: Amt | None = None
    videoalign: VideoAlign | None = None

    @classmethod
    def open(cls, weights: JudgeWeights, device: str = "cpu") -> "Judges":
        """Load what was given and what is installed.

        Raises:
            FileError: weights that are missing, damaged or of another network.
            UsageError: a package, or weights that others need, are missing.
        """
        weights.check()
        faces = _opened(Faces, weights.faces or face_weights())
        made = cls(
            opencv=installed("cv2"),
            clip=_opened(Clip, weights.clip, device),
            dino=_opened(Dino, weights.dino, device),
            csd=_opened(Csd, weights.csd, device),
            raft=_opened(Raft, weights.raft, device),
            musiq=_opened(Musiq, weights.musiq, device),
            amt=_opened(Amt, weights.amt, device),
            lite=_opened(LiteFeatures, weights.lite or lite_weights(), device),
            faces=faces,
            identity=None if faces is None else _opened(FaceIdentity, weights.identity or identity_weights()),
            poses=_opened(Poses, weights.poses or pose_weights()),
        )
        if weights.aesthetic is not None and made.clip is not None:
            made.aesthetic = Aesthetic(weights.aesthetic, made.clip)
        if weights.videoalign is not None and weights.qwen is not None:
            made.videoalign = VideoAlign(weights.videoalign, weights.qwen, device)
        return made

    def measures(self, *, video: bool, image: bool = False) -> tuple[ClipMeasure, ...]:
        """Which numbers there are.

        Args:
            video: whether the clips have more than one frame.
            image: whether they were to begin with an image.
        """
        there = {each.name: bool(getattr(self, each.name)) for each in fields(self)} | {"": True, "image": image}
        return tuple(each for each in MEASURES if there[each.needs] and (video or not each.video))

    def missing(self) -> dict[str, str]:
        """What is not measured for want of a package, and what brings it."""
        return {name: words for name, words in INSTALL.items() if not getattr(self, name)}

    def look(self, clip: Pixels, fps: float = 8.0) -> "ClipLook":
        """A clip with what the networks see of it: a reference is looked at once for all that is held against it.

        Args:
            clip: pixels.
            fps: frames a second, of which people are looked for in about eight.
        """
        looked = clip[similarity.looked_at(len(clip))]
        networks = {"features": self.lite, "csd": self.csd, "clip": self.clip, "dino": self.dino}
        seen = {key: network.features(looked) for key, network in networks.items() if network is not None}
        look = ClipLook(clip, Colours.of(clip), seen)
        if self.faces is not None:
            boxes = [self.faces.boxes(frame) for frame in looked]
            look.faces = np.array([float(len(each)) for each in boxes])
            if self.identity is not None:
                look.described = list(map(self.identity.describe, looked, boxes))
        if self.poses is not None:
            look.people = [self.poses.find(frame) for frame in clip[motion.looked_at(len(clip), fps)]]
        return look

    def judge(
        self, look: "ClipLook", reference: "ClipLook | None", prompt: str, fps: float, image: Pixels | None = None
    ) -> dict[str, float]:
        """All numbers of one clip, by key of the measure; without those that need somebody where nobody is found.

        Args:
            look: the clip that is judged.
            reference: source + LoRA of the same prompt and seed, of the same size; None for that itself.
            prompt: what was asked for.
            fps: frames a second.
            image: what it was to begin with, a clip of one frame in its size; None for no image.
        """
        clip = look.clip
        wanted = {each.key for each in self.measures(video=len(clip) > 1, image=image is not None)}
        found: dict[str, float | None] = {key: of(clip) for key, of in _OF_ONE.items() if key in wanted}
        found |= {"chroma": look.colours.chroma, "contrast": look.colours.contrast}
        if reference is not None:
            found["colour"] = colour.colour_shift(look.colours, reference.colours)
            found["colour_spread"] = colour.colour_spread_shift(look.colours, reference.colours)
            found |= {key: of(clip, reference.clip) for key, of in _OF_TWO.items() if key in wanted}
            found |= {key: similarity.likeness(seen, reference.seen[key]) for key, seen in look.seen.items()}
        if image is not None:
            found["first_frame"] = closeness.distance(clip[:1], image)
        if look.faces is not None:
            found["faces"] = float(look.faces.mean())
            if reference is not None and reference.faces is not None:
                found["faces_off"] = float(np.abs(look.faces - reference.faces).mean())
            if reference is not None and look.described is not None and reference.described is not None:
                found["identity"] = identity.distance(look.described, reference.described)
        if look.people is not None:
            found |= posture.numbers(look.people, None if reference is None else reference.people, fps)
        if self.clip is not None:
            found["clip_text"] = similarity.likeness_to_text(look.seen["clip"], self.clip.text(prompt))
            all_frames = self.clip.features(clip, as_vbench=True)
            found["background_consistency"] = similarity.consistency(all_frames)
            if self.aesthetic is not None:
                found["aesthetic"] = self.aesthetic.grade(all_frames)
        if self.musiq is not None:
            found["imaging"] = self.musiq.grade(clip)
        if self.dino is not None and len(clip) > 1:
            found["subject_consistency"] = similarity.consistency(self.dino.features(clip, as_vbench=True))
        if self.raft is not None and len(clip) > 1:
            picked = clip[motion.looked_at(len(clip), fps)]
            found["dynamic"] = float(motion.is_dynamic(self.raft.speeds(picked), min(clip.shape[1:3])))
        if self.amt is not None and len(clip) > 1:
            found["smoothness"] = self.amt.smoothness(clip)
        if self.videoalign is not None and len(clip) > 1:
            rewards = self.videoalign.rewards(clip, prompt, fps)
            found |= rewards
            found |= {f"{name}_z": value for name, value in self.videoalign.normalised(rewards).items()}
        return {key: value for key, value in found.items() if key in wanted and value is not None}


def _opened(kind: Callable[..., Network], place: Path | None, *device: str) -> Network | None:
    return None if place is None else kind(place, *device)


@dataclass(eq=False)
class ClipLook:
    """A clip as the networks see it.

    Attributes:
        clip: its pixels.
        colours: what is told of them.
        seen: features of the frames that stand for it, by key of the measure.
        faces: how many faces each of those frames shows; None where nothing finds them.
        described: what tells each of these faces from others; None where nothing does.
        people: who is found in about eight frames a second; None where nothing finds people.
    """

    clip: Pixels
    colours: Colours
    seen: dict[str, Float[Tensor, "n d"]]
    faces: Float[np.ndarray, " n"] | None = None
    described: list[Descriptors] | None = None
    people: posture.People | None = None
