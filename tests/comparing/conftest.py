"""Tiny pipelines on the disk, made once."""

import pytest

pytest.importorskip("diffusers")
pytest.importorskip("peft")
import tiny_pipelines


@pytest.fixture(scope="session")
def stills(tmp_path_factory):
    """Source, target and two LoRAs of Z-Image."""
    folder = tmp_path_factory.mktemp("stills")
    tiny_pipelines.z_image(folder / "source")
    tiny_pipelines.z_image(folder / "target", drift=0.3)
    tiny_pipelines.z_image_lora(folder / "lora.safetensors")
    tiny_pipelines.z_image_lora(folder / "carried.safetensors", size=0.3)
    return folder


@pytest.fixture(scope="session")
def videos(tmp_path_factory):
    """Source, target and two LoRAs of Wan."""
    folder = tmp_path_factory.mktemp("videos")
    tiny_pipelines.wan(folder / "source")
    tiny_pipelines.wan(folder / "target", drift=0.3)
    tiny_pipelines.wan_lora(folder / "lora.safetensors")
    tiny_pipelines.wan_lora(folder / "carried.safetensors", size=0.3)
    return folder
