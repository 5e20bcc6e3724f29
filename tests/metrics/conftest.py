"""What several judges look at."""

import numpy as np
import pytest


@pytest.fixture(scope="session")
def portrait():
    """Grace Hopper in uniform, 606 x 512 pixels, which comes with matplotlib."""
    matplotlib = pytest.importorskip("matplotlib")
    from PIL import Image

    found = np.array(Image.open(f"{matplotlib.get_data_path()}/sample_data/grace_hopper.jpg").convert("RGB"))
    found.flags.writeable = False
    return found
