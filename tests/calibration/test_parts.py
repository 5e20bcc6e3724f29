"""Groups, attaching, roll-outs, schedules and notes."""

import pytest
import torch

from loraport.adapters.parse import open_adapter
from loraport.calibration import Schedule
from loraport.calibration.attach import Attached
from loraport.calibration.diagnosis import Shown
from loraport.calibration.directions import GROUPS, Direction, Directions, gains, grouped, restores
from loraport.calibration.notes import Notes
from loraport.core.lowrank import LowRank
from loraport.errors import MismatchError, NumericalError, UsageError
from loraport.sampling.rollout import Stage, draw_noise

from .conftest import toy

LAYERS = [f"blocks.{b}.{n}" for b in range(6) for n in ("self_attn.q", "self_attn.k", "ffn.2")] + ["head.head"]


@pytest.fixture
def update(lora):
    return {name: layer.load() for name, layer in open_adapter(lora).layers.items()}


@pytest.mark.parametrize("groups", GROUPS)
def test_every_layer_is_in_exactly_one_group(groups):
    found = grouped(LAYERS, groups)
    assert sorted(name for names in found.values() for name in names) == sorted(LAYERS)


def test_groups_go_by_kind_and_depth():
    found = grouped(LAYERS, "type-depth")
    assert found["blocks 0-1 self q/k"][:2] == ["blocks.0.self_attn.q", "blocks.0.self_attn.k"]
    assert "outside the blocks other" in found
    thirty = grouped([f"blocks.{b}.ffn.2" for b in range(30)], "depth")
    assert list(thirty) == ["blocks 0-7", "blocks 8-14", "blocks 15-22", "blocks 23-29"]
    with pytest.raises(UsageError, match="grouping"):
        grouped(LAYERS, "colour")


@pytest.mark.parametrize("groups", GROUPS)
def test_the_start_is_the_lora_itself(update, groups):
    directions = Directions(tuple(gains(update, groups)))
    total = directions.total(directions.start())
    for name, term in update.items():
        assert torch.allclose(total[name].dense(), term.dense(), atol=1e-5)


def test_a_restore_share_leads_from_the_lora_to_the_transfer(update):
    moved = {name: LowRank.sum([term, term.scaled(-0.3)]) for name, term in update.items()}
    directions = Directions((*gains(update), *restores(update, moved)))
    ones = torch.ones_like(directions.start())
    for name, term in directions.total(ones).items():
        assert torch.allclose(term.dense(), moved[name].dense(), atol=1e-5)


@pytest.mark.parametrize("beside", [False, True])
def test_attaching_adds_the_update_and_leaves_no_trace(update, target, prompts, beside):
    stage, x, some = Stage.of(target, 4), draw_noise(target.latents, range(3)), prompts.take(0, 3)
    directions = Directions(tuple(gains(update)))
    before = {name: stage.denoiser.linear(name).weight.clone() for name in update}
    plain = stage.own(x, 0.5, some)
    c = torch.linspace(0.5, 2.0, len(directions.items), dtype=torch.float64)
    with Attached(stage.denoiser, directions, beside=beside) as attached:
        assert torch.equal(stage.own(x, 0.5, some), plain)
        attached.put_on(torch.ones_like(c))
        attached.put_on(c)
        turned = stage.own(x, 0.5, some)
        attached.take_off()
        assert torch.equal(stage.own(x, 0.5, some), plain)
    assert torch.equal(stage.own(x, 0.5, some), plain)
    for name, weight in before.items():
        assert torch.equal(stage.denoiser.linear(name).weight, weight)
    for name, term in directions.total(c).items():
        stage.denoiser.linear(name).weight.data += term.dense()
    assert torch.allclose(stage.own(x, 0.5, some), turned, atol=1e-4)


def test_sixteen_bit_weights_take_the_update_beside_them(target):
    denoiser = target.open()
    denoiser.network.to(torch.bfloat16)
    one = LowRank(torch.full((12, 1), 1e-4), torch.full((1, 12), 1e-4))
    directions = Directions((Direction("a", "gain", 1.0, {"blocks.0.ffn.0": one}),))
    linear = denoiser.linear("blocks.0.ffn.0")
    before = linear.weight.clone()
    with Attached(denoiser, directions) as attached:
        attached.put_on(directions.start())
        assert torch.equal(linear.weight, before)
        x = torch.ones(1, 12, dtype=torch.bfloat16)
        side = linear(x) - torch.nn.functional.linear(x, before)
        assert side.abs().max() <= 2**-7  # it ran beside the weights, and was rounded in the sum only


def test_a_lora_of_another_size_or_layer_is_refused(target):
    for layer, size in (("blocks.0.ffn.0", 5), ("blocks.9.ffn.0", 12)):
        wrong = Direction("a", "gain", 1.0, {layer: LowRank.zeros(size, 12, 1)})
        with pytest.raises(MismatchError, match="LoRA"):
            Attached(target.open(), Directions((wrong,)))


def test_batches_and_threads_change_nothing_but_rounding(target, prompts):
    noise, some = draw_noise(target.latents, range(7)), prompts.take(0, 7)
    ways = [Stage.of(target, 7), Stage.of(target, 2), Stage(target.open(), target.schedule, 2, small=True)]
    clips = [stage.roll_out(noise, some) for stage in ways]
    assert torch.allclose(clips[0], clips[1], atol=1e-5)
    assert torch.equal(clips[1], clips[2])
    assert [stage.passes for stage in ways] == [14, 14, 14]


def test_guidance_counts_two_passes_and_mixes_them(source, prompts):
    stage = Stage.of(source, 4)
    x, some = draw_noise(source.latents, range(2)), prompts.take(0, 2)
    v = stage.own(x, 0.5, some)
    empty = some.empty.expand_as(some.prompts)
    with_prompt, without = (stage.denoiser.velocity(x, 0.5, p) for p in (some.prompts, empty))
    assert torch.allclose(v, without + 2.0 * (with_prompt - without), atol=1e-5)
    assert stage.passes == 4


def test_renoising_is_the_same_every_time_and_another_way(target, prompts):
    schedule = Schedule((1.0, 0.757, 0.522, 0.0), 1.0, "renoise")
    noise, some = draw_noise(target.latents, range(3)), prompts.take(0, 3)
    visits = []
    stage = Stage(target.open(), schedule, 2)
    first, again = stage.roll_out(noise, some, seed=1, visits=visits), stage.roll_out(noise, some, seed=1)
    assert torch.equal(first, again)
    assert len(visits) == 3
    assert torch.equal(visits[0], noise)
    assert not torch.equal(first, stage.roll_out(noise, some, seed=2))


@pytest.mark.parametrize("times", [(1.0,), (1.0, 0.5), (0.5, 1.0, 0.0), (1.2, 0.0)])
def test_odd_schedules_are_refused(times):
    with pytest.raises(UsageError, match="times"):
        Schedule(times)


def test_an_output_that_is_not_finite_is_refused(prompts):
    broken = Stage.of(toy("broken", broken=True), 4)
    with pytest.raises(NumericalError, match="not finite"):
        broken.roll_out(draw_noise((4, 2, 3, 3), range(2)), prompts.take(0, 2))


def test_what_is_shown():
    e = torch.tensor([3.0, 4.0])
    half = Shown.of("here", e / 2, e)
    assert (half.share, half.ratio, half.cosine) == pytest.approx((0.5, 0.5, 1.0))
    across = Shown.of("here", torch.tensor([-4.0, 3.0]), e)
    assert (across.share, across.ratio, across.cosine) == pytest.approx((0.0, 1.0, 0.0))
    assert Shown.of("here", e, torch.zeros(2)).share == 0.0


def test_notes_are_found_again_unless_damaged_or_of_other_facts(tmp_path):
    made = []

    def make():
        made.append(1)
        return torch.arange(3.0)

    for facts, times in (({"a": 1}, 1), ({"a": 1}, 1), ({"a": 2}, 2)):
        assert torch.equal(Notes(tmp_path, facts).once("x", make), torch.arange(3.0))
        assert len(made) == times
    for file in tmp_path.iterdir():
        file.write_bytes(b"cut short")
    Notes(tmp_path, {"a": 1}).once("x", make)
    assert len(made) == 3
    Notes(None, {"a": 1}).once("x", make)
    assert len(made) == 4
