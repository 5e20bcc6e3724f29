"""AMT-S held to numbers that the code which VBench runs gave once, to its parts written out, and to what must hold."""

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import seeded
from loraport.comparing.settings import CompareSettings
from loraport.errors import FileError
from loraport.metrics import amt
from loraport.metrics.amt import Amt
from loraport.metrics.judging import Judges, JudgeWeights

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "amt.json").read_text("utf-8"))


def state():
    return seeded.weights(amt.shapes(), [".convblock.2.", "flow_head.2", "comb_block.2"])


def pictures(clip):
    return torch.from_numpy(clip).permute(0, 3, 1, 2).float() / 255


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """From a file as its authors' trainer writes it, with the rate of learning as a number of NumPy."""
    file = tmp_path_factory.mktemp("amt") / "amt-s.pth"
    held = {f"module.{name}": tensor for name, tensor in state().items()}
    torch.save({"epoch": 299, "state_dict": held, "optim": {"param_groups": [{"lr": np.float64(2e-5)}]}}, file)
    return Amt(file)


def told(flow_to_first, flow_to_last):
    """A network that is told its flows: all of its weights are 0 but for what its last decoder adds."""
    made = object.__new__(Amt)
    made.state = {name: torch.zeros(shape) for name, shape in amt.shapes().items()}
    made.state["decoder1.convblock.2.bias"][:12] = torch.tensor([*flow_to_first] * 3 + [*flow_to_last] * 3).float()
    made._device = "cpu"
    return made


def test_the_names_and_shapes_are_those_of_the_original():
    rows = "\n".join(f"{name} {' '.join(map(str, shape))}" for name, shape in sorted(amt.shapes().items()))
    assert hashlib.sha256(rows.encode()).hexdigest() == GOLDEN["names"]
    assert sum(int(np.prod(shape)) for shape in amt.shapes().values()) == GOLDEN["numbers"]


@pytest.mark.parametrize("case", GOLDEN["frames"], ids=lambda case: "x".join(map(str, case["shape"])))
def test_a_frame_is_the_originals(network, case):
    made = network.between(pictures(seeded.waves(2, *case["shape"], case["step"]))).numpy()
    assert made.shape == (3, *case["shape"])
    assert [made.mean(), made.std()] == pytest.approx([case["mean"], case["deviation"]], abs=1e-5)
    for y, x, colour in case["pixels"]:
        assert made[:, y, x] == pytest.approx(colour, abs=1e-4)


@pytest.mark.parametrize("case", GOLDEN["clips"], ids=lambda case: f"{case['frames']} frames")
def test_the_smoothness_is_vbenchs(network, case):
    clip = seeded.waves(case["frames"], *case["shape"], case["step"])
    assert network.smoothness(clip) == pytest.approx(case["smoothness"], abs=1e-5)


def test_a_picture_is_read_where_its_flow_leads():
    picture = torch.from_numpy(np.random.default_rng(5).random((1, 2, 5, 7)))
    flow = torch.zeros_like(picture)
    flow[:, 0], flow[:, 1] = 2, -1
    right, down = [min(i + 2, 6) for i in range(7)], [max(j - 1, 0) for j in range(5)]
    assert torch.allclose(amt.warped(picture, flow), picture[:, :, down][:, :, :, right])
    assert torch.allclose(amt.warped(picture, flow / 4)[0, :, 3, 3], picture[0, :, 2:4, 3:5].flatten(1) @ torch.tensor(
        [0.125, 0.125, 0.375, 0.375], dtype=torch.float64))  # fmt: skip


def test_a_clip_in_which_nothing_moves_is_smooth():
    """To what is lost where levels are cut and not rounded: at most one of 255."""
    still = np.repeat(seeded.waves(1, 130, 140, 0), 3, 0)
    assert 1 - 1 / 255 <= told((0, 0), (0, 0)).smoothness(still) <= 1
    assert told((0, 0), (0, 0)).smoothness(np.zeros((3, 130, 140, 3), np.uint8)) == 1
    assert told((5, 0), (0, -3)).smoothness(np.zeros((3, 30, 40, 3), np.uint8)) == 1


def test_frames_between_which_nothing_is_said_to_move_are_mixed():
    clip = np.random.default_rng(0).integers(0, 256, (4, 128, 136, 3), dtype=np.uint8)
    off = np.abs((clip[0].astype(int) + clip[2]) // 2 - clip[1]).mean()  # the last has no next one
    assert told((0, 0), (0, 0)).smoothness(clip) == pytest.approx(1 - off / 255, abs=0.5 / 255)


@pytest.mark.parametrize("axis", [0, 1])
def test_even_motion_along_the_flow_is_smooth_and_jerks_are_not(axis):
    clip = seeded.waves(5, 140, 150, 0)
    broad = seeded.waves(1, 200, 200, 0)[0]
    for t in range(len(clip)):  # what is shown moves to the right, or down, by three pixels a frame
        clip[t] = broad[:140, 30 - 3 * t : 180 - 3 * t] if axis == 0 else broad[30 - 3 * t : 170 - 3 * t, :150]
    ahead = np.array([3.0, 0.0]) if axis == 0 else np.array([0.0, 3.0])
    right = told(-ahead, ahead).smoothness(clip)
    assert right > 0.992
    assert told(ahead, -ahead).smoothness(clip) < right - 0.008
    assert told(-ahead[::-1], ahead[::-1]).smoothness(clip) < right - 0.008
    assert told(-ahead, ahead).smoothness(clip[[0, 2, 1, 4, 3]]) < right - 0.005
    shaken = clip.copy()
    shaken[1::2] = np.clip(shaken[1::2].astype(int) + 25, 0, 255)
    assert told(-ahead, ahead).smoothness(shaken) == pytest.approx(right - 25 / 255, abs=0.01)


def test_a_clip_of_two_frames_has_nothing_between_and_the_last_of_four_is_left_out(network):
    clip = seeded.waves(4, 30, 40, 2)  # smaller than the network can take: the edges are drawn out
    assert network.smoothness(clip[:2]) == 1
    assert 0 < network.smoothness(clip[:3]) < 1
    assert network.smoothness(clip) == network.smoothness(clip[:3])


def test_a_judge_measures_it_of_videos_where_the_weights_are_given(tmp_path, network):
    save_file(state(), tmp_path / "amt-s.safetensors")
    judges = Judges.open(JudgeWeights(amt=tmp_path / "amt-s.safetensors"))
    clip = seeded.waves(3, 48, 64, 2)
    found = judges.judge(judges.look(clip), None, "a cat", 8.0)
    assert found["smoothness"] == network.smoothness(clip)
    assert "smoothness" not in judges.judge(judges.look(clip[:1]), None, "a cat", 8.0)
    assert "smoothness" not in Judges.open(JudgeWeights()).judge(judges.look(clip), None, "a cat", 8.0)


def test_what_a_comparison_is_told_to_judge_by_is_what_judges_take():
    told = CompareSettings(amt="amt-s.pth", qwen="folder")
    assert told.weights() == JudgeWeights(amt=Path("amt-s.pth"), qwen=Path("folder"))


class _Code:
    """Makes a folder when it is unpickled without care."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def test_another_file_is_refused_with_what_is_wrong(tmp_path):
    torch.save({"state_dict": {**state(), "update2.convc1.weight": torch.zeros(64, 100, 1, 1)}}, tmp_path / "l.pth")
    with pytest.raises(FileError, match=r"not the weights of AMT-S") as caught:
        Amt(tmp_path / "l.pth")
    assert "1 of 213, e.g. update2.convc1.weight" in str(caught.value)
    assert "AMT-L" in caught.value.fix
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(FileError, match=r"213 of 213"):
        Judges.open(JudgeWeights(amt=tmp_path / "other.safetensors"))
    with pytest.raises(FileError, match="no such file"):
        Amt(tmp_path / "none.pth")
    torch.save({"state_dict": state(), "config": _Code(tmp_path / "made")}, tmp_path / "code.pth")
    with pytest.raises(FileError, match=r"more than tensors: [a-z.]*mkdir; nothing of it was run"):
        Amt(tmp_path / "code.pth")
    assert not (tmp_path / "made").exists()
