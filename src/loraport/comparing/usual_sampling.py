"""How a well-known distilled model is sampled (`adapters/distilled.yaml`), for those who do not say it."""

from loraport.adapters.distilled import Distilled
from loraport.sampling.schedule import SamplingSettings


def usual_sampling(known: Distilled) -> SamplingSettings:
    """As its authors sample it."""
    return SamplingSettings(
        steps=known.steps,
        times=known.times or None,
        shift=known.shift,
        guidance=known.guidance,
        sampler=None if known.sampler == "euler" else known.sampler,
    )


def filled(settings: SamplingSettings, known: SamplingSettings) -> SamplingSettings:
    """What the user says, and of the rest what is known."""
    times_said = any(value is not None for value in (settings.steps, settings.times, settings.shift))
    clock = () if times_said else ("steps", "times", "shift")
    names = [name for name in (*clock, "guidance", "sampler") if getattr(settings, name) is None]
    return settings.model_copy(update={name: getattr(known, name) for name in names})
