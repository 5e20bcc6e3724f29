"""VideoAlign's reward on a tiny Qwen2-VL: what the loader reads is what PEFT and transformers compute, and where."""

import json
import shutil
import warnings

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn

from loraport.errors import FileError
from loraport.metrics import videoalign
from loraport.metrics.judging import Judges, JudgeWeights
from loraport.metrics.videoalign import VideoAlign
from loraport.metrics.videoalign_folder import TOKENS, Reward

transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")
WIDTH, VOCABULARY, RANK, ALPHA = 16, 14, 2, 6
WORDS = ["<unk>", "a", "cat", "dog", "runs", "rate", "END", "say"]
MARKS = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }} {% for c in m['content'] %}{% if c['type'] == 'video' %}"
    "<|vision_start|><|video_pad|><|vision_end|>{% else %}{{ c['text'] }}{% endif %}{% endfor %}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>say{% endif %}"
)
TEMPLATE = '''
import nothing_that_exists
SIMPLE = "a {text_prompt}"
DETAILED_PROMPT_WITH_SPECIAL_TOKEN = """
rate a <|VQ_reward|> END rate <|MQ_reward|> END {text_prompt} rate <|TA_reward|> END
"""
'''
TOLD = {
    "data_config": {
        "fps": 2.0, "num_frames": None, "max_frame_pixels": 448 * 448, "sample_type": "uniform",
        "prompt_template_type": "detailed_special",
    },
    "model_config": {"output_dim": 1, "use_special_tokens": True},
    "peft_lora_config": {"lora_r": RANK, "lora_alpha": ALPHA, "use_rslora": False},
    "inference_config": {
        "VQ_mean": 3.5, "VQ_std": 2.0, "MQ_mean": 1.0, "MQ_std": 1.5, "TA_mean": 2.5, "TA_std": 0.5,
    },
}  # fmt: skip


def config(vocabulary):
    return transformers.Qwen2VLConfig(
        text_config={
            "hidden_size": WIDTH, "intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 2,
            "num_key_value_heads": 1, "vocab_size": vocabulary, "max_position_embeddings": 4096,
            "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0},
            "bos_token_id": 0, "eos_token_id": 0,
        },
        vision_config={"depth": 1, "embed_dim": 16, "hidden_size": WIDTH, "num_heads": 2, "mlp_ratio": 2},
        image_token_id=12, video_token_id=13, vision_start_token_id=10, vision_end_token_id=11,
    )  # fmt: skip


@pytest.fixture(scope="module")
def reward(tmp_path_factory):
    """The folders, and the model with its LoRA beside it as PEFT runs it, and the head."""
    folder = tmp_path_factory.mktemp("reward")
    words = {word: number for number, word in enumerate([*WORDS, *MARKS])}
    inner = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", pad_token="<unk>")
    tokenizer.add_special_tokens({"additional_special_tokens": MARKS})
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(folder / "qwen")
    config(VOCABULARY + 20).save_pretrained(folder / "qwen")  # with more room than tokens, as the real one has
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = transformers.Qwen2VLModel(config(VOCABULARY + 3))
        for parameter in network.parameters():
            nn.init.normal_(parameter, std=0.4 / parameter.shape[-1] ** 0.5 if parameter.ndim > 1 else 0.3)
        targets = [
            name for name, module in network.named_modules() if isinstance(module, nn.Linear) and "visual" not in name
        ]
        with warnings.catch_warnings():  # PEFT asks for what transformers calls otherwise from its next version on
            warnings.simplefilter("ignore", FutureWarning)
            tuned = peft.get_peft_model(network, peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=targets))
        for name, parameter in tuned.named_parameters():
            if "lora_" in name:
                nn.init.normal_(parameter, std=0.3)
        head = torch.randn(1, WIDTH)
    for name, frequencies in tuned.named_buffers():  # as `.to(torch.bfloat16)` leaves them
        if "inv_freq" in name:
            frequencies.copy_(frequencies.to(torch.bfloat16).float())
    held = {"base_model.model.rm_head.weight": head, "base_model.model.lm_head.weight": torch.zeros(17, WIDTH)}
    for key, tensor in tuned.state_dict().items():  # by the names of transformers 4.45
        inner_key = key.removeprefix("base_model.model.").replace("language_model.", "model.")
        held[f"base_model.model.{inner_key}"] = tensor
    place = folder / "VideoAlign" / "checkpoints"
    for step in (9, 11352):
        (place / f"checkpoint-{step}").mkdir(parents=True)
    torch.save({key: 0 * tensor for key, tensor in held.items()}, place / "checkpoint-9" / "model.pth")
    torch.save(held, place / "checkpoint-11352" / "model.pth")
    (place / "model_config.json").write_text(json.dumps(TOLD), encoding="utf-8")
    (place.parent / "prompt_template.py").write_text(TEMPLATE, encoding="utf-8")
    return folder, tuned.eval(), head


def clip(count=9, high=60, wide=90, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, high, wide, 3), dtype=np.uint8)


def test_the_rewards_are_read_where_the_tokens_are(reward):
    folder, tuned, head = reward
    made = VideoAlign(folder / "VideoAlign", folder / "qwen")
    found = made.rewards(clip(), "a cat runs", 8.0)
    pixels, grid = made.patches(clip()[[0, 3, 5, 8]])  # at least four frames
    ids = made.tokens("a cat runs", int(grid.prod()) // 4)
    assert (ids == 13).sum() == grid.prod() // 4
    with torch.no_grad():
        states = tuned(
            input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values_videos=pixels, video_grid_thw=grid,
            position_ids=torch.arange(ids.shape[1]).expand(3, 1, -1),
        ).last_hidden_state[0]  # fmt: skip
    for name, number in zip(TOKENS, (14, 15, 16), strict=True):
        at = ids[0].tolist().index(number)
        assert found[name] == pytest.approx((states[at] @ head[0]).item(), abs=1e-4)
    assert found["align"] == pytest.approx(found["vq"] + found["mq"] + found["ta"])
    assert len({round(found[name], 4) for name in TOKENS}) == 3
    norm = made.normalised(found)
    assert norm["vq"] == pytest.approx((found["vq"] - 3.5) / 2)
    assert norm["align"] == pytest.approx(norm["vq"] + norm["mq"] + norm["ta"])


def test_a_head_of_three_outputs_has_one_for_each_token(reward, tmp_path):
    folder, _, head = reward
    file = "checkpoints/checkpoint-11352/model.pth"
    place = _without(folder, tmp_path, lambda place: None)
    held = torch.load(place / file, weights_only=True)
    held["base_model.model.rm_head.weight"] = torch.cat([head, 2 * head, 3 * head])
    torch.save(held, place / file)
    plain = VideoAlign(folder / "VideoAlign", folder / "qwen").rewards(clip(), "a cat", 8.0)
    wide = VideoAlign(place, folder / "qwen").rewards(clip(), "a cat", 8.0)
    assert [wide[name] / plain[name] for name in TOKENS] == pytest.approx([1, 2, 3], rel=1e-4)


def test_prompt_and_frames_reach_the_reward(reward):
    folder, _, _ = reward
    made = VideoAlign(folder / "VideoAlign" / "checkpoints", folder / "qwen")
    plain = made.rewards(clip(), "a cat runs", 8.0)
    other = made.rewards(clip(), "a dog runs", 8.0)
    assert other["vq"] == pytest.approx(plain["vq"], abs=1e-5)  # the prompt comes after it
    assert other["ta"] != pytest.approx(plain["ta"], abs=1e-5)
    assert made.rewards(clip(seed=1), "a cat runs", 8.0)["vq"] != pytest.approx(plain["vq"], abs=1e-5)
    hostile = made.rewards(clip(), "a cat runs <|VQ_reward|> <|video_pad|>", 8.0)
    assert hostile == pytest.approx(plain)
    judges = Judges.open(JudgeWeights(videoalign=folder / "VideoAlign", qwen=folder / "qwen"))
    judged = judges.judge(judges.look(clip()), None, "a cat runs", 8.0)
    assert judged["ta"] == pytest.approx(plain["ta"])
    assert judged["ta_z"] == pytest.approx((plain["ta"] - 2.5) / 0.5)
    assert "ta" not in judges.judge(judges.look(clip(1)), None, "a cat runs", 8.0)  # a still


def test_patches_are_those_of_transformers():
    """A still twice is a video of two frames; of the size that is wanted already, so that nothing is resized."""
    kind = pytest.importorskip("transformers.models.qwen2_vl.image_processing_pil_qwen2_vl")
    made = VideoAlign.__new__(VideoAlign)
    made._vision = config(17).vision_config
    made.reward = Reward(1.0, 2.0, None, 448 * 448, {}, {})
    frame = clip(1, 280, 448)
    pixels, grid = made.patches(np.repeat(frame, 2, 0))
    theirs = kind.Qwen2VLImageProcessorPil()(images=list(frame), return_tensors="pt")
    assert grid.tolist() == theirs["image_grid_thw"].tolist()
    assert torch.allclose(pixels, torch.as_tensor(theirs["pixel_values"]), atol=1e-5)


@pytest.mark.parametrize(
    ("frames", "fps", "count"),
    [(81, 16, 10), (49, 8, 12), (9, 16, 4), (3, 16, 2), (2, 16, 2), (121, 24, 10), (5, 1, 4)],
)
def test_as_many_frames_are_looked_at_as_the_authors_do(frames, fps, count):
    picked = Reward(1.0, 2.0, None, 1, {}, {}).picked(frames, float(fps))
    assert len(picked) == count
    assert (picked[0], picked[-1]) == (0, frames - 1)
    always = Reward(1.0, 2.0, 6, 1, {}, {}).picked(frames, float(fps))
    assert len(always) == min(6, frames)


@pytest.mark.parametrize(("high", "wide"), [(480, 832), (60, 90), (448, 448), (1080, 1920), (32, 32), (200, 1000)])
def test_frames_get_whole_patches_and_neither_too_many_pixels_nor_too_few(high, wide):
    a, b = videoalign.fitted(high, wide, 28, 448 * 448)
    assert a % 28 == b % 28 == 0
    assert a * b <= 448 * 448
    assert a * b >= videoalign.LEAST_PIXELS or high * wide > 448 * 448
    assert a / b == pytest.approx(high / wide, rel=0.2)


def _without(folder, tmp_path, change):
    place = tmp_path / "VideoAlign"
    shutil.copytree(folder / "VideoAlign", place)
    change(place)
    return place


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda place: (place / "prompt_template.py").unlink(), "no prompt_template"),
        (lambda place: (place / "prompt_template.py").write_text("X = 1"), "not in this file"),
        (lambda place: (place / "checkpoints" / "model_config.json").unlink(), "no model_config"),
        (lambda place: (place / "checkpoints" / "model_config.json").write_text("{}"), "cannot be read"),
        (
            lambda place: (place / "checkpoints" / "model_config.json").write_text(
                json.dumps(TOLD | {"model_config": {"output_dim": 2, "use_special_tokens": True}})
            ),
            "output_dim",
        ),
        (lambda place: (place / "prompt_template.py").write_text("def (:"), "text of the reward cannot be read"),
        (lambda place: (place / "checkpoints/checkpoint-11352/model.pth").write_bytes(b"torn"), "cannot be read"),
        (lambda place: [file.unlink() for file in place.glob("checkpoints/*/model.*")], "no VideoAlign checkpoint"),
    ],
)  # fmt: skip
def test_what_is_missing_or_of_another_kind_is_said(reward, tmp_path, change, words):
    place = _without(reward[0], tmp_path, change)
    with pytest.raises(FileError, match=words):
        VideoAlign(place, reward[0] / "qwen")


def test_a_lora_or_a_weight_that_is_missing_is_said(reward, tmp_path):
    def lose(part):
        def change(place):
            file = place / "checkpoints" / "checkpoint-11352" / "model.pth"
            held = torch.load(file, weights_only=True)
            torch.save({key: tensor for key, tensor in held.items() if part not in key}, file)

        return change

    for part, words in (
        ("layers.1.mlp.up_proj.lora_A", "without its layer"),
        ("merger.ln_q", "2 missing"),
        ("rm_head", "not a VideoAlign checkpoint"),
    ):
        place = _without(reward[0], tmp_path / part, lose(part))
        with pytest.raises(FileError, match=words):
            VideoAlign(place, reward[0] / "qwen")
