"""examples/analysis.ipynb runs from top to bottom: its cells, one after the other, in a Python of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[2] / "examples" / "analysis.ipynb"


def _cells() -> list[dict]:
    return json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]


def test_the_notebook_is_kept_without_outputs():
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in _cells() if "outputs" in cell)


@pytest.mark.slow
def test_the_notebook_runs(tmp_path):
    code = "\n".join("".join(cell["source"]) for cell in _cells() if cell["cell_type"] == "code")
    done = subprocess.run(
        [sys.executable, "-"],
        input=code,
        capture_output=True,
        text=True,
        encoding="utf-8",
        cwd=tmp_path,
        env={**os.environ, "MPLBACKEND": "Agg"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "random" in done.stdout
