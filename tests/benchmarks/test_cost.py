"""What a step is said to cost is what it costs, and docs/cost.md says what the functions say."""

import os
import re

import pytest

import catalogue
import cost
import counting
import formats_page
import steps
from loraport.engine import job_cost
from loraport.engine.rank import RankRule
from loraport.methods import cost as costs
from loraport.methods import registry
from loraport.methods.cost import Cost
from synthetic import SIZES

PAGE = (cost.PAGES["measured"].parent / "cost.md").read_text("utf-8")
SHAPES = ((320, 320), (288, 512))
RANK = 8
WITHIN = {"products": 1.25, "decompositions": 1.25, "factorisations": 1.25, "passes": 3.0}
"""Predicted over counted, and the other way round, at most. Passes are fitted to seconds: numpy's are not counted."""
SMALL = 2e-2  # of the layer's largest count, below which a kind of work is not looked at


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_steps_do_what_the_formulas_say(shape):
    found = {
        (each.method, each.name): (each.predicted, counting.counted(each.work)) for each in steps.steps(shape, RANK)
    }
    assert len(found) == 6
    cut = ("casa", "truncated SVD")
    real = found[cut][1]
    count = round(real.factorisations / (8 * min(shape) * (RANK + 8) ** 2))  # of Krylov steps, as the spectrum asked
    assert 3 <= count <= 20
    found[cut] = told(shape, RANK, count)[cut[1]], real
    for kind, factor in WITHIN.items():
        most = max(getattr(real, kind) for _, real in found.values())
        for name, (said, real) in found.items():
            a, b = getattr(said, kind), getattr(real, kind)
            assert max(a, b) < SMALL * most or 1 / factor < a / b < factor, (name, kind, a, b)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_products_without_decisions_are_counted_exactly(shape):
    m, n = shape
    p, longer = min(shape), max(shape)
    by_name = {step.name: counting.counted(step.work) for step in steps.steps(shape, RANK)}
    routing = next(real for name, real in by_name.items() if name.startswith("routing of the drift"))
    expected = 2 * p * p * (p + longer)
    if m != n:
        expected += 2 * (1.25 * p * p * longer / 2 + 2.6 * p**3)
    assert routing.products == pytest.approx(expected, rel=0.02)
    assert by_name["factors balanced"].products == pytest.approx(costs.factors(m, n, RANK).products, rel=0.3)


def test_the_counter_counts():
    import torch

    A, B = torch.ones(30, 20), torch.ones(20, 10)
    assert counting.counted(lambda: A @ B).products == 2 * 30 * 20 * 10
    assert counting.counted(lambda: torch.addmm(torch.ones(30, 10), A, B)).products == 2 * 30 * 20 * 10
    assert counting.counted(lambda: torch.ones(30, 10).addmm_(A, B)).products == 2 * 30 * 20 * 10
    assert counting.counted(lambda: torch.linalg.qr(A)).factorisations == 4 * 30 * 20**2
    assert counting.counted(lambda: torch.linalg.eigh(A.T @ A)).decompositions == 9 * 20**3
    assert counting.counted(lambda: A + 1).passes == 2 * A.nbytes
    assert counting.counted(lambda: A.T[:10]).passes == 0


@pytest.mark.skipif(not os.access("/proc/self/io", os.R_OK), reason="the system does not count bytes for a process")
def test_bytes_are_what_the_system_counts(tmp_path):
    for row in cost.transfers(tmp_path, "pico", RANK):
        assert row.kept == pytest.approx(row.kept_really, rel=0.25), row  # headers of small entries
        assert row.written <= row.written_really * 1.01, row
        assert row.written == pytest.approx(row.written_really, rel=0.6), row


def formula(text: str, **values: float) -> float:
    """A formula of the page, such as 5/4·p²·l."""
    plain = text.replace("·", "*").replace("²", "**2").replace("³", "**3")
    assert re.fullmatch(r"[\w*+/(). -]+", plain), text
    return float(eval(plain, {"__builtins__": {}}, values))


def told(shape: tuple[int, int], r: int, steps: int = 10) -> dict[str, Cost]:
    """What the page says of each step."""
    p, longer, values = min(shape), max(shape), {"r": r, "b": r + 8, "c": steps}
    found: dict[str, Cost] = {}
    table = PAGE[PAGE.index("| step |") :].split("\n\n")[0].splitlines()[2:]
    for line in table:
        name, *cells = [cell.strip() for cell in line.strip("|").split("|")]
        name, _, only = name.partition(", ")
        if only and only != ("square" if p == longer else "rectangular"):
            before = cells
            continue
        cells = [before[at] if cell == "likewise" else cell for at, cell in enumerate(cells)]
        numbers = [sum(formula(text, p=p, l=longer, **values) for text in formats_page.quoted(cell)) for cell in cells]
        found[name] = Cost(*numbers)
    return found


@pytest.mark.parametrize("shape", [(1536, 1536), (1024, 4096), (8960, 1536)], ids=str)
def test_the_page_says_what_the_functions_say(shape):
    page = told(shape, 32)
    casa, params = registry.resolve("casa")
    gain, gain_params = registry.resolve("matched-gain")
    code = costs.thin_basis_steps(*shape) | casa.steps(shape, 32, params, False)
    code |= gain.steps(shape, 32, gain_params, False)
    code |= {"difference of the weights": costs.elementwise(*shape, 6), "output": costs.factors(*shape, 32)}
    if shape[0] == shape[1]:
        del page["Gram matrix of the rest"], page["outside the thin basis"]
    assert page.keys() == code.keys()
    for name, said in page.items():
        for kind in WITHIN:
            assert getattr(said, kind) == pytest.approx(getattr(code[name], kind), rel=1e-3), (name, kind)


@pytest.mark.parametrize("shape", [(1536, 1536), (1024, 4096)], ids=str)
def test_the_page_says_what_is_kept(shape):
    values = {"p": min(shape), "l": max(shape), "r": 32}
    rows = {
        line.split(",")[0].strip("| "): formats_page.quoted(line) for line in PAGE.splitlines() if "kept for" in line
    }
    (basis,), routing, (result,) = rows["basis"], rows["routing"], rows["result"]
    casa, params = registry.resolve("casa")
    assert formula(basis, **values) == costs.basis_bytes(*shape)
    kept = casa.kept_bytes(shape, params) - costs.basis_bytes(*shape)
    assert formula(routing[shape[0] != shape[1]], **values) == kept
    assert formula(result, **values) == 2 * 32 * sum(shape)


def _memory(shape: tuple[int, int], **settings: object) -> int:
    """What a plan reckons with, but for the constant."""
    method, params = registry.resolve(str(settings.get("method", "casa")))
    way = job_cost.ChosenMethod(method, params)
    return job_cost.peak_bytes(way, shape, 32) - job_cost.SMALL_CHANGE


def _on_a_card(shape: tuple[int, int], rule: RankRule, method: str = "casa") -> int:
    """What a plan reckons with of a card, but for strips and thin matrices."""
    found, params = registry.resolve(method)
    way = job_cost.ChosenMethod(found, params)
    thin = costs.matrix_bytes(sum(shape), 32, 6) if rule.kind == "fixed" else 0
    return job_cost.matrices_on_a_card(way, shape, 0, rule) - thin


@pytest.mark.parametrize("shape", [(1536, 1536), (5120, 5120), (13824, 5120), (6144, 55296)], ids=str)
def test_the_page_says_what_a_layer_takes_of_memory(shape):
    values = {"p": min(shape), "l": max(shape)}
    table = PAGE[PAGE.index("| method | on the CPU |") :].split("\n\n")[0].splitlines()[2:]
    rows = {line.split("|")[1].strip(): formats_page.quoted(line.split("|", 2)[2]) for line in table}
    planned, on_a_card = rows["`casa`"]
    assert formula(planned, **values) == _memory(shape)
    assert formula(on_a_card, **values) == steps.bytes_on_a_card(shape)
    exact, gain = rows["`casa`, a rank by energy, or full"][-1], rows["`matched-gain`"][1]
    for text, found in (
        (on_a_card, _on_a_card(shape, RankRule("fixed", 32))),
        (exact, _on_a_card(shape, RankRule("energy", 0.9))),
        (exact, _on_a_card(shape, RankRule("full"))),
        (gain, _on_a_card(shape, RankRule("fixed", 32), method="matched-gain")),
    ):
        assert formula(text, **values) == pytest.approx(found, rel=1e-3)  # the singular values
    assert formula(rows["`matched-gain`"][0], **values) == _memory(shape, method="matched-gain")


def test_the_page_says_which_layers_fit_a_card():
    table = PAGE[PAGE.index("| largest layers |") :].split("\n\n")[0].splitlines()[2:]
    assert len(table) > 5
    for line in table:
        name, shape, size = (cell.strip() for cell in line.strip("|").split("|"))
        m, n = map(int, shape.split(" x "))
        assert f"{steps.bytes_on_a_card((m, n)) / 1e9:.2f}" == size, name
        assert (steps.bytes_on_a_card((m, n)) + 0.3e9 < 2.4e9) == ("FLUX.2" not in name), name  # two on 6 GB


def test_the_tables_of_the_catalogue_are_made_from_the_rates():
    page = cost.PAGES["catalogue"].read_text("utf-8")
    assert cost.with_part(page, "catalogue", catalogue.tables()) == page, (
        "run: python benchmarks/cost.py --catalogue --write"
    )


def test_a_card_of_timings_takes_the_seconds_that_were_measured():
    card = catalogue.machines()["H200"]
    casa, params = registry.resolve("casa")
    parts = costs.thin_basis_steps(5120, 5120) | casa.steps((5120, 5120), 32, params, False)
    spent = card.seconds({name: catalogue.Work(part) for name, part in parts.items()})
    for name, seconds in (("eigenproblem", 1.02 * 0.1967), ("decisions", 0.0159), ("truncated SVD", 0.0323)):
        assert spent[name] == pytest.approx(seconds, rel=1e-6)


@pytest.mark.slow
def test_models_of_the_catalogue_have_the_layers_of_the_real_ones():
    pytest.importorskip("diffusers")
    import headers

    assert catalogue.MODELS["Wan 14B"] == layers(headers.shapes_of("wan2.2-14b"), r"blocks\.\d+\.")
    assert catalogue.MODELS["Qwen-Image 20B"] == layers(
        headers.shapes_of("qwen-image-20b"), r"transformer_blocks\.\d+\."
    )
    assert SIZES["1.3B"].width == 1536


def layers(shapes: dict[str, tuple[int, ...]], pattern: str) -> catalogue.Shapes:
    """How many linear layers of each shape the blocks have."""
    found = catalogue.Shapes()
    for key, shape in shapes.items():
        if re.match(pattern, key) and key.endswith(".weight") and len(shape) == 2:
            found[shape[0], shape[1]] += 1
    return found
