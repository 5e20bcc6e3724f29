"""The choice: how far clips are from those of source + LoRA, as the source judges them, and what is taken."""

import pytest
import torch

from loraport.adapters.parse import open_adapter
from loraport.calibration.choice import Choice, Scored, ranked
from loraport.calibration.diagnosis import Diagnosis, Effect, Shown
from loraport.calibration.gap import TIMES, LatentDistance, LikelihoodGap, denoising_errors, likelihood_ratio
from loraport.core.bootstrap import Bootstrap
from loraport.sampling.attach import attached
from loraport.sampling.runner import ModelRunner, draw_noise

NOISES = 9


@pytest.fixture
def update(made):
    return {name: layer.load() for name, layer in open_adapter(made.lora).layers.items()}


def _sampled(runner, update, noise, some):
    with attached(runner.denoiser, update):
        return runner.sample(noise, some)


def test_the_clips_of_source_and_lora_leave_no_gap_and_those_of_the_source_the_whole(update, made):
    noise, some = draw_noise(made.source.latents, range(NOISES)), made.prompts.take(0, NOISES)
    runner = ModelRunner.open(made.source, 4)
    clips = {"B": _sampled(runner, update, noise, some), "A": runner.sample(noise, some)}
    columns = {name: denoising_errors(runner, update, x, some) for name, x in clips.items()}
    gap = LikelihoodGap.of(columns["B"], columns["A"])
    assert gap is not None
    once = torch.ones(1, NOISES, dtype=torch.float64)
    assert gap.values(columns["B"], once).item() == pytest.approx(0.0, abs=1e-12)
    half, sees = len(TIMES), gap.sees
    assert bool(sees.any())
    excess = (columns["A"][:half].mean(1) / columns["B"][:half].mean(1) - 1).clamp_min(0)
    assert gap.values(columns["A"], once).item() == pytest.approx(1.0 + excess[sees].mean().item())


def test_errors_are_those_of_the_velocity_at_noisy_clips(update, made):
    noise, some = draw_noise(made.source.latents, range(3)), made.prompts.take(0, 3)
    runner = ModelRunner.open(made.source, 2)
    clips = runner.sample(noise, some)
    before = runner.passes
    columns = denoising_errors(runner, update, clips, some)
    fewer = denoising_errors(runner, update, clips[:2], some)
    assert runner.passes - before == 2 * len(TIMES) * (3 + 2)
    assert torch.allclose(columns[:, :2], fewer)  # a clip's noise is its own
    assert likelihood_ratio(columns).abs().max() > 0
    assert torch.equal(runner.sample(noise, some), clips)  # the model is left as it was


def test_where_the_source_sees_no_difference_it_is_no_critic():
    made = torch.Generator().manual_seed(0)
    clips = torch.rand(2, 8, generator=made)
    assert LikelihoodGap.of(clips, clips + 1e-9 * torch.rand(2, 8, generator=made)) is None


def test_a_time_at_which_nothing_is_seen_does_not_count():
    aim = torch.tensor([[1.0, 1.0], [1.0, 1.0], [3.0, 3.1], [1.0, 1.2]])
    alone = torch.tensor([[2.0, 2.1], [1.0, 1.0], [2.0, 2.0], [1.2, 1.0]])
    gap = LikelihoodGap.of(aim, alone)
    assert gap.sees.tolist() == [True, False]
    once = torch.ones(1, 2, dtype=torch.float64)
    far = torch.tensor([[1.0, 1.0], [9.0, 9.0], [3.0, 3.1], [9.0, 9.0]]).double()
    assert gap.values(far, once).item() == pytest.approx(0.0, abs=1e-6)


def test_overshoot_is_no_gap_as_long_as_the_clips_are_as_likely():
    gap = LikelihoodGap.of(torch.tensor([[1.0, 1.0], [3.0, 3.0]]), torch.tensor([[2.0, 2.1], [2.0, 2.0]]))
    once = torch.ones(1, 2, dtype=torch.float64)
    assert gap.values(torch.tensor([[0.9, 0.9], [4.0, 4.0]]).double(), once).item() == 0.0
    assert gap.values(torch.tensor([[1.5, 1.5], [4.0, 4.0]]).double(), once).item() == pytest.approx(0.5)


class _Named:
    """As much of a candidate as a choice looks at."""

    def __init__(self, label):
        self.label = label


def _scored(label, gaps, latents, share=0.5):
    bootstrap = Bootstrap.of(len(gaps), draws=200)
    each = object.__new__(Scored)
    for name, value in {
        "candidate": _Named(label),
        "gap": bootstrap.estimate(lambda weights: LatentDistance().values(torch.tensor([gaps]), weights)),
        "latents": bootstrap.mean(torch.tensor([latents])),
        "effect": Effect(Shown("finished clips", share, share, 1.0)),
    }.items():
        object.__setattr__(each, name, value)
    return each


def test_the_reason_names_the_gain_a_tie_and_a_disagreement():
    plain = _scored("direct", [1.0, 1.2, 0.9, 1.1], [0.1] * 4)
    clear = _scored("direct x1.5", [0.5, 0.7, 0.4, 0.6], [0.3] * 4)
    close = _scored("casa", [0.2, 1.2, 0.1, 0.9], [0.2] * 4)
    choice = Choice((clear, close, plain), plain, "")
    assert choice.chosen is clear
    assert "0.500 ± 0.000 smaller than that of the LoRA as it is" in choice.reason
    assert "casa is as near within the noise" in choice.reason
    assert "by the distance of finished latents, which favours weak effects, it would be direct" in choice.reason


def test_the_reason_says_why_what_is_nearer_was_not_taken():
    plain = _scored("direct", [1.0, 1.2, 0.9, 1.1], [0.1] * 4, share=0.6)
    less = _scored("casa", [0.5, 0.7, 0.4, 0.6], [0.3] * 4, share=0.4)
    reason = Choice(ranked([plain, less]), plain, "").reason
    assert "nothing that was tried is clearly nearer to source + LoRA and shows as much of the LoRA" in reason
    assert "casa is nearer, but shows less of the LoRA" in reason
    assert "within the noise" not in reason
    about = _scored("casa", [0.2, 1.4, 0.1, 1.1], [0.3] * 4, share=0.4)
    reason = Choice(ranked([plain, about]), plain, "").reason
    assert "casa is as near within the noise, but shows less of the LoRA" in reason


@pytest.mark.parametrize(
    ("share_before", "other", "taken"),
    [
        (0.6, _scored("clearly nearer", [0.5, 0.7, 0.4, 0.6], [0.3] * 4, share=0.6), True),
        (0.6, _scored("nearer within the noise", [0.2, 1.4, 0.1, 1.1], [0.3] * 4, share=0.6), False),
        (0.6, _scored("nearer, but shows less", [0.5, 0.7, 0.4, 0.6], [0.3] * 4, share=0.4), False),
        (1.4, _scored("less of what was too much", [0.5, 0.7, 0.4, 0.6], [0.3] * 4, share=1.0), True),
    ],
)
def test_the_lora_as_it_is_stays_unless_another_is_clearly_nearer_and_shows_as_much(share_before, other, taken):
    plain = _scored("direct", [1.0, 1.2, 0.9, 1.1], [0.1] * 4, share=share_before)
    worse = _scored("worse", [2.0, 2.2, 1.9, 2.1], [0.1] * 4, share=1.0)
    ranking = ranked([plain, worse, other])
    assert (ranking[0] is other) == taken
    assert (ranking[0] is plain) != taken
    assert {id(each) for each in ranking} == {id(plain), id(worse), id(other)}


def test_errors_are_of_paired_differences():
    a, b = _scored("a", [1.0, 2.0, 3.0, 4.0], [0.0] * 4), _scored("b", [1.1, 2.1, 3.1, 4.1], [0.0] * 4)
    assert a.gap.error > 0.3
    assert (b.gap - a.gap).error == pytest.approx(0.0, abs=1e-6)
    assert (b.gap - a.gap).value == pytest.approx(0.1)


def test_what_is_shown():
    e = torch.tensor([3.0, 4.0])
    half = Shown.of("here", e / 2, e)
    assert (half.share, half.ratio, half.cosine) == pytest.approx((0.5, 0.5, 1.0))
    across = Shown.of("here", torch.tensor([-4.0, 3.0]), e)
    assert (across.share, across.ratio, across.cosine) == pytest.approx((0.0, 1.0, 0.0))
    assert Shown.of("here", e, torch.zeros(2)).share == 0.0


def test_the_sentence_says_what_calibration_changes():
    before, after = (Effect(Shown("finished clips", share, 1.0, 1.0)) for share in (0.65, 0.91))
    assert "shows 65 % (calibrated 91 %) of the change" in Diagnosis(3.0, before, after).sentence
    assert "calibrated" not in Diagnosis(3.0, before, before).sentence
