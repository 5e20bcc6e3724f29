"""A folder named as the output is a folder, whether it is there or not."""

import pytest
from typer.testing import CliRunner

from loraport.cli.main import app

REUSE = ("-s", "zoo:source", "-t", "zoo:step", "--method", "direct", "--cache", "off")


@pytest.mark.parametrize(
    "words",
    [("transfer", "zoo:noir", *REUSE), ("convert", "zoo:noir"), ("resize", "zoo:noir", "--rank", "2")],
    ids=lambda words: words[0],
)
def test_a_slash_at_the_end_means_a_folder(words, tmp_path):
    done = CliRunner().invoke(app, [*words, "-o", f"{tmp_path}/made/"])
    assert not (tmp_path / "made").is_file(), done.output
    if done.exit_code == 0:
        assert (tmp_path / "made" / "noir.safetensors").is_file()
    else:
        assert "made" in done.output


def test_extract_asks_for_the_name_of_the_file(tmp_path):
    words = ["extract", "-s", "zoo:source", "-t", "zoo:step", "--rank", "2", "-o", f"{tmp_path}/made/"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 2
    assert "name a file" in done.output
    assert not (tmp_path / "made").exists()
