"""The table of rounding in docs/containers.md says what the codecs say."""

import re
from pathlib import Path

import pytest

from loraport.containers import dtypes
from loraport.containers.codecs import gguf_blocks, nvfp4
from loraport.containers.codecs.int8 import uniform_floor
from loraport.containers.tensors import TensorRef

PAGE = (Path(__file__).parents[2] / "docs/containers.md").read_text(encoding="utf-8")
TABLE = PAGE.partition("| stored as | differ by (%) |")[2].partition("\n\n")[0]
ROWS = [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in TABLE.splitlines()[2:]]


def floors(names: str) -> list[float]:
    if names.startswith("int8"):
        return [uniform_floor(count) for count in (64, 5120, 26_000_000)]
    if names.startswith("4 bits"):
        return [uniform_floor(count, 7) for count in (3072, 16384)]
    if "without" in names:
        return [dtypes.rounding_floor("F8_E4M3", float(size)) for size in re.findall(r"0\.\d+", names)]
    plain = {
        "float16": "F16",
        "bfloat16": "BF16",
        "fp8 e4m3 with scales": "F8_E4M3",
        "mxfp8": "F8_E4M3",
        "fp8 e5m2": "F8_E5M2",
    }
    found = []
    for name in names.split(", "):
        if name in plain:
            found.append(dtypes.rounding_floor(plain[name]))
        elif name == "nvfp4":
            found.append(nvfp4.Nvfp4(nvfp4.COMFYUI).rounding_floor(TensorRef(Path(), "a", (), "U8")))
        else:
            found.append(2**0.5 * gguf_blocks.ERRORS[name])
    return found


@pytest.mark.parametrize(("names", "numbers"), ROWS, ids=[names for names, _ in ROWS])
def test_the_table_of_rounding_is_what_the_codecs_say(names, numbers):
    written = numbers.split(", ")
    assert len(written) == len(floors(names))
    for text, floor in zip(written, floors(names), strict=True):
        digits = len(text.partition(".")[2])
        assert float(text) == pytest.approx(100 * floor, abs=0.51 * 10**-digits)


def test_every_format_that_is_read_is_on_the_page():
    table = " ".join(names for names, _ in ROWS)
    assert all(re.search(rf"\b{name}\b", table) for name in gguf_blocks.ERRORS)
    read = PAGE.partition("## How weights may be stored")[2].partition("Quantised weights are coarse")[0]
    assert all(re.search(rf"\b{name}\b", read) for name in gguf_blocks.ERRORS)
    for packing in nvfp4.PACKINGS:
        assert all(part in read for part in (packing.program.partition(",")[0], packing.weight))
