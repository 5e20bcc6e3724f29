"""What a catalogue of LoRAs on many targets of one source takes: bytes, machine time, memory, and what the limit is.

Everything is computed by `engine/layer_work.py`, which `loraport plan` uses, from the rates in machines.json. A target
is one job of `transfer_many`: each layer's weights are read, decomposed (for the first target; the others fetch the
basis) and routed once, and then every LoRA goes through with the matrices in hand.

`python benchmarks/cost.py --catalogue` prints the tables.
"""

import json
import math
import time
from collections import Counter
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from loraport.engine.job_cost import ChosenMethod
from loraport.engine.layer_work import Have, LayerKind, Work, seconds_of, steps_of
from loraport.engine.measuring import of_eigenproblems
from loraport.engine.rates import Rates
from loraport.machine import cores
from loraport.methods import cost as costs
from loraport.methods import registry
from synthetic import SIZES, linears

LORAS, TARGETS, RANK = 100_000, 20, 32
WEEK = 7 * 86400.0
METHODS = ("casa", "matched-gain", "direct")
MACHINES = Path(__file__).with_name("machines.json")
Shapes = Counter[tuple[int, int]]


def _wan(size: str, blocks: int) -> Shapes:
    return Counter({shape: count * blocks for shape, count in Counter(linears(SIZES[size]).values()).items()})


MODELS: dict[str, Shapes] = {
    "Wan 1.3B": _wan("1.3B", 30),
    "Wan 14B": _wan("14B", 40),
    "Qwen-Image 20B": Counter({(3072, 3072): 480, (18432, 3072): 120, (12288, 3072): 120, (3072, 12288): 120}),
}
"""Linear layers of the blocks, (out, in), and how many of each there are."""


@dataclass(frozen=True)
class Machine:
    """What one machine gets done.

    Args:
        title: in a table.
        lanes: layers in work at once, each at these rates.
        rates: of a lane; reading and keeping those of the whole machine where `beside`.
        memory: bytes for the matrices of layers.
        beside: reading and keeping go on beside the computing, on other processors.
        waits: seconds that a step takes besides its work, by name: launches and small synchronisations.
    """

    title: str
    lanes: int
    rates: Rates
    memory: float
    beside: bool = False
    waits: dict[str, float] = field(default_factory=dict)

    def seconds(self, steps: dict[str, Work]) -> dict[str, float]:
        """Of each step, on one lane."""
        return {name: seconds_of(cost, self.rates) + self.waits.get(name, 0.0) for name, cost in steps.items()}

    def wall(self, seconds: dict[str, float]) -> float:
        """How long the machine takes for steps whose seconds add up to these."""
        files = sum(spent for name, spent in seconds.items() if name in FILES)
        computing = sum(seconds.values()) - files
        return max(computing / self.lanes, files) if self.beside else (computing + files) / self.lanes


FILES = {"LoRA", "weights", "keep", "fetch", "output files"}
"""Steps that read or write."""


def machines() -> dict[str, Machine]:
    """Those of machines.json."""
    told = json.loads(MACHINES.read_text("utf-8"))
    return {name: (_of_timings if "timings" in each else _of_rates)(name, each) for name, each in told.items()}


def _of_rates(name: str, told: dict[str, Any]) -> Machine:
    return Machine(name, told["lanes"], Rates(**told["rates"]), told["memory"])


def _of_timings(name: str, told: dict[str, Any]) -> Machine:
    """A card, of the seconds that single steps took on one square layer."""
    n, rank, spent = told["timings"]["side"], told["timings"]["rank"], told["timings"]["seconds"]
    eigenproblems = {int(size): seconds for size, seconds in told["timings"]["eigenproblems"].items()}
    casa, params = registry.resolve("casa")
    parts, basis = casa.steps((n, n), rank, params, False), costs.basis_bytes(n, n)
    operations, column = of_eigenproblems(eigenproblems)
    weights = sum(2 * 2 * m * k * count for (m, k), count in MODELS[told["timings"]["model"]].items())
    rates = Rates(
        products=told["products"],
        decompositions=9 / operations,
        passes=parts["decisions"].passes / (spent["decisions"] - spent["components"]),
        read=weights / spent["reading the pair, all workers"],
        keep=basis / spent["storing the basis"],
        fetch=basis / spent["fetching it"],
        column=column,
    )
    cut = seconds_of(Work(parts["truncated SVD"]), rates)
    waits = {"decisions": spent["components"], "truncated SVD": max(spent["truncated SVD"] - cut, 0.0)}
    return Machine(name, 1, rates, told["memory"], beside=True, waits=waits)


def remember(name: str, found: list[Rates]) -> None:
    """Put this machine into machines.json, with the best of each rate."""
    import measure

    facts = measure.machine()
    told = json.loads(MACHINES.read_text("utf-8")) if MACHINES.exists() else {}
    told[name] = {
        "title": f"{cores()} cores of {facts['cpu']}",
        "told": f"measured {time.strftime('%Y-%m-%d')}",
        "lanes": cores(),
        "memory": 1e9 * float(str(facts["memory_gb"])) * 0.6,
        "rates": {
            each.name: float(f"{max(getattr(rates, each.name) for rates in found):.3g}") for each in fields(Rates)
        },
    }
    MACHINES.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class Sums:
    """Of one model and method, in bytes and in steps.

    Args:
        first: all layers for the first target, by step, without a LoRA.
        other: the same for every further target, which finds the bases.
        lora: all layers for one LoRA on one target.
        shapes: of the model.
        bases: bytes of the decompositions of the source; for all targets.
        prepared: bytes of what the method keeps of one pair.
        result: bytes of an output, and of a LoRA.
    """

    first: list[tuple[int, dict[str, Work]]]
    other: list[tuple[int, dict[str, Work]]]
    lora: list[tuple[int, dict[str, Work]]]
    bases: int
    prepared: int
    result: int

    @classmethod
    def of(cls, method: str, shapes: Shapes) -> "Sums":
        """Of the layers of a model."""
        chosen, params = registry.resolve(method)
        needs = chosen.needs(params)
        bases = frozenset({"source"} if needs.basis else ())
        asked = ChosenMethod(chosen, params)
        first, other, lora, basis, kept = [], [], [], 0, 0
        for (m, n), count in shapes.items():
            written = 2 * RANK * (m + n)  # as much as of the LoRA is read
            weight = 0 if needs.nothing else 2 * m * n
            kind = LayerKind(method, (m, n), RANK, RANK, 2, written, weight or None, 2 * weight)
            each = {"LoRA", "output", *chosen.steps((m, n), RANK, params, True)}
            for into, have in ((first, Have(keeps=True)), (other, Have(bases=bases, keeps=True))):
                steps = steps_of(kind, asked, have)
                into.append((count, {name: cost for name, cost in steps.items() if name not in each}))
            steps = steps_of(kind, asked, Have(in_hand=True))
            # A finished layer waits on the disk, is read again, written into the output, and that is read twice.
            lora.append((count, steps | {"output files": Work(keep=2 * written, fetch=3 * written)}))
            basis += len(bases) * count * costs.basis_bytes(m, n)
            kept += count * chosen.kept_bytes((m, n), params)
        result = sum(2 * RANK * (m + n) * count for (m, n), count in shapes.items())
        return cls(first, other, lora, basis, kept - basis, result)


def by_step(parts: list[tuple[int, dict[str, Work]]], machine: Machine) -> dict[str, float]:
    """Seconds of a lane by step, all layers together."""
    found: Counter[str] = Counter()
    for count, steps in parts:
        for name, spent in machine.seconds(steps).items():
            found[name] += count * spent  # type: ignore[assignment]  # of seconds
    return dict(found)


# ---- tables ----------------------------------------------------------------------------------------------------------


def tables() -> str:
    """All of them, in Markdown, and which machines they are about."""
    return "\n\n".join([_machines(), _sizes(), _times(), _shares(), _cut()])


def _machines() -> str:
    told = json.loads(MACHINES.read_text("utf-8"))
    return "\n".join(f"- **{name}**: {each['title']}; {each['told']}." for name, each in told.items())


def _sizes() -> str:
    head = ["model", f"source and {TARGETS} targets", "bases, once a source", f"routing, {TARGETS} pairs"]
    head += ["one layer's share of both, at most", f"a LoRA of rank {RANK}", f"{LORAS:,} LoRAs", "their outputs"]
    rows = [head]
    for model, shapes in MODELS.items():
        sums = Sums.of("casa", shapes)
        checkpoint = sum(2 * m * n * count for (m, n), count in shapes.items())
        rows.append(
            [
                model,
                size((1 + TARGETS) * checkpoint),
                size(sums.bases),
                size(TARGETS * sums.prepared),
                size(max(_in_memory(shape) for shape in shapes)),
                size(sums.result),
                size(LORAS * sums.result),
                size(LORAS * TARGETS * sums.result),
            ]
        )
    return table(rows)


def _times() -> str:
    named = " / ".join(METHODS)
    head = ["model", "machine", f"pair-bound, {TARGETS} targets, hours", "from so many LoRAs in a job under 1 %"]
    head += ["a LoRA on one target, s", "the catalogue, machine-days", "machines for a week"]
    rows = [[*head[:2], *(f"{text}: {named}" for text in head[2:])]]
    for model, shapes in MODELS.items():
        for machine in machines().values():
            found = [_time(Sums.of(method, shapes), machine) for method in METHODS]
            rows.append([model, machine.title, *(" / ".join(cells) for cells in zip(*found, strict=True))])
    return table(rows)


def _time(sums: Sums, machine: Machine) -> tuple[str, ...]:
    first, other, each = (machine.wall(by_step(part, machine)) for part in (sums.first, sums.other, sums.lora))
    pairs = first + (TARGETS - 1) * other
    whole = pairs + LORAS * TARGETS * each
    enough = f"{pairs / TARGETS / (0.01 * each):,.0f}"
    return f"{pairs / 3600:.1f}", enough, f"{each:.3g}", f"{whole / 86400:,.0f}", f"{whole / WEEK:,.0f}"


def _shares() -> str:
    """Of a LoRA on one target, `casa`: where the time goes."""
    rows = [["model", "machine", "computing", "of that: truncated SVD", "decisions", "routing and the rest", "files"]]
    for model, shapes in MODELS.items():
        for machine in machines().values():
            spent = by_step(Sums.of("casa", shapes).lora, machine)
            files = sum(seconds for name, seconds in spent.items() if name in FILES)
            computing = sum(spent.values()) - files
            cut, decisions = spent["truncated SVD"], spent["decisions"]
            shares = (part / computing for part in (cut, decisions, computing - cut - decisions))
            cells = [f"{computing:.3g} s", *(f"{100 * share:.0f} %" for share in shares)]
            rows.append([model, machine.title, *cells, f"{files:.3g} s{' beside it' if machine.beside else ''}"])
    return table(rows)


def _cut() -> str:
    """`casa`, one machine for some layers, LoRAs streamed through."""
    head = ["model", "machine", "matrices of all layers and targets", "machines that hold them in memory"]
    head += ["read and written in all", "of the storage in a week", "waiting, a job of 1,000 LoRAs"]
    rows = [head]
    for model, shapes in MODELS.items():
        sums = Sums.of("casa", shapes)
        held = sum(count * _in_memory(shape) for shape, count in shapes.items())
        moved = LORAS * sums.result * TARGETS * (2 + 5)  # read twice; see `Sums.of`
        for machine in machines().values():
            cells = [size(held), f"{-(-held // machine.memory):.0f}", size(moved), f"{size(moved / WEEK)}/s"]
            rows.append([model, machine.title, *cells, size(1000 * sums.result)])
    return table(rows)


def _in_memory(shape: tuple[int, int]) -> int:
    """Bytes of a layer's basis, and of routing and drift (where it is read again) for every target."""
    casa, params = registry.resolve("casa")
    drift = costs.matrix_bytes(*shape) if casa.reads_drift(shape, params) else 0
    basis = costs.basis_bytes(*shape)
    return basis + TARGETS * (casa.kept_bytes(shape, params) - basis + drift)


def size(count: float) -> str:
    """Bytes, for people."""
    power = min(int(math.log10(max(count, 1)) / 3), 5)
    return f"{count / 1000**power:.3g} {('B', 'kB', 'MB', 'GB', 'TB', 'PB')[power]}"


def table(rows: list[list[str]]) -> str:
    """In Markdown; columns of numbers to the right."""
    numbers = [all(row[at][:1].isdigit() or not row[at] for row in rows[1:]) for at in range(len(rows[0]))]
    lines = [rows[0], ["---:" if number else "---" for number in numbers], *rows[1:]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
