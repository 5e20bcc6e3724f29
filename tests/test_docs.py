"""What the pages point at is there: files, headings, commands with their flags, scripts with theirs."""

import re
import shlex
from pathlib import Path

import pytest
import typer.main

from loraport.cli.later import loaded
from loraport.cli.main import app

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    path for path in ROOT.rglob("*.md") if not {part for part in path.relative_to(ROOT).parts if part[0] in "._"}
)
COMMANDS = {name: loaded(name) for name in typer.main.get_command(app).commands}  # type: ignore[attr-defined]
FENCED = re.compile(r"^```\w*\n(.*?)^```", re.MULTILINE | re.DOTALL)


def _anchors(page: Path) -> set[str]:
    """The headings of a page as GitHub links to them."""
    text = FENCED.sub("", page.read_text("utf-8"))
    titles = [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", title) for title in re.findall(r"^#+ (.*)$", text, re.MULTILINE)]
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    text = FENCED.sub("", page.read_text("utf-8"))
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, heading = link.partition("#")
        there = (page.parent / name).resolve() if name else page
        assert there.exists(), link
        assert not heading or heading in _anchors(there), link


def _calls(page: Path, program: str) -> list[list[str]]:
    """The words behind the name of a program, wherever a page calls it, up to the end of the command."""
    text = page.read_text("utf-8")
    blocks = "\n".join(FENCED.findall(text)).replace("\\\n", " ")
    spans = [
        *blocks.splitlines(),
        *re.findall(r"`([^`\n]+)`", FENCED.sub("", text)),
        *re.findall(r"^    (.*)$", text, re.M),
    ]
    found = []
    for span in spans:
        call = re.match(rf"\s*(?:\S*/)?{program}\s+(.*)", span)
        if call:
            with_quotes = re.sub(r"\s#.*", "", call[1]).split(" | ")[0]
            try:
                found.append(shlex.split(with_quotes))
            except ValueError:
                found.append(with_quotes.split())
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_commands_are_there_with_their_flags(page):
    for words in _calls(page, "loraport"):
        if not re.fullmatch(r"[a-z]+", words[0]):
            continue
        command = COMMANDS[words[0]]
        if hasattr(command, "commands") and len(words) > 1:
            command = command.commands[words[1]]
        known = {option for param in command.params for option in (*param.opts, *param.secondary_opts)} | {"--help"}
        for word in words:
            if re.match(r"--?[a-z]", word):
                assert word.partition("=")[0] in known, " ".join(words)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_scripts_are_there_with_their_flags(page):
    for words in _calls(page, "python"):
        if not words[0].endswith(".py"):
            continue
        script = next(each for each in (ROOT / words[0], page.parent / words[0]) if each.exists())
        texts = [each.read_text("utf-8") for each in script.parent.glob("*.py")]  # flags that scripts share
        for word in words:
            if word.startswith("--") and word != "--help":
                assert any(f'"{word}"' in text for text in texts), " ".join(words)
