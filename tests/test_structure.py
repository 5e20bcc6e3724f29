"""The rooms of the house and who may call whom, read off the source itself."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "loraport"

MAY_IMPORT = {
    "core": {"core", "errors"},
    "methods": {"methods", "core", "errors"},
    "formats": {"formats", "core.lowrank", "errors", "files", "__version__"},
    "store": {"store", "core.lowrank", "errors", "files"},
    "engine": {"engine", "methods", "formats", "store", "core", "errors", "files", "__version__"},
    "report": {"report", "errors", "files", "__version__"},
}
OUTSIDE = {"core": {"torch", "jaxtyping"}, "methods": {"torch", "jaxtyping", "pydantic"}}


def _modules(room: str) -> list[Path]:
    return sorted((PACKAGE / room).rglob("*.py"))


def _imports(path: Path) -> list[str]:
    """Full dotted names of everything that a file imports, at any depth."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def _within(name: str, allowed: set[str]) -> bool:
    return any(name == rule or name.startswith(rule + ".") for rule in allowed)


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_rooms_import_only_what_the_design_allows(room):
    assert _modules(room), room
    for path in _modules(room):
        for name in _imports(path):
            if name.startswith("loraport."):
                inner = name.removeprefix("loraport.")
                assert _within(inner, MAY_IMPORT[room]), f"{path.name} imports {name}"


@pytest.mark.parametrize("room", OUTSIDE)
def test_pure_rooms_use_torch_and_the_standard_library_only(room):
    for path in _modules(room):
        for name in _imports(path):
            top = name.split(".")[0]
            known = top == "loraport" or top in sys.stdlib_module_names or top in OUTSIDE[room]
            assert known, f"{path.name} imports {name}"


def test_only_the_command_line_prints_or_exits():
    for path in PACKAGE.rglob("*.py"):
        if path.parent.name == "cli":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in {"print", "exit", "sys.exit", "os._exit"}, f"{path}: {called}"


def test_nothing_unpickles_without_restriction():
    for path in PACKAGE.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assert not {"dill", "cloudpickle"} & {name.split(".")[0] for name in _imports(path)}, path
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            assert not called.startswith("pickle."), f"{path}: {called}"
            assert "Unpickler" not in called, f"{path}: {called}"
            if called == "torch.load":
                flags = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                assert flags.get("weights_only") == "True", path


def test_no_grab_bags_and_no_keyword_swallowing():
    for path in PACKAGE.rglob("*.py"):
        assert path.stem not in {"utils", "util", "helpers", "common", "misc"}, path
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                assert node.args.kwarg is None, f"{path}: {node.name} takes **{node.args.kwarg}"


def test_importing_the_package_is_light():
    code = "import sys, loraport; print([m for m in ('torch', 'ray', 'matplotlib', 'diffusers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_resolves():
    import loraport

    for name in loraport.__all__:
        assert getattr(loraport, name) is not None
        assert not (PACKAGE / name).is_dir(), f"importing the package {name} would hide the function"
    with pytest.raises(AttributeError):
        loraport.nonsense  # noqa: B018
