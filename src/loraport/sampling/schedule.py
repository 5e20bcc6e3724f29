"""How a model is sampled: as the user says, as a bundled model's card says, or as the model's own scheduler does."""

import copy
import dataclasses
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BeforeValidator, Field

from loraport.errors import UsageError
from loraport.files import read_json
from loraport.settings import PathText, Setting, Settings

if TYPE_CHECKING:
    from diffusers import SchedulerMixin

GUIDANCE = {"source": 5.0, "target": 1.0}
"""Where nothing is said: what `WanPipeline` is called with by default, and what distilled models are made for."""
KNOWN = ("FlowMatchEulerDiscreteScheduler", "UniPCMultistepScheduler")
TIMESTEPS = 1000  # Wan counts time from 0 to 1000
RUNNING = "Running the models"
"""Panel of the help."""


@dataclass(frozen=True)
class Schedule:
    """How a model makes clips.

    Attributes:
        times: from 1 to 0, both included; one step less than values.
        guidance: classifier-free guidance scale; 1 is one pass a step, without the empty prompt.
        sampler: `euler` follows the velocity; `renoise` predicts the clip and adds fresh noise for the next time,
            as models distilled by distribution matching are sampled.
    """

    times: tuple[float, ...]
    guidance: float = 1.0
    sampler: Literal["euler", "renoise"] = "euler"

    def __post_init__(self) -> None:
        falling = all(a > b for a, b in zip(self.times, self.times[1:], strict=False))
        if len(self.times) < 2 or not falling or self.times[0] > 1 or self.times[-1] != 0:
            raise UsageError(
                "the times of a schedule must fall from at most 1 to 0", values=", ".join(f"{t:g}" for t in self.times),
                fix="Schedule((1.0, 0.757, 0.522, 0.0)), for example, makes three steps",
            )  # fmt: skip

    @property
    def steps(self) -> int:
        """Number of sampling steps."""
        return len(self.times) - 1

    @property
    def passes(self) -> int:
        """Forward passes that one clip takes."""
        return self.steps * (1 if self.guidance == 1 else 2)

    @classmethod
    def even(cls, steps: int, *, shift: float = 1.0, guidance: float = 1.0) -> "Schedule":
        """Evenly spaced times, shifted towards the noisy end: `t = s u / (1 + (s - 1) u)`."""
        grid = [1 - i / steps for i in range(steps + 1)]
        return cls(tuple(shift * u / (1 + (shift - 1) * u) for u in grid), float(guidance))


def numbers(given: object) -> object:
    """A validator: numbers with commas between them, or what is none of a text."""
    return tuple(part.strip() for part in given.split(",")) if isinstance(given, str) else given


def _size(given: object) -> object:
    parts = given.lower().split("x") if isinstance(given, str) else given
    if isinstance(parts, list | tuple) and len(parts) != 3:
        raise ValueError("it must be frames, height and width")
    return parts


class SamplingSettings(Settings):
    """How to sample a model that does not say so itself (everything but the bundled ones). Raises UsageError."""

    schedule: Annotated[Schedule | None, Setting("Times, guidance and sampler in one, instead of one by one.")] = None
    steps: Annotated[
        int | None,
        Field(ge=1),
        Setting(
            "Number of sampling steps, at the times of the model's own scheduler.",
            "--steps",
            panel=RUNNING,
            metavar="N",
        ),
    ] = None
    times: Annotated[
        tuple[float, ...] | None,
        BeforeValidator(numbers),
        Setting(
            "Time steps themselves, from 1000 down, instead of a number of steps.",
            "--times",
            panel=RUNNING,
            metavar="T,T,...",
        ),
    ] = None
    shift: Annotated[
        float | None,
        Field(gt=0),
        Setting(
            "Time shift. The times are then evenly spaced, and shifted.", "--shift", panel=RUNNING, metavar="S",
            default="the scheduler's, else 1",
        ),
    ] = None  # fmt: skip
    guidance: Annotated[
        float | None,
        Setting(
            "Guidance scale.", "--guidance", panel=RUNNING, metavar="W",
            default="5 for a source, 1 for a target; a bundled model's own",
        ),
    ] = None  # fmt: skip
    sampler: Annotated[
        Literal["euler", "renoise"] | None,
        Setting(
            "Sampler: euler, or renoise for models distilled by distribution matching.", "--sampler", panel=RUNNING,
            metavar="NAME", default="the scheduler's, else euler",
        ),
    ] = None  # fmt: skip
    latents: Annotated[
        tuple[Annotated[int, Field(gt=0)], Annotated[int, Field(gt=0)], Annotated[int, Field(gt=0)]] | None,
        BeforeValidator(_size),
        Setting(
            "Size of the clips in latents (frames, height, width), such as 5x32x56.", "--latents", panel=RUNNING,
            metavar="FxHxW",
        ),
    ] = None  # fmt: skip
    device: Annotated[str, Setting("Device: auto, cpu, cuda, cuda:1 or mps. A model in memory stays where it is.")] = (
        "auto"
    )
    offload: Annotated[
        bool,
        Setting("Keep the weights on the CPU, and one layer at a time on the device.", "--offload", panel=RUNNING),
    ] = False
    checkpoint: Annotated[
        PathText | None,
        Setting(
            "Location of the weights on disk, for a model in memory. By default, where diffusers loaded it from.",
            path=True,
        ),
    ] = None

    def check(self) -> None:
        """Refuse settings that contradict each other. Raises UsageError."""
        spoken = {name: getattr(self, name) for name in ("steps", "times", "shift", "guidance", "sampler")}
        given = [name for name, value in spoken.items() if value is not None]
        if self.schedule is not None and given:
            raise UsageError(
                "parts of the schedule are given twice", values=f"a whole schedule, and {', '.join(given)}",
                fix="leave out either the schedule, which holds times, guidance and sampler, or the others",
            )  # fmt: skip
        if self.times is not None and (self.steps is not None or self.shift is not None):
            raise UsageError(
                "the times are given one by one, so steps and shift contradict them",
                values=", ".join(name for name in ("times", "steps", "shift") if name in given),
                fix="leave out the times, or both steps and shift",
            )
        falling = all(a > b for a, b in itertools.pairwise((*(self.times or ()), 0.0)))
        if self.times and (self.times[0] > TIMESTEPS or not falling):
            raise UsageError(
                f"the times must fall, from {TIMESTEPS} or less, and stay above 0",
                values=", ".join(f"{time:g}" for time in self.times),
                fix="give time steps such as 1000,757,522",
            )

    def given(self, guidance: float = 1.0) -> Schedule | None:
        """The schedule, if the settings say all of it.

        Args:
            guidance: where none is given.
        """
        if self.schedule is not None or self.times is None:
            return self.schedule
        return self.over(Schedule((*(time / TIMESTEPS for time in self.times), 0.0), guidance))

    def over(self, schedule: Schedule) -> Schedule:
        """Another schedule with the guidance and the sampler that are given here."""
        return dataclasses.replace(
            schedule,
            guidance=schedule.guidance if self.guidance is None else float(self.guidance),
            sampler=self.sampler or schedule.sampler,
        )


NO_SETTINGS = SamplingSettings()


def settle(settings: SamplingSettings, scheduler: "SchedulerMixin | None", *, role: str, where: str) -> Schedule:
    """The schedule of a model that has no card.

    Args:
        settings: what the user says.
        scheduler: the model's own, if it has one.
        role: `source` or `target`.
        where: the model, for messages.

    Raises:
        UsageError: nobody says how many steps, or the scheduler is of a kind that is not understood.
    """
    guidance = GUIDANCE.get(role, 1.0)
    given = settings.given(guidance)
    if given is not None:
        return given
    if settings.steps is None:
        raise UsageError(
            f"the time steps of the {role} are not given", where=where,
            fix=
                f"give --{role}-steps 30 or --{role}-times 1000,757,522, for example; in Python "
                f"{role}_sampling=SamplingSettings(steps=30)",
        )  # fmt: skip
    if settings.shift is not None or scheduler is None:
        found = Schedule.even(settings.steps, shift=1.0 if settings.shift is None else settings.shift)
    else:
        found = schedule_of(scheduler, settings.steps, role=role, where=where)
    return settings.over(dataclasses.replace(found, guidance=guidance))


def schedule_of(scheduler: "SchedulerMixin", steps: int, *, role: str = "model", where: str = "") -> Schedule:
    """The times that a flow-matching scheduler of diffusers takes, its shift included; the scheduler is not changed.

    The times are followed by Euler steps, or by fresh noise where the scheduler samples stochastically. UniPC's
    higher order is not imitated: its times are taken, its correction is not.

    Args:
        scheduler: `FlowMatchEulerDiscreteScheduler`, or `UniPCMultistepScheduler` with `use_flow_sigmas`.
        steps: number of sampling steps.

    Raises:
        UsageError: another kind, or one whose times depend on more than the number of steps.
    """
    name, facts = type(scheduler).__name__, scheduler.config
    why = None
    if name not in KNOWN:
        why = f"a {name}"
    elif name == "UniPCMultistepScheduler" and not facts.get("use_flow_sigmas"):
        why = "a UniPCMultistepScheduler without use_flow_sigmas"
    elif facts.get("use_dynamic_shifting"):
        why = f"a {name} whose shift depends on the size of the clip (use_dynamic_shifting)"
    elif facts.get("invert_sigmas"):
        why = f"a {name} whose times run the other way (invert_sigmas)"
    elif facts.get("num_train_timesteps", TIMESTEPS) != TIMESTEPS:
        why = f"a {name} that counts {facts['num_train_timesteps']} time steps"
    if why is not None:
        raise _not_understood(why, role, where)
    own = copy.deepcopy(scheduler)
    own.set_timesteps(steps)
    times = tuple(min(1.0, max(0.0, value)) for value in own.sigmas.double().tolist())
    if times[-1] != 0:
        raise _not_understood(f"a {name} that stops at {times[-1]:g} instead of 0", role, where)
    return Schedule(times, sampler="renoise" if facts.get("stochastic_sampling") else "euler")


def scheduler_in(folder: Path, *, role: str) -> "SchedulerMixin | None":
    """The scheduler that lies in a diffusers folder, or None where there is none.

    Raises:
        FileError: its configuration cannot be read.
        UsageError: a kind that is not understood.
    """
    file = folder / "scheduler" / "scheduler_config.json"
    if not file.is_file():
        return None
    name = read_json(file, "scheduler's configuration").get("_class_name")
    if name not in KNOWN:
        raise _not_understood(f"a {name}", role, str(file))
    import diffusers

    return getattr(diffusers, name).from_pretrained(folder, subfolder="scheduler")


def _not_understood(why: str, role: str, where: str) -> UsageError:
    return UsageError(
        f"the time steps of the {role} cannot be taken from its scheduler",
        where=where or None,
        values=f"{why}; supported: FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler with use_flow_sigmas",
        fix=f"give them: --{role}-shift or --{role}-times; in Python {role}_sampling=SamplingSettings(steps=..., "
        "shift=...) or SamplingSettings(schedule=Schedule(...))",
    )  # fmt: skip
