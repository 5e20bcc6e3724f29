"""`--recipe FILE`: the same as the flags, flags win, and what is wrong with it is said."""

import hashlib
import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

import pico
from loraport.cli.main import app
from loraport.cli.recipe_file import read_recipe
from loraport.engine.recipe import Recipe
from loraport.errors import UsageError


def invoke(*words: object):
    return CliRunner().invoke(app, [str(word) for word in words], prog_name="loraport")


@pytest.fixture
def recipe(files: pico.Pico) -> Path:
    """A recipe beside its files, which it names as they lie beside it."""
    path = files.folder / "recipe.yaml"
    path.write_text(
        f"# how it was made\nlora: {files.lora.name}\nsource: {files.source.name}\ntarget: {files.target.name}\n"
        "method: casa\nparams:\n  q_dom: 0.6\nrank: 12\nforce: true\n",
        encoding="utf-8",
    )
    return path


def test_a_recipe_makes_the_file_that_its_flags_make(files: pico.Pico, recipe: Path) -> None:
    one, two = files.folder / "one.safetensors", files.folder / "two.safetensors"
    done = invoke("transfer", "--recipe", recipe, "-o", one, "--cache", "off")
    assert done.exit_code == 0, done.output
    flags = ["-m", "casa", "--set", "casa.q_dom=0.6", "--rank", "12", "--force", "--cache", "off"]
    done = invoke("transfer", files.lora, "-s", files.source, "-t", files.target, "-o", two, *flags)
    assert done.exit_code == 0, done.output
    assert hashlib.sha256(one.read_bytes()).digest() == hashlib.sha256(two.read_bytes()).digest()


def plan(recipe: Path, *more: object) -> dict:
    done = invoke("plan", "--recipe", recipe, "--json", *more)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_what_is_given_wins(files: pico.Pico, recipe: Path) -> None:
    assert (plan(recipe)["method"], plan(recipe)["params"]["q_dom"], plan(recipe)["rank"]) == ("casa", 0.6, "12")
    assert plan(recipe, "--rank", "16")["rank"] == "16"
    facts = plan(recipe, "--set", "casa.arbitrate=false")
    assert (facts["params"]["q_dom"], facts["params"]["arbitrate"]) == (0.6, False)
    assert plan(recipe, "--set", "q_dom=0.7")["params"]["q_dom"] == 0.7
    assert plan(recipe, "--method", "direct")["method"] == "direct"  # without the settings of another
    assert plan(recipe, "--method", "casa")["params"]["q_dom"] == 0.6
    other = files.folder / "other.safetensors"
    other.write_bytes(files.lora.read_bytes())
    facts = plan(recipe, "--target-lora", other)
    assert facts["target"] is None
    assert plan(recipe, other)["lora"] == str(other)


def test_distillation_loras_are_a_list_or_said_one_by_one(files: pico.Pico) -> None:
    for name in ("few.safetensors", "cfg.safetensors", "odd:2"):
        (files.folder / name).write_bytes(files.lora.read_bytes())
    recipe, start = files.folder / "made.yaml", "lora: style.safetensors\nsource: source.safetensors\ntarget_lora:"
    flags = [
        "--target-lora",
        files.folder / "few.safetensors",
        "--target-lora",
        f"{files.folder / 'cfg.safetensors'}:0.5",
    ]
    done = invoke("plan", files.lora, "-s", files.source, *flags, "--json")
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)["target_lora"]
    assert [(Path(each["file"]).name, each["strength"]) for each in said] == [
        ("few.safetensors", 1),
        ("cfg.safetensors", 0.5),
    ]
    for listed in (
        "[few.safetensors, 'cfg.safetensors:0.5']",
        "[few.safetensors, {file: cfg.safetensors, strength: 0.5}]",
    ):
        recipe.write_text(f"{start} {listed}\n", encoding="utf-8")
        assert plan(recipe)["target_lora"] == said
    for one, strength in (
        ("cfg.safetensors:0.5", 0.5),
        ("odd:2", 1),
        ("'odd:2:-1:scale=3'", -1),
        ("{file: 'odd:2'}", 1),
    ):
        recipe.write_text(f"{start} {one}\n", encoding="utf-8")
        (found,) = plan(recipe)["target_lora"]
        assert (found["strength"], Path(found["file"]).parent) == (strength, files.folder)
    assert plan(recipe, *flags)["target_lora"] == said  # what is given takes the place of all
    shown = invoke("plan", "--recipe", recipe, *flags).stdout
    assert "the source plus " in shown
    assert "cfg.safetensors at strength 0.5" in shown


def test_every_command_that_transfers_takes_it(files: pico.Pico, recipe: Path) -> None:
    done = invoke("cache", "warm", "--recipe", recipe, "--cache", files.folder / "kept")
    assert done.exit_code == 0, done.output
    done = invoke("calibrate", "--recipe", recipe, "-o", files.folder / "x.safetensors")
    assert "no setting named 'method'" in done.stderr  # its own settings only, and none is passed over in silence


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("lora: a\nsorce: b\n", "did you mean 'source'"),
        ("lora: a\nsource: b\ntarget: c\nworkers: 2\n", "--workers"),
        ("lora: a\nsource: b\n", "target is not given"),
        ("lora: a\ntarget: b\n", "source is not given"),
        ("source: b\ntarget: c\n", "no LoRA"),
        ("lora: a\nsource: b\ntarget: c\nrank: many\n", "many"),
        ("lora: a\nsource: b\ntarget: c\nparams: 3\n", "params"),
        ("lora: a\nlora: b\n", "twice"),
        ("lora: [a, b]\nsource: b\ntarget: c\n", "lora"),
        ("- lora\n- source\n", "not a list of settings"),
        ("3: x\n", "not a list of settings"),
        ("", "not a list of settings"),
        ("{[}", "not valid YAML"),
        ("a: " + "[" * 1000, "not valid YAML"),
        ("!!python/object/apply:os.system ['true']", "not valid YAML"),
        ("amount: .nan\nlora: a\nsource: b\ntarget: c\n", "amount"),
        ("lora: a\nsource: b\ntarget: c\nscale: 1e999\n", "scale"),
        (b"\xff\xfe\x00", "save it as UTF-8"),
        ("x" * (1 << 21), "too large"),
    ],
)
def test_what_is_wrong_with_it_is_said(tmp_path: Path, text: str | bytes, says: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    done = invoke("plan", "--recipe", path)
    assert done.exit_code in (2, 5), done.output
    assert says in done.stderr
    assert done.stderr.count("error: ") == 1


def test_a_recipe_that_is_not_there(tmp_path: Path) -> None:
    for name in ("nowhere.yaml", ".", "x" * 300):
        done = invoke("plan", "--recipe", f"{tmp_path}/{name}")
        assert done.exit_code == 5, done.output
        assert "cannot be read" in done.stderr


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("rank: 0x" + "f" * 20_000, "a value of 20,002 characters"),
        ("params: {" + ", ".join(f"k{n}: 1" for n in range(60_000)) + "}", "too large"),
        ("method: casa\n? [method]\n: direct\n", "not valid YAML"),
    ],
)
def test_a_recipe_of_many_pages_is_refused_at_once(text: str, says: str, files: pico.Pico) -> None:
    path = files.folder / "long.yaml"
    path.write_text(text, encoding="utf-8")
    done = invoke("plan", files.lora, "-s", files.source, "-t", files.target, "--recipe", path)
    assert done.exit_code in (2, 5), done.output
    assert says in done.stderr


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_is_no_recipe(files: pico.Pico) -> None:
    path = files.folder / "pipe.yaml"
    os.mkfifo(path)
    done = invoke("plan", files.lora, "-s", files.source, "-t", files.target, "--recipe", path)
    assert done.exit_code == 5, done.output
    assert "not a regular file" in done.stderr


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("010", 10),
        ("0x10", "0x10"),
        ("1:30", "1:30"),
        ("1e-1", 0.1),
        ("no", "no"),
        ("true", True),
        ("-3.5", -3.5),
        ("~", None),
    ],
)
def test_numbers_are_decimal_and_only_true_and_false_are_switches(text: str, meant: object, tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(f"strength: {text}", encoding="utf-8")
    assert read_recipe(file, (Recipe,)) == {"strength": meant}


@pytest.mark.parametrize("name", ["strength", "rank", "amount"])
def test_a_switch_is_no_number(name: str, files, tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(f"{name}: true", encoding="utf-8")
    with pytest.raises(UsageError, match=name):
        Recipe(lora="a", source="b", target="c", **read_recipe(file, (Recipe,)))
