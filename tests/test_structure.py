"""The rooms of the house and who may call whom, read off the source itself."""

import ast
import functools
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "loraport"

# `partial` is a part of `files`; `threads` belongs to the process, and rooms that do not know each other set it.
GROUND = {
    "arguments",
    "errors",
    "files",
    "partial",
    "settings",
    "machine",
    "threads",
    "version",
    "windows",
    "wording",
    "writable",
}
# Bottom to top: a room may import itself, the ground, and what stands here; never a room further down the list.
MAY_IMPORT = {
    "core": set(),
    "zoo": set(),
    "containers": {"zoo"},
    "store": {"containers", "core"},
    "models": {"containers"},
    "adapters": {"models", "containers", "core"},
    "methods": {"core"},
    "metrics": {"core"},
    "sampling": {"adapters", "models", "containers", "zoo", "core"},
    "engine": {"methods", "adapters", "models", "containers", "store", "core"},
    "merging": {"engine", "adapters", "models", "containers", "store", "core"},
    "resizing": {"engine", "adapters", "models", "containers", "store", "core"},
    "analysis": {"merging", "engine", "methods", "adapters", "models", "containers", "store", "core"},
    "sweeping": {"engine", "methods", "adapters", "containers"},
    "calibration": {"engine", "sampling", "methods", "adapters", "models", "containers", "store", "zoo", "core"},
    "checking": {"analysis", "engine", "methods", "adapters", "models", "containers", "store", "core"},
    "report": {"engine.results", "analysis.results", "checking.results", "checking.expect"},
    "evaluate": {
        "report", "checking", "calibration", "engine", "sampling", "methods", "adapters", "models", "containers",
        "store", "zoo", "core",
    },
    "comparing": {
        "report", "metrics", "engine", "sampling", "adapters", "models", "containers", "core",
    },
    "demo": {"evaluate", "report", "calibration", "engine", "sampling", "methods", "zoo"},
    "cli": {"api"},
}  # fmt: skip
MAY_IMPORT["cli"] |= set(MAY_IMPORT) - {"cli"}
# What is made of headers; that of the same name beside it has the numbers, and torch.
HEADERS = {"containers/codecs": "containers/decoding", "adapters/kinds": "adapters/loading"}
OUTSIDE = {"core": {"torch", "jaxtyping"}, "methods": {"torch", "jaxtyping", "pydantic"}}


@pytest.fixture(scope="module", autouse=True)
def _forgotten_afterwards():
    yield
    for each in (_nodes, _calls, _imports):
        each.cache_clear()


def _modules(room: str) -> list[Path]:
    return sorted((PACKAGE / room).rglob("*.py"))


@functools.cache
def _nodes(path: Path) -> tuple[ast.AST, ...]:
    """Everything in a file, at any depth."""
    return tuple(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


@functools.cache
def _calls(path: Path) -> tuple[tuple[ast.Call, str], ...]:
    """Every call in a file, and what is called as it is written there."""
    return tuple((node, ast.unparse(node.func)) for node in _nodes(path) if isinstance(node, ast.Call))


@functools.cache
def _imports(path: Path) -> list[str]:
    """Full dotted names of everything that a file imports."""
    found = []
    for node in _nodes(path):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def _within(name: str, allowed: set[str]) -> bool:
    return any(name == rule or name.startswith(rule + ".") for rule in allowed)


def test_every_folder_is_a_room_of_the_law():
    folders = {path.parent.relative_to(PACKAGE).parts[0] for path in PACKAGE.glob("*/**/*.py")}
    assert folders - set(MAY_IMPORT) == set()


def test_the_map_names_files_that_are_there():
    docs = PACKAGE.parents[1] / "docs"
    page = (docs / "architecture.md").read_text("utf-8")
    rooms = "|".join(MAY_IMPORT)
    named = {f"{room}/{name}.py" for room, name in re.findall(rf"`({rooms})\.([a-z_]+)`", page)}
    for text in (page, *(each.read_text("utf-8") for each in sorted(docs.glob("adding-*.md")))):
        named |= set(re.findall(rf"(?<![\w/])(?:{rooms})/[a-z0-9_/]+\.(?:py|yaml)", text))
    assert len(named) > 50
    assert {name for name in named if not (PACKAGE / name).exists()} == set()
    assert [name for name in sorted(GROUND) if f"`{name}.py`" not in page] == []


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_rooms_import_only_rooms_below_them(room):
    allowed = MAY_IMPORT[room] | GROUND | {room}
    for path in _modules(room):
        for name in _imports(path):
            top, _, inner = name.partition(".")
            if top != "loraport":
                continue
            assert _within(inner, allowed), f"{path.relative_to(PACKAGE)} imports {name}"


@pytest.mark.parametrize("room", OUTSIDE)
def test_pure_rooms_use_torch_and_the_standard_library_only(room):
    for path in _modules(room):
        for name in _imports(path):
            top = name.split(".")[0]
            known = top == "loraport" or top in sys.stdlib_module_names or top in OUTSIDE[room]
            assert known, f"{path.name} imports {name}"


@pytest.mark.parametrize("room", HEADERS)
def test_headers_are_understood_without_torch(room):
    for path in _modules(room):
        for name in _imports(path):
            assert name.split(".")[0] not in {"torch", "jaxtyping"}, f"{room}/{path.name} imports {name}"
            assert not _within(name, {f"loraport.{folder.replace('/', '.')}" for folder in HEADERS.values()}), path


def test_only_the_command_line_prints_or_exits():
    for path in PACKAGE.rglob("*.py"):
        if path.parent.name == "cli":
            continue
        for _, called in _calls(path):
            assert called not in {"print", "exit", "sys.exit", "os._exit"}, f"{path}: {called}"


def test_float64_is_asked_for_where_a_device_may_have_none():
    """`wide` goes to the CPU on Apple's GPUs; a tensor there that is told to be `double()` raises."""
    alone = {"operator.py", "thin_svd.py", "bootstrap.py", "allotment.py"}  # `wide` itself, and what stays on the CPU
    for path in [*_modules("core"), *_modules("methods"), PACKAGE / "resizing" / "weight.py"]:
        assert path.name in alone or ".double()" not in path.read_text(encoding="utf-8"), path


def test_what_adds_in_any_order_on_a_gpu_stands_in_one_place():
    """`core.labelled` gives the same bits in every run; `tests/methods/test_same_bits.py` looks at what is called."""
    changing = {"index_add", "scatter_add", "index_put", "histc", "kthvalue", "segment_reduce", "bincount"}
    changing |= {name + "_" for name in changing} | {"put_"}
    allowed = {"core/labelled.py", "core/bootstrap.py", "core/allotment.py"}  # the latter two stay on the CPU,
    allowed |= {"analysis/routing_maps.py", "analysis/update_figures.py", "methods/casa/maps.py"}  # and these count
    for path in [path for room in ("core", "methods", "analysis", "engine", "resizing") for path in _modules(room)]:
        for node, _ in _calls(path):
            if isinstance(node.func, ast.Attribute):
                known = node.func.attr not in changing or path.relative_to(PACKAGE).as_posix() in allowed
                assert known, f"{path}: {ast.unparse(node.func)}"
                if node.func.attr.startswith("scatter_reduce"):
                    assert "'amin'" in ast.unparse(node) or "'amax'" in ast.unparse(node), path


def test_text_files_say_their_encoding():
    """Without one it is another on Windows."""
    for path in PACKAGE.rglob("*.py"):
        for node, called in _calls(path):
            method = re.search(r"\.(read|write)_text$", called) and called != "files.write_text"
            modes = [each.value for each in node.args if isinstance(each, ast.Constant)]
            opens = re.search(r"(\b|\.)(fd)?open$", called) and called != "os.open" and not any("b" in m for m in modes)
            if method or (opens and modes):
                assert "utf-8" in ast.unparse(node), f"{path}: {ast.unparse(node)}"


def test_nothing_unpickles_without_restriction():
    for path in PACKAGE.rglob("*.py"):
        assert not {"dill", "cloudpickle"} & {name.split(".")[0] for name in _imports(path)}, path
        for node, called in _calls(path):
            assert not called.startswith("pickle."), f"{path}: {called}"
            assert "Unpickler" not in called, f"{path}: {called}"
            if called == "torch.load":
                flags = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                assert flags.get("weights_only") == "True", path


def test_no_grab_bags_and_no_keyword_swallowing():
    for path in PACKAGE.rglob("*.py"):
        assert path.stem not in {"utils", "util", "helpers", "common", "misc"}, path
        for node in _nodes(path):
            if isinstance(node, ast.FunctionDef):
                assert node.args.kwarg is None, f"{path}: {node.name} takes **{node.args.kwarg}"


def test_importing_the_package_is_light():
    heavy = "[m for m in ('torch', 'ray', 'matplotlib', 'diffusers') if m in sys.modules]"
    code = f"import sys, loraport; loraport.errors.FileError; print({heavy})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_resolves():
    import loraport

    for name in loraport.__all__:
        assert getattr(loraport, name) is not None
        assert not (PACKAGE / name).is_dir(), f"importing the package {name} would hide the function"
    with pytest.raises(AttributeError):
        loraport.nonsense  # noqa: B018
