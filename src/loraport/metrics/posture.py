"""What is made of the joints of people: how far two clips are apart in them, and how they move within one."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from jaxtyping import Float

from loraport.metrics import motion
from loraport.metrics.poses import LEAST, Pose, oks

People = Sequence[Sequence[Pose]]
"""Who is found in each of some frames."""


def paired(people: Sequence[Pose], reference: Sequence[Pose]) -> list[tuple[Pose, Pose]]:
    """Who is who in two frames: those whose joints are nearest to each other first, each once."""
    costs = np.array([[np.linalg.norm(a.joints - b.joints, axis=1).mean() for b in reference] for a in people])
    made = []
    for _ in range(min(len(people), len(reference))):
        one, other = divmod(int(np.argmin(costs)), len(reference))
        made.append((people[one], reference[other]))
        costs[one], costs[:, other] = np.inf, np.inf
    return made


def gap(pose: Pose, reference: Pose) -> float | None:
    """How far two postures are apart, wherever and however large they are in the frame.

    The joints that both show are moved and scaled to the same middle and root mean square radius, those of the
    reference. The mean distance is in body heights of the reference; None where both show fewer than three.
    """
    both = pose.seen & reference.seen
    if both.sum() < LEAST:
        return None
    ours, theirs = (each.joints[both] - each.joints[both].mean(0) for each in (pose, reference))
    radii = [float(np.sqrt((each**2).sum(1).mean())) for each in (ours, theirs)]
    if min(radii) == 0:
        return None
    return float(np.linalg.norm(ours * (radii[1] / radii[0]) - theirs, axis=1).mean()) / reference.size


def count(people: People) -> Float[np.ndarray, " n"]:
    """How many people each frame shows."""
    return np.array([float(len(each)) for each in people])


def likeness(people: People, reference: People) -> float | None:
    """Mean OKS of everybody in the reference, frame by frame: 0 for one who is missing, None if there is nobody."""
    found: list[float] = []
    for ours, theirs in zip(people, reference, strict=True):
        here = [oks(a, b) for a, b in paired(ours, theirs)]
        found += here + [0.0] * (len(theirs) - len(here))
    return float(np.mean(found)) if found else None


def distance(people: People, reference: People) -> float | None:
    """Mean gap of the postures of those who are in both clips; None if nobody is."""
    gaps = [gap(a, b) for ours, theirs in zip(people, reference, strict=True) for a, b in paired(ours, theirs)]
    return _mean(gaps)


def speed(people: People, rate: float) -> float | None:
    """How fast postures change, in body heights a second: a body that is moved or grows as a whole does not.

    Args:
        people: in successive frames.
        rate: how many of them a second has.
    """
    found = _mean([gap(after, before) for a, b in pairwise(people) for after, before in paired(b, a)])
    return None if found is None else found * rate


def numbers(people: People, reference: People | None, fps: float) -> dict[str, float | None]:
    """Everything that is measured of people, by key of the measure; None where it takes somebody and nobody is found.

    Args:
        people: of the frames of a clip that are looked at.
        reference: of the same frames of source + LoRA; None for that itself.
        fps: frames a second of the clip.
    """
    here = count(people)
    found: dict[str, float | None] = {"people": float(here.mean()), "people_spread": float(here.std())}
    found["joint_speed"] = speed(people, fps / motion.step(fps))
    if reference is not None:
        found["people_off"] = float(np.abs(here - count(reference)).mean())
        found["poses"] = likeness(people, reference)
        found["postures_off"] = distance(people, reference)
    return found


def _mean(values: Sequence[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return float(np.mean(there)) if there else None
