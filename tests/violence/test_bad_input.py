"""Every kind of bad input: one clear message, the documented exit code, no output file, nothing executed."""

import json
import os
import shutil
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import pico

Q = "diffusion_model.blocks.0.self_attn.q"


def edit(path: Path, change) -> None:
    """Load a safetensors file, let `change` alter the dict of tensors, and save it."""
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


# ---- keys


def test_a_renamed_key(case) -> None:
    edit(case.files.lora, lambda t: t.update({f"{Q}x.lora_A.weight": t.pop(f"{Q}.lora_A.weight")}))
    case.refuses(3, "blocks.0.self_attn.q")


@pytest.mark.parametrize("half", ["lora_A", "lora_B"])
def test_half_a_pair(case, half: str) -> None:
    edit(case.files.lora, lambda t: t.pop(f"{Q}.{half}.weight"))
    case.refuses(3, f"{Q}.")


def test_a_foreign_key(case) -> None:
    edit(case.files.lora, lambda t: t.update({"mystery.tensor": torch.zeros(3)}))
    case.refuses(3, "mystery.tensor")


def test_a_layer_the_model_does_not_have(case) -> None:
    wrong = pico.lora(5, layers={"blocks.7.self_attn.q": (32, 32)})
    edit(case.files.lora, lambda t: t.update(wrong))
    case.refuses(3, "8 blocks", "2 blocks")


def test_allow_partial_goes_on_and_says_what_it_left_out(case) -> None:
    edit(case.files.lora, lambda t: t.update({"mystery.tensor": torch.zeros(3)}))
    done = case.run("--allow-partial")
    assert done.code == 0, done.stderr
    assert "mystery.tensor" in done.stdout + done.stderr


def test_an_empty_lora(case) -> None:
    save_file({}, case.files.lora)
    case.refuses(3, case.files.lora.name)


@pytest.mark.parametrize(
    ("suffix", "name"),
    [
        ("hada_t1", "the factors it belongs to are missing"),
        ("lokr_w1", "its other half"),
        ("dora_scale", "does not fit its factors"),
        ("bm.weight", "GLoRA with a Tucker core"),
    ],
)
def test_adapters_that_are_not_whole_or_not_supported(case, suffix: str, name: str) -> None:
    edit(case.files.lora, lambda t: t.update({f"{Q}.{suffix}": torch.zeros(32, 4)}))
    case.refuses(3, name)


# ---- numbers


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("part", ["lora_A", "lora_B"])
def test_a_lora_that_is_not_finite(case, part: str, value: float) -> None:
    def spoil(tensors: dict) -> None:
        tensors[f"{Q}.{part}.weight"][0, 0] = value

    edit(case.files.lora, spoil)
    case.refuses(4, f"{Q}.{part}.weight", case.files.lora.name)


@pytest.mark.parametrize("which", ["source", "target"])
def test_a_weight_that_is_not_finite(case, which: str) -> None:
    path = getattr(case.files, which)

    def spoil(tensors: dict) -> None:
        tensors["blocks.1.ffn.0.weight"][3, 4] = float("nan")

    edit(path, spoil)
    case.refuses(4, "blocks.1.ffn.0.weight", path.name, "[3, 4]")


def test_an_alpha_that_is_not_finite(case) -> None:
    edit(case.files.lora, lambda t: t.update({f"{Q}.alpha": torch.tensor(float("nan"))}))
    case.refuses(4, "alpha")


@pytest.mark.parametrize("size", [1e25, 1e30, 1e37])
def test_numbers_too_large_to_be_computed_with(case, size: float) -> None:
    def blow_up(tensors: dict) -> None:
        tensors[f"{Q}.lora_A.weight"] *= size

    edit(case.files.lora, blow_up)
    case.refuses(4, "blocks.0.self_attn.q", more=("--method", "casa"))


def test_numbers_too_large_for_the_output(case) -> None:
    def blow_up(tensors: dict) -> None:
        tensors[f"{Q}.lora_A.weight"] *= 1e12

    edit(case.files.lora, blow_up)
    case.refuses(4, "blocks.0.self_attn.q", more=("--dtype", "float16"))


# ---- files

JUNK = {
    "empty": b"",
    "one byte": b"x",
    "a web page": b"<!DOCTYPE html><html><head><title>Sign in</title></head></html>" * 20,
    "a pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 123456\n",
    "random": bytes(range(256)) * 40,
    "zeros": bytes(10_000),
    "an enormous header": struct.pack("<Q", 2**62) + b"{}" * 100,
    "a header longer than the file": struct.pack("<Q", 100_000) + b"{" + b" " * 500,
    "a header that is not JSON": struct.pack("<Q", 64) + b"{" * 64,
    "a header that is a list": struct.pack("<Q", 8) + b"[1, 2] " + b" ",
    "deep nesting": struct.pack("<Q", 100_000) + b"[" * 100_000,
}


@pytest.mark.parametrize("junk", JUNK, ids=str)
@pytest.mark.parametrize("which", ["lora", "source", "target"])
def test_junk(case, which: str, junk: str) -> None:
    path = getattr(case.files, which)
    path.write_bytes(JUNK[junk])
    case.refuses(5, path.name)


@pytest.mark.parametrize("which", ["lora", "source", "target"])
@pytest.mark.parametrize("keep", [0.999, 0.5, 0.01])
def test_cut_short(case, which: str, keep: float) -> None:
    path = getattr(case.files, which)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    case.refuses(5, path.name)


HEADERS = {
    "overlap": {
        "a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]},
        "b": {"dtype": "F32", "shape": [4], "data_offsets": [8, 24]},
    },
    "beyond the end": {"a": {"dtype": "F32", "shape": [400], "data_offsets": [0, 1600]}},
    "too short for the shape": {"a": {"dtype": "F32", "shape": [400], "data_offsets": [0, 32]}},
    "backwards": {"a": {"dtype": "F32", "shape": [0], "data_offsets": [16, 0]}},
    "negative shape": {"a": {"dtype": "F32", "shape": [-2, -2], "data_offsets": [0, 16]}},
    "shape that overflows": {"a": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 32]}},
    "unknown type": {"a": {"dtype": "Q7", "shape": [4], "data_offsets": [0, 32]}},
    "no shape": {"a": {"dtype": "F32", "data_offsets": [0, 32]}},
    "numbers as text": {"a": {"dtype": "F32", "shape": ["8"], "data_offsets": [0, 32]}},
}


@pytest.mark.parametrize("which", ["lora", "source"])
@pytest.mark.parametrize("name", HEADERS, ids=str)
def test_headers_that_lie(case, which: str, name: str) -> None:
    text = json.dumps(HEADERS[name]).encode()
    path = getattr(case.files, which)
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(32))
    done = case.run()
    assert done.code in (3, 5), done.stderr
    assert path.name in done.stderr
    assert done.errors == 1
    assert "Traceback" not in done.stderr
    assert not case.output.exists()


@pytest.mark.parametrize("which", ["lora", "source", "target"])
def test_a_missing_file(case, which: str) -> None:
    path = getattr(case.files, which)
    path.unlink()
    case.refuses(5, path.name)


@pytest.mark.parametrize("which", ["lora", "source", "target"])
def test_an_empty_folder(case, which: str) -> None:
    path = getattr(case.files, which)
    path.unlink()
    path.mkdir()
    case.refuses(5, path.name)


def test_one_shard_without_its_index(case) -> None:
    shard = case.files.folder / "model-00001-of-00002.safetensors"
    shutil.move(case.files.source, shard)
    done = case.zygote.start(
        "transfer", case.files.lora, "-s", shard, "-t", case.files.target, "-o", case.output, cwd=case.files.folder
    ).finish()
    assert done.code == 5
    assert "index" in done.stderr


class Payload:
    """Unpickling it makes a file."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("name", ["evil.pt", "evil.pth", "evil.ckpt", "evil.bin", "evil.safetensors"])
@pytest.mark.parametrize("which", ["lora", "source", "target"])
def test_a_malicious_pickle(case, which: str, name: str) -> None:
    mark = case.files.folder / "executed"
    evil = case.files.folder / name
    weights = load_file(getattr(case.files, which))
    torch.save({**weights, "extra": Payload(mark)}, evil)
    files = {"lora": case.files.lora, "source": case.files.source, "target": case.files.target, which: evil}
    done = case.zygote.start(
        "transfer", files["lora"], "-s", files["source"], "-t", files["target"], "-o", case.output,
        cwd=case.files.folder,
    ).finish()  # fmt: skip
    assert not mark.exists(), "the payload ran"
    assert done.code == 5, done.stderr
    assert name in done.stderr
    assert "Traceback" not in done.stderr
    assert not case.output.exists()


# ---- things that do not fit each other


def test_a_lora_of_another_size(case) -> None:
    save_file(pico.lora(3, width=48, ffn=96), case.files.lora)
    case.refuses(3, "48", "32")


def test_a_target_of_another_size(case) -> None:
    save_file(pico.weights(4, width=48, ffn=96), case.files.target)
    case.refuses(3, "48", "32")


def test_a_target_with_fewer_blocks(case) -> None:
    save_file(pico.weights(1, blocks=1), case.files.target)
    case.refuses(3, "blocks.1")


def test_a_lora_of_another_family(case) -> None:
    name = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    pair = {f"{name}.lora_down.weight": torch.zeros(4, 320), f"{name}.lora_up.weight": torch.zeros(320, 4)}
    save_file(pair, case.files.lora)
    case.refuses(3, case.files.lora.name)


@pytest.mark.parametrize("which", ["source", "target"])
def test_a_checkpoint_of_another_family(case, which: str) -> None:
    path = getattr(case.files, which)
    save_file({"double_blocks.0.img_attn.qkv.weight": torch.zeros(96, 32), "img_in.weight": torch.zeros(32, 16)}, path)
    case.refuses(3, path.name)


@pytest.mark.parametrize("which", ["source", "target"])
def test_a_lora_given_as_a_checkpoint(case, which: str) -> None:
    path = getattr(case.files, which)
    shutil.copy(case.files.lora, path)
    case.refuses(3, path.name, "LoRA")


def test_a_checkpoint_given_as_a_lora(case) -> None:
    shutil.copy(case.files.source, case.files.lora)
    case.refuses(3, case.files.lora.name)


def test_source_and_target_that_are_unrelated(case) -> None:
    save_file(pico.weights(77), case.files.target)
    message = case.refuses(3, case.files.source.name, case.files.target.name)
    assert "1.4" in message  # independent weights differ by the square root of two
    assert case.run("--force").code == 0


def test_the_same_file_as_source_and_target_is_said_and_done(case) -> None:
    shutil.copy(case.files.source, case.files.target)
    done = case.run()
    assert done.code == 0, done.stderr
    assert "warning" in done.stderr


# ---- the output


def test_an_output_that_exists(case) -> None:
    case.output.write_bytes(b"precious")
    case.refuses(5, case.output.name, "--overwrite")
    assert case.run("--overwrite").code == 0
    assert case.output.read_bytes() != b"precious"


def test_an_output_that_would_replace_the_input(case) -> None:
    before = case.files.lora.read_bytes()
    done = case.run("-o", case.files.lora, "--overwrite")
    assert done.code in (2, 5)
    assert case.files.lora.read_bytes() == before


@pytest.mark.parametrize("which", ["source", "target"])
def test_an_output_that_would_replace_a_model(case, which: str) -> None:
    path = getattr(case.files, which)
    before = path.read_bytes()
    done = case.run("-o", path, "--overwrite")
    assert done.code in (2, 5)
    assert path.read_bytes() == before


def test_an_output_folder_that_is_a_file(case) -> None:
    done = case.run("-o", case.files.lora / "out.safetensors")
    assert done.code == 5, done.stderr
    assert "Traceback" not in done.stderr


def test_plan_refuses_the_same_things(case) -> None:
    edit(case.files.lora, lambda t: t.pop(f"{Q}.lora_A.weight"))
    done = case.zygote.start(*case.words(command="plan"), cwd=case.files.folder).finish()
    assert done.code == 3
    assert done.errors == 1


def test_errors_as_json(case) -> None:
    case.files.lora.unlink()
    done = case.run("--json")
    assert done.code == 5
    assert json.loads(done.stdout)["error"]["exit_code"] == 5
    assert "error" not in done.stderr
