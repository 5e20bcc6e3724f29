"""The public function."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from loraport.arguments import as_paths, check_arguments
from loraport.engine.events import Listener, ignore
from loraport.engine.options import RunOptions
from loraport.sweeping.cells import cells_of
from loraport.sweeping.grid import Grid
from loraport.sweeping.run import SweepReport, carry_sweep

PathLike = str | Path


def sweep(
    loras: PathLike | Iterable[PathLike],
    grid: Grid | Mapping[str, Any],
    *,
    output: PathLike,
    recursive: bool = False,
    options: RunOptions | None = None,
    on_event: Listener = ignore,
) -> SweepReport:
    """Transfer LoRAs to several targets with several settings, in one job. The same call again makes what is missing.

    Each file is the one that `transfer` writes for the recipe of its cell. A failure of one cell does not stop the
    others.

    Args:
        loras: files, folders, patterns such as `loras/*.safetensors`, or zoo:NAME; () for those of the grid.
        grid: targets and settings by the names of the fields of `Recipe`, each with one value or a list of them, as in
            docs/sweep.md: `{"source": S, "target": [T, U], "rank": [16, 32], "params": {"q_dom": [0.5, 0.6]}}`.
        output: folder for the outputs, `sweep.json` (a row for each cell) and `sweep.csv`.
        recursive: also take LoRAs from subfolders.
        options: how to use the machine: device, workers, memory, cache.
        on_event: called with every `loraport.engine.events.Event`.

    Returns:
        A row for each cell, and the error of each that failed.

    Raises:
        LoraportError: the settings, the machine or the folder are wrong, which concerns every cell. Outputs that were
            already finished stay; the others are left as they were.
    """
    check_arguments(sweep, locals())
    asked = Grid.model_validate(dict(grid) if isinstance(grid, Mapping) else grid)
    folder = Path(output)
    cells = cells_of(as_paths(loras), asked, folder, recursive=recursive)
    return carry_sweep(cells, folder, asked, options or RunOptions(), on_event)
