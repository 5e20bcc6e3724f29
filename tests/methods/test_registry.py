"""Methods and presets by name, and settings from text."""

import pytest
import torch

from loraport.core.lowrank import LowRank
from loraport.errors import UsageError
from loraport.methods import registry
from loraport.methods.base import LayerInputs, Needs


def test_every_method_and_preset_resolves_and_says_what_it_is():
    for name in [*registry.names(), *registry.presets()]:
        method, params = registry.resolve(name)
        assert isinstance(method.needs(params), Needs)
        assert method.summary
        assert method.reference
        assert method.version >= 1
        assert registry.get(method.name) is method
    assert registry.presets()["released-code"].rank == 32


def test_settings_are_text_with_or_without_the_name_in_front():
    _, params = registry.resolve("casa", {"casa.q_dom": "0.45", "arbitrate": "false", "density": "full"})
    assert (params.q_dom, params.arbitrate, params.density) == (0.45, False, "full")
    _, params = registry.resolve("released-code", {"casa.tau": "2"})
    assert (params.tau, params.complete_basis, params.cut_nonsquare) == (2.0, True, False)
    method, params = registry.resolve("direct", {"strength": "0.5"})
    update = LowRank(torch.ones(3, 1), torch.ones(1, 2))
    output = method.transfer(LayerInputs("layer", update), params)
    assert torch.allclose(output.update.dense(), torch.full((3, 2), 0.5))


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("cassa", {}, "did you mean 'casa'"),
        ("casa", {"q_don": "0.5"}, "did you mean 'q_dom'"),
        ("casa", {"direct.strength": "1"}, "belongs to another method"),
        ("casa", {"q_dom": "much"}, "q_dom\n  found: 'much': it must be a number"),
        ("casa", {"q_dom": "1.5"}, "'1.5': it must be 1 or less"),
        ("casa", {"density": "whole"}, "'whole': it must be 'head' or 'full'"),
        ("masked-restore", {"seed": str(2**63)}, "seed"),
        ("matched-gain", {"power": "1e5"}, "power"),
        ("matched-gain", {"give_back": "1e300"}, "give_back"),
        ("orthogonal-shift", {"beta": "1e150"}, "beta"),
    ],
)
def test_what_does_not_fit_is_a_usage_error_that_says_so(name, settings, message):
    with pytest.raises(UsageError) as caught:
        registry.resolve(name, settings)
    assert message in str(caught.value)


@pytest.mark.parametrize("name", registry.names())
@pytest.mark.parametrize("number", ["inf", "-inf", "nan"])
def test_no_setting_is_a_number_that_is_not_finite(name, number):
    for parameter, field in registry.get(name).Params.model_fields.items():
        if field.annotation is float:
            with pytest.raises(UsageError, match=parameter):
                registry.resolve(name, {parameter: number})


@pytest.mark.parametrize("name", ["masked-restore", "revert"])
@pytest.mark.parametrize("number", ["-1", "0", "0.3", "1", "1.5"])
def test_what_is_as_in_casa_has_the_bounds_of_casa(name, number):
    def taken(method: str, parameter: str) -> bool:
        try:
            return bool(registry.resolve(method, {parameter: number}))
        except UsageError:
            return False

    for parameter in ("q_dom", "tau", "head_energy"):
        assert taken(name, parameter) == taken("casa", parameter), parameter


def test_unknown_method():
    with pytest.raises(UsageError, match="nonsense"):
        registry.get("nonsense")
