"""The nodes in a real ComfyUI, where one is named; docs/comfyui.md says how."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = os.environ.get("LORAPORT_COMFYUI")
PYTHON = os.environ.get("LORAPORT_COMFYUI_PYTHON", sys.executable)


@pytest.mark.slow
@pytest.mark.skipif(CHECKOUT is None, reason="LORAPORT_COMFYUI does not name a checkout of ComfyUI")
def test_the_nodes_in_comfyui():
    script = Path(__file__).with_name("try_it.py")
    done = subprocess.run([PYTHON, str(script), str(CHECKOUT)], capture_output=True, text=True, timeout=290)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.rstrip().endswith("all checks passed")
