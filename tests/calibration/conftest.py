"""Toy models with their files, and a calibration of them."""

import pytest

import loraport
import toys
from loraport.calibration import CalibrationSettings
from loraport.engine.options import RunOptions

SMALL = CalibrationSettings(methods=(), rounds=1, samples=6, diagnosis=2, batch=8)


@pytest.fixture
def made(tmp_path) -> toys.Toys:
    return toys.write(tmp_path / "toys")


@pytest.fixture
def run(made, tmp_path):
    """`loraport.calibrate` on the toys; what is given replaces the usual."""

    def calibrate(**changes):
        cache = changes.pop("cache", "off")
        given = {
            "source": made.source,
            "target": made.target,
            "prompts": made.prompts,
            "settings": SMALL,
            "output": tmp_path / "out.safetensors",
            "options": RunOptions(cache=str(cache), log="off", overwrite=changes.pop("overwrite", False)),
        }
        return loraport.calibrate(changes.pop("lora", made.lora), **(given | changes))

    return calibrate
