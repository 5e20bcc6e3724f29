"""What a finished transfer tells its user."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from loraport.cli import text
from loraport.cli.console import Console
from loraport.engine.plan import TransferPlan
from loraport.engine.results import Summary, TransferReport
from loraport.report.tables import show
from loraport.wording import count, share, size

_BESIDE = {"page": "report", "card": "card"}
ENOUGH = 0.9  # of the energy; below it the summary says how to keep more


def show_report(
    report: TransferReport,
    plan: TransferPlan,
    console: Console,
    *,
    said: Sequence[str],
    beside: Mapping[str, Path],
    log: Path | None,
) -> None:
    """Summary for people, and the table of layers when asked for.

    Args:
        report: of the run.
        plan: that it carried out.
        console: where to say it.
        said: warnings that were shown already during the run.
        beside: the page and the card that were written about it.
        log: its run log, if there is one to be named.
    """
    if console.verbose:
        show_layers(report, console)
    facts = report.summary
    alone = "the source alone" if facts.source_lora else "the source"
    base = alone if facts.target is None else facts.target_title
    target = " plus ".join([base, *(Path(used.file).name for used in facts.target_lora)])
    lines = [
        f"transferred {Path(facts.lora).name} to {target}",
        *([f"  trained   {trained}"] if (trained := plan.adapter.training.sentence()) else []),
        f"  layers    {_layers(report)}",
        f"  keys      {count(len(report.passthrough), 'key')} passed through, {len(report.dropped) or 'none'} dropped",
        f"  rank      {facts.rank_in} in, {facts.rank_out} out",
        *_energy(report, plan),
        f"  time      {text.duration(facts.seconds)}{_cache_use(facts)}",
    ]
    if report.dropped:
        lines.append(f"  dropped   {text.listing(report.dropped)}")
    for side, extra in (("source", facts.extra_source), ("target", facts.extra_target)):
        if extra:
            lines.append(f"  only in the {side} (left alone): {text.listing(extra)}")
    if report.output is not None:
        written = size(report.output.stat().st_size)
        lines.append(f"  output    {report.output}  ({written}, {facts.dtype}, written and read back)")
        lines += [f"  {_BESIDE[what]:<9} {file}" for what, file in beside.items()]
        if log is not None:
            lines.append(f"  log       {log}  (every layer in numbers; --log off writes none)")
        lines += text.under("load it", report.load)
        lines += _sampled(facts)
    console.result(*lines)
    console.warning(*(message for message in report.warnings if message not in said))


def _sampled(facts: Summary) -> list[str]:
    """How the target is sampled, where it is known by its name."""
    known = facts.target_known
    if known is None:
        return []
    ways = [f"            {program}: {way}" for program, way in known.ways.items()]
    return [f"  sample it {known}", *ways]


def show_layers(report: TransferReport, console: Console) -> None:
    """One row a layer: the figures of the engine and of the method, by the names that the method gives them."""
    own = [column for column in report.columns if column.key not in ("rank_in", "rank_out")]
    rows = []
    for layer in report.layers:
        figures = {**layer.stats, "energy_kept": layer.energy_kept}
        rows.append(
            [
                layer.name,
                " x ".join(map(str, layer.shape)),
                f"{layer.rank_in} -> {layer.rank_out}",
                *("" if column.key not in figures else show(column, figures[column.key]) for column in own),
                "kept" if layer.cached else text.duration(layer.seconds),
            ]
        )
    console.table(["layer", "shape", "rank", *(column.title for column in own), "time"], rows, fixed=3)


def _energy(report: TransferReport, plan: TransferPlan) -> list[str]:
    """How much of the exact update the rank holds, and where it holds least."""
    facts = report.summary
    worst = min(report.layers, key=lambda layer: layer.energy_kept)
    if worst.energy_kept > 1 - 1e-6:  # what is missing is rounding
        return ["  energy    the full update is kept in every layer"]
    whole = any(job.name == worst.name and not job.update.factored for job in plan.jobs)
    more = "" if facts.energy_kept_total >= ENOUGH else "; more with a larger --rank"
    return [
        f"  energy    {share(facts.energy_kept_total)} of the full update kept in total, "
        f"{share(facts.energy_kept_mean)} in the mean layer",
        f"            least in {worst.name}: {share(worst.energy_kept)}"
        f"{' (a whole matrix in the input)' if whole else ''}{more}",
    ]


def _layers(report: TransferReport) -> str:
    """How many layers the method was applied to, and how many only came along."""
    facts = report.summary
    method = facts.method + (f" at amount {facts.amount:g}" if facts.amount != 1.0 else "")
    if facts.strength != 1.0:
        method += f", the LoRA at strength {facts.strength:g}"
    changed = sum(layer.method == facts.method for layer in report.layers)
    rest = facts.layers - changed
    return f"{changed} transferred ({method})" + (f", {rest} unchanged (--layers)" if rest else "")


def _cache_use(facts: Summary) -> str:
    if not facts.cached_layers:
        return ""
    return f", {facts.cached_layers} of {count(facts.layers, 'layer')} from an earlier run"
