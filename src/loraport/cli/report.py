"""`loraport report`: pages of runs that are done, from their run logs, and of sweeps from their index."""

import os
from pathlib import Path
from typing import Annotated

from loraport.cli.console import Console
from loraport.cli.entry import entry
from loraport.cli.options import OUTPUT, argument, option
from loraport.errors import UsageError
from loraport.wording import count, size
from loraport.writable import check_apart, check_output

EXAMPLE = """Write the page of a transfer that was run without --report, beside its log:

    loraport report style-fast.run.jsonl

Write a page for each LoRA of a job on many, into another folder:

    loraport report loras-fast/ -o pages/

Write a page for each cell of a sweep, and index.html with all of them in one table:

    loraport report swept/"""
_SWEEP, _INDEX = "sweep.json", "index.html"
_LOG = ".run.jsonl"
_PAGE = ".html"


@entry
def report(
    console: Console,
    logs: Annotated[list[Path], argument(
        "LOG",
            "Run logs (NAME.run.jsonl), or folders: every run log in them, at any depth, and the index of a sweep."
    )],
    output: Annotated[str | None, option(
        "--output", "-o", metavar="PATH", panel=OUTPUT, default="beside each log",
        help="Page to write for one log, ending in .html; or a folder for the pages.",
    )] = None,
    overwrite: Annotated[bool, option("--overwrite", panel=OUTPUT, help="Replace pages.")] = False,
) -> None:  # fmt: skip
    """Write the page of a transfer from its run log: what was done, the verdict, and the layers with their maps."""
    pages = _pages(logs, output)
    check_apart(("page", page) for page in pages.values())
    for log, page in pages.items():
        check_output(page, [("index" if _is_sweep(log) else "run log", log)], overwrite=overwrite, what="page")
    from loraport.report import read_run, write_page
    from loraport.report.sweep_page import read_sweep, write_sweep_page

    # all before the first page: a wrong file costs nothing
    sweeps = {path: read_sweep(path) for path in pages if _is_sweep(path)}
    found = {log: read_run(log) for log in pages if log not in sweeps}

    lines = []
    for log, report in found.items():
        page = pages[log]
        write_page(page, report)
        lines.append(f"{page}  ({count(len(report['layers']), 'layer')}, {size(page.stat().st_size)})")
        if not report["summary"]:
            console.warning(f"{log.name} is of a run that did not finish: the page has the layers that it completed")
    for path, sweep in sweeps.items():
        page = pages[path]
        beside = {pages[log].relative_to(page.parent) for log in found if log.is_relative_to(path.parent)}
        write_sweep_page(page, sweep, {each.as_posix() for each in beside})
        lines.append(f"{page}  ({count(len(sweep.cells), 'cell')}, {size(page.stat().st_size)})")
    console.result(*lines)
    console.document({"pages": [str(page) for page in pages.values()]})


def _pages(logs: list[Path], output: str | None) -> dict[Path, Path]:
    """The run logs, and where the page of each is to be written. Of a folder they keep the paths they have in it."""
    found: dict[Path, Path] = {}
    for given in logs:
        given = given.parent if _is_sweep(given) and given.is_file() else given
        inside = sorted(given.rglob(f"*{_LOG}")) if given.is_dir() else [given]
        inside += [path for path in (given / _SWEEP,) if path.is_file()]
        if not inside:
            raise UsageError(
                "the folder holds no run log",
                where=str(given),
                fix=f"give the folder that a transfer wrote to; its logs are named NAME{_LOG}",
            )
        root = given if given.is_dir() else given.parent
        for log in inside:
            found[log] = log.relative_to(root).with_name(_page_of(log))
    if output is None:
        return {log: log.with_name(_page_of(log)) for log in found}
    if Path(output).suffix.lower() == _PAGE and not Path(output).is_dir():
        if len(found) > 1:
            raise UsageError("several pages need an output folder", values=f"{len(found)} pages", fix="-o FOLDER")
        return {log: Path(output) for log in found}
    if not (Path(output).is_dir() or output.endswith(("/", os.sep)) or len(found) > 1):
        raise UsageError(
            "the name of a page must end in .html",
            values=output,
            fix=f"-o {output}{_PAGE}, or -o {output}/ for a folder",
        )
    return {log: Path(output) / page for log, page in found.items()}


def _is_sweep(path: Path) -> bool:
    return path.name == _SWEEP


def _page_of(log: Path) -> str:
    return _INDEX if _is_sweep(log) else log.name.removesuffix(_LOG) + _PAGE
