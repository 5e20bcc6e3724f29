"""A pico Wan on disk, for every test that needs a model to fit."""

import makers
import pytest
from safetensors.torch import save_file

from loraport.formats.checkpoint import Checkpoint, open_checkpoint


@pytest.fixture(scope="session")
def pico_path(tmp_path_factory):
    """A two-block Wan in original names."""
    path = tmp_path_factory.mktemp("pico") / "wan.safetensors"
    save_file(makers.model(), path)
    return path


@pytest.fixture(scope="session")
def pico(pico_path) -> Checkpoint:
    """The same, opened."""
    return open_checkpoint(pico_path)
