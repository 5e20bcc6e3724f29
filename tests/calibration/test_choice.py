"""The choice: how far clips are from those of source + LoRA, as the source reads them, and what is taken."""

import pytest
import torch

from loraport.adapters.parse import open_adapter
from loraport.calibration.attach import Attached
from loraport.calibration.candidates import Candidate, Judge, Scored, Seen, rolled
from loraport.calibration.directions import Direction, Directions
from loraport.calibration.gaps import TIMES, Latents, Reading, evidence, read
from loraport.sampling.rollout import Stage, draw_noise

NOISES = 9


@pytest.fixture
def update(lora):
    return {name: layer.load() for name, layer in open_adapter(lora).layers.items()}


@pytest.fixture
def scene(update, source, target, prompts):
    """Strengths of the LoRA on the target, and clips of any of them."""
    noise, some = draw_noise(target.latents, range(NOISES)), prompts.take(0, NOISES)
    stage = Stage.of(target, 4)
    made = {
        name: {key: term.scaled(strength) for key, term in update.items()}
        for name, strength in {"direct": 1.0, "exact": 1.4, "off": 0.2}.items()
    }

    def clips(name):
        return rolled(stage, made[name], noise, some)

    return made, clips


def _judge(made, clips, aim):
    def look(candidates, rows):
        found = [(clips(each.label)[rows] - aim[rows]).flatten(1).square().mean(1) for each in candidates]
        return [Seen(latents[None], latents) for latents in found]

    direct = Candidate("direct", "direct", made["direct"])
    fits = [Candidate(name, "calibrated", made[name]) for name in ("exact", "off")]
    judge = Judge(Latents(), look, NOISES)
    return judge.choose(judge.score([direct]), fits)


def test_the_choice_is_the_nearest_but_only_beyond_the_noise(scene):
    made, clips = scene
    choice = _judge(made, clips, clips("exact"))
    assert choice.chosen.candidate.label == "exact"
    assert choice.chosen.distance == pytest.approx(0.0, abs=1e-9)
    assert choice.best_plain.candidate.label == "direct"
    assert _judge(made, clips, clips("direct")).chosen.candidate.label == "direct"


def test_a_gain_within_the_noise_keeps_the_plain_one():
    def scored(kind, *distances):
        columns = torch.tensor([distances])
        return Scored.of(Candidate(kind, kind, {}), Seen(columns, columns[0]), Latents())

    plain, better = scored("direct", 1.0, 1.2, 0.9, 1.1), scored("calibrated", 0.2, 2.0, 0.1, 1.8)
    gain, error = better.gain_over(plain)
    assert gain < error
    assert gain == pytest.approx(1.05 - 1.025)


def test_a_fit_that_only_one_measure_finds_nearer_is_not_taken():
    def seen(gap, latents):
        return Seen(torch.full((1, NOISES), gap), torch.full((NOISES,), latents))

    known = {"direct": seen(0.3, 0.5), "farther": seen(0.1, 0.6), "agreed": seen(0.2, 0.4)}
    judge = Judge(Latents(), lambda some, rows: [_part(known[each.label], rows) for each in some], NOISES)
    plain = judge.score([Candidate("direct", "direct", {})])
    choice = judge.choose(plain, [Candidate("farther", "calibrated", {})])
    assert choice.chosen.candidate.label == "direct"
    assert "one measure only" in choice.reason
    choice = judge.choose(plain, [Candidate(name, "calibrated", {}) for name in ("farther", "agreed")])
    assert choice.chosen.candidate.label == "agreed"
    assert choice.ranking[0].candidate.label == "farther"


def _part(seen, rows):
    return Seen(seen.columns[:, rows], seen.latents[rows])


def test_the_clips_of_source_and_lora_leave_no_gap_and_those_of_the_source_the_whole(update, source, prompts):
    noise, some = draw_noise(source.latents, range(NOISES)), prompts.take(0, NOISES)
    stage = Stage.of(source, 4)
    clips = {"B": rolled(stage, update, noise, some), "A": stage.roll_out(noise, some)}
    rows, whole = slice(0, NOISES), Directions((Direction("all", "gain", 1.0, update),))
    with Attached(stage.denoiser, whole) as attached:
        columns = {name: read(stage, attached, whole.start(), x, rows, some) for name, x in clips.items()}
    gap = Reading.of(columns["B"], columns["A"])
    assert gap is not None
    once = torch.ones(1, NOISES, dtype=torch.float64)
    assert gap.values(columns["B"], once).item() == pytest.approx(0.0, abs=1e-12)
    A = gap.values(columns["A"], once).item()
    assert bool(gap.sees.all())
    half = len(TIMES)
    excess = (columns["A"][:half].mean(1) / columns["B"][:half].mean(1) - 1).clamp_min(0).mean()
    assert pytest.approx(1.0 + excess.item()) == A


def test_a_reading_is_the_error_of_the_velocity_at_noisy_clips(update, source, prompts):
    noise, some = draw_noise(source.latents, range(3)), prompts.take(0, 3)
    stage = Stage.of(source, 2)
    clips = stage.roll_out(noise, some)
    whole = Directions((Direction("all", "gain", 1.0, update),))
    before = stage.passes
    with Attached(stage.denoiser, whole) as attached:
        columns = read(stage, attached, whole.start(), clips, slice(0, 3), some)
        later = read(stage, attached, whole.start(), clips[1:], slice(1, 3), some)
    assert stage.passes - before == 2 * len(TIMES) * (3 + 2)
    assert torch.allclose(columns[:, 1:], later)  # a clip's noise is its own
    assert evidence(columns).abs().max() > 0
    assert torch.equal(stage.roll_out(noise, some), clips)  # the model is left as it was


def test_where_the_source_sees_no_difference_it_is_no_critic():
    made = torch.Generator().manual_seed(0)
    clips = torch.rand(2, 8, generator=made)
    assert Reading.of(clips, clips + 1e-9 * torch.rand(2, 8, generator=made)) is None


def test_a_time_at_which_nothing_is_seen_does_not_count():
    aim = torch.tensor([[1.0, 1.0], [1.0, 1.0], [3.0, 3.1], [1.0, 1.2]])
    alone = torch.tensor([[2.0, 2.1], [1.0, 1.0], [2.0, 2.0], [1.2, 1.0]])
    gap = Reading.of(aim, alone)
    assert gap.sees.tolist() == [True, False]
    once = torch.ones(1, 2, dtype=torch.float64)
    far = torch.tensor([[1.0, 1.0], [9.0, 9.0], [3.0, 3.1], [9.0, 9.0]]).double()
    assert gap.values(far, once).item() == pytest.approx(0.0, abs=1e-6)


def test_overshoot_is_no_gap_as_long_as_the_clips_are_as_likely():
    gap = Reading.of(torch.tensor([[1.0, 1.0], [3.0, 3.0]]), torch.tensor([[2.0, 2.1], [2.0, 2.0]]))
    once = torch.ones(1, 2, dtype=torch.float64)
    assert gap.values(torch.tensor([[0.9, 0.9], [4.0, 4.0]]).double(), once).item() == 0.0
    assert gap.values(torch.tensor([[1.5, 1.5], [4.0, 4.0]]).double(), once).item() == pytest.approx(0.5)
