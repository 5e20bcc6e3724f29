"""Running a model: batches, guidance, samplers, schedules, settings."""

import pytest
import torch

import toys
from loraport.errors import NumericalError, UsageError
from loraport.sampling.runner import ModelRunner, draw_noise
from loraport.sampling.schedule import SamplingSettings, Schedule


@pytest.fixture
def made(tmp_path):
    return toys.write(tmp_path)


def test_batches_and_threads_change_nothing_but_rounding(made):
    noise, some = draw_noise(made.target.latents, range(7)), made.prompts.take(0, 7)
    ways = [
        ModelRunner.open(made.target, 7),
        ModelRunner.open(made.target, 2),
        ModelRunner(made.target.open(), made.target.schedule, 2, small=True),
    ]
    clips = [runner.sample(noise, some) for runner in ways]
    assert torch.allclose(clips[0], clips[1], atol=1e-5)
    assert torch.equal(clips[1], clips[2])
    assert [runner.passes for runner in ways] == [14, 14, 14]


def test_guidance_counts_two_passes_and_mixes_them(made):
    runner = ModelRunner.open(made.source, 4)
    x, some = draw_noise(made.source.latents, range(2)), made.prompts.take(0, 2)
    (v,) = runner.velocities(x[None], (0.5,), some)
    empty = some.empty.expand_as(some.prompts)
    with_prompt, without = (runner.denoiser.velocity(x, 0.5, p) for p in (some.prompts, empty))
    assert torch.allclose(v, without + 2.0 * (with_prompt - without), atol=1e-5)
    assert runner.passes == 4


def test_renoising_is_the_same_every_time_and_another_way(made):
    schedule = Schedule((1.0, 0.757, 0.522, 0.0), 1.0, "renoise")
    noise, some = draw_noise(made.target.latents, range(3)), made.prompts.take(0, 3)
    visits = []
    runner = ModelRunner(made.target.open(), schedule, 2)
    first, again = runner.sample(noise, some, seed=1, visits=visits), runner.sample(noise, some, seed=1)
    assert torch.equal(first, again)
    assert len(visits) == 3
    assert torch.equal(visits[0], noise)
    assert not torch.equal(first, runner.sample(noise, some, seed=2))


def test_noise_depends_on_its_own_seed_only():
    assert torch.equal(draw_noise((2, 3), [3, 7])[1], draw_noise((2, 3), [7])[0])
    assert draw_noise((2, 3), []).shape == (0, 2, 3)


@pytest.mark.parametrize("times", [(1.0,), (1.0, 0.5), (0.5, 1.0, 0.0), (1.2, 0.0)])
def test_odd_schedules_are_refused(times):
    with pytest.raises(UsageError, match="times"):
        Schedule(times)


def test_times_are_shifted_towards_noise():
    assert Schedule.even(4, shift=2.0).times == pytest.approx((1, 6 / 7, 2 / 3, 2 / 5, 0))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"schedule": Schedule((1.0, 0.0)), "steps": 3}, r"(?s)given twice.*try: "),
        ({"times": (1000.0, 500.0), "steps": 3}, "contradict"),
        ({"times": (1000.0, 500.0), "shift": 3.0}, "contradict"),
        ({"steps": 0}, "steps"),
        ({"shift": 0.0}, "shift"),
    ],
)
def test_settings_that_contradict_themselves_are_refused(given, says):
    with pytest.raises(UsageError, match=says):
        SamplingSettings(**given)


def test_times_may_be_given_one_by_one():
    given = SamplingSettings(times=(1000.0, 757.0, 522.0), sampler="renoise").given()
    assert given == Schedule((1.0, 0.757, 0.522, 0.0), 1.0, "renoise")


def test_an_output_that_is_not_finite_is_refused(tmp_path, made):
    broken = ModelRunner.open(toys.toy("broken", made.target.checkpoint, broken=True), 4)
    with pytest.raises(NumericalError, match="not finite"):
        broken.sample(draw_noise(toys.LATENTS, range(2)), made.prompts.take(0, 2))
