"""Every test runs with jaxtyping's shapes checked by beartype, and may not touch the global random state."""

import pytest
from jaxtyping import install_import_hook

install_import_hook("loraport", "beartype.beartype")


@pytest.fixture(autouse=True)
def _global_rng_untouched():
    import torch

    before = torch.random.get_rng_state()
    yield
    assert torch.equal(before, torch.random.get_rng_state()), "the global random state was touched"
