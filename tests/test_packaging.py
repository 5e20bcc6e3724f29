"""What the package says of versions of Python is one thing in every place that says it."""

import re
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parents[1]
PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
VERSIONS = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', PROJECT)
PINS = [
    Requirement(line)
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    if line and not line.startswith("#")
]


def test_the_versions_are_the_same_everywhere():
    assert VERSIONS[0] == "3.10"
    assert f'requires-python = ">={VERSIONS[0]}"' in PROJECT
    assert f'target-version = "py{VERSIONS[0].replace(".", "")}"' in PROJECT
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text(encoding="utf-8"))
    assert workflow["jobs"]["tests"]["strategy"]["matrix"]["python"] == VERSIONS
    page = (ROOT / "docs" / "platforms.md").read_text(encoding="utf-8")
    assert all(re.search(rf"(?<!\d){re.escape(version)}(?!\d)", page) for version in VERSIONS)


@pytest.mark.parametrize("version", VERSIONS)
def test_no_package_is_pinned_twice_or_not_at_all(version):
    pinned = [pin.name for pin in PINS if pin.marker is None or pin.marker.evaluate({"python_version": version})]
    assert sorted(pinned) == sorted(set(pinned))
    assert {"torch", "typer", "diffusers", "pytest"} <= set(pinned)


def test_every_pin_can_be_installed_on_every_version_that_it_is_for():
    """Asked of the packages that are here; a pin that is not installed here is for another version of Python."""
    asked = 0
    for pin in PINS:
        try:
            found = metadata(pin.name)
        except PackageNotFoundError:
            continue
        if found["Version"].partition("+")[0] not in pin.specifier:
            continue
        needs = SpecifierSet(found.get("Requires-Python", ""))
        for version in VERSIONS:
            if pin.marker is None or pin.marker.evaluate({"python_version": version}):
                assert f"{version}.99" in needs, f"{pin} on {version}"
                asked += 1
    assert asked > 100
