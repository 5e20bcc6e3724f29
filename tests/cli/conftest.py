"""Pico files for the commands, and a cache that is nobody's."""

import shutil
from pathlib import Path

import pytest

import pico


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORAPORT_CACHE", str(tmp_path / "default cache"))


@pytest.fixture(scope="session")
def originals(tmp_path_factory: pytest.TempPathFactory) -> pico.Pico:
    return pico.write(tmp_path_factory.mktemp("pico"))


@pytest.fixture
def files(originals: pico.Pico, tmp_path: Path) -> pico.Pico:
    folder = tmp_path / "größe x"
    shutil.copytree(originals.folder, folder)
    return pico.Pico(folder, *(folder / path.name for path in (originals.source, originals.target, originals.lora)))
