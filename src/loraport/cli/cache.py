"""`loraport cache`: look at the kept work, bound it, check it, fill it beforehand, or throw it away."""

import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from loraport.cli import text
from loraport.cli.console import Console
from loraport.cli.entry import entry
from loraport.cli.flags import Given, command
from loraport.cli.options import option
from loraport.cli.plain_help import Command, Group
from loraport.engine.options import RunOptions
from loraport.engine.recipe import Recipe
from loraport.errors import FileError, UsageError
from loraport.settings import parse_size
from loraport.wording import size

app = typer.Typer(
    cls=Group,
    help="Manage the work kept from earlier runs: decompositions of source models and finished layers.",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="rich",
    epilog="""See how much is kept, then drop all but 10 GB of it:

    loraport cache ls

    loraport cache gc --max-size 10GB""",
)
Folder = Annotated[str | None, option(
    "--cache", metavar="DIR", default="$LORAPORT_CACHE or the user's cache folder", help="Cache folder."
)]  # fmt: skip


@app.command("ls", cls=Command, epilog="    loraport cache ls -v")
@entry
def ls(console: Console, folder: Folder = None) -> None:
    """Show how much is kept and where; with -v, every entry."""
    from loraport.store import index

    root = _root(folder)
    found = index.entries(root)
    kinds = {kind: [entry for entry in found if entry.kind == kind] for kind in index.KINDS}
    total = sum(entry.bytes for entry in found)
    console.result(f"{root}: {_entries(len(found))}, {size(total)}")
    rows = [
        [index.KINDS[kind], str(len(group)), size(sum(entry.bytes for entry in group))]
        for kind, group in kinds.items()
        if group or kind == "result"
    ]
    console.table(["kept", "entries", "size"], rows)
    if console.verbose:
        now = time.time()
        console.table(
            ["entry", "kind", "size", "last used"],
            [[e.key[:16], e.kind, size(e.bytes), f"{text.duration(max(now - e.used, 0))} ago"] for e in found],
        )
    console.document(
        {
            "root": str(root),
            "entries": len(found),
            "bytes": total,
            "kinds": {
                kind: {"entries": len(group), "bytes": sum(entry.bytes for entry in group)}
                for kind, group in kinds.items()
            },
            "list": [{"kind": e.kind, "key": e.key, "bytes": e.bytes, "used": e.used} for e in found],
        }
    )


@app.command("gc", cls=Command, epilog="    loraport cache gc --max-size 10GB --older-than 30d")
@entry
def gc(
    console: Console,
    folder: Folder = None,
    max_size: Annotated[str | None, option(
        "--max-size", metavar="SIZE", default="30GB", help="Total size to keep."
    )] = None,
    older_than: Annotated[str | None, option(
        "--older-than", metavar="TIME", help="Drop what was not used for this long."
    )] = None,
) -> None:  # fmt: skip
    """Drop the least recently used entries until the rest fits."""
    from loraport.store import index

    bound = index.DEFAULT_MAX_BYTES if max_size is None else parse_size(max_size, name="--max-size")
    age = None if older_than is None else text.parse_duration(older_than, name="--older-than")
    root = _root(folder)
    deleted = index.collect(root, max_bytes=bound, older_than=age)
    _tell_deleted(root, deleted, console)


@app.command("clear", cls=Command, epilog="    loraport cache clear")
@entry
def clear(console: Console, folder: Folder = None) -> None:
    """Drop everything. Only time is lost."""
    from loraport.store import index

    root = _root(folder)
    _tell_deleted(root, index.clear(root), console)


@app.command("verify", cls=Command, epilog="    loraport cache verify --remove")
@entry
def verify(
    console: Console,
    folder: Folder = None,
    remove: Annotated[bool, option("--remove", help="Delete damaged entries.")] = False,
) -> None:
    """Read every entry and check its content. The exit code is 5 if one is damaged."""
    root = _root(folder)
    from loraport.store.store import Store  # loads torch, after all refusals

    store = Store(root)
    checked = len(store.entries())
    problems = store.verify(remove=remove)
    damaged = [problem for problem in problems if problem.what == "damaged"]
    if damaged and not remove:
        raise FileError(
            f"{_entries(len(damaged))} of {checked} damaged",
            where=damaged[0].entry,
            values=damaged[0].detail,
            fix="loraport cache verify --remove (otherwise they are dropped at their next use)",
        )
    ending = f"{len(damaged)} damaged, removed" if damaged else "all sound"
    console.result(f"{store.root}: {_entries(checked)} checked, {ending}")
    for problem in problems:
        console.warning(problem.message)
    console.document(
        {
            "root": str(store.root),
            "checked": checked,
            "problems": [asdict(problem) for problem in problems],
        }
    )


@app.command(
    "warm", cls=Command, epilog="    loraport cache warm style.safetensors -s Wan2.1-T2V-1.3B/ -t FastWan2.1-T2V-1.3B/"
)
@command(Recipe, RunOptions, without=("overwrite", "log"))
def warm(given: Given, console: Console) -> None:
    """Do the work of a transfer beforehand and write nothing: the next one on the same source is quick.

    The layers of the LoRA say which layers of the source are decomposed; any other LoRA on them profits.
    """
    root = _root(given.values.get("cache"))
    run_options = given.make(RunOptions).model_copy(update={"cache": str(root), "log": "off"})
    recipes = [given.recipe(lora) for lora in given.loras]
    from loraport.cli.progress import Progress
    from loraport.engine.plan import make_plan
    from loraport.store import index

    for recipe in recipes:
        plan = make_plan(recipe)
        from loraport.engine.run import run  # loads torch, after all refusals

        if plan.cache_bytes == 0:
            console.warning(
                f"{plan.method} decomposes nothing, so only this LoRA's layers can be kept, and nothing for another one"
            )
        with Progress(console) as progress:
            run(plan, None, run_options, progress)
    found = index.entries(root)
    total = sum(entry.bytes for entry in found)
    console.result(f"{root}: {_entries(len(found))}, {size(total)}")
    console.document({"root": str(root), "entries": len(found), "bytes": total})


def _root(folder: str | None) -> Path:
    from loraport.store import index

    if folder == "off":
        raise UsageError("there is no cache to look at", values="--cache off")
    return index.cache_root(None if folder in ("auto", "on") else folder)


def _tell_deleted(root: Path, deleted: list, console: Console) -> None:
    freed = sum(entry.bytes for entry in deleted)
    console.result(f"{root}: {_entries(len(deleted))} dropped, {size(freed)} freed")
    console.document({"root": str(root), "deleted": len(deleted), "freed_bytes": freed})


def _entries(number: int) -> str:
    return "no entries" if number == 0 else "1 entry" if number == 1 else f"{number} entries"
