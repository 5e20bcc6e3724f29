"""The model that adapters of every kind are read for."""

import pytest
from safetensors.torch import save_file

from adapter_parts import WEIGHTS
from loraport.models.checkpoint import open_checkpoint


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "source.safetensors"
    save_file(WEIGHTS, path)
    return open_checkpoint(path)
