"""How a model is sampled: as the user says, as a bundled model's card says, or as the model's own scheduler does."""

import copy
import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from loraport.errors import FileError, UsageError
from loraport.sampling.denoiser import Schedule

if TYPE_CHECKING:
    from diffusers import SchedulerMixin

GUIDANCE = {"source": 5.0, "target": 1.0}
"""Where nothing is said: what `WanPipeline` is called with by default, and what distilled models are made for."""
KNOWN = ("FlowMatchEulerDiscreteScheduler", "UniPCMultistepScheduler")
TIMESTEPS = 1000  # Wan counts time from 0 to 1000


@dataclass(frozen=True)
class RunSettings:
    """How to run a model that does not say so itself (everything but the bundled ones).

    Attributes:
        schedule: time steps, guidance and sampler, all at once; goes before everything below.
        latents: frames, height, width of the probes, in latent units.
        device: `auto`, `cpu`, `cuda[:i]` or `mps`; models that are in memory already stay where they are.
        offload: keep the weights on the CPU and bring one layer at a time to the device.
        steps: sampling steps, at the times of the model's own scheduler.
        shift: time shift; the times are then even and shifted, whatever the scheduler says.
        guidance: classifier-free guidance scale; 5 for a source and 1 for a target by default.
        sampler: `euler` or `renoise`; the scheduler's by default.
    """

    schedule: Schedule | None = None
    latents: tuple[int, int, int] | None = None
    device: str = "auto"
    offload: bool = False
    steps: int | None = None
    shift: float | None = None
    guidance: float | None = None
    sampler: Literal["euler", "renoise"] | None = None

    def __post_init__(self) -> None:
        spoken = {name: getattr(self, name) for name in ("steps", "shift", "guidance", "sampler")}
        given = [f"{name} {value}" for name, value in spoken.items() if value is not None]
        if self.schedule is not None and given:
            raise UsageError("time steps are given twice", values=f"a whole schedule, and {', '.join(given)}")
        if (self.steps is not None and self.steps < 1) or (self.shift is not None and self.shift <= 0):
            raise UsageError("steps must be at least 1 and a shift above 0", values=", ".join(given))

    def over(self, schedule: Schedule) -> Schedule:
        """Another schedule with the guidance and the sampler that are given here."""
        return dataclasses.replace(
            schedule,
            guidance=schedule.guidance if self.guidance is None else float(self.guidance),
            sampler=self.sampler or schedule.sampler,
        )


NO_SETTINGS = RunSettings()


def settle(settings: RunSettings, scheduler: "SchedulerMixin | None", *, role: str, where: str) -> Schedule:
    """The schedule of a model that has no card.

    Args:
        settings: what the user says. scheduler: the model's own, if it has one.
        role: `source` or `target`. where: the model, for messages.

    Raises:
        UsageError: nobody says how many steps, or the scheduler is of a kind that is not understood.
    """
    if settings.schedule is not None:
        return settings.schedule
    if settings.steps is None:
        raise UsageError(
            f"the time steps of the {role} are not given", where=where,
            fix=f"say how it is sampled: --{role}-steps 30" + (" or --target-times 1000,757,522" if role == "target"
            else "") + f"; in Python run_{role}=RunSettings(steps=30) or RunSettings(schedule=...)",
        )  # fmt: skip
    if settings.shift is not None or scheduler is None:
        found = Schedule.even(settings.steps, shift=1.0 if settings.shift is None else settings.shift)
    else:
        found = schedule_of(scheduler, settings.steps, role=role, where=where)
    return settings.over(dataclasses.replace(found, guidance=GUIDANCE.get(role, 1.0)))


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


def scheduler_in(folder: Path, *, role: str = "model") -> "SchedulerMixin | None":
    """The scheduler that lies in a diffusers folder, or None where there is none.

    Raises:
        FileError: its configuration cannot be read.
        UsageError: a kind that is not understood.
    """
    file = folder / "scheduler" / "scheduler_config.json"
    if not file.is_file():
        return None
    try:
        name = json.loads(file.read_text(encoding="utf-8")).get("_class_name")
    except (ValueError, AttributeError, OSError) as error:
        raise FileError("the scheduler's configuration cannot be read", where=str(file), values=str(error)) from error
    if name not in KNOWN:
        raise _not_understood(f"a {name}", role, str(file))
    import diffusers

    return getattr(diffusers, name).from_pretrained(folder, subfolder="scheduler")


def _not_understood(why: str, role: str, where: str) -> UsageError:
    return UsageError(
        f"the time steps of the {role} cannot be taken from its scheduler",
        where=where or None,
        values=f"{why}; understood: FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler with use_flow_sigmas",
        fix=f"give them: --{role}-shift" + (" or --target-times" if role == "target" else "")
        + f"; in Python run_{role}=RunSettings(steps=..., shift=...) or RunSettings(schedule=Schedule(...))",
    )  # fmt: skip
