"""An update on a running model: it acts, it leaves no trace, and inference mode changes nothing."""

import pytest
import torch

import toys
from loraport.adapters.parse import open_adapter
from loraport.core.lowrank import LowRank
from loraport.errors import MismatchError
from loraport.sampling.attach import attached
from loraport.sampling.runner import ModelRunner, draw_noise


@pytest.fixture
def scene(tmp_path):
    made = toys.write(tmp_path)
    update = {name: layer.load() for name, layer in open_adapter(made.lora).layers.items()}
    return made, update, ModelRunner.open(made.target, 4)


@pytest.mark.parametrize("beside", [False, True])
def test_it_is_the_same_as_adding_to_the_weights_and_leaves_no_trace(scene, beside):
    made, update, runner = scene
    if beside:
        for name in update:
            runner.denoiser.linear(name)._hf_hook = None  # as accelerate marks a module that it offloads
    x, some = draw_noise(made.target.latents, range(3)), made.prompts.take(0, 3)
    weights = {name: runner.denoiser.linear(name).weight for name in update}
    before = {name: weight.clone() for name, weight in weights.items()}
    plain = runner.sample(x, some)
    with attached(runner.denoiser, update):
        turned = runner.sample(x, some)
        assert all((runner.denoiser.linear(name).weight is weight) == beside for name, weight in weights.items())
    for name, weight in weights.items():
        assert runner.denoiser.linear(name).weight is weight
        assert torch.equal(weight, before[name])
        assert not runner.denoiser.linear(name)._forward_hooks
    assert torch.equal(runner.sample(x, some), plain)
    for name, term in update.items():
        runner.denoiser.linear(name).weight.data += term.dense()
    assert torch.allclose(runner.sample(x, some), turned, atol=1e-4)
    assert not torch.allclose(plain, turned, atol=1e-2)


def test_an_error_inside_leaves_no_trace_either(scene):
    _, update, runner = scene
    weights = {name: runner.denoiser.linear(name).weight for name in update}
    with pytest.raises(RuntimeError, match="inside"), attached(runner.denoiser, update):
        raise RuntimeError("inside")
    assert all(runner.denoiser.linear(name).weight is weight for name, weight in weights.items())


@pytest.mark.parametrize("loaded_inside", [False, True])
@pytest.mark.parametrize("beside", [False, True])
def test_inference_mode_around_it_changes_nothing(tmp_path, loaded_inside, beside):
    """As ComfyUI does: everything runs, and models are loaded, in inference mode."""
    made = toys.write(tmp_path)
    update = {name: layer.load() for name, layer in open_adapter(made.lora).layers.items()}
    x, some = draw_noise(made.target.latents, range(3)), made.prompts.take(0, 3)

    def sample(runner):
        if beside:
            runner.denoiser.network.to(torch.bfloat16)
        with attached(runner.denoiser, update):
            return runner.sample(x, some)

    class Wide(toys.ToyDenoiser):
        def velocity(self, latents, time, condition):
            dtype = next(self.network.parameters()).dtype
            self.network.enter, self.network.leave = self.network.enter.to(dtype), self.network.leave.to(dtype)
            return super().velocity(latents.to(dtype), time, condition.to(dtype)).float()

    def load():
        return ModelRunner(Wide(toys.Toy(made.target.checkpoint)), made.target.schedule, 4)

    reference = sample(load())
    outside = load()
    with torch.inference_mode():
        again = sample(load() if loaded_inside else outside)
    assert torch.equal(again, reference)
    assert not again.is_inference()
    (again * torch.ones(1, requires_grad=True)).sum().backward()  # an ordinary tensor, as outside


def test_sixteen_bit_weights_take_the_update_beside_them(scene):
    *_, runner = scene
    runner.denoiser.network.to(torch.bfloat16)
    linear = runner.denoiser.linear("blocks.0.self_attn.v")
    rows, columns = linear.weight.shape
    one = LowRank(torch.full((rows, 1), 1e-4), torch.full((1, columns), 1e-4))
    before = linear.weight.clone()
    with attached(runner.denoiser, {"blocks.0.self_attn.v": one}):
        assert torch.equal(linear.weight, before)
        x = torch.ones(1, columns, dtype=torch.bfloat16)
        side = linear(x) - torch.nn.functional.linear(x, before)
        assert side.abs().max() <= 2**-6  # it ran beside the weights, and was rounded in the sum only


def test_a_lora_of_another_size_or_layer_is_refused(scene):
    *_, runner = scene
    for layer, size in (("blocks.0.ffn.0", 5), ("blocks.9.ffn.0", 64)):
        with pytest.raises(MismatchError, match="LoRA"), attached(runner.denoiser, {layer: LowRank.zeros(size, 32, 1)}):
            pass
