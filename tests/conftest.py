"""Every test runs with jaxtyping's shapes checked by beartype, and may not touch the global random state."""

import functools
import gc
import os
import signal
import sys
from pathlib import Path

import hypothesis
import pytest

import shape_checks

# Before torch is imported, and for the processes that tests start. The tensors here are so small that two threads
# mostly wait for each other: 35 times as slow as one when the machine is busy. What must not depend on the number
# of threads sets it by itself.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Hundreds of processes that tests start import the same modules. Where the environment says that no bytecode is to be
# written, as images of containers do, each would compile the whole source for itself.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# A shell ignores these for what it starts in the background or under nohup, and so would whatever tests start.
for _name, _usual in {"SIGINT": signal.default_int_handler, "SIGHUP": signal.SIG_DFL}.items():
    if hasattr(signal, _name) and signal.getsignal(getattr(signal, _name)) is signal.SIG_IGN:
        signal.signal(getattr(signal, _name), _usual)

# The same examples in every run, so that a failure is due to a change. `--hypothesis-profile default` takes others.
hypothesis.settings.register_profile("same", derandomize=True)
hypothesis.settings.load_profile("same")

# Of whole clusters of Ray.
LONGEST = ("test_ray_runs.py", "test_ray.py")


def _modules_with_shapes() -> list[str]:
    """The others have plain types, which mypy checks; a check of every call would double the time of the suite."""
    source = Path(__file__).parents[1] / "src"
    files = [file for file in source.rglob("*.py") if "jaxtyping" in file.read_text(encoding="utf-8")]
    return [".".join(file.relative_to(source).with_suffix("").parts) for file in files]


shape_checks.install(_modules_with_shapes())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first, so that at the end no process is left with a long one while another has none."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: (item.path.name not in LONGEST, item.path not in slow))


def pytest_collection_finish() -> None:
    """Modules, classes and tests stay to the end: the collector need not walk through millions of objects each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _global_rng_untouched():
    import torch

    before = torch.random.get_rng_state()
    yield
    assert torch.equal(before, torch.random.get_rng_state()), "the global random state was touched"


@pytest.fixture(scope="session", autouse=True)
def _machine_measured_once():
    """Tests have caches of their own, so that each would measure this machine again, which takes a second."""
    from loraport.engine import measuring

    with pytest.MonkeyPatch.context() as patch:
        measure = functools.cache(lambda device: measured(device, None))
        measured = measuring.measure
        patch.setattr(measuring, "measure", lambda device, root: measure(device))
        yield


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
