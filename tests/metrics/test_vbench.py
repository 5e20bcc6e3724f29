"""VBench's dimensions against their rules written out another way, and against what must hold of any clip."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from scipy import ndimage
from torch import nn
from torch.nn import functional

from loraport.errors import FileError, UsageError
from loraport.metrics import motion, musiq
from loraport.metrics.judging import Judges, JudgeWeights

pytest.importorskip("transformers")
from loraport.metrics.aesthetic import Aesthetic
from loraport.metrics.towers import Clip
from tiny_judges import clip_folder, frames


@pytest.fixture(autouse=True)
def _own_rng():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def drifting(count=9, step=2.0, high=64, wide=96):
    """A smooth picture that moves to the right by so many pixels a frame, under a window that stands still."""
    picture = ndimage.gaussian_filter(np.random.default_rng(0).random((high, wide + 80)), 3)
    picture = (picture - picture.min()) / np.ptp(picture) * 255
    rows = [ndimage.shift(picture, (0, step * i), order=1, mode="nearest")[:, 40 : 40 + wide] for i in range(count)]
    return np.repeat(np.rint(np.stack(rows)).astype(np.uint8)[..., None], 3, -1)


def test_the_aesthetic_grade_is_one_layer_on_normalised_features(tmp_path):
    tower = Clip(clip_folder(tmp_path / "clip"))
    weight, bias = torch.randn(1, 20), torch.tensor([0.3])
    torch.save({"weight": weight, "bias": bias}, tmp_path / "linear.pth")
    seen = tower.features(frames(), as_vbench=True)
    rows = seen.double().numpy()
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    expected = (rows @ weight[0].double().numpy() + 0.3).mean() / 10
    assert Aesthetic(tmp_path / "linear.pth", tower).grade(seen) == pytest.approx(expected, abs=1e-6)
    judges = Judges.open(JudgeWeights(clip=tmp_path / "clip", aesthetic=tmp_path / "linear.pth"))
    assert judges.judge(judges.look(frames()), None, "a cat", 8.0)["aesthetic"] == pytest.approx(expected, abs=1e-6)


def test_a_predictor_for_another_clip_is_refused(tmp_path):
    tower = Clip(clip_folder(tmp_path / "clip"))
    save_file({"weight": torch.zeros(1, 768), "bias": torch.zeros(1)}, tmp_path / "l14.safetensors")
    with pytest.raises(FileError, match="another CLIP"):
        Aesthetic(tmp_path / "l14.safetensors", tower)
    save_file({"weight": torch.zeros(768)}, tmp_path / "other.safetensors")
    with pytest.raises(FileError, match="not LAION's aesthetic predictor"):
        Aesthetic(tmp_path / "other.safetensors", tower)
    with pytest.raises(UsageError, match="CLIP's features"):
        Judges.open(JudgeWeights(aesthetic=tmp_path / "l14.safetensors"))
    with pytest.raises(UsageError, match="two folders"):
        Judges.open(JudgeWeights(videoalign=tmp_path))


@pytest.mark.parametrize("count", range(3, 40))
def test_dynamic_is_vbenchs_rule(count):
    """For every number of frames that are looked at, with one moving pair too few and with just enough."""
    high, wide = 48, 64
    least, needed = 6.0 * (min(high, wide) / 256.0), round(4 * (count / 16.0))
    for moving in {max(needed - 1, 0), needed}:
        speeds = [least + 0.01] * moving + [least - 0.01] * (count - 1 - moving)
        theirs = needed <= sum(speed > least for speed in speeds)
        assert motion.is_dynamic(speeds, min(high, wide)) == (theirs and moving > 0)


def test_what_stands_still_is_not_dynamic():
    assert not motion.is_dynamic([], 64)
    assert not motion.is_dynamic([0.0], 64)  # where VBench says that it moves
    assert not motion.is_dynamic([0.0] * 15, 64)
    assert motion.looked_at(9, 24.0) == [0, 3, 6]
    assert motion.looked_at(4, 5.0) == [0, 1, 2, 3]


def test_the_fastest_pixels_are_those_of_a_sorted_list():
    field = np.random.default_rng(0).normal(size=(20, 30, 2))
    lengths = sorted(float(np.hypot(*one)) for one in field.reshape(-1, 2))[-30:]
    assert motion.fastest(field) == pytest.approx(np.mean(lengths))


def test_frames_are_foretold_where_motion_is_even():
    pytest.importorskip("cv2", reason="opencv is not installed")
    moving = drifting()
    scrambled = moving[[0, 5, 2, 7, 1, 6, 3, 8, 4]]
    still = np.repeat(moving[:1], 5, 0)
    assert motion.foretold(still) == pytest.approx(1, abs=1e-3)
    assert motion.foretold(moving[:2]) == 1
    assert motion.foretold(moving) > 0.99
    assert motion.foretold(scrambled) < motion.foretold(moving) - 0.005
    plain = [np.abs((moving[i - 1].astype(float) + moving[i + 1]) / 2 - moving[i]).mean() for i in range(1, 8, 2)]
    assert motion.foretold(moving) > 1 - np.mean(plain) / 255  # better than the mean of the neighbours
    shaken = moving.copy()
    shaken[1::2] = np.clip(shaken[1::2].astype(int) + 25, 0, 255)
    assert motion.foretold(shaken) == pytest.approx(motion.foretold(moving) - 25 / 255, abs=0.01)


def musiq_state(width=12, inner=18, blocks=2):
    """Random weights by the names that MUSIQ's have, small but for the convolutions."""
    shapes = {"conv_root": (64, 3, 7, 7), "block1.conv1": (64, 64, 1, 1), "block1.conv2": (64, 64, 3, 3),
              "block1.conv3": (256, 64, 1, 1), "block1.conv_proj": (256, 64, 1, 1)}  # fmt: skip
    state = {f"{name}.weight": torch.randn(shape) for name, shape in shapes.items()}
    encoder, norms = "transformer_encoder", {"gn_root": 64, "transformer_encoder.encoder_norm": width}
    norms |= {f"block1.gn{name}": size for name, size in (("1", 64), ("2", 64), ("3", 256), ("_proj", 256))}
    layers = {"embedding": (width, 256 * 64), "head": (1, width)}
    for number in range(blocks):
        stem = f"{encoder}.transformer.encoderblock_{number}"
        layers |= {f"{stem}.attention.{part}": (width, width) for part in ("query", "key", "value", "out")}
        layers |= {f"{stem}.mlp.fc1": (inner, width), f"{stem}.mlp.fc2": (width, inner)}
        norms |= {f"{stem}.norm1": width, f"{stem}.norm2": width}
    for name, (out, into) in layers.items():
        state |= {f"{name}.weight": torch.randn(out, into) / into**0.5, f"{name}.bias": 0.1 * torch.randn(out)}
    for name, size in norms.items():
        state |= {f"{name}.weight": 1 + 0.1 * torch.randn(size), f"{name}.bias": 0.1 * torch.randn(size)}
    state[f"{encoder}.posembed_input.position_emb"] = torch.randn(1, 100, width)
    state[f"{encoder}.scaleembed_input.scale_emb"] = torch.randn(3, width)
    return state | {f"{encoder}.cls": torch.randn(1, 1, width)}


SMALL = (70, 100)  # instead of 224 and 384, for the time that it takes


def musiq_by_modules(state, picture):
    """The same by torch's own modules, a patch at a time; the picture in [-1, 1]."""

    def conv(x, name, stride=1, pads=(0, 0)):
        weight = state[f"{name}.weight"]
        flat = weight.flatten(1)
        weight = ((flat - flat.mean(1, keepdim=True)) / (flat.std(1, keepdim=True) + 1e-5)).reshape(weight.shape)
        return functional.conv2d(functional.pad(x, (*pads, *pads)), weight, stride=stride)

    def group(x, name, eps=1e-4):
        made = nn.GroupNorm(32, x.shape[1], eps)
        made.load_state_dict({kind: state[f"{name}.{kind}"] for kind in ("weight", "bias")})
        return made(x)

    def tokens(patch):
        x = group(conv(patch[None], "conv_root", 2, (2, 3)), "gn_root", 1e-6).relu()
        x = functional.max_pool2d(functional.pad(x, (0, 1, 0, 1)), 3, 2)
        y = group(conv(x, "block1.conv1"), "block1.gn1").relu()
        y = group(conv(y, "block1.conv2", pads=(1, 1)), "block1.gn2").relu()
        y = group(conv(y, "block1.conv3"), "block1.gn3") + group(conv(x, "block1.conv_proj"), "block1.gn_proj")
        return y.relu()[0].movedim(0, -1).flatten() @ state["embedding.weight"].T + state["embedding.bias"]

    encoder = "transformer_encoder"
    rows = [state[f"{encoder}.cls"][0, 0]]
    for size, longest in enumerate((*SMALL, max(picture.shape[1:]))):
        high, wide = (round(side * longest / max(picture.shape[1:])) for side in picture.shape[1:])
        made = picture[None]
        if size < 2:
            made = functional.interpolate(made, (high, wide), mode="bicubic", align_corners=False)
        down, right = -(-high // 32), -(-wide // 32)
        whole = torch.zeros(3, 32 * down, 32 * right)
        top, left = (32 * down - high) // 2, (32 * right - wide) // 2
        whole[:, top : top + high, left : left + wide] = made[0]
        for i in range(down):
            for j in range(right):
                place = 10 * int(10 * i / down) + int(10 * j / right)
                row = tokens(whole[:, 32 * i : 32 * i + 32, 32 * j : 32 * j + 32])
                row = row + state[f"{encoder}.posembed_input.position_emb"][0, place]
                rows.append(row + state[f"{encoder}.scaleembed_input.scale_emb"][size])
    x = torch.stack(rows)[None]
    for number in range(2):
        stem = f"{encoder}.transformer.encoderblock_{number}"
        layer = nn.TransformerEncoderLayer(12, 6, 18, 0.0, "gelu", 1e-6, batch_first=True, norm_first=True)
        own = {f"self_attn.in_proj_{kind}": torch.cat([state[f"{stem}.attention.{part}.{kind}"]
                                                       for part in ("query", "key", "value")])
               for kind in ("weight", "bias")}  # fmt: skip
        for name, theirs in (("self_attn.out_proj", "attention.out"), ("linear1", "mlp.fc1"), ("linear2", "mlp.fc2"),
                             ("norm1", "norm1"), ("norm2", "norm2")):  # fmt: skip
            own |= {f"{name}.{kind}": state[f"{stem}.{theirs}.{kind}"] for kind in ("weight", "bias")}
        layer.load_state_dict(own)
        x = layer.eval()(x)
    norm = [state[f"{encoder}.encoder_norm.{kind}"] for kind in ("weight", "bias")]
    return functional.layer_norm(x[0, 0], (12,), *norm, 1e-6) @ state["head.weight"][0] + state["head.bias"][0]


def test_imaging_quality_is_musiq_on_frames_of_at_most_512(tmp_path, monkeypatch):
    state = musiq_state()
    assert musiq.SIDES == (224, 384)
    monkeypatch.setattr(musiq, "SIDES", SMALL)
    torch.save({"params": state}, tmp_path / "musiq.pth")
    judges = Judges.open(JudgeWeights(musiq=tmp_path / "musiq.pth"))
    for shape in ((40, 70), (600, 40)):
        made = frames(1, shape)
        pixels = torch.from_numpy(made[0]).permute(2, 0, 1).float()
        if max(shape) > 512:
            pixels = functional.interpolate(pixels[None], (512, 34), mode="bilinear", align_corners=False)[0]
        with torch.no_grad():
            expected = musiq_by_modules(state, pixels / 127.5 - 1).item() / 100
        assert judges.judge(judges.look(made), None, "a cat", 8.0)["imaging"] == pytest.approx(expected, abs=1e-6)
    monkeypatch.setattr(musiq, "AT_ONCE", 2)
    several = frames(3, (33, 40))
    alone = [judges.musiq.grade(several[i : i + 1]) for i in range(3)]
    assert judges.musiq.grade(several) == pytest.approx(np.mean(alone), abs=1e-6)
    torch.save({**state, "head.weight": torch.zeros(10, 12), "head.bias": torch.zeros(10)}, tmp_path / "ava.pth")
    with pytest.raises(FileError, match="one grade"):
        Judges.open(JudgeWeights(musiq=tmp_path / "ava.pth"))
