"""The fit: moments against the true Jacobian, the closed form against what it says, the two solvers."""

import pytest
import torch

from loraport.adapters.parse import open_adapter
from loraport.calibration.attach import Attached
from loraport.calibration.directions import Directions, gains
from loraport.calibration.gradient import objective, solve_by_gradient
from loraport.calibration.moments import EMPTY, NOW, PROMPTED, Moments
from loraport.calibration.probes import source_responses, target_moments, visited
from loraport.sampling.rollout import Stage, draw_noise


@pytest.fixture
def setting(lora, source, target, prompts):
    """Everything up to the moments, on four probes."""
    update = {name: layer.load() for name, layer in open_adapter(lora).layers.items()}
    directions = Directions(tuple(gains(update, "type-depth")))
    some = prompts.take(0, 4)
    noise = draw_noise(target.latents, range(4))
    far, near = Stage.of(source, 4), Stage.of(target, 4)
    with Attached(near.denoiser, directions) as attached:
        attached.put_on(directions.start())
        states = visited(near, noise, some)
    with Attached(far.denoiser, directions) as attached:
        responses = source_responses(far, attached, directions.start(), states, target.schedule.times[:-1], some)
    with Attached(near.denoiser, directions) as attached:
        moments = target_moments(near, attached, directions, states, responses, some, step=0.02)
    return near, directions, states, responses, some, moments


def test_moments_are_inner_products_of_the_true_jacobian(setting):
    stage, directions, states, responses, some, moments = setting
    times = stage.schedule.times

    def velocities(c):
        with Attached(stage.denoiser, directions, beside=True) as attached:
            attached.put_on(c)
            return torch.stack([stage.denoiser.velocity(x, t, some.prompts) for x, t in zip(states, times[:-1])])  # noqa: B905

    J = torch.autograd.functional.jacobian(velocities, directions.start(), vectorize=True)
    now = velocities(directions.start()) - velocities(torch.zeros_like(directions.start()))
    for at in range(len(times) - 1):
        columns = torch.cat([J[at].flatten(0, -2).T, now[at].reshape(1, -1), responses[:, at].flatten(1)]).double()
        exact = columns @ columns.T / columns.shape[1]
        scale = exact.diagonal().sqrt()
        assert ((moments.gram[at] - exact).abs() / torch.outer(scale, scale)).max() < 1e-2


def test_the_closed_form_is_the_minimum_of_what_it_says(setting):
    *_, moments = setting
    start = torch.ones(moments.count, dtype=torch.float64)
    free = list(range(moments.count))
    rho = 0.3
    c = moments.ridge(start, guidance=1.5, penalty=rho, free=free)
    s = moments.gram.sum(0).diagonal()[free].mean()

    def value(x):
        return moments.loss(start, x, 1.5) * len(moments.gram) + float(rho * s * (x - start).square().sum())

    for k in free:
        for nudge in (-1e-3, 1e-3):
            moved = c.clone()
            moved[k] += nudge
            assert value(moved) >= value(c)


def test_a_huge_penalty_gives_back_the_start_and_unfree_coefficients_stay(setting):
    *_, moments = setting
    start = torch.ones(moments.count, dtype=torch.float64)
    free = list(range(moments.count))
    assert torch.allclose(moments.ridge(start, guidance=2.0, penalty=1e9, free=free), start, atol=1e-6)
    some = moments.ridge(start, guidance=2.0, penalty=0.1, free=free[:3])
    assert torch.equal(some[3:], start[3:])
    assert not torch.allclose(some[:3], start[:3])


def test_equal_models_want_gains_of_one(lora, source, prompts):
    update = {name: layer.load() for name, layer in open_adapter(lora).layers.items()}
    directions = Directions(tuple(gains(update)))
    stage = Stage.of(source, 4)
    some = prompts.take(0, 4)
    states = draw_noise(source.latents, range(4))[None].repeat(6, 1, 1, 1, 1, 1)
    with Attached(stage.denoiser, directions) as attached:
        responses = source_responses(stage, attached, directions.start(), states, source.schedule.times[:-1], some)
        plain = Stage(stage.denoiser, type(source.schedule)(source.schedule.times), 4)
        moments = target_moments(plain, attached, directions, states, responses, some)
    c = moments.ridge(directions.start(), guidance=1.0, penalty=1e-6, free=list(range(moments.count)))
    assert torch.allclose(c, directions.start(), atol=1e-3)


def test_forward_passes_reach_the_gain_of_gradients(setting):
    stage, directions, states, responses, some, moments = setting
    w, rho = 1.5, 0.1
    start = directions.start()
    strength = rho * float(moments.gram.sum(0).diagonal()[: moments.count].mean())
    wanted = responses[1] + w * (responses[0] - responses[1])

    def value(c):
        with Attached(stage.denoiser, directions, beside=True) as attached:
            data = objective(stage, attached, c, states, wanted, some)
        return float(data) + strength * float((c - start).square().sum())

    free, s = list(range(moments.count)), moments.scale(list(range(moments.count)))
    closed = moments.ridge(start, guidance=w, penalty=rho, free=free)
    first = value(start) - value(closed)
    with Attached(stage.denoiser, directions) as attached:
        again = target_moments(stage, attached, directions, states, responses, some, step=0.02, around=closed)
    closed = again.ridge(start, guidance=w, penalty=rho, free=free, around=closed, scale=s)
    by_gradient = solve_by_gradient(
        stage, directions, states, responses, some, guidance=w, strength=strength, steps=80, rate=0.05
    )
    gain, gain_by_gradient = (value(start) - value(c) for c in (closed, by_gradient))
    assert gain_by_gradient > 0
    assert first > 0.8 * gain_by_gradient  # one round; the toy is far from linear
    assert gain > 0.9 * gain_by_gradient


def test_columns_of_what_is_wanted():
    moments = Moments(torch.eye(5, dtype=torch.float64)[None])
    weights = moments.wanted(3.0)
    assert (weights[NOW], weights[PROMPTED], weights[EMPTY]) == (0.0, 3.0, -2.0)
