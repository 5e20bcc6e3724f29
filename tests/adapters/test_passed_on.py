"""What the method cannot transform: it must fit the models, goes over as it is, and is said."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import makers
import pico
from formats_page import PAGES, quoted, rows
from loraport.adapters.convert import convert
from loraport.adapters.describe import describe
from loraport.adapters.parse import open_adapter
from loraport.adapters.verify import verify_adapter
from loraport.cli.main import app
from loraport.errors import MismatchError, UnmatchedKeysError, UnsupportedError
from loraport.models.checkpoint import open_checkpoint
from makers import PEFT, LoraFile, flat, same, spell

PATCH = "diffusion_model.patch_embedding"
WRONG = {
    f"{PATCH}.diff": ([24, 9, 1, 2, 2], [24, 4, 1, 2, 2]),
    "diffusion_model.blocks.0.self_attn.q.diff_b": ([48], [24]),
    "diffusion_model.blocks.0.self_attn.norm_q.diff": ([16], [24]),
    "diffusion_model.blocks.0.diff_m": ([1, 6, 16], [1, 6, 24]),
}


def _run(*words: object):
    return CliRunner(env={"COLUMNS": "240"}).invoke(app, [str(word) for word in words], prog_name="loraport")


@pytest.mark.parametrize("key", WRONG)
def test_a_change_of_the_wrong_shape_is_refused_with_both_shapes(key, tmp_path, pico):
    found, wanted = WRONG[key]
    path = LoraFile(makers.universal() | {key: torch.ones(found)}).write(tmp_path)
    with pytest.raises(UnmatchedKeysError) as caught:
        open_adapter(path, pico)
    for word in (key, str(found), str(wanted), "--allow-partial"):
        assert word in caught.value.message
    assert open_adapter(path, pico, allow_partial=True).dropped == (key,)
    assert open_adapter(path, pico, drop=f"{key}$").dropped == (key,)
    fits = {check.name: check.passed for check in verify_adapter(path, pico)}
    assert fits["fits the model"] is False


@pytest.mark.parametrize(
    ("prefix", "rename", "wrong", "right"),
    [
        ("diffusion_model.", same, "norm2", "norm3"),
        ("transformer.", makers.diffusers_name, "norm3", "norm2"),
        ("lora_unet_", flat, "norm2", "norm3"),
    ],
)
def test_norms_are_counted_as_the_rest_of_the_file_counts_them(prefix, rename, wrong, right, tmp_path, pico):
    """The affine norm is number 3 in the original and number 2 in diffusers; the other one has no weights."""
    tensors = spell(makers.factors(), prefix, rename, *PEFT)
    separator = "_" if rename is flat else "."
    norm = f"{prefix}blocks{separator}0{separator}{{}}.diff"
    fine = LoraFile(tensors | {norm.format(right): torch.ones(24)}).write(tmp_path, "fine.safetensors")
    assert [item.param for item in open_adapter(fine, pico).passthrough] == ["blocks.0.norm3.weight"]
    path = LoraFile(tensors | {norm.format(wrong): torch.ones(24)}).write(tmp_path)
    with pytest.raises(UnmatchedKeysError, match="count them"):
        open_adapter(path, pico)
    assert open_adapter(path, pico, allow_partial=True).dropped == (norm.format(wrong),)


def test_it_must_fit_the_target_too(tmp_path):
    """A LoRA for 16 channels fits its source; the target has 36."""
    files = pico.write(tmp_path)
    tensors = load_file(files.lora) | {f"{PATCH}.diff": torch.ones(32, 16, 1, 2, 2)}
    save_file(tensors, files.lora)
    target = load_file(files.target)
    target["patch_embedding.weight"] = torch.randn(32, 36, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    save_file(target, files.target)
    words = ["transfer", files.lora, "-s", files.source, "-t", files.target, "--method", "direct"]
    words += ["-o", tmp_path / "out.safetensors"]
    done = _run(*words)
    assert done.exit_code == 3
    for word in ("patch_embedding.diff", "[32, 16, 1, 2, 2]", "target has [32, 36, 1, 2, 2]", "--allow-partial"):
        assert word in done.output
    assert _run(*words, "--allow-partial").exit_code == 0
    assert f"{PATCH}.diff" not in load_file(tmp_path / "out.safetensors")


class TestFactorsOnAConvolution:
    """ComfyUI's own trainer writes them as plain matrices, LyCORIS in the shape of the kernel."""

    MATRICES = ((24, 3), (3, 16))
    KERNEL = ((24, 3, 1, 1, 1), (3, 4, 1, 2, 2))

    @staticmethod
    def _made(shapes) -> tuple[dict, torch.Tensor]:
        generator = torch.Generator().manual_seed(1)
        up, down = (torch.randn(shape, generator=generator) for shape in shapes)
        named = {f"{PATCH}.lora_up.weight": up, f"{PATCH}.lora_down.weight": down, f"{PATCH}.alpha": torch.tensor(1.5)}
        return named, 0.5 * (up.reshape(24, 3) @ down.reshape(3, -1)).reshape(24, -1, 1, 2, 2)

    @pytest.mark.parametrize("shapes", [MATRICES, KERNEL])
    def test_it_is_passed_on_as_a_change_of_the_whole_weight(self, shapes, tmp_path, pico):
        made, wanted = self._made(shapes)
        path = LoraFile(makers.universal() | made).write(tmp_path)
        adapter = open_adapter(path, pico)
        (item,) = adapter.passthrough
        assert (item.param, item.kind, set(item.keys)) == ("patch_embedding.weight", "diff", set(made))
        torch.testing.assert_close(item.load(), wanted)
        torch.testing.assert_close(adapter.scaled(2.0).passthrough[0].load(), 2 * wanted)
        assert any("patch_embedding is not a linear layer" in text for text in adapter.warnings)
        for to in ("universal", "original", "same-as-input", "kohya"):
            convert(path, tmp_path / f"{to}.safetensors", to=to, model=pico.path)
            (item,) = open_adapter(tmp_path / f"{to}.safetensors", pico).passthrough
            torch.testing.assert_close(item.load(), wanted)
        assert open_adapter(path, pico, drop="patch_embedding").passthrough == ()

    def test_without_a_model_matrices_do_not_tell_their_shape(self, tmp_path, pico_path):
        path = LoraFile(makers.universal() | self._made(self.MATRICES)[0]).write(tmp_path)
        assert describe(path).refused == ""
        with pytest.raises(UnsupportedError, match="--model"):
            convert(path, tmp_path / "out.safetensors")
        assert _run("convert", path, "-o", tmp_path / "out.safetensors", "--model", pico_path).exit_code == 0
        assert _run("convert", path, "-o", tmp_path / "2.safetensors", "--drop", "patch_embedding").exit_code == 0

    def test_a_kernel_tells_it(self, tmp_path):
        made, wanted = self._made(self.KERNEL)
        convert(LoraFile(makers.universal() | made).write(tmp_path), tmp_path / "out.safetensors")
        torch.testing.assert_close(load_file(tmp_path / "out.safetensors")[f"{PATCH}.diff"], wanted)

    def test_what_does_not_fit_the_model_is_refused(self, tmp_path, pico):
        path = LoraFile(makers.universal() | self._made(((24, 3), (3, 20)))[0]).write(tmp_path)
        with pytest.raises(MismatchError, match="--drop patch_embedding"):
            open_adapter(path, pico)

    def test_transfer(self, tmp_path):
        files = pico.write(tmp_path)
        generator = torch.Generator().manual_seed(1)
        up, down = torch.randn(32, 16, generator=generator), torch.randn(16, 64, generator=generator)
        made = {f"{PATCH}.lora_up.weight": up, f"{PATCH}.lora_down.weight": down, f"{PATCH}.alpha": torch.tensor(1.0)}
        save_file(load_file(files.lora) | made, files.lora)
        words = ["transfer", files.lora, "-s", files.source, "-t", files.target, "-o", tmp_path / "out.safetensors"]
        done = _run(*words)
        assert done.exit_code == 0, done.output
        assert "patch_embedding is not a linear layer" in done.output
        change = load_file(tmp_path / "out.safetensors")[f"{PATCH}.diff"]
        torch.testing.assert_close(change, (up @ down / 16).reshape(32, 16, 1, 2, 2))


class TestNothing:
    @staticmethod
    def _lora(tmp_path, zero: str):
        tensors = {k: t * (not (zero in k and "lora_B" in k)) for k, t in makers.universal().items()}
        return LoraFile(tensors).write(tmp_path)

    def test_an_empty_lora_is_called_empty(self, tmp_path):
        path = self._lora(tmp_path, "")
        assert any("the LoRA is empty" in text for text in describe(path).findings)
        assert any("the LoRA is empty" in check.found for check in verify_adapter(path))

    def test_layers_of_zero_are_counted(self, tmp_path):
        path = self._lora(tmp_path, "blocks.1.")
        assert "layers whose update is zero: 10, e.g. blocks.1.self_attn.q" in describe(path).findings
        assert any("10 of 20 layers have an update of zero" in check.found for check in verify_adapter(path))

    def test_otherwise_nobody_speaks_of_it(self, tmp_path):
        path = LoraFile(makers.universal()).write(tmp_path)
        assert not any("zero" in text for text in describe(path).findings)
        assert not any(check.name == "it changes something" for check in verify_adapter(path))


def test_inspect_ends_with_the_code_of_the_refusal(tmp_path):
    other = makers.universal() | {"diffusion_model.blocks.0.self_attn.q_loras.down.weight": torch.ones(4, 24)}
    bad = LoraFile(other).write(tmp_path)
    good = LoraFile(makers.universal()).write(tmp_path, "good.safetensors")
    assert _run("inspect", good).exit_code == 0
    done = _run("inspect", bad, "--json")
    assert done.exit_code == 3
    assert "Stand-In" in json.loads(done.stdout)["refused"]
    done = _run("inspect", bad, good)
    assert done.exit_code == 3
    assert "good.safetensors" in done.stdout
    model = tmp_path / "model.safetensors"
    save_file(makers.model(), model)
    assert open_checkpoint(model)
    assert _run("inspect", model).exit_code == 0


CHANGES = {
    "the bias of a linear layer": ("diffusion_model.blocks.0.self_attn.q.diff_b", (24,)),
    "the bias of a norm or convolution": ("diffusion_model.patch_embedding.diff_b", (24,)),
    "the weight of a norm or convolution": ("diffusion_model.blocks.0.self_attn.norm_q.diff", (24,)),
    "a modulation": ("diffusion_model.blocks.0.diff_m", (1, 6, 24)),
    "a text encoder": ("lora_te_encoder_layers_0_mlp_fc1.lora_up.weight", (24, 4)),
}


def test_the_page_says_how_changes_are_spelled(tmp_path):
    profiles = quoted(next(line for line in PAGES["output"].splitlines() if line.startswith("| change of |")))
    for what, *cells in rows("change of"):
        if what not in CHANGES:  # another bare parameter: Wan has none
            continue
        key, shape = CHANGES[what]
        parts = {key: torch.ones(shape)}
        if key.endswith("lora_up.weight"):
            parts[key.replace("up", "down")] = torch.ones(4, 24)
        path = LoraFile(makers.universal() | parts).write(tmp_path)
        for profile, cell in zip(profiles, cells, strict=True):
            output, to = tmp_path / "out.safetensors", profile
            if cell == "refused":
                with pytest.raises(UnsupportedError):
                    convert(path, output, to=to, overwrite=True)
                continue
            convert(path, output, to=to, overwrite=True)
            spelled = key if cell == "its own key" else cell.strip("`")
            assert any(found.endswith(spelled) for found in load_file(output)), (what, profile)


def test_the_page_says_what_keys_are_written(tmp_path):
    path = LoraFile(makers.universal()).write(tmp_path)
    for profile, key, _ in rows("`--to`")[:-1]:  # the last one keeps those of the input
        output = tmp_path / "out.safetensors"
        convert(path, output, to=profile.split("`")[1], overwrite=True)
        assert key.split("`")[1] in load_file(output), profile
