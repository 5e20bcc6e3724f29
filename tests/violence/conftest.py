"""What every act of violence needs: files to break, a process to break, and the question whether it broke well."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pytest

import pico
from loraport.engine.rates import rates_of

ZYGOTE = Path(__file__).with_name("zygote.py")


@dataclass
class Process:
    """A running `loraport`."""

    pid: int
    zygote: "Zygote"
    out: Path
    err: Path

    def send(self, which: signal.Signals, *, group: bool = False) -> None:
        """Signal the process, or also its children, as Ctrl-C in a terminal does."""
        (os.killpg if group else os.kill)(self.pid, which)

    def finish(self) -> "Done":
        status = self.zygote.ask({"wait": self.pid})["status"]
        killed = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
        code = None if killed else os.WEXITSTATUS(status)
        return Done(code, killed, self.out.read_text(encoding="utf-8"), self.err.read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Done:
    """A process that ended: with a code or by a signal."""

    code: int | None
    killed: int | None
    stdout: str
    stderr: str

    @property
    def errors(self) -> int:
        """Number of error messages."""
        return sum(line.startswith("error: ") for line in self.stderr.splitlines())


@dataclass
class Zygote:
    """See zygote.py."""

    process: subprocess.Popen
    folder: Path
    count: int = field(default=0)

    def ask(self, request: dict) -> dict:
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def start(
        self,
        *words: object,
        cwd: Path,
        file_limit: int | None = None,
        cache: Path | None = None,
        env: dict[str, str] | None = None,
    ) -> Process:
        self.count += 1
        out, err = self.folder / f"{self.count}.out", self.folder / f"{self.count}.err"
        out.touch()
        err.touch()  # for a process that is killed before it can
        request = {
            "words": [str(word) for word in words],
            "cwd": str(cwd),
            "env": {"LORAPORT_CACHE": str(cache or cwd / "cache")} | (env or {}),
            "out": str(out),
            "err": str(err),
            "file_limit": file_limit,
        }
        return Process(self.ask(request)["pid"], self, out, err)


@pytest.fixture(scope="session")
def zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    if not hasattr(os, "fork"):
        pytest.skip("needs fork")
    rates = json.dumps(asdict(rates_of("cpu", None)))
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", str(ZYGOTE), rates],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    ) as process:
        ready = process.stdout.readline()
        assert ready, "the program cannot be imported"
        yield Zygote(process, tmp_path_factory.mktemp("streams"))
        process.stdin.close()


@pytest.fixture(scope="session")
def originals(tmp_path_factory: pytest.TempPathFactory) -> pico.Pico:
    return pico.write(tmp_path_factory.mktemp("pico"))


@dataclass(frozen=True)
class Case:
    """A copy of the pico files to damage, and ways to run the program on them."""

    files: pico.Pico
    output: Path
    cache: Path
    zygote: Zygote

    def words(self, *more: object, command: str = "transfer") -> list[object]:
        files = self.files
        out = ["-o", self.output, "--method", "casa"] if command == "transfer" else []  # the one that keeps the most
        return [command, files.lora, "--source", files.source, "--target", files.target, *out, *more]

    def start(self, *more: object, file_limit: int | None = None, env: dict[str, str] | None = None) -> Process:
        words, place = self.words(*more), self.files.folder
        return self.zygote.start(*words, cwd=place, cache=self.cache, file_limit=file_limit, env=env)

    def run(self, *more: object, file_limit: int | None = None, env: dict[str, str] | None = None) -> Done:
        return self.start(*more, file_limit=file_limit, env=env).finish()

    def layers_done(self) -> int:
        """How many finished layers the run log tells of."""
        log = self.output.with_name("out.run.jsonl")
        return log.read_text(encoding="utf-8").count('"event": "layer"') if log.exists() else 0

    def wait_for_layers(self, count: int, seconds: float = 60) -> None:
        """Wait until the run log tells of that many finished layers."""
        deadline = time.monotonic() + seconds
        while self.layers_done() < count and time.monotonic() < deadline:
            time.sleep(0.0005)

    def partials(self) -> list[Path]:
        """Half-written files, beside the output and in the cache."""
        return [path for folder in (self.files.folder, self.cache) for path in folder.rglob("*.partial")]

    def refuses(self, code: int, *says: str, more: tuple[object, ...] = ()) -> str:
        """Run a transfer that must fail well: code, one message that names things, no traceback, no output."""
        before = self.output.read_bytes() if self.output.exists() else None
        done = self.run(*more)
        assert done.code == code, done.stderr
        assert done.errors == 1, done.stderr
        assert "Traceback" not in done.stderr + done.stdout
        for text in says:
            assert text in done.stderr, done.stderr
        assert done.stdout == ""
        assert (self.output.read_bytes() if self.output.exists() else None) == before
        assert list(self.files.folder.rglob("*.partial")) == []
        return done.stderr


@dataclass(frozen=True)
class Undisturbed:
    """What a run that nobody disturbs leaves: the bytes of the output, and its cache."""

    output: bytes
    cache: Path


@pytest.fixture(scope="session")
def undisturbed(originals: pico.Pico, zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    folder = tmp_path_factory.mktemp("undisturbed")
    done = Case(originals, folder / "out.safetensors", folder / "cache", zygote).run()
    assert done.code == 0, done.stderr
    return Undisturbed((folder / "out.safetensors").read_bytes(), folder / "cache")


@pytest.fixture
def case(originals: pico.Pico, zygote: Zygote, tmp_path: Path) -> Case:
    folder = tmp_path / "räume & co"  # every test also walks through a path with a space and an umlaut
    shutil.copytree(originals.folder, folder)
    files = pico.Pico(folder, *(folder / path.name for path in (originals.source, originals.target, originals.lora)))
    return Case(files, folder / "out.safetensors", tmp_path / "cache", zygote)
