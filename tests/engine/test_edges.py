"""Updates and weights at the edge: zeros, padding, and numbers near the end of float32."""

import pytest
import torch
from safetensors.torch import load_file, save_file

import loraport
import pico
from loraport.engine.options import RunOptions
from loraport.errors import MismatchError, NumericalError

OPTIONS = RunOptions(cache="off", log="off", overwrite=True, executor="serial")
UP, DOWN = ".lora_B.weight", ".lora_A.weight"


@pytest.fixture
def files(tmp_path) -> pico.Pico:
    return pico.write(tmp_path / "pico")


def transfer(files, lora, method, rank="auto"):
    """The updates of the output by layer, and the report."""
    output = files.folder / "out.safetensors"
    report = loraport.transfer(
        lora, source=files.source, target=files.target, output=output, method=method, rank=rank, options=OPTIONS
    )
    tensors = load_file(output)
    names = [key.removesuffix(DOWN) for key in tensors if key.endswith(DOWN)]
    return {name: tensors[name + UP] @ tensors[name + DOWN] for name in names}, report


def rewrite(files, name, change):
    """The pair's LoRA with every (B, A) changed."""
    tensors = load_file(files.lora)
    made = {}
    for key in tensors:
        if key.endswith(DOWN):
            stem = key.removesuffix(DOWN)
            made[stem + UP], made[key] = change(stem, tensors[stem + UP], tensors[key])
    path = files.folder / f"{name}.safetensors"
    save_file({key: tensor.contiguous() for key, tensor in made.items()}, path)
    return path


def padded(stem, B, A):
    return torch.cat([B, torch.zeros(len(B), 5)], 1), torch.cat([A, torch.zeros(5, A.shape[1])], 0)


def halves(stem, B, A):
    return torch.cat([B / 2, B / 2], 1), torch.cat([A, A], 0)


def without_block_1(stem, B, A):
    return (torch.zeros_like(B) if "blocks.1." in stem else B), A


def nothing(stem, B, A):
    return torch.zeros_like(B), A


@pytest.mark.parametrize("method", ["casa", "matched-gain"])
def test_only_the_product_of_the_factors_counts(files, method):
    plain, _ = transfer(files, files.lora, method)
    for change in (padded, halves):
        other, _ = transfer(files, rewrite(files, change.__name__, change), method)
        for name, matrix in plain.items():
            assert float((matrix - other[name]).norm()) <= 1e-4 * float(matrix.norm()), (change.__name__, name)


@pytest.mark.parametrize("method", ["casa", "direct"])
def test_a_layer_whose_update_is_zero_is_a_layer_that_the_lora_does_not_have(files, method):
    plain, _ = transfer(files, files.lora, method)
    made, report = transfer(files, rewrite(files, "partly", without_block_1), method)
    for name, matrix in made.items():
        if "blocks.1." in name:
            assert not matrix.any()
        else:
            assert float((matrix - plain[name]).norm()) <= 1e-4 * float(plain[name].norm())
    assert not any("every update is zero" in warning for warning in report.warnings)
    _, report = transfer(files, files.folder / "partly.safetensors", method, rank="energy=0.1")
    assert report.summary.rank_out < report.summary.rank_in  # which the zeros have


@pytest.mark.parametrize("method", ["casa", "matched-gain"])
def test_an_empty_lora_stays_empty_and_is_named(files, method):
    made, report = transfer(files, rewrite(files, "nothing", nothing), method)
    assert not any(matrix.any() for matrix in made.values())
    assert any("every update is zero" in warning for warning in report.warnings)


def change_weights(files, role, change):
    path = getattr(files, role)
    tensors = load_file(path)
    name = "blocks.1.ffn.0.weight"
    tensors[name] = change(tensors[name])
    save_file(tensors, path)
    return name.removesuffix(".weight")


@pytest.mark.parametrize(
    ("method", "size"), [("casa", 1e17), ("prolora", 1e30), ("casa", 3e38), ("matched-gain", 3e38)]
)
def test_weights_that_float32_cannot_square_are_refused_by_name(files, method, size):
    name = change_weights(files, "source", lambda W: torch.full_like(W, size))
    change_weights(files, "target", lambda W: torch.full_like(W, -size))  # at 3e38 the difference overflows
    with pytest.raises(NumericalError) as caught:
        transfer(files, files.lora, method)
    assert name in str(caught.value)
    assert not (files.folder / "out.safetensors").exists()


@pytest.mark.parametrize("method", ["casa", "prolora"])
def test_zeros_in_the_source_under_a_target_that_is_not_are_refused_by_name(files, method):
    name = change_weights(files, "source", torch.zeros_like)
    with pytest.raises(MismatchError) as caught:
        transfer(files, files.lora, method)
    assert name in str(caught.value)


def test_zeros_in_both_give_the_update_back(files):
    name = change_weights(files, "source", torch.zeros_like)
    change_weights(files, "target", torch.zeros_like)
    plain, _ = transfer(files, files.lora, "direct")
    made, _ = transfer(files, files.lora, "casa")
    key = f"diffusion_model.{name}"
    assert float((made[key] - plain[key]).norm()) < 1e-5 * float(plain[key].norm())


def test_a_single_weight_that_has_nothing_to_do_with_the_source_is_named(files):
    tensors = load_file(files.target)
    name = next(key for key in tensors if "blocks.1.ffn.0.weight" in key or "blocks.1.ffn.net.0.proj.weight" in key)
    tensors[name] = tensors[name] * 300  # as an fp8 weight is whose scale was lost
    save_file(tensors, files.target)
    _, report = transfer(files, files.lora, "casa")
    assert [text for text in report.warnings if "blocks.1.ffn.0" in text and "1 of " in text]
