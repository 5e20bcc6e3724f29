"""Running a model: velocities under guidance, roll-outs to the end, batches, and a count of passes."""

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from threading import Lock

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from loraport.errors import NumericalError
from loraport.sampling.denoiser import Conditions, Denoiser, Runnable, Schedule
from loraport.threads import cores, one_thread_each


def draw_noise(shape: tuple[int, ...], seeds: range) -> Float[Tensor, "n ..."]:
    """Starting noise, one clip per seed; a clip's noise does not depend on its neighbours."""
    return torch.stack([torch.randn(shape, generator=Generator().manual_seed(seed)) for seed in seeds])


@dataclass
class Stage:
    """One model at work: batches, threads and the count of forward passes (of one clip each)."""

    denoiser: Denoiser
    schedule: Schedule
    batch: int = 16
    small: bool = False
    passes: int = 0
    _lock: Lock = field(default_factory=Lock)

    @classmethod
    def of(cls, model: Runnable, batch: int) -> "Stage":
        """Open the model."""
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
        self,
        x: Float[Tensor, "n ..."],
        time: float,
        prompts: Float[Tensor, "n ..."],
        empty: Float[Tensor, "n ..."],
        guidance: float,
    ) -> Float[Tensor, "n ..."]:
        """`v_empty + w (v_prompt - v_empty)`; a single pass when w is 1."""
        if guidance == 1:
            return self.velocity(x, time, prompts)
        both = self.velocity(torch.cat([x, x]), time, torch.cat([prompts, empty]))
        prompted, unprompted = both.chunk(2)
        return unprompted + guidance * (prompted - unprompted)

    def own(self, x: Float[Tensor, "n ..."], time: float, conditions: Conditions) -> Float[Tensor, "n ..."]:
        """The velocity as this model is used, with its own guidance, batch by batch."""
        return self.map(
            lambda a, p: self.guided(a, time, p, conditions.empty.expand_as(p), self.schedule.guidance),
            x,
            conditions.prompts,
        )

    def roll_out(
        self,
        noise: Float[Tensor, "n ..."],
        conditions: Conditions,
        *,
        seed: int = 0,
        visits: list[Tensor] | None = None,
    ) -> Float[Tensor, "n ..."]:
        """Sample to the end.

        Args:
            noise: at time 1. conditions: one row a clip.
            seed: of the fresh noise of a `renoise` schedule; the same for every candidate.
            visits: gets the state at every time step, whole batches in order.
        """
        times = self.schedule.times
        fresh = [_like(noise, seed + step) for step in range(1, len(times) - 1)] if self._renoises else []

        def steps(x: Tensor, prompts: Tensor, *extra: Tensor) -> Tensor:
            empty = conditions.empty.expand_as(prompts)
            seen = []
            for step, (now, then) in enumerate(itertools.pairwise(times)):
                seen.append(x)
                v = self.guided(x, now, prompts, empty, self.schedule.guidance)
                if not self._renoises:
                    x = x + (then - now) * v
                else:
                    clean = x - now * v
                    x = clean if then == 0 else (1 - then) * clean + then * extra[step]
            return torch.stack([*seen, x], 1)

        path = self.map(steps, noise, conditions.prompts, *fresh)
        if visits is not None:
            visits.extend(path[:, step] for step in range(len(times) - 1))
        return path[:, -1]

    def map(self, function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
        """Apply to batches of rows and join the results; small models run several batches side by side."""

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
            return torch.cat(done)  # outside, so that a gradient may meet it later

    def threads(self) -> AbstractContextManager[None]:
        """How a run of this stage uses the cores."""
        return one_thread_each() if self.small else nullcontext()

    @property
    def _renoises(self) -> bool:
        return self.schedule.sampler == "renoise"


def _like(noise: Tensor, seed: int) -> Tensor:
    rows = [
        torch.randn(noise.shape[1:], generator=Generator().manual_seed(seed * 1_000_003 + i)) for i in range(len(noise))
    ]
    return torch.stack(rows).to(noise.device)
