"""Networks of which an original's numbers were taken once: weights and frames that come out the same anywhere."""

import numpy as np
import torch


def weights(shapes, smaller=()):
    """Weights in the order of their names, from a stream of numbers that NumPy has promised not to change.

    Args:
        shapes: of the weights, by name.
        smaller: parts of names of the layers that put out a tenth, so that flows stay short.
    """
    draw, state = np.random.RandomState(7), {}
    for name, shape in sorted(shapes.items()):
        kind, wide, middle = name.rsplit(".", 1)[1], 0.1, 0.0
        if kind == "weight" and len(shape) == 4:
            fan = 4 * shape[0] if ".convblock.2." in name else np.prod(shape[1:])  # one that makes pictures larger
            wide = (0.1 if any(part in name for part in smaller) else 1) * (1.6 / fan) ** 0.5
        elif kind == "weight":
            middle = 0.25
        values = draw.standard_normal(shape) * wide + middle
        state[name] = torch.from_numpy((0.5 + abs(values) if kind == "running_var" else values).astype(np.float32))
    return state


def waves(count, high, wide, step):
    """Frames of waves of which some move by so many pixels a frame, to the right."""
    y, x, colour = np.mgrid[:high, :wide, :3]
    frames = [
        128 + 50 * np.sin((x - step * t) / 7 + colour) + 40 * np.sin(y / 9 + 2 * colour) + 30 * np.sin((x + y) / 23)
        for t in range(count)
    ]
    return np.rint(np.stack(frames)).astype(np.uint8)
