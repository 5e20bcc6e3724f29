"""The registry of tasks, the judge, and the statistics that need no learning, on drawn clips."""

import pytest
import torch
from torch import Generator

from loraport.errors import FileError, MismatchError, UsageError
from loraport.evaluate import statistics, tasks
from loraport.evaluate.judge import HEADS, ClipClassifier, Judge, cells, open_judge
from loraport.zoo import catalogue, drawing, world


def _drawn(style: str, count: int = 64, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    prompts = world.prompt_indices(world.draw_prompts(count, seed=seed))
    return prompts, drawing.render(prompts, style=style, generator=Generator().manual_seed(seed))


def test_every_bundled_lora_has_a_task():
    for name in catalogue.loras():
        assert tasks.get(catalogue.lora_card(name).style).style


def test_an_unknown_task_names_the_nearest():
    with pytest.raises(UsageError, match="did you mean 'noir'"):
        tasks.get("nior")


def test_prompts_are_seeded_different_and_of_the_task():
    task = tasks.get("ring")
    prompts = tasks.draw_prompts(task, 8, seed=3)
    assert prompts == tasks.draw_prompts(task, 8, seed=3)
    assert len(set(prompts)) == 8
    assert {prompt.shape for prompt in prompts} == {"circle"}


@pytest.mark.parametrize("task", tasks.TASKS.values(), ids=lambda task: task.style)
def test_a_lora_is_measured_on_enough_prompts_that_it_was_not_taught_on(task):
    asked = tasks.draw_prompts(task, 64, seed=0)
    assert len(asked) == 64
    assert not any(task.teaches(prompt) for prompt in asked)
    assert sum(map(task.teaches, world.all_prompts())) >= 16


def test_the_shape_is_found_where_it_was_drawn_and_moves_as_it_was_drawn():
    prompts, clips = _drawn("base")
    path = statistics.positions(clips, prompts)
    along = (path.diff(dim=1) * torch.tensor(world.HEADING)[prompts[:, 2]][:, None]).sum(-1)
    assert (along.mean(1) > 0.2).float().mean() > 0.9  # the companion hides some
    still = clips[:, :, :1].expand(-1, -1, world.FRAMES, -1, -1)
    assert torch.equal(statistics.motion(still), torch.zeros(len(clips)))
    assert (statistics.motion(clips) > 0.01).all()


def test_an_empty_picture_has_no_motion():
    assert statistics.motion(torch.zeros(2, 3, world.FRAMES, world.SIZE, world.SIZE)).tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("clip", "count"), [(catalogue.TINY, 8), (catalogue.ClipSize(8, 24), 2)], ids=["tiny", "larger"]
)
@pytest.mark.parametrize("style", [style for style in tasks.TASKS if style in world.STYLES])
def test_statistics_tell_drawn_from_plain(style, clip, count):
    task = tasks.get(style)
    prompts = world.prompt_indices(tasks.draw_prompts(task, count, seed=1))
    score = statistics.TaughtStatistic.of(task, prompts, clip)
    plain, styled = (
        score(drawing.render(prompts, style=name, generator=Generator().manual_seed(2), clip=clip))
        for name in ("base", style)
    )
    assert styled.mean() - plain.mean() > 0.4
    assert (styled > plain).float().mean() > 0.9


def _untrained() -> Judge:
    with torch.random.fork_rng(devices=[]):
        return Judge(ClipClassifier(cells=((world.FRAMES + 1) // 2) * 4).eval())


def test_the_judge_reads_a_clip_the_same_in_any_company():
    prompts, clips = _drawn("base", 6)
    judge = _untrained()
    together, alone = judge.read(clips), judge.read(clips[2:3])
    for name in HEADS:
        torch.testing.assert_close(together.probabilities[name][2:3], alone.probabilities[name])
    assert together.taught("noir").shape == (6,)
    assert set(together.correct("colour", prompts).tolist()) <= {0.0, 1.0}


def test_a_missing_judge_is_an_error_of_files(tmp_path):
    with pytest.raises(FileError, match="no such classifier"):
        open_judge(tmp_path / "nothing.safetensors")


def test_a_judge_of_clips_of_another_size_is_refused():
    with pytest.raises(MismatchError, match="--judge FAMILY"):
        open_judge(clip=catalogue.ClipSize(8, 32))


@pytest.mark.parametrize("clip", [catalogue.TINY, catalogue.ClipSize(8, 32), catalogue.ClipSize(5, 20)], ids=str)
def test_the_cells_of_a_clip_are_what_the_judge_has_a_weight_for(clip):
    with torch.random.fork_rng(devices=[]):
        network = ClipClassifier(cells(clip))
    assert network(torch.zeros(1, 3, *clip.shape))[0].shape == (1, 64)
