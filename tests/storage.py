"""Encoders of the ways in which weights are stored, number by number from their specifications.

Each takes a matrix and gives the tensors of a module `a` as a file holds them, and the numbers that they stand for.
GGUF files are written by gguf's own writer.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import gguf
import numpy as np
import torch

Encoded = tuple[dict[str, torch.Tensor], np.ndarray]
E4M3 = torch.float8_e4m3fn
E2M1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]  # sign, two bits of exponent with bias 1, one bit of mantissa
SHAPES = [(160, 96), (128, 128), (32, 416)]  # part of a tile of 128 x 4, whole ones, more blocks than a tile


def matrix(shape: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(5).normal(0, 0.03, shape).astype(np.float32)


def e4m3(value: float) -> float:
    return float(torch.tensor(value).to(E4M3).float())


def tiled(scales: np.ndarray) -> np.ndarray:
    """Scale by scale to the place that cuBLAS gives it, in tiles of 128 rows and 4 blocks."""
    rows, blocks = scales.shape
    across = -(-blocks // 4)
    found = np.zeros(-(-rows // 128) * across * 512, scales.dtype)
    for row in range(rows):
        for block in range(blocks):
            tile = row // 128 * across + block // 4
            found[tile * 512 + row % 32 * 16 + row % 128 // 32 * 4 + block % 4] = scales[row, block]
    return found.reshape(-(-rows // 128) * 128, across * 4)


def mxfp8(weight: np.ndarray) -> tuple[dict[str, torch.Tensor], np.ndarray]:
    """Stored tensors and the numbers that they stand for."""
    rows, blocks = weight.shape[0], weight.shape[1] // 32
    exponents = np.zeros((rows, blocks), np.uint8)
    stored, wanted = torch.empty(*weight.shape, dtype=E4M3), np.zeros(weight.shape)
    for row in range(rows):
        for block in range(blocks):
            part = slice(32 * block, 32 * block + 32)
            power = int(np.ceil(np.log2(np.abs(weight[row, part]).max() / 448.0)))
            exponents[row, block] = power + 127
            stored[row, part] = torch.from_numpy(weight[row, part] / 2.0**power).to(E4M3)
            wanted[row, part] = stored[row, part].float().numpy() * 2.0**power
    return {"a.weight": stored, "a.weight_scale": torch.from_numpy(tiled(exponents))}, wanted


def nvfp4(
    weight: np.ndarray, low_first: bool = False, tiles: bool = True
) -> tuple[dict[str, torch.Tensor], np.ndarray]:
    """As ComfyUI has it; other programs put the first number into the lower half, or scales row by row."""
    rows, blocks = weight.shape[0], weight.shape[1] // 16
    whole = np.float32(np.abs(weight).max() / (448.0 * 6.0))
    scales, wanted = np.zeros((rows, blocks), np.float32), np.zeros(weight.shape)
    packed = np.zeros((rows, weight.shape[1] // 2), np.uint8)
    for row in range(rows):
        for block in range(blocks):
            part = weight[row, 16 * block : 16 * block + 16]
            scales[row, block] = e4m3(float(np.abs(part).max() / 6.0 / whole))
            for place, value in enumerate(part / (scales[row, block] * whole), start=16 * block):
                code = min(range(8), key=lambda n: abs(E2M1[n] - abs(value)))
                bits = code | (8 if value < 0 else 0)
                packed[row, place // 2] |= bits << 4 if (place % 2 == 0) != low_first else bits
                wanted[row, place] = np.sign(value) * E2M1[code] * float(scales[row, block]) * float(whole)
    scales = tiled(scales) if tiles else scales
    stored = {"a.weight": torch.from_numpy(packed), "a.weight_scale": torch.from_numpy(scales).to(E4M3)}
    return stored | {"a.weight_scale_2": torch.tensor(whole)}, wanted


def lightx2v(weight: np.ndarray) -> tuple[dict[str, torch.Tensor], np.ndarray]:
    """2688 over the largest number; the scale for all is its inverse."""
    tensors, wanted = nvfp4(weight, low_first=True)
    whole = tensors.pop("a.weight_scale_2")
    return tensors | {"a.weight_global_scale": 1.0 / whole, "a.input_absmax": torch.tensor(3.0)}, wanted


def calibrated(weight: np.ndarray) -> tuple[dict[str, torch.Tensor], np.ndarray]:
    """LightX2V's files after calibration: alpha is 1 over both global scales."""
    tensors, wanted = nvfp4(weight, low_first=True)
    whole, inputs = tensors.pop("a.weight_scale_2"), torch.tensor(512.0)
    return tensors | {"a.alpha": whole / inputs, "a.input_global_scale": inputs}, wanted


def compressed(weight: np.ndarray) -> tuple[dict[str, torch.Tensor], np.ndarray]:
    """compressed-tensors, nvfp4-pack-quantized."""
    tensors, wanted = nvfp4(weight, low_first=True, tiles=False)
    whole = tensors.pop("a.weight_scale_2")
    more = {"a.weight_packed": tensors.pop("a.weight"), "a.weight_global_scale": (1.0 / whole).reshape(1)}
    return tensors | more | {"a.input_global_scale": torch.ones(1)}, wanted


OTHERS = {"LightX2V": lightx2v, "LightX2V, calibrated": calibrated, "compressed-tensors": compressed}


def comfy(**settings: object) -> torch.Tensor:
    """What `a.comfy_quant` holds."""
    return torch.tensor(list(json.dumps(settings).encode()), dtype=torch.uint8)


def scaled(weight: np.ndarray, dtype: torch.dtype, down: int, across: int, suffix: str = "weight_scale") -> Encoded:
    """One scale for each block of so many rows and columns, of which the largest entry becomes the largest number."""
    rows, columns = weight.shape
    most = np.abs(weight).reshape(rows // down, down, columns // across, across).max((1, 3))
    scale = torch.from_numpy(most / (127 if dtype == torch.int8 else torch.finfo(dtype).max)).float()
    by = torch.from_numpy(np.kron(scale.double().numpy(), np.ones((down, across))))
    numbers = torch.from_numpy(weight) / by
    stored = (numbers.round() if dtype == torch.int8 else numbers).to(dtype)
    return {"a.weight": stored, f"a.{suffix}": scale}, (stored.double() * by).numpy()


TURN = np.array([[1, 1, 1, -1], [1, 1, -1, 1], [1, -1, 1, 1], [-1, 1, 1, 1]]) / 2  # its own inverse
GROUP = 16


def turned(weight: np.ndarray) -> np.ndarray:
    """Groups of 16 inputs times the matrix of signs; twice is nothing."""
    return (weight.reshape(-1, GROUP) @ np.kron(TURN, TURN)).reshape(weight.shape)


def convrot(weight: np.ndarray) -> Encoded:
    """ComfyUI's int8 in a basis that was turned in groups."""
    tensors, wanted = scaled(turned(weight), torch.int8, 1, weight.shape[1])
    tensors["a.comfy_quant"] = comfy(format="int8_tensorwise", convrot=True, convrot_groupsize=GROUP)
    return tensors, turned(wanted)


def convrot_of_4_bits(weight: np.ndarray) -> Encoded:
    """The same with integers from -7 to 7, the first of two in the lower half of the byte."""
    rotated = turned(weight)
    scale = np.float32(np.abs(rotated).max(1, keepdims=True) / 7)
    numbers = np.rint(rotated / scale).astype(int)
    packed = ((numbers[:, 0::2] & 15) | (numbers[:, 1::2] & 15) << 4).astype(np.uint8).view(np.int8)
    tensors = {"a.weight": torch.from_numpy(packed), "a.weight_scale": torch.from_numpy(scale).reshape(-1)}
    tensors["a.comfy_quant"] = comfy(format="convrot_w4a4", convrot_groupsize=GROUP)
    return tensors, turned(numbers * scale)


def _named(encode: Callable[[np.ndarray], Encoded], form: str) -> Callable[[np.ndarray], Encoded]:
    def with_settings(weight: np.ndarray) -> Encoded:
        tensors, wanted = encode(weight)
        return tensors | {"a.comfy_quant": comfy(format=form)}, wanted

    return with_settings


def _cast(dtype: torch.dtype) -> Callable[[np.ndarray], Encoded]:
    def cast(weight: np.ndarray) -> Encoded:
        stored = torch.from_numpy(weight).to(dtype)
        return {"a.weight": stored}, stored.double().numpy()

    return cast


WAYS: dict[str, Callable[[np.ndarray], Encoded]] = {
    **{str(dtype).removeprefix("torch."): _cast(dtype) for dtype in (torch.float64, torch.float32, torch.float16)},
    **{str(dtype).removeprefix("torch."): _cast(dtype) for dtype in (torch.bfloat16, E4M3, torch.float8_e5m2)},
    "fp8, tensor": lambda weight: scaled(weight, E4M3, *weight.shape, "scale_weight"),
    "fp8, rows": lambda weight: scaled(weight, E4M3, 1, weight.shape[1]),
    "fp8, blocks of rows": lambda weight: scaled(weight, E4M3, 1, 32),
    "fp8, squares": lambda weight: scaled(weight, E4M3, 32, 32, "weight_scale_inv"),
    "fp8 e5m2, rows": lambda weight: scaled(weight, torch.float8_e5m2, 1, weight.shape[1]),
    "int8, tensor": lambda weight: scaled(weight, torch.int8, *weight.shape),
    "int8, rows": lambda weight: scaled(weight, torch.int8, 1, weight.shape[1]),
    "int8, squares": lambda weight: scaled(weight, torch.int8, 32, 32),
    "int8, convrot": convrot,
    "int4, convrot": convrot_of_4_bits,
    "mxfp8": _named(mxfp8, "mxfp8"),
    "nvfp4": _named(nvfp4, "nvfp4"),
    **{f"nvfp4, {program}": encode for program, encode in OTHERS.items()},
}
"""By name. Sides of the matrix must be multiples of 32."""


def write_gguf(
    path: Path,
    tensors: Mapping[str, tuple[np.ndarray, str]],
    texts: Mapping[str, str] | None = None,
    shapes: Iterable[tuple[str, tuple[int, ...]]] = (),
    split: tuple[int, int, int] | None = None,
) -> Path:
    """As ComfyUI's converters call it: what has more dimensions than the format is folded, its shape put beside it.

    Args:
        path: of the file.
        tensors: key -> numbers or blocks as they are stored, and the name of their format.
        texts: further settings.
        shapes: of the weights that tensors stand for, by key.
        split: of a part of a model: its number, how many parts there are, and how many tensors they all hold.
    """
    writer = gguf.GGUFWriter(path, arch="wan")
    for key, text in (texts or {}).items():
        writer.add_string(key, text)
    if split is not None:
        writer.add_uint16("split.no", split[0])
        writer.add_uint16("split.count", split[1])
        writer.add_int32("split.tensors.count", split[2])
    folded = {key: data.shape for key, (data, _) in tensors.items() if data.ndim > 4}
    for key, shape in {**folded, **dict(shapes)}.items():
        writer.add_array(f"comfy.gguf.orig_shape.{key}", list(shape))
    for key, (data, kind) in tensors.items():
        data = data.reshape(len(data), -1) if key in folded else data
        writer.add_tensor(key, data, raw_dtype=gguf.GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
