"""RAFT held to numbers that the code which VBench runs gave once, and to what must hold."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import seeded
from loraport.errors import FileError
from loraport.metrics import raft
from loraport.metrics.judging import Judges, JudgeWeights
from loraport.metrics.raft import Raft

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "raft.json").read_text("utf-8"))


def state():
    return seeded.weights(raft.shapes(), ["flow_head.conv2"])


def torchvisions_name(key):
    """A weight of the paper's code by the name that torchvision has for it."""
    parts = key.split(".")
    if parts[0] in ("fnet", "cnet"):
        net, rest = {"fnet": "feature_encoder", "cnet": "context_encoder"}[parts[0]], parts[1:]
        if rest[0] in ("conv1", "norm1"):
            rest = ["convnormrelu", "01"[rest[0] == "norm1"], *rest[1:]]
        elif rest[0] == "conv2":
            rest = ["conv", *rest[1:]]
        elif rest[2] != "downsample":
            rest = [*rest[:2], f"convnormrelu{rest[2][-1]}", "01"[rest[2].startswith("norm")], *rest[3:]]
        return ".".join([net, *rest])
    if parts[1] == "mask":
        return ".".join(["mask_predictor", *({"0": ["convrelu", "0"], "2": ["conv"]}[parts[2]]), parts[3]])
    if parts[1] == "encoder":
        long = {"convc": "convcorr", "convf": "convflow"}.get(parts[2][:5])
        return f"update_block.motion_encoder.{long + parts[2][-1] if long else 'conv'}.0.{parts[3]}"
    if parts[1] == "gru":
        return f"update_block.recurrent_block.convgru{parts[2][-1]}.{parts[2][:-1]}.{parts[3]}"
    return key


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    file = tmp_path_factory.mktemp("raft") / "raft-things.pth"
    torch.save({f"module.{name}": tensor for name, tensor in state().items()}, file)
    return Raft(file)


def told(right, down):
    """A network that is told its flow, at an eighth of the size: all of its weights are 0 but for one bias."""
    made = object.__new__(Raft)
    made.state = {name: torch.zeros(shape) for name, shape in raft.shapes().items()}
    made.state |= {name: tensor + 1 for name, tensor in made.state.items() if name.endswith("running_var")}
    made.state["update_block.flow_head.conv2.bias"] = torch.tensor([right, down]) / raft.UPDATES
    made._device = "cpu"
    return made


@pytest.mark.parametrize("kind", ["paper", "torchvision"])
def test_the_names_and_shapes_are_those_of_the_originals(kind):
    """But for what the paper's code holds twice, and counts of batches, which nothing reads."""
    shapes = {torchvisions_name(name) if kind == "torchvision" else name: s for name, s in raft.shapes().items()}
    assert len(shapes) == len(raft.shapes())
    rows = "\n".join(f"{name} {' '.join(map(str, shape))}" for name, shape in sorted(shapes.items()))
    assert hashlib.sha256(rows.encode()).hexdigest() == GOLDEN["names"][kind]
    assert {raft.papers_name(name) for name in shapes} == set(raft.shapes())


def test_flows_and_speeds_are_the_originals(network):
    clip = seeded.waves(3, *GOLDEN["shape"], GOLDEN["step"])
    flow = next(network.flows(clip)).numpy()
    assert flow.shape == (2, *GOLDEN["padded"])
    for y, x, both in GOLDEN["flow"]:
        assert flow[:, y, x] == pytest.approx(both, abs=2e-3)
    assert network.speeds(clip) == pytest.approx(GOLDEN["speeds"], abs=1e-3)


def test_the_names_of_torchvision_are_read_too(tmp_path, network, monkeypatch):
    monkeypatch.setattr(raft, "UPDATES", 2)  # for the time that it takes
    torch.save({torchvisions_name(name): tensor for name, tensor in state().items()}, tmp_path / "torchvision.pth")
    clip = seeded.waves(2, 40, 50, 3)  # smaller than the network can take: the edges are drawn out
    assert Raft(tmp_path / "torchvision.pth").speeds(clip) == network.speeds(clip)


def test_a_flow_that_is_told_is_that_of_every_pixel_and_of_the_judgement(monkeypatch):
    monkeypatch.setattr(raft, "UPDATES", 2)
    made, clip = told(0.75, -1.0), seeded.waves(3, 128, 136, 1)
    inside = list(made.flows(clip))[1][:, 8:-8, 8:-8]  # a flow is taken for nothing beyond the edge
    assert torch.allclose(inside, torch.tensor([6.0, -8.0])[:, None, None].expand_as(inside), atol=1e-4)
    assert made.speeds(clip) == pytest.approx([10, 10], abs=1e-3)
    judges = Judges(raft=made)
    assert judges.judge(judges.look(clip), None, "a cat", 8.0)["dynamic"] == 1  # 10 pixels are more than 6 x 128 / 256
    monkeypatch.setattr(judges, "raft", told(0.2, -0.3))
    assert judges.judge(judges.look(clip), None, "a cat", 8.0)["dynamic"] == 0  # 2.9 are fewer


def test_another_file_is_refused(tmp_path):
    torn = state()
    del torn["update_block.mask.2.bias"]
    torch.save(torn, tmp_path / "torn.pth")
    with pytest.raises(FileError, match="not the weights of RAFT") as caught:
        Raft(tmp_path / "torn.pth")
    assert "1 of 154, e.g. update_block.mask.2.bias" in str(caught.value)
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(FileError, match="not the weights of RAFT"):
        Judges.open(JudgeWeights(raft=tmp_path / "other.safetensors"))
