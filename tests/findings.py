"""A check and an analysis made by hand, of any size: what their pages are drawn from."""

import random

from loraport.analysis import results as analysis
from loraport.checking import results as checking
from loraport.engine.results import InputFile

KINDS = (
    "self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o", "cross_attn.q", "cross_attn.k", "cross_attn.v",
    "cross_attn.o", "ffn.0", "ffn.2",
)  # fmt: skip
ONE_SIGMA, ROUNDING = "one standard deviation of unrelated ones", "rounding of the stored numbers"
QUANTITIES = (
    ("drift", "drift", "share", "pair", 0.03, {ROUNDING: 0.0016}),
    ("overlap", "overlap", "cosine", "lora", -0.01, {ONE_SIGMA: 0.0002}),
    ("change", "what the method changes", "factor", "method", 0.7, {}),
)


def check(evil: str = "", **more) -> checking.CheckResult:
    """A check with six layers. `evil` stands in every text."""
    figures = tuple(
        checking.Quantity(key, title, f"help {evil}", unit, of, value, value / 2, value * 2, 6,
                          tuple(checking.Null(name, null) for name, null in nulls.items()))
        for key, title, unit, of, value, nulls in QUANTITIES
    )  # fmt: skip
    layers = tuple(
        checking.LayerCheck(
            f"blocks.{block}.{kind}{evil}", (8, 4), kind, block / 2,
            {key: value * (1 + block) for key, *_, value, _ in QUANTITIES},
            {key: nulls for key, *_, nulls in QUANTITIES if nulls},
        )
        for block in range(3) for kind in KINDS[:2]
    )  # fmt: skip
    reasons = (
        checking.Reason(f"The drift is small{evil}.", "drift", "small drift", 0.05, "the bundled pairs"),
        checking.Reason("All layers meet."),
    )
    facts = {
        "lora": f"noir{evil}.safetensors", "source": "source", "source_title": "Wan", "target": "fast/transformer",
        "target_title": "Wan", "target_lora": (), "verdict": "use at strength", "strength": 1.25,
        "headline": f"Use it at 1.25{evil}.", "reasons": reasons, "stage": "sample", "figures": figures,
        "coverage": checking.Coverage(12, 6, 5, 1, (f"odd.key{evil}",), 20), "layers": layers, "layers_of": 40,
        "kind": checking.Kind("regression", f"it looks so{evil}", "weights"), "command": f"loraport transfer {evil}",
        "load": ('diffusers: pipe.load_lora_weights("noir")', "ComfyUI: put it there"), "known": (f"3 steps{evil}",),
        "inputs": (InputFile("LoRA", f"noir{evil}.safetensors", "Wan", f"LoRA of rank 4{evil}", 2_500_000, None, 1.0),),
        "warnings": (f"mind{evil}",), "seconds": 1.5,
    }  # fmt: skip
    return checking.CheckResult(**{**facts, **more})


def pair(blocks: int = 2, *, loras: int = 1, evil: str = "", full: bool = False) -> analysis.PairAnalysis:
    """An analysis with ten layers a block; `full`: curves and maps as long as they are of a large model."""
    made = _Made(random.Random(1), 16 if full else 3, 24 if full else 4, 48 if full else 6)
    labels = [f"lora{at}{evil}" for at in range(loras)]
    layers = tuple(made.layer(block, kind + evil, labels) for block in range(blocks) for kind in KINDS)
    used = tuple(analysis.AnalysedLora(label, f"{label}.safetensors", len(layers)) for label in labels)
    return analysis.PairAnalysis(
        "source", "Wan", f"few-step{evil}", "Wan", (), used, layers, {"tau": 0.5}, (f"mind{evil}",), "0", 3.0
    )


class _Made:
    def __init__(self, rng: random.Random, cells: int, window: int, points: int):
        self.rng, self.cells, self.window, self.points = rng, cells, window, points

    def number(self) -> float:
        return self.rng.random()

    def measured(self) -> analysis.Measured:
        return analysis.Measured(self.number(), self.number(), self.number())

    def curve(self, length: int) -> tuple[float, ...]:
        return tuple(self.number() for _ in range(length))

    def grid(self, size: int) -> tuple[tuple[float, ...], ...]:
        return tuple(self.curve(size) for _ in range(size))

    def update(self) -> analysis.UpdateAnalysis:
        groups = tuple(range(0, 32 * 48, 48))[: self.points]
        windows = tuple(
            analysis.Window(
                place, first, self.grid(self.window), self.grid(self.window), self.measured(), self.measured()
            )
            for place, first in (("head", 0), ("middle", 400), ("tail", 1400))
        )
        ranks = tuple(2**at for at in range(9))
        return analysis.UpdateAnalysis(
            1.0, self.measured(), self.measured(), None, self.measured(), self.measured(), self.measured(), windows,
            analysis.Rotation(groups, self.curve(len(groups)), self.curve(len(groups)), self.curve(len(groups))),
            analysis.Energy(ranks, self.curve(9), self.curve(9)), self.curve(self.points),
        )  # fmt: skip

    def densities(self) -> analysis.Densities:
        curves = [self.curve(self.cells) for _ in range(4)]
        return analysis.Densities(curves[0], curves[1], 0.1, curves[2], curves[3], self.grid(self.cells), self.number())

    def routing(self, of: str) -> analysis.Routing:
        shown = tuple(
            analysis.Certificate(at, 1, 2.0, 0.1, None if at % 2 else 0.5, self.number(), self.number())
            for at in range(6)
        )
        certificates = analysis.Certificates(6, 3, self.measured(), shown)
        lora = None if of == "drift" else self.densities()
        cells, sigma = (2,) * self.cells, self.curve(self.cells)
        return analysis.Routing(of, 30, 6, 4, cells, sigma, self.densities(), lora, certificates)

    def lora(self, label: str) -> analysis.LoraAnalysis:
        acts = analysis.Intervention(
            self.measured(),
            self.measured(),
            self.measured(),
            self.measured(),
            self.grid(self.cells),
            self.grid(self.cells),
        )
        meeting = analysis.Meeting(
            self.measured(), self.measured(), self.measured(), 0.01, self.grid(self.cells), self.measured(),
            self.grid(self.cells), self.measured(), acts,
        )  # fmt: skip
        return analysis.LoraAnalysis(label, self.update(), self.routing(label), meeting)

    def layer(self, block: int, kind: str, labels: list[str]) -> analysis.LayerAnalysis:
        at = tuple(range(0, 32 * self.points, 32))
        return analysis.LayerAnalysis(
            f"blocks.{block}.{kind}", kind, block, (5120, 5120), 10.0, at, self.curve(self.points), 30, self.update(),
            self.routing("drift"), tuple(self.lora(label) for label in labels), 0.1, False,
        )  # fmt: skip
