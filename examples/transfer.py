"""A transfer from Python, in ten lines. Run it anywhere: it uses the bundled tiny models."""

import loraport
from loraport import zoo

report = loraport.transfer(
    zoo.path("outline"), source=zoo.path("source"), target=zoo.path("dmd"), output="outline-fast.safetensors"
)
print(f"wrote {report.output}, rank {report.summary.rank_out}")
for layer in report.layers[:5]:
    print(f"{layer.name:28} drift {100 * layer.stats['drift_rel']:.0f} %  energy kept {100 * layer.energy_kept:.1f} %")
