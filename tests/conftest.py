"""Every test runs with jaxtyping's shapes checked by beartype, and may not touch the global random state."""

import os
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

# Before torch is imported, and for the processes that tests start. The tensors here are so small that two threads
# mostly wait for each other: 35 times as slow as one when the machine is busy. What must not depend on the number
# of threads sets it by itself.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def _modules_with_shapes() -> list[str]:
    """The others have plain types, which mypy checks; a check of every call would double the time of the suite."""
    source = Path(__file__).parents[1] / "src"
    files = [file for file in source.rglob("*.py") if "jaxtyping" in file.read_text(encoding="utf-8")]
    return [".".join(file.relative_to(source).with_suffix("").parts) for file in files]


install_import_hook(_modules_with_shapes(), "beartype.beartype")


@pytest.fixture(autouse=True)
def _global_rng_untouched():
    import torch

    before = torch.random.get_rng_state()
    yield
    assert torch.equal(before, torch.random.get_rng_state()), "the global random state was touched"


@pytest.fixture(scope="session")
def pico_path(tmp_path_factory):
    """A two-block Wan in original names, on disk."""
    from safetensors.torch import save_file

    import makers

    path = tmp_path_factory.mktemp("pico") / "wan.safetensors"
    save_file(makers.model(), path)
    return path


@pytest.fixture(scope="session")
def pico(pico_path):
    """The same, opened."""
    from loraport.models.checkpoint import open_checkpoint

    return open_checkpoint(pico_path)
