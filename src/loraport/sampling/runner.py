"""Running a model: velocities under guidance, sampling to the end, batches, and a count of passes."""

import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from threading import Lock

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from loraport.errors import NumericalError
from loraport.machine import cores
from loraport.sampling.denoiser import Conditions, Denoiser, Runnable
from loraport.sampling.schedule import Schedule
from loraport.threads import one_thread_each


def draw_noise(shape: tuple[int, ...], seeds: Sequence[int]) -> Float[Tensor, "n ..."]:
    """Starting noise, one clip per seed; a clip's noise does not depend on its neighbours."""
    rows = [torch.randn(shape, generator=Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(rows) if rows else torch.empty(0, *shape)


@dataclass
class ModelRunner:
    """One model at work.

    Attributes:
        denoiser: the model in memory.
        schedule: how it is sampled.
        batch: clips a pass.
        small: run batches side by side on one thread each (tiny models on a CPU).
        passes: forward passes so far, of one clip each.
    """

    denoiser: Denoiser
    schedule: Schedule
    batch: int = 16
    small: bool = False
    passes: int = 0
    _lock: Lock = field(default_factory=Lock)

    @classmethod
    def open(cls, model: Runnable, batch: int = 16) -> "ModelRunner":
        """Load the model."""
        return cls(model.open(), model.schedule, batch, model.small)

    def velocity(
        self, x: Float[Tensor, "n ..."], time: float, condition: Float[Tensor, "n ..."]
    ) -> Float[Tensor, "n ..."]:
        """One pass. Raises NumericalError where the model's answer is not finite."""
        made = self.denoiser.velocity(x, time, condition)
        with self._lock:
            self.passes += len(x)
        if not bool(torch.isfinite(made).all()):
            raise NumericalError(
                "the model's output is not finite",
                values=f"at time {time:g}",
                fix="use a wider dtype, or check that the LoRA and the model belong together",
            )
        return made

    def guided(
        self, x: Float[Tensor, "n ..."], time: float, prompts: Float[Tensor, "n ..."], empty: Float[Tensor, "1 ..."]
    ) -> Float[Tensor, "n ..."]:
        """`v_empty + w (v_prompt - v_empty)` with the model's own guidance w; a single pass when w is 1."""
        w = self.schedule.guidance
        if w == 1:
            return self.velocity(x, time, prompts)
        both = self.velocity(torch.cat([x, x]), time, torch.cat([prompts, empty.expand_as(prompts)]))
        prompted, unprompted = both.chunk(2)
        return unprompted + w * (prompted - unprompted)

    def velocities(
        self, states: Float[Tensor, "t n ..."], times: Sequence[float], conditions: Conditions
    ) -> Float[Tensor, "t n ..."]:
        """The velocity as this model is used, with its own guidance, at given states, a row a time."""
        rows = [
            self.map(lambda a, p, t=time: self.guided(a, t, p, conditions.empty), x, conditions.prompts)
            for x, time in zip(states, times, strict=True)
        ]
        return torch.stack(rows)

    def sample(
        self,
        noise: Float[Tensor, "n ..."],
        conditions: Conditions,
        *,
        seed: int = 0,
        visits: list[Tensor] | None = None,
    ) -> Float[Tensor, "n ..."]:
        """Clips, sampled to the end.

        Args:
            noise: at time 1.
            conditions: one row a clip.
            seed: of the fresh noise of a `renoise` schedule.
            visits: gets the state at every time step, whole batches in order.
        """
        times = self.schedule.times
        renoises = self.schedule.sampler == "renoise"
        fresh = [_like(noise, seed + step) for step in range(1, len(times) - 1)] if renoises else []

        def steps(x: Tensor, prompts: Tensor, *extra: Tensor) -> Tensor:
            seen = []
            for step, (now, then) in enumerate(itertools.pairwise(times)):
                seen.append(x)
                v = self.guided(x, now, prompts, conditions.empty)
                if not renoises:
                    x = x + (then - now) * v
                else:
                    clean = x - now * v
                    x = clean if then == 0 else (1 - then) * clean + then * extra[step]
            return torch.stack([*seen, x] if visits is not None else [x], 1)

        path = self.map(steps, noise, conditions.prompts, *fresh)
        if visits is not None:
            visits.extend(path[:, step] for step in range(len(times) - 1))
        return path[:, -1]

    def step(self, number: int, x: Float[Tensor, "n ..."], conditions: Conditions) -> Float[Tensor, "n ..."]:
        """One Euler step of the schedule, from the states before it, for who changes the model between steps."""
        now, then = self.schedule.times[number : number + 2]
        move = lambda a, prompts: a + (then - now) * self.guided(a, now, prompts, conditions.empty)  # noqa: E731
        return self.map(move, x, conditions.prompts)

    def map(self, function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
        """Apply to batches of rows and join the results; small models run several batches side by side.

        Runs without gradients, whether or not the caller does; the result is an ordinary tensor in both cases.
        """

        def task(*parts: Tensor) -> Tensor:
            with torch.inference_mode():  # belongs to a thread, so it is entered in each
                return function(*parts)

        batches = list(zip(*(tensor.split(self.batch) for tensor in tensors), strict=True))
        if self.small and len(batches) > 1:
            with ThreadPoolExecutor(min(cores(), len(batches))) as pool:
                done = list(pool.map(lambda parts: task(*parts), batches))
        else:
            done = [task(*parts) for parts in batches]
        with torch.inference_mode(False):
            return torch.cat(done)

    def threads(self) -> AbstractContextManager[None]:
        """How a run of this model uses the cores."""
        return one_thread_each() if self.small else nullcontext()


def _like(noise: Tensor, seed: int) -> Tensor:
    seeds = range(seed * 1_000_003, seed * 1_000_003 + len(noise))
    return draw_noise(tuple(noise.shape[1:]), seeds).to(noise.device)
