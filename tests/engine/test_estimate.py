"""What a plan says it will take: against what is then kept, and against what is known of the machine."""

import json
import struct
import time
from dataclasses import replace
from math import prod
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils.flop_counter import FlopCounterMode

import loraport
import pico
from loraport.cli import text
from loraport.engine import estimate as estimating
from loraport.engine import keeping, measuring, reading
from loraport.engine.estimate import estimate
from loraport.engine.executor import Slot
from loraport.engine.job import WIDE_ELEMENTS
from loraport.engine.keeping import layers_to_keep, worth_keeping
from loraport.engine.layer_work import Work, seconds_of
from loraport.engine.many.plan import LayerBatch
from loraport.engine.measuring import measure
from loraport.engine.options import RunOptions
from loraport.engine.plan import make_plan
from loraport.engine.rates import Rates, rates_of
from loraport.engine.recipe import Recipe
from loraport.methods import cost as costs
from loraport.store.writing import WRITERS

RATES = Rates(products=1e11, decompositions=1e11, passes=2e10, read=5e8, keep=2e8, fetch=1e9)


@pytest.fixture(autouse=True)
def known_machine(monkeypatch):
    monkeypatch.setattr("loraport.engine.estimate.rates_of", lambda device, root: RATES)


@pytest.fixture
def files(tmp_path) -> pico.Pico:
    return pico.write(tmp_path / "pico")


def recipe(files, lora, method) -> Recipe:
    return Recipe(lora=str(lora), source=str(files.source), target=str(files.target), method=method)


def kept_bytes(cache: Path) -> int:
    entries = [load_file(file) for file in cache.rglob("*.safetensors")]
    return sum(tensor.numel() * tensor.element_size() for entry in entries for tensor in entry.values())


@pytest.mark.parametrize(("method", "keeps"), [("casa", True), ("uniform-shrink", False), ("matched-gain", False)])
def test_cold_further_and_again(files, tmp_path, method, keeps):
    options = RunOptions(cache=str(tmp_path / "cache"), log="off", overwrite=True)
    save_file(pico.lora(9), files.folder / "second.safetensors")
    time.sleep(2 * reading._CLOCK_NS / 1e9)  # what is known of files that are younger is not kept
    layers = len(pico.LAYERS)
    cold = estimate([make_plan(recipe(files, files.lora, method))], options)
    assert (cold.finished, cold.warm, cold.known) == (0, 0, False)
    loraport.transfer(
        files.lora, source=files.source, target=files.target, output=tmp_path / "out.safetensors", method=method,
        options=options,
    )  # fmt: skip
    assert kept_bytes(tmp_path / "cache") == pytest.approx(cold.cache_bytes, rel=0.02)
    further = estimate([make_plan(recipe(files, files.folder / "second.safetensors", method))], options)
    assert (further.finished, further.warm, further.known) == (0, layers if keeps else 0, True)
    again = estimate([make_plan(recipe(files, files.lora, method))], options)
    assert (again.finished, again.cache_bytes) == (layers, 0)
    assert again.seconds <= further.seconds <= cold.seconds
    assert further.seconds == pytest.approx(further.next_seconds, rel=1e-6)
    assert cold.next_seconds == pytest.approx(further.next_seconds, rel=0.2)


def test_what_does_not_depend_on_the_lora_is_counted_once_for_many(files, tmp_path):
    plan = make_plan(recipe(files, files.lora, "casa"))
    options = RunOptions(cache=str(tmp_path / "cache"))
    one, three = (estimate([plan] * count, options).cache_bytes for count in (1, 3))
    assert three - one == 2 * plan.output_bytes


def test_without_a_cache_nothing_is_kept_and_nothing_known(files):
    expected = estimate([make_plan(recipe(files, files.lora, "casa"))], RunOptions(cache="off"))
    assert (expected.cache_bytes, expected.kept_layers, expected.known) == (0, 0, False)


def sparse(path: Path, shapes: dict[str, tuple[int, ...]]) -> Path:
    """A checkpoint of which only the header takes room."""
    header, at = {}, 0
    for name, shape in shapes.items():
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, at + 2 * prod(shape)]}
        at += 2 * prod(shape)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + at)
    return path


@pytest.fixture(scope="module")
def real_size(tmp_path_factory) -> pico.Pico:
    """A pair of Wan2.1-14B's sizes, and a LoRA for its attention."""
    folder = tmp_path_factory.mktemp("14B")
    width, ffn, blocks = 5120, 13824, 40
    shapes = {
        "patch_embedding.weight": (width, 16, 1, 2, 2),
        "head.head.weight": (64, width),
        "text_embedding.0.weight": (width, 4096),
        "time_embedding.0.weight": (width, 256),
    }
    for n in range(blocks):
        for attention in ("self_attn", "cross_attn"):
            shapes |= {f"blocks.{n}.{attention}.{part}.weight": (width, width) for part in "qkvo"}
        shapes |= {f"blocks.{n}.ffn.0.weight": (ffn, width), f"blocks.{n}.ffn.2.weight": (width, ffn)}
    lora = {}
    for n in range(blocks):
        for part in "qkvo":
            stem = f"diffusion_model.blocks.{n}.self_attn.{part}"
            lora[f"{stem}.lora_A.weight"] = torch.full((16, width), 0.01).bfloat16()
            lora[f"{stem}.lora_B.weight"] = torch.full((width, 16), 0.01).bfloat16()
    save_file(lora, folder / "lora.safetensors")
    source, target = sparse(folder / "source.safetensors", shapes), sparse(folder / "target.safetensors", shapes)
    return pico.Pico(folder, source, target, folder / "lora.safetensors")


def test_a_method_that_decomposes_nothing_is_bound_by_reading_and_keeps_next_to_nothing(real_size, tmp_path):
    options = RunOptions(cache=str(tmp_path / "cache"), executor="serial", max_memory=10**9)
    plan = make_plan(recipe(real_size, real_size.lora, "matched-gain"))
    expected = estimate([plan], options)
    reading = 160 * 2 * 2 * 5120**2 / RATES.read
    assert reading < expected.seconds < 2 * reading
    assert expected.cache_bytes == 160 * 2 * 2 * 5120 * 16
    assert not expected.cache_pays
    assert layers_to_keep(plan.jobs, 10**9) == {job.name for job in plan.jobs}


def test_casa_of_a_real_size_is_bound_by_decompositions_and_pays_to_keep(real_size, tmp_path, monkeypatch):
    monkeypatch.setattr("loraport.engine.estimate.DEFAULT_MAX_BYTES", 10**12)
    monkeypatch.setattr("loraport.engine.estimate.RESERVE_BYTES", -(10**12))  # whatever disk this is
    options = RunOptions(cache=str(tmp_path / "cache"), executor="serial", max_memory=10**9)
    expected = estimate([make_plan(recipe(real_size, real_size.lora, "casa"))], options)
    assert expected.seconds > 160 * 9 * 5120**3 / RATES.decompositions
    assert expected.cache_bytes == pytest.approx(160 * 3 * 4 * 5120**2, rel=0.02)
    assert expected.cache_pays
    fetching = 160 * 3 * 4 * 5120**2 / RATES.fetch
    assert fetching < expected.next_seconds < 0.1 * expected.seconds


def test_nothing_is_kept_but_finished_layers_where_the_disk_has_no_room(real_size, tmp_path, monkeypatch):
    monkeypatch.setattr("loraport.engine.estimate.RESERVE_BYTES", 10**18)
    options = RunOptions(cache=str(tmp_path / "cache"), executor="serial", max_memory=10**9)
    expected = estimate([make_plan(recipe(real_size, real_size.lora, "casa"))], options)
    assert expected.kept_layers == 0
    assert expected.cache_bytes == expected.output_bytes


CARD = Rates(products=4e13, decompositions=6e12, passes=1e12, read=1e9, keep=1e9, fetch=3e9)


class Remembered:
    """Digests of earlier runs: of everything, or of nothing."""

    def __init__(self, everything: bool):
        self.everything = everything

    def is_from_earlier(self, ref) -> bool:
        return self.everything


def chosen(plan, rates: Rates, *, cache: str | None = None, before: bool = False, **settings) -> int:
    options = RunOptions(cache=cache)
    return len(worth_keeping(plan.jobs, options, Remembered(before), lambda: rates, **{"device": "cpu"} | settings))


def test_what_is_kept_is_what_pays(real_size):
    plan = make_plan(recipe(real_size, real_size.lora, "casa"))
    whole = len(plan.jobs)
    assert chosen(plan, RATES) == whole
    slow = replace(RATES, keep=2e6)  # a minute and a half to write what saves less than half of that
    assert chosen(plan, slow) == 0
    assert chosen(plan, slow, cache="on") == chosen(plan, slow, cache="folder") == whole
    assert chosen(plan, RATES, cache="off") == 0


def test_on_a_device_it_pays_where_the_work_hides_the_writing(real_size):
    plan = make_plan(recipe(real_size, real_size.lora, "casa"))
    whole = len(plan.jobs)
    assert chosen(plan, CARD, device="cuda:0") == whole
    assert chosen(plan, CARD, device="cpu") == 0  # the same figures, if nothing were hidden
    assert chosen(plan, replace(CARD, keep=1e8), device="cuda:0") == 0


def test_another_lora_is_likelier_for_models_that_were_used_before(real_size):
    plan = make_plan(recipe(real_size, real_size.lora, "casa"))
    between = next(
        rates for n in range(200) for rates in [replace(RATES, keep=2e8 / 1.1**n)] if chosen(plan, rates) == 0
    )
    assert chosen(plan, between, before=True) == chosen(plan, between, several=True) == len(plan.jobs)


def test_little_is_kept_without_asking(files):
    plan = make_plan(recipe(files, files.lora, "casa"))
    assert chosen(plan, replace(RATES, keep=1.0)) == len(plan.jobs)


def test_rates_are_measured_once_and_found_again(tmp_path, monkeypatch):
    measured = replace(RATES, products=123.0)
    monkeypatch.setattr(measuring, "measure", lambda device, root: measured)
    assert rates_of("cpu", tmp_path) == measured
    monkeypatch.setattr(measuring, "measure", lambda device, root: RATES)
    assert rates_of("cpu", tmp_path) == measured
    assert rates_of("cpu", None) == RATES
    (kept,) = (tmp_path / "machine").iterdir()
    kept.write_text("{}", encoding="utf-8")  # damaged: measured again
    assert rates_of("cpu", tmp_path) == RATES


def test_rates_are_of_the_work_whose_time_was_taken(tmp_path, monkeypatch):
    counted, clocks = [], []

    def in_a_second(work, clock):
        with FlopCounterMode(display=False) as flops:
            work()
        counted.append(flops.get_total_flops())
        clocks.append(clock)
        return 1.0

    monkeypatch.setattr(measuring, "_fastest", in_a_second)
    for name, size in {"_SWEEP": 1000, "_EIGENPROBLEM": 8, "_FILE": 4_000_000}.items():
        monkeypatch.setattr(measuring, name, size)
    assert measure("cpu", None).products == counted[0]
    assert set(clocks[:3]) == {time.thread_time}  # another program that is busy slows none of it down
    rates = measuring._file_rates(tmp_path)
    weight, entry = sorted(tmp_path.rglob("*.safetensors"), key=lambda path: len(path.parts))
    sizes = [weight.stat().st_size, entry.stat().st_size, entry.stat().st_size]
    assert rates == pytest.approx(sizes, rel=1e-3)


def test_cards_of_one_name_share_their_rates_and_no_other_has_them(tmp_path, monkeypatch):
    monkeypatch.setattr("loraport.engine.accelerators.card_names", lambda: ["slow", "fast", "fast"])
    monkeypatch.setattr("loraport.engine.accelerators.name_of", lambda device: "slow" if device[-1] == "0" else "fast")
    asked = []
    monkeypatch.setattr(measuring, "measure", lambda device, root: asked.append(device) or RATES)
    for device in ("cuda:0", "cuda:1", "cuda:2", "cpu", "cuda:0"):
        assert rates_of(device, tmp_path) == RATES
    assert asked == ["cuda:0", "cuda:1", "cpu"]


def test_for_a_card_that_another_machine_has_this_processor_is_measured(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("loraport.engine.accelerators.card_names", list)
    monkeypatch.setattr(measuring, "measure", lambda device, root: asked.append(device) or RATES)
    assert rates_of("cuda:5", tmp_path) == rates_of("cpu", tmp_path) == RATES
    assert asked == ["cpu"]


def test_a_measurement_is_of_this_machine_and_leaves_no_files(tmp_path):
    found = measure("cpu", tmp_path)
    assert all(rate > 1e6 for name, rate in vars(found).items() if name != "column")
    assert found.column == 0.0
    assert list(tmp_path.iterdir()) == []


def test_an_eigenproblem_of_a_card_takes_time_for_each_column():
    """Of an H200: two sizes that are measured say within a quarter what the others take."""
    seconds = {768: 7.8e-3, 1024: 10.5e-3, 1536: 19.1e-3, 2048: 24.8e-3, 3072: 58.6e-3, 4096: 89.9e-3, 5120: 196.7e-3}
    cubic, column = measuring.of_eigenproblems({n: seconds[n] for n in measuring._EIGENPROBLEMS})
    rates = replace(CARD, decompositions=9 / cubic, column=column)
    for n, taken in seconds.items():
        assert seconds_of(Work(costs.eigenproblem(n)), rates) == pytest.approx(taken, rel=0.25)
    assert measuring.of_eigenproblems({100: 1.0}) == (1e-6, 0.0)
    assert measuring.of_eigenproblems({10: 1.0, 100: 5.0}) == (5e-6, 0.0)  # the larger one takes less for a column
    assert measuring.of_eigenproblems({10: 1e-6, 100: 5.0})[1] == 0.0


def test_what_is_slow_is_measured_fewer_times_but_never_by_its_first_call_alone():
    """In which the libraries of a card are loaded, hundreds of MB."""
    done: list[int] = []
    times = iter([0.0, 5.0, 5.0, 6.0])
    assert measuring._fastest(lambda: done.append(1), lambda: next(times)) == 1.0
    times = iter([0.0, 0.5, 1.0, 1.4, 2.0, 2.3])
    assert measuring._fastest(lambda: done.append(1), lambda: next(times)) == pytest.approx(0.3)
    assert len(done) == 2 + 3


def test_what_is_kept_beside_a_device_is_written_by_several():
    work = Work(keep=8 * 10**9)
    assert seconds_of(work, CARD) == 8.0
    assert seconds_of(work, CARD, beside=8) == 8.0 / WRITERS
    assert seconds_of(work, CARD, beside=2) == 4.0


def test_what_is_brought_of_the_cache_beside_a_device_takes_memory_of_the_host(files, tmp_path, monkeypatch):
    options = RunOptions(cache=str(tmp_path / "cache"), log="off", executor="serial")
    save_file(pico.lora(9), files.folder / "second.safetensors")
    time.sleep(2 * reading._CLOCK_NS / 1e9)  # what is known of files that are younger is not kept
    loraport.transfer(
        files.lora, source=files.source, target=files.target, output=tmp_path / "out.safetensors", method="casa",
        options=options,
    )  # fmt: skip
    further = make_plan(recipe(files, files.folder / "second.safetensors", "casa"))
    program = SimpleNamespace(memory_info=lambda: SimpleNamespace(rss=0))
    monkeypatch.setattr(estimating.psutil, "Process", lambda: program)
    peaks = {}
    for device in ("cpu", "cpu:0"):  # the latter counts as a device beside the host
        monkeypatch.setattr("loraport.engine.devices.pick_devices", lambda wanted, device=device: (device,))
        peaks[device] = estimate([further], options).peak_bytes
    bases = sum(4 * (m + n + 1) * min(m, n) for m, n in (job.shape for job in further.jobs))
    weights = sum(job.source.nbytes + job.target.nbytes for job in further.jobs)
    assert peaks["cpu:0"] > peaks["cpu"] + weights + bases


def test_what_a_run_has_read_itself_is_no_sign_of_an_earlier_one(files, tmp_path, monkeypatch):
    """Every run looks at a few layers before it decides what to keep."""
    found = []

    def take(jobs, rates, likely, beside):
        found.append(likely)
        return list(jobs)

    monkeypatch.setenv("LORAPORT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(keeping, "SMALL", 0)
    monkeypatch.setattr(keeping, "_paying", take)
    monkeypatch.setattr("loraport.engine.run_cache.rates_of", lambda device, root: RATES)
    save_file(pico.lora(9), files.folder / "second.safetensors")
    time.sleep(2 * reading._CLOCK_NS / 1e9)
    for lora in (files.lora, files.folder / "second.safetensors"):
        loraport.transfer(
            lora, source=files.source, target=files.target, output=tmp_path / "out.safetensors",
            options=RunOptions(cache="auto", log="off", overwrite=True),
        )  # fmt: skip
    assert found == [keeping.FIRST, 1.0]


def test_a_plan_for_a_gpu_says_what_the_layers_in_work_take_of_it(files):
    """Of the host they take nothing but the one that finds no room, and is computed there."""
    some = make_plan(recipe(files, files.lora, "casa")).jobs[0]

    def batch(on_a_card: int, on_the_host: int, shape: tuple[int, int] = (4, 4)) -> LayerBatch:
        return LayerBatch(shape, on_the_host, {0: replace(some, card_bytes=on_a_card)}, set())

    jobs = [batch(60 + at, 100 + at) for at in range(3)]
    two = [Slot(device, 1, 100) for device in ("cuda:0", "cuda:0", "cuda:1", "cuda:1")]
    assert estimating._card_bytes(jobs, two) == 62 + 61
    assert estimating._card_bytes([*jobs, batch(190, 150, (WIDE_ELEMENTS, 2))], two) == 190
    assert [estimating._card_bytes(jobs, [Slot(device, 1, 100)]) for device in ("cpu", "mps")] == [0, 0]
    assert estimating._working_bytes(0, [], jobs, two) == 102
    assert estimating._working_bytes(0, [], jobs, [Slot("cpu", 1, 1000)] * 2) == 102 + 101
    said = text.memory({"peak_bytes": 2e9, "card_bytes": 1.5e9})
    assert said == "2.0 GB at most, and 1.5 GB of a GPU besides CUDA itself"
    assert text.memory({"peak_bytes": 2e9, "card_bytes": 0}) == "2.0 GB at most"
